import pytest
import torch
from torch import nn

from hybrid_lightning.unfreezing.freezing import apply_modes, evaluating, module_modes, set_trainable


class Model(nn.Module):
    """A body with normalization and dropout, a head, and a module that nobody's parameters govern."""

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
    apply_modes(module_modes(model, dict.fromkeys(model.parameters(), "any")))


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
    apply_modes(module_modes(model, dict.fromkeys(model.parameters(), "any")))
    assert not model.metric.training
    assert model.body[3].training


def test_only_governed_parameters_decide():
    model = Model()
    set_trainable(model.body.parameters(), False)
    assert model.head not in module_modes(model, dict.fromkeys(model.body.parameters(), "any"))


def test_a_partly_unfrozen_part_trains_where_it_is_unfrozen():
    model = Model()
    set_trainable(model.body.parameters(), False)
    set_trainable(model.body[4].parameters(), True)
    modes = module_modes(model, dict.fromkeys(model.parameters(), "any"))
    assert modes[model.body]
    assert modes[model.body[4]]
    assert not modes[model.body[1]]


@pytest.mark.parametrize("frozen", ["body", "head"])
def test_a_module_in_two_places_trains_if_one_of_them_does(frozen):
    model, shared = Model(), nn.Dropout()
    model.body.append(shared)
    model.head.append(shared)
    set_trainable(model.get_submodule(frozen).parameters(), False)
    assert module_modes(model, dict.fromkeys(model.parameters(), "any"))[shared]


def test_modes_are_set_without_their_children():
    block = nn.Sequential(nn.Dropout())
    apply_modes({block: False})
    assert not block.training
    assert block[0].training


class Norms(nn.Module):
    """Normalizations of every kind with statistics, between layers of two parts."""

    def __init__(self):
        super().__init__()
        kinds = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]
        plain = [nn.BatchNorm1d(2, affine=False), nn.InstanceNorm1d(2, track_running_stats=True)]
        self.old = nn.Sequential(nn.Linear(2, 2), *(kind(2) for kind in kinds), *plain, nn.Dropout(), nn.LayerNorm(2))
        self.new = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("mode", "frozen", "trains"),
    [
        (None, True, False),
        (None, False, True),
        ("frozen", True, False),
        ("frozen", False, False),
        ("recalibrate", True, False),
        ("recalibrate", False, True),
        ("train", True, True),
        ("train", False, True),
    ],
)
def test_normalizations_with_statistics_have_the_mode_that_their_part_is_given(mode, frozen, trains):
    model = Norms()
    set_trainable(model.old.parameters(), not frozen)
    parts = {**dict.fromkeys(model.old.parameters(), "old"), **dict.fromkeys(model.new.parameters(), "new")}
    modes = module_modes(model, parts, {"old": mode} if mode else {})
    assert [modes[module] for module in model.old[1:7]] == [trains] * 6
    assert [modes[module] for module in model.old[7:]] == [not frozen] * 2, "dropout and LayerNorm follow the part"
    assert modes[model.new[1]]


def evaluate_and_fail(model: Model) -> None:
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        raise OSError("the disk is full")


def test_modules_have_their_own_modes_again_after_an_evaluation_that_fails():
    model = Model()
    model.body[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(OSError, match="full"):
        evaluate_and_fail(model)
    assert [module.training for module in model.modules()] == before
