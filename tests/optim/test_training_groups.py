import pytest
import torch
from torch import nn

from hybrid_lightning.optim.groups import named_param_groups
from hybrid_lightning.optim.training_groups import (
    TrainingGroups,
    groups_with_gradients,
    step_what_trains,
    training_groups,
)

OPTIMIZERS = ["AdamW", "AdamW fused", "AdamW foreach", "Adam", "SGD", "SGD fused", "NAdam", "RMSprop", "Adagrad"]


def network():
    torch.manual_seed(0)
    parts = {name: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)) for name in ("tower", "other", "third")}
    return nn.ModuleDict(parts)


def groups_of(module, **options):
    return named_param_groups(module, {name: name for name in module}, lr=0.1, **options)


def loss_of(module):
    x = torch.linspace(-1, 1, 12).view(4, 3)
    return sum(part(x).square().mean() for part in module.values())


def trained(name, patched, steps=4):
    module = network()
    module["tower"].requires_grad_(False)
    name, _, option = name.partition(" ")
    options = {"SGD": {"momentum": 0.9}}.get(name, {}) | ({option: True} if option else {})
    optimizer = getattr(torch.optim, name)(groups_of(module), lr=0.1, **options)
    if patched:
        step_what_trains(optimizer)
    for step in range(steps):
        if step == 2:
            module["tower"].requires_grad_(True)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(module)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
    return module, optimizer, loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_state_are_those_of_the_plain_optimizer_bit_by_bit(name):
    plain, patched = trained(name, patched=False), trained(name, patched=True)
    assert torch.equal(plain[2], patched[2])
    for one, other in zip(plain[0].parameters(), patched[0].parameters(), strict=True):
        assert torch.equal(one, other)
    before, after = plain[1].state_dict(), patched[1].state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert list(before["state"]) == list(after["state"])
    for key, state in before["state"].items():
        for word, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][key][word]))


def test_groups_of_equal_options_are_stepped_at_once_and_frozen_ones_not_at_all():
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.AdamW(groups_of(module), lr=0.1)
    stepped = []
    optimizer.register_step_pre_hook(
        lambda opt, args, kwargs: stepped.append([len(g["params"]) for g in opt.param_groups])
    )
    step_what_trains(optimizer)
    every = optimizer.param_groups
    loss_of(module).backward()
    optimizer.step()
    optimizer.step()
    assert stepped == [[2, 2, 2, 2], [4, 4]], "other and third, with decay and without, once they have states"
    optimizer.param_groups[-1]["lr"] *= 2
    optimizer.step()
    assert stepped[-1] == [4, 2, 2]
    assert optimizer.param_groups is every


def test_a_closure_sees_all_groups_and_an_error_in_a_step_leaves_them():
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    step_what_trains(optimizer)
    seen = []
    optimizer.step(lambda: seen.append(len(optimizer.param_groups)))
    assert seen == [6]
    optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert len(optimizer.param_groups) == 6


def test_they_are_found_anew_when_something_unfreezes_or_a_state_is_restored():
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    found = training_groups(optimizer)
    assert [group["part"] for group in found.groups] == ["other", "other", "third", "third"]
    assert training_groups(optimizer) is found
    module["tower"][2].bias.requires_grad_(True)
    assert training_groups(optimizer).groups[0]["name"] == "tower/no_decay"
    optimizer.load_state_dict(optimizer.state_dict())
    assert training_groups(optimizer).groups[0] is optimizer.param_groups[1]


def test_what_unfroze_counts_for_a_step_once_it_has_a_gradient():
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    found = training_groups(optimizer)
    module["tower"].requires_grad_(True)
    assert groups_with_gradients(optimizer) is found
    loss_of(module).backward()
    assert [group["part"] for group in groups_with_gradients(optimizer).groups][:2] == ["tower", "tower"]


def test_gradients_are_cleared_also_of_what_has_been_frozen_since():
    module = network()
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    step_what_trains(optimizer)
    loss_of(module).backward()
    module["other"].requires_grad_(False)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())
    loss_of(module).backward()
    optimizer.zero_grad(set_to_none=False)
    assert not module["third"][0].weight.grad.any()


def test_an_optimizer_of_somebody_else_and_lbfgs_stay_as_they_are():
    class Own(torch.optim.SGD):
        pass

    for kind in (Own, torch.optim.LBFGS):
        optimizer = kind([nn.Parameter(torch.ones(1))], lr=0.1)
        step_what_trains(optimizer)
        assert "step" not in vars(optimizer)


def test_a_single_parameter_in_the_middle_of_a_frozen_group_is_stepped_once_it_trains():
    module = network().requires_grad_(False)
    optimizer = torch.optim.SGD([{"params": list(module.parameters()), "name": "all"}], lr=0.1)
    step_what_trains(optimizer)
    assert training_groups(optimizer).groups == []
    middle = module["other"][0].bias.requires_grad_(True)
    before = middle.detach().clone()
    loss_of(module).backward()
    optimizer.step()
    assert not torch.equal(middle, before)


def test_a_gradient_that_somebody_gives_to_a_frozen_group_is_used_and_cleared():
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    step_what_trains(optimizer)
    optimizer.step()
    weight = module["tower"][0].weight
    before = weight.clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(weight, before)
    optimizer.zero_grad()
    assert weight.grad is None


def test_gradients_of_a_step_that_was_left_out_are_cleared_also_of_what_has_unfrozen_since():
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    step_what_trains(optimizer)
    loss_of(module).backward()
    optimizer.step()
    optimizer.zero_grad()
    module["tower"].requires_grad_(True)
    loss_of(module).backward()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_is_frozen_is_looked_at_once_in_a_step(monkeypatch):
    module = network()
    module["tower"].requires_grad_(False)
    optimizer = torch.optim.SGD(groups_of(module), lr=0.1)
    step_what_trains(optimizer)
    looks = []
    look = TrainingGroups.has_all_gradients
    monkeypatch.setattr(TrainingGroups, "has_all_gradients", lambda *given: looks.append(1) or look(*given))
    for _ in range(3):
        loss_of(module).backward()
        groups_with_gradients(optimizer)  # as the pass that measures
        looks_before = len(looks)
        optimizer.step()
        optimizer.zero_grad()
        assert len(looks) == looks_before


def test_options_may_be_lists_as_in_yaml():
    module = network()
    groups = groups_of(module)
    for group in groups:
        group["betas"] = [0.8, 0.9]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    step_what_trains(optimizer)
    for _ in range(2):
        loss_of(module).backward()
        optimizer.step()
    assert all(optimizer.state[parameter]["step"] == 2 for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_stepped_as_not_fused_whatever_the_option_says(dtype):
    weights = []
    for fused in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 100).to(dtype))
        optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.1, momentum=0.9, fused=fused)
        step_what_trains(optimizer)
        for _ in range(3):
            weight.grad = torch.linspace(1, 2, 100).to(dtype)
            optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)
    assert (weights[1] < torch.linspace(-1, 1, 100) - 0.5).all(), "all have moved"
    assert optimizer.param_groups[0]["fused"], "the option itself stays"
