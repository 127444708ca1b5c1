import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from hybrid_lightning import ConfigError, named_param_groups
from hybrid_lightning.optim.factory import make_optimizer, make_scheduler, named_class
from tests.small import classifier, loader, table, trainer

SCHEDULER = "torch.optim.lr_scheduler"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.old, self.new = nn.Linear(2, 2), nn.Linear(2, 2)


def groups():
    return named_param_groups(Two(), {"old": "old", "new": "new"}, lr=0.1, rates={"old": {"lr_scale": 0.1}})


def optimizer(spec=None, fused=False, **options):
    return make_optimizer(spec, groups(), fused=fused, **options)


def data():
    return loader({"x": table(), "target": torch.arange(27) % 3})


@pytest.mark.parametrize(
    ("spec", "kind", "chosen"),
    [
        (None, torch.optim.AdamW, {}),
        ("SGD", torch.optim.SGD, {}),
        ("torch.optim.Adam", torch.optim.Adam, {}),
        ({"class_path": "SGD", "init_args": {"momentum": 0.9}}, torch.optim.SGD, {"momentum": 0.9}),
        ({"class_path": "torch.optim.RMSprop", "init_args": {"alpha": 0.5}}, torch.optim.RMSprop, {"alpha": 0.5}),
        ({"class_path": f"{__name__}.Own", "init_args": None}, torch.optim.SGD, {}),
    ],
)
def test_an_optimizer_is_chosen_by_class(spec, kind, chosen):
    made = optimizer(spec)
    assert isinstance(made, kind)
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0.01, 0.01, 0.1, 0.1])
    assert [g["weight_decay"] for g in made.param_groups] == [0.01, 0, 0.01, 0]
    assert all(made.param_groups[0][key] == value for key, value in chosen.items())


class Own(torch.optim.SGD):
    pass


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_fused_is_used_where_it_is_allowed_and_not_chosen_otherwise(name):
    assert optimizer(name, fused=True).param_groups[0]["fused"] is True
    assert not optimizer(name, fused=False).param_groups[0]["fused"]
    for own in ({"fused": False}, {"foreach": True}):
        assert not optimizer({"class_path": name, "init_args": own}, fused=True).param_groups[0]["fused"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_sgd_of_somebody_else_is_not_fused_for_weights_of_16_bits(dtype):
    own = named_param_groups(Two().to(dtype), {"old": "old", "new": "new"}, lr=0.1)
    assert not make_optimizer({"class_path": f"{__name__}.Own"}, own, fused=True).param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "Adagrad"])
def test_an_epsilon_that_float16_does_not_hold_is_refused(name):
    own = named_param_groups(Two().half(), {"old": "old", "new": "new"}, lr=0.1)
    with pytest.raises(ConfigError, match=r"^model\.optimizer\.init_args\.eps: 1e-.* is 0 in float16.*16-mixed"):
        make_optimizer(name, own, fused=False)
    make_optimizer({"class_path": name, "init_args": {"eps": 1e-4}}, own, fused=False)


def test_an_optimizer_without_a_fused_form_stays_as_it_is():
    assert "fused" not in optimizer("RMSprop", fused=True).param_groups[0]


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_adamw_is_fused_unless_a_scaler_scales_gradients(precision, fused):
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))  # with a device, which Lightning leaves out
    chosen = {"plugins": scaler} if precision == "16-mixed" else {"precision": precision}
    run = trainer(**chosen, gradient_clip_val=1.0, limit_val_batches=0)
    run.fit(classifier(), data())
    assert isinstance(run.optimizers[0], torch.optim.AdamW)
    assert bool(run.optimizers[0].param_groups[0]["fused"]) is fused


def test_a_fused_optimizer_is_refused_where_a_scaler_scales_gradients():
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fused = {"class_path": "AdamW", "init_args": {"fused": True}}
    run = trainer(plugins=scaler, limit_val_batches=0)
    with pytest.raises(ConfigError, match=r"AdamW\(fused=True\) unscales gradients within its step.*Use fused=False"):
        run.fit(classifier(optimizer=fused), data())


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"class_path": "SGD", "init_args": {"lr": 0.1}}, r"model\.optimizer\.init_args\.lr: .*set model\.lr"),
        ({"class_path": "SGD", "init_args": {"weight_decay": 0.1}}, r"set model\.weight_decay"),
        ({"class_path": "SGD", "init_args": {"momentun": 0.1}}, "Did you mean 'momentum'"),
        ({"class_path": "SGD", "init_arg": {}}, "Did you mean 'init_args'"),
        ({"class_path": "SGD", "init_args": {"momentum": -1.0}}, "SGD refuses its arguments: Invalid momentum"),
        ({"init_args": {}}, "class_path"),
        (["SGD"], "class_path"),
        ("Adamm", "Did you mean 'Adam"),
        ("Optimizer", "unknown class"),
        ("lr_scheduler", "unknown class"),
        ("torch.nn.Linear", r"^model\.optimizer\.class_path: 'torch\.nn\.Linear' is not an optimizer"),
        ("math.sqrt", "'math.sqrt' is not an optimizer"),
        ("torch.optim.Adamm", "'torch.optim.Adamm': unknown name 'Adamm'. Did you mean 'Adam'"),
        ("torch.optim.lr_scheduler.StepLR", "'torch.optim.lr_scheduler.StepLR' is not an optimizer, such as AdamW"),
    ],
)
def test_an_impossible_optimizer_is_refused(spec, match):
    with pytest.raises(ConfigError, match=match):
        optimizer(spec)


@pytest.mark.parametrize(
    ("spec", "rates"),
    [
        ({"class_path": "StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}, [0.1, 0.05, 0.025]),
        ({"class_path": f"{SCHEDULER}.ExponentialLR", "init_args": {"gamma": 0.1}}, [0.1, 0.01, 0.001]),
        ({"class_path": "LinearLR", "init_args": {"start_factor": 0.5, "total_iters": 2}}, [0.05, 0.075, 0.1]),
    ],
)
def test_a_scheduler_of_torch_keeps_the_ratio_of_the_groups(spec, rates):
    made = optimizer("SGD")
    result = make_scheduler(spec, made)
    assert result["interval"] == "epoch"
    for rate in rates:
        assert [g["lr"] for g in made.param_groups] == pytest.approx([rate / 10, rate / 10, rate, rate])
        made.step()
        result["scheduler"].step()


def test_a_scalar_peak_is_expanded_to_the_groups():
    made = optimizer()
    result = make_scheduler({"class_path": "OneCycleLR", "init_args": {"max_lr": 0.5, "total_steps": 10}}, made)
    assert result["interval"] == "step"
    peaks = [0.0] * 4
    for _ in range(9):
        made.step()
        result["scheduler"].step()
        peaks = [max(peak, g["lr"]) for peak, g in zip(peaks, made.param_groups, strict=True)]
    assert peaks == pytest.approx([0.05, 0.05, 0.5, 0.5], rel=0.02)


def test_the_interval_and_the_monitor_are_the_users():
    made = optimizer("SGD")
    step = {"class_path": "StepLR", "init_args": {"step_size": 1}, "interval": "step"}
    assert make_scheduler(step, made)["interval"] == "step"
    plateau = {"class_path": "ReduceLROnPlateau", "monitor": "val/accuracy", "init_args": {"mode": "max"}}
    assert make_scheduler(plateau, made)["monitor"] == "val/accuracy"
    assert make_scheduler("ReduceLROnPlateau", made)["monitor"] == "val/loss"
    assert "monitor" not in make_scheduler(step, made)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"class_path": "StepLR", "init_args": {"step_size": 1}},
        {"class_path": "ReduceLROnPlateau", "init_args": {"patience": 0}},
        {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 20}},
        {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 4}, "interval": "step"},
        {"class_path": "CyclicLR", "init_args": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False}},
    ],
    ids=lambda spec: spec["class_path"],
)
def test_a_fit_runs_with_it(scheduler):
    run = trainer(max_epochs=2)
    run.fit(classifier(scheduler=scheduler), data(), data())
    assert type(run.lr_scheduler_configs[0].scheduler.scheduler).__name__ == scheduler["class_path"]


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("StepL", "Did you mean 'StepLR'"),
        ("Counter", "unknown class"),
        ("partial", "unknown class"),
        ("torch.nn.Linear", r"^model\.scheduler\.class_path: 'torch\.nn\.Linear' is not a scheduler"),
        ("StepLR", r"model\.scheduler\.init_args: 'step_size' must be given"),
        ({"class_path": "StepLR", "init_args": {"step_siz": 1}}, "Did you mean 'step_size'"),
        ({"class_path": "StepLR", "init_args": {"step_size": 1}, "interval": "day"}, "'epoch', 'step'"),
        ({"class_path": "StepLR", "init_args": {"step_size": 1}, "intervl": "step"}, "Did you mean 'interval'"),
        ({"class_path": "OneCycleLR", "init_args": {"max_lr": 0.5}}, "OneCycleLR refuses its arguments"),
    ],
)
def test_an_impossible_scheduler_is_refused(spec, match):
    with pytest.raises(ConfigError, match=match):
        make_scheduler(spec, optimizer())


def test_a_class_is_stored_by_its_name():
    assert named_class(torch.optim.SGD, torch.optim) == "SGD"
    assert named_class(Own, torch.optim) == f"{__name__}.Own"
    assert named_class({"class_path": torch.optim.SGD, "init_args": {}}, torch.optim)["class_path"] == "SGD"
    assert named_class("SGD", torch.optim) == "SGD"
    assert named_class(None, torch.optim) is None
