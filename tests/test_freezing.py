import pytest
import torch
from torch import nn

from hybrid_lightning.freezing import apply_modes, module_modes, set_trainable


class Model(nn.Module):
    """A body with normalisation and dropout, a head, and a module that nobody's parameters govern."""

    def __init__(self) -> None:
        super().__init__()
        norms = [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)]
        self.body = nn.Sequential(nn.Linear(4, 4), *norms, nn.Dropout(0.5), nn.Linear(4, 4))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
        self.metric = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.body(x))


def freeze_body(model: Model) -> None:
    set_trainable(model.body.parameters(), False)
    model.train()
    apply_modes(module_modes(model, set(model.parameters())))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
    ],
    ids=["adamw", "momentum"],
)
def test_frozen_parameters_and_buffers_stay_bit_equal_although_the_optimizer_knows_them(make):
    model = Model()
    optimizer = make(model.parameters())
    for frozen in (False, True):
        if frozen:
            freeze_body(model)
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for _ in range(3):
            optimizer.zero_grad(set_to_none=False)
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) is name.startswith("body."), name


def test_freezing_removes_the_gradient_that_waited():
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    set_trainable(layer.parameters(), False)
    assert [(p.requires_grad, p.grad) for p in layer.parameters()] == [(False, None)] * 2


def test_unfreezing_keeps_the_gradient():
    layer = nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    set_trainable(layer.parameters(), True)
    assert all(p.grad is not None and p.requires_grad for p in layer.parameters())


def test_modules_without_parameters_follow_their_nearest_ancestor_that_has_some():
    model = Model()
    freeze_body(model)
    trains = {name for name, module in model.named_modules() if module.training}
    assert trains == {"", "head", "head.0", "head.1", "metric"}


def test_a_module_that_follows_nobody_keeps_its_mode():
    model = Model().eval()
    apply_modes(module_modes(model, set(model.parameters())))
    assert not model.metric.training
    assert model.body[3].training


def test_only_governed_parameters_decide():
    model = Model()
    set_trainable(model.body.parameters(), False)
    assert model.head not in module_modes(model, set(model.body.parameters()))


def test_a_partly_unfrozen_part_trains_where_it_is_unfrozen():
    model = Model()
    set_trainable(model.body.parameters(), False)
    set_trainable(model.body[4].parameters(), True)
    modes = module_modes(model, set(model.parameters()))
    assert modes[model.body]
    assert modes[model.body[4]]
    assert not modes[model.body[1]]


@pytest.mark.parametrize("frozen", ["body", "head"])
def test_a_module_in_two_places_trains_if_one_of_them_does(frozen):
    model, shared = Model(), nn.Dropout()
    model.body.append(shared)
    model.head.append(shared)
    set_trainable(model.get_submodule(frozen).parameters(), False)
    assert module_modes(model, set(model.parameters()))[shared]


def test_modes_are_set_without_their_children():
    block = nn.Sequential(nn.Dropout())
    apply_modes({block: False})
    assert not block.training
    assert block[0].training
