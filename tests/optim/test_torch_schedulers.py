"""Every scheduler of torch, in our tasks and in anybody's module: the rates of each group at each step."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from hybrid_lightning import ConfigError, FitLength, GradualUnfreezing, GroupScheduler
from hybrid_lightning.optim.factory import torch_classes
from tests import tiny
from tests.small import changed, classifier, command, loader, table, trainer

# the data of a restart in the middle of an epoch are not what these tests are about
pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
LR, STEPS_PER_EPOCH, EPOCHS, UNFREEZING = 0.01, 4, 5, 6
STEPS = STEPS_PER_EPOCH * EPOCHS
PARTS = {
    "x": {"module": "MLP", "lr_scale": 0.3, "layer_decay": 0.5, "unfreeze": f"{UNFREEZING} steps"},
    "y": {"module": "MLP", "input": "x"},
}


def decay(step: int) -> float:
    return 1 / (1 + step)


def shrink(step: int) -> float:
    return 0.9


def nothing(step: int) -> float:
    return 0.0


def late(epoch: int) -> float:
    return float(epoch == EPOCHS - 1)


def nested(*specs):
    return [{"class_path": name, "init_args": arguments} for name, arguments in specs]


WARM_UP, DECAY = ("LinearLR", {"start_factor": 0.1, "total_iters": 5}), ("ExponentialLR", {"gamma": 0.8})
ARGUMENTS = {
    "LambdaLR": {"lr_lambda": f"{__name__}.decay"},
    "MultiplicativeLR": {"lr_lambda": f"{__name__}.shrink"},
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 3, 7], "gamma": 0.5},
    "ConstantLR": {"factor": 0.25, "total_iters": 3},
    "LinearLR": {"start_factor": 0.5, "total_iters": 4},
    "ExponentialLR": {"gamma": 0.8},
    "SequentialLR": {"schedulers": nested(WARM_UP, DECAY), "milestones": [5]},
    "PolynomialLR": {"total_iters": STEPS, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 7, "eta_min": 0.001},
    "ChainedScheduler": {"schedulers": nested(WARM_UP, DECAY)},
    "ReduceLROnPlateau": {
        "threshold": 1e3, "threshold_mode": "abs", "patience": 0, "factor": 0.3, "min_lr": 0.0005
    },
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.05, "step_size_up": 3, "mode": "triangular2"},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2, "eta_min": 0.001},
    "OneCycleLR": {"max_lr": 0.05, "total_steps": STEPS},
}  # fmt: skip


def by_hand(name: str, optimizer: torch.optim.Optimizer):
    """The scheduler as a user of torch writes it, without a line of ours."""
    arguments = dict(ARGUMENTS[name])
    if "lr_lambda" in arguments:
        arguments["lr_lambda"] = {"LambdaLR": decay, "MultiplicativeLR": shrink}[name]
    if "schedulers" in arguments:
        arguments["schedulers"] = [
            getattr(lr_scheduler, inner["class_path"])(optimizer, **inner["init_args"])
            for inner in arguments["schedulers"]
        ]
    return getattr(lr_scheduler, name)(**{"optimizer": optimizer, **arguments})


def expected(name: str, every: int, steps: int = STEPS, kind=torch.optim.SGD) -> list[tuple[float, float]]:
    """Rate and momentum before each step, of one group that torch alone schedules."""
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind([nn.Parameter(torch.zeros(1))], lr=LR, **options)
    scheduler = by_hand(name, optimizer)
    seen = []
    for step in range(steps):
        [group] = optimizer.param_groups
        seen.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    return seen


class Rates(pl.Callback):
    """Global step → (name, share, rate, momentum, unfrozen_at) of each group; saves at moments, such as ``val8``."""

    def __init__(self, folder: Path | None = None, moments=()) -> None:
        self.seen: dict[int, list[tuple]] = {}
        self.folder, self.moments = folder, moments

    def save(self, run, moment: str) -> None:
        name = f"{moment}{run.global_step}"
        if self.folder is not None and not run.sanity_checking and name in self.moments:
            run.save_checkpoint(self.folder / f"{name}.ckpt")

    def on_train_batch_end(self, run, *_) -> None:
        self.save(run, "")

    def on_validation_end(self, run, *_) -> None:
        self.save(run, "val")

    def on_train_epoch_end(self, run, *_) -> None:
        self.save(run, "end")

    def on_before_optimizer_step(self, run, module, optimizer):
        self.seen[run.global_step] = [
            (g["name"], g["lr_factor"], g["lr"], g["betas"][0] if "betas" in g else g["momentum"], g["unfrozen_at"])
            for g in optimizer.param_groups
        ]


def data():
    return loader({"x": table(), "target": torch.arange(27) % 3})


def task(name: str, optimizer: str = "SGD", **options):
    torch.manual_seed(0)
    spec = {"class_path": optimizer, "init_args": {"momentum": 0.9} if optimizer == "SGD" else {}}
    scheduler = {"class_path": name, "init_args": ARGUMENTS[name], **options}
    return classifier(parts=PARTS, lr=LR, optimizer=spec, scheduler=scheduler)


def rates_of(
    model, folder: Path | None = None, checkpoint: Path | None = None, moments=("7", "10"), **options
) -> dict[int, list[tuple]]:
    record = Rates(folder, moments)
    run = trainer(max_epochs=EPOCHS, callbacks=[record], **options)
    run.fit(model, data(), data(), ckpt_path=checkpoint, weights_only=True)
    return record.seen


def test_every_scheduler_of_torch_is_decided():
    """A later torch may bring another one; then this fails until it has arguments here and works, or is refused."""
    assert ARGUMENTS.keys() == torch_classes(lr_scheduler).keys()


def intervals(name: str) -> list[str]:
    return {"ReduceLROnPlateau": ["epoch"], "OneCycleLR": ["step"]}.get(name, ["step", "epoch"])


CASES = [(name, interval) for name in ARGUMENTS for interval in intervals(name)]


@pytest.mark.parametrize(("name", "interval"), CASES)
def test_each_group_keeps_its_share_of_torchs_rate_through_an_unfreezing(name, interval):
    options = {} if name == "ReduceLROnPlateau" else {"interval": interval}
    seen = rates_of(task(name, **options))
    wanted = expected(name, {"step": 1, "epoch": STEPS_PER_EPOCH}[interval])
    assert len(seen) == STEPS
    assert len({lr for lr, _ in wanted}) > 1, "a course that stands still would prove nothing"
    for step, groups in seen.items():
        for group, factor, lr, momentum, unfrozen_at in groups:
            assert lr == pytest.approx(factor * wanted[step][0], rel=1e-12), (step, group)
            assert momentum == pytest.approx(wanted[step][1], rel=1e-12)
            assert unfrozen_at == (0 if group[0] != "x" else UNFREEZING if step >= UNFREEZING else None)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_a_cycled_first_beta_reaches_every_group(name):
    seen = rates_of(task(name, "AdamW"))
    wanted = expected(name, 1, kind=torch.optim.AdamW)
    assert len({beta for _, beta in wanted}) > 3
    for step, groups in seen.items():
        assert [g[3] for g in groups] == pytest.approx([wanted[step][1]] * len(groups))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_restart_anywhere_goes_on_with_the_same_rates(name, tmp_path):
    files = ("3", "10", "val8", "end8", "val16")
    whole = rates_of(task(name), tmp_path, moments=files)
    for file in files:
        again = rates_of(task(name), checkpoint=tmp_path / f"{file}.ckpt")
        first = int(file.removeprefix("val").removeprefix("end"))
        assert again == {step: groups for step, groups in whole.items() if step >= first}, file


def rise(clock: int, steps: int) -> float:
    return min((clock + 1) / (steps + 1), 1.0)


@pytest.mark.parametrize(("name", "interval"), [case for case in CASES if case[0] != "ReduceLROnPlateau"])
def test_each_group_warms_up_from_its_own_unfreezing(name, interval, tmp_path):
    options = {"interval": interval, "warm_up": "3 steps"}
    seen = rates_of(task(name, **options), tmp_path)
    wanted = expected(name, {"step": 1, "epoch": STEPS_PER_EPOCH}[interval])
    for step, groups in seen.items():
        for group, factor, lr, _, unfrozen_at in groups:
            clock = 0 if unfrozen_at is None else step - unfrozen_at
            assert lr == pytest.approx(factor * wanted[step][0] * rise(clock, 3), rel=1e-12), (step, group)
    again = rates_of(task(name, **options), checkpoint=tmp_path / "7.ckpt")
    assert again == {step: groups for step, groups in seen.items() if step >= 7}


def test_accumulation_counts_steps_not_batches():
    seen = rates_of(task("StepLR", interval="epoch", warm_up="1 epochs"), accumulate_grad_batches=2)
    wanted = expected("StepLR", 2, steps=2 * EPOCHS)
    head = [next(g for g in groups if g[0] == "head") for groups in seen.values()]
    assert [g[2] for g in head] == pytest.approx([lr * rise(i, 2) for i, (lr, _) in enumerate(wanted)])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("OneCycleLR", {"max_lr": 0.5}),
        ("CyclicLR", {"max_lr": 0.5}),
        ("StepLR", {"gamma": 0.1}),
        ("SequentialLR", {"schedulers": nested(WARM_UP, ("ExponentialLR", {"gamma": 0.5}))}),
        ("CosineAnnealingLR", {"T_max": 5}),
    ],
)
def test_on_a_restart_the_arguments_of_today_count(name, changes, tmp_path, monkeypatch):
    rates_of(task(name, interval="step"), tmp_path)
    monkeypatch.setitem(ARGUMENTS, name, ARGUMENTS[name] | changes)
    seen, wanted = rates_of(task(name, interval="step"), checkpoint=tmp_path / "7.ckpt"), expected(name, 1)
    assert min(seen) == 7
    for step, groups in seen.items():
        assert [g[2] for g in groups] == pytest.approx([g[1] * wanted[step][0] for g in groups])


def test_a_scheduler_that_ends_before_the_step_of_the_restart_is_refused(tmp_path, monkeypatch):
    rates_of(task("OneCycleLR"), tmp_path)
    monkeypatch.setitem(ARGUMENTS, "OneCycleLR", {"max_lr": 0.1, "total_steps": 5})
    with pytest.raises(ConfigError, match="OneCycleLR fails after 5 steps"):
        rates_of(task("OneCycleLR"), checkpoint=tmp_path / "7.ckpt")


def test_on_a_restart_with_another_base_rate_a_plateau_keeps_its_reductions(tmp_path):
    rates_of(task("ReduceLROnPlateau"), tmp_path)
    model = task("ReduceLROnPlateau")
    model = classifier(parts=PARTS, lr=2 * LR, optimizer=model.settings.optimizer, scheduler=model.settings.scheduler)
    seen = rates_of(model, checkpoint=tmp_path / "10.ckpt")
    assert [g[2] for g in seen[10]] == pytest.approx([g[1] * 2 * LR * 0.3 for g in seen[10]])


def test_the_command_line_takes_nested_schedulers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {
        "init.lr": LR,
        "init.scheduler": {"class_path": "SequentialLR", "init_args": ARGUMENTS["SequentialLR"], "interval": "step"},
        "init.parts.stem.lr_scale": 0.5,
        "trainer.max_epochs": 4,
    }
    assert command("fit", config=changed(changes)) == 0
    [path] = Path("runs").rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr/head"]]
    wanted = [lr for lr, _ in expected("SequentialLR", 1, steps=12)]
    assert [float(row["lr/head"]) for row in rows] == pytest.approx(wanted)
    assert [float(row["lr/stem"]) for row in rows] == pytest.approx([lr / 2 for lr in wanted])
    command("plan", config=changed(changes | {"init.scheduler.warm_up": "1 epochs"}))


# Refusals


def refused(scheduler, match, **options):
    run = trainer(max_epochs=EPOCHS, **options)
    with pytest.raises(ConfigError, match=match):
        run.fit(classifier(lr=LR, scheduler=scheduler), data(), data())
    assert run.global_step == 0


@pytest.mark.parametrize(
    ("scheduler", "match"),
    [
        ({"class_path": "LambdaLR"}, r"init_args\.lr_lambda: LambdaLR needs a function.*dotted path.*rates:.*'cosine'"),
        ({"class_path": "MultiplicativeLR"}, "MultiplicativeLR needs a function"),
        ({"class_path": "LambdaLR", "init_args": {"lr_lambda": "nowhere.f"}}, "nowhere"),
        ({"class_path": "LambdaLR", "init_args": {"lr_lambda": [f"{__name__}.decay"]}}, "one value per group"),
        (
            {"class_path": "OneCycleLR", "init_args": {"max_lr": [0.1, 0.2], "total_steps": 20}},
            r"model\.scheduler\.init_args\.max_lr: a list would be one value per group.*lr_scale",
        ),
        ({"class_path": "ReduceLROnPlateau", "init_args": {"min_lr": [0.1, 0.2]}}, r"min_lr: a list"),
        (
            {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.1, "total_steps": 9}},
            "OneCycleLR fails after 9 steps",
        ),
        ({"class_path": "CosineAnnealingLR", "init_args": {"T_max": 0}}, "fails after 0 epochs"),
        ({"class_path": "ReduceLROnPlateau", "warm_up": "2 steps"}, r"scheduler\.warm_up: ReduceLROnPlateau waits for"),
        ({"class_path": "ReduceLROnPlateau", "monitor": "train/loss"}, "stepped at each validation"),
        ({"class_path": "ReduceLROnPlateau", "monitor": "val/acc"}, r"unknown metric 'val/acc'.*'val/accuracy'"),
        ({"class_path": "ReduceLROnPlateau", "interval": "step"}, "stepped at each validation"),
        ({"class_path": "StepLR", "init_args": {"step_size": 1}, "warm_up": 5}, r"scheduler\.warm_up: 5 is not a dur"),
        (
            {"class_path": "SequentialLR", "init_args": {"schedulers": nested(("StepL", {})), "milestones": []}},
            r"model\.scheduler\.init_args\.schedulers\[0\]\.class_path: .*Did you mean 'StepLR'",
        ),
        (
            {"class_path": "ChainedScheduler", "init_args": {"schedulers": nested(("ReduceLROnPlateau", {}))}},
            "ChainedScheduler refuses its arguments: .*ReduceLROnPlateau",
        ),
        (
            {"class_path": "ConstantLR", "init_args": {"factor": 0.0, "total_iters": 40}, "interval": "step"},
            "ConstantLR gives a rate of 0 to each of the 20 steps of the run, so nothing would train",
        ),
        (
            {"class_path": "ConstantLR", "init_args": {"factor": 0.0, "total_iters": 9}},
            "rate of 0 to each of the 5 epochs",
        ),
        ({"class_path": "LambdaLR", "init_args": {"lr_lambda": f"{__name__}.nothing"}}, "LambdaLR gives a rate of 0"),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_first_step(scheduler, match):
    refused(scheduler, match)


def test_a_scheduler_may_hold_the_rate_at_0_for_a_while():
    scheduler = {"class_path": "LambdaLR", "init_args": {"lr_lambda": f"{__name__}.late"}}
    trainer(max_epochs=EPOCHS).fit(classifier(lr=LR, scheduler=scheduler), data(), data())


def test_a_plateau_without_validation_is_refused():
    refused("ReduceLROnPlateau", "needs a validation split", limit_val_batches=0)


def test_a_plateau_follows_the_metric_of_each_validation():
    model = task("ReduceLROnPlateau", monitor="val/accuracy")
    seen = rates_of(model)
    head = {step: next(g[2] for g in groups if g[0] == "head") for step, groups in seen.items()}
    assert head[4] == LR, "the first validation is the best so far"
    assert head[8] == pytest.approx(LR * 0.3)


# Anybody's module


class Foreign(tiny.Foreign):
    """Uses a torch scheduler as its author always has, or ours around it."""

    def __init__(self, name: str, ours: bool = False, **options) -> None:
        super().__init__(lambda groups: torch.optim.SGD(groups, momentum=0.9))
        self.name, self.ours, self.options = name, ours, options

    def training_step(self, batch, batch_idx):
        self.log("seen", 1.0)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.ours:
            make = self.options.pop("make", lambda one: by_hand(self.name, one))
            scheduler = GroupScheduler(optimizer, make, **self.options)
        else:
            scheduler = by_hand(self.name, optimizer)
        config = {"scheduler": scheduler, "interval": "step", "monitor": "seen"}
        if self.ours and self.name == "ReduceLROnPlateau":
            config["reduce_on_plateau"] = True
        return {"optimizer": optimizer, "lr_scheduler": config}


def foreign_rates(module, max_epochs: int = 4) -> dict[int, list[tuple]]:
    record = Rates()
    unfreezing = GradualUnfreezing({"backbone": {"start": "3 steps", "every": "4 steps"}})
    tiny.trainer(callbacks=[record, unfreezing], max_epochs=max_epochs).fit(module, tiny.batches())
    return record.seen


@pytest.mark.parametrize("name", ARGUMENTS)
def test_torchs_own_schedulers_run_through_unfreezings_of_static_groups(name):
    """With torch's meaning: a scalar ``max_lr`` is one rate for all groups; the groups are there from the start."""
    seen, alone = foreign_rates(Foreign(name)), Foreign(name).configure_optimizers()
    optimizer, scheduler = alone["optimizer"], alone["lr_scheduler"]["scheduler"]
    assert len(seen) == 20
    assert {g[4] for g in seen[19]} == {0, 3, 7, 11}
    for groups in seen.values():
        assert [g[2:4] for g in groups] == [(g["lr"], g["momentum"]) for g in optimizer.param_groups]
        optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_ours_keeps_the_shares_in_anybodys_module(name):
    seen, wanted = foreign_rates(Foreign(name, ours=True)), expected(name, 1)
    for step, groups in seen.items():
        assert [g[2] for g in groups] == pytest.approx([g[1] * wanted[step][0] for g in groups], rel=1e-12)


def test_a_warm_up_in_steps_needs_no_length_in_anybodys_module():
    seen, wanted = foreign_rates(Foreign("StepLR", ours=True, warm_up="2 steps")), expected("StepLR", 1)
    for step, groups in seen.items():
        clocks = [0 if g[4] is None else step - g[4] for g in groups]
        wanted_rates = [g[1] * wanted[step][0] * rise(clock, 2) for g, clock in zip(groups, clocks, strict=True)]
        assert [g[2] for g in groups] == pytest.approx(wanted_rates)


def test_a_plateau_that_gets_no_metric_is_told():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr_factor": 1.0}], lr=0.1)
    scheduler = GroupScheduler(optimizer, lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ConfigError, match="reduce_on_plateau"):
        scheduler.step()


@pytest.mark.parametrize(
    ("group", "options", "match"),
    [
        ({}, {}, "base rate is unknown"),
        ({"lr_factor": 0.0}, {}, "base rate is unknown"),
        ({}, {"base_lr": 0.0}, "has to be above 0"),
        ({"lr_factor": 1.0}, {"interval": "epoch", "warm_up": "2 steps", "length": FitLength(None, 9)}, "have no leng"),
    ],
)
def test_an_impossible_use_is_told(group, options, match):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], **group}], lr=0.1)
    with pytest.raises(ConfigError, match=match):
        GroupScheduler(optimizer, lambda one: lr_scheduler.StepLR(one, 1), **options)


def test_an_epoch_in_steps_has_to_be_known_before_the_first_step():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr_factor": 1.0}], lr=0.1)
    scheduler = GroupScheduler(optimizer, lambda one: lr_scheduler.StepLR(one, 1), "epoch", warm_up="2 steps")
    with pytest.raises(ConfigError, match=r"length=FitLength"):
        scheduler.step()
