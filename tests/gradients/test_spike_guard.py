import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from hybrid_lightning import ConfigError, GradientNormMonitor, GradualUnfreezing, SpikeGuard, named_param_groups
from hybrid_lightning.gradients.skipping import LaterOnHost
from hybrid_lightning.gradients.spike_guard import ACTIONS
from tests.processes import succeed_on
from tests.resume.resuming import Dropping, Run, first_difference
from tests.small import CONFIG, changed, command
from tests.tiny import Foreign, batches, hybrid, trainer

QUIET = "ignore:SpikeGuard"
SENSITIVE: dict[str, Any] = {"z": 4.0, "ratio": 5.0, "warm_up": 8, "decay": 0.9}


class Faults(pl.Callback):
    """Multiplies the gradients of a module at some steps, on one rank or all."""

    def __init__(self, module: str, steps: Any, factor: float = 1e3, rank: int | None = None) -> None:
        self.module, self.steps, self.factor, self.rank = module, list(steps), factor, rank

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.step = trainer.global_step

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_step in self.steps and self.rank in (None, trainer.global_rank):
            for parameter in pl_module.get_submodule(self.module).parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(self.factor)


class Journal(pl.Callback):
    """Norms per part by hand, weights and rates before and after each step, and what was logged."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []
        self.weights: list[list[Tensor]] = []
        self.rates: list[list[float]] = []
        self.states: list[Any] = []
        self.logged: list[dict[str, float]] = []
        self.trains: list[set[str]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.weights.append([value.detach().clone() for value in pl_module.state_dict().values()])
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])
        self.states.append(copy.deepcopy(optimizer.state_dict()["state"]))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        squares: dict[str, float] = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                square = 0.0 if p.grad is None else p.grad.double().square().sum().item()
                squares[group["part"]] = squares.get(group["part"], 0.0) + square
        self.norms.append({part: math.sqrt(square) for part, square in squares.items()})
        groups = optimizer.param_groups
        self.trains.append({g["name"].split("/")[0] for g in groups if any(p.requires_grad for p in g["params"])})

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})


class Decaying(Foreign):
    """Plain SGD with a scheduler that multiplies the rates it finds."""

    def configure_optimizers(self) -> Any:
        parts = {"backbone": "backbone", "head": "head"}
        optimizer = torch.optim.SGD(named_param_groups(self, parts, lr=0.01, weight_decay=0.0))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


Kind = tuple[Callable[[], pl.LightningModule], str, str]
KINDS: dict[str, Kind] = {
    "task": (lambda: hybrid("always", dropout=0.0), "network.parts.new", "new"),
    "foreign": (lambda: Foreign(), "backbone", "backbone"),
}


def fitted(
    model: pl.LightningModule, guard: SpikeGuard, *callbacks: pl.Callback, **options: Any
) -> tuple[pl.Trainer, Journal]:
    """A run of 40 steps with something before the guard and a journal at both its sides."""
    journal = Journal()
    defaults = {"max_epochs": 2, "log_every_n_steps": 1}
    runner = trainer(callbacks=[*callbacks, journal, guard], **{**defaults, **options})
    runner.fit(model, batches(samples=160))
    return runner, journal


# Detecting


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_every", [1, 50])
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
def test_a_spike_is_told_with_part_step_norm_and_z(kind: str, log_every: int) -> None:
    make, module, part = KINDS[kind]
    guard = SpikeGuard(**SENSITIVE)
    with pytest.warns(UserWarning, match=rf"step 30: gradient norm of '{part}' \S+, typically \S+ \(× \d+, z \d+"):
        _, journal = fitted(make(), guard, Faults(module, [30]), log_every_n_steps=log_every)
    logs = [math.log(norms[part]) for norms in journal.norms[:30]]
    weights = [0.9 ** (len(logs) - 1 - index) for index in range(len(logs))]
    mean = sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)
    variance = sum(w * (x - mean) ** 2 for w, x in zip(weights, logs, strict=True)) / sum(weights)
    [event] = guard.events
    assert (event["step"], event["part"]) == (30, part)
    assert event["actions"] == ["warn"]
    assert event["ratio"] == pytest.approx(journal.norms[30][part] / math.exp(mean), rel=1e-5)
    assert event["z"] == pytest.approx((math.log(journal.norms[30][part]) - mean) / variance**0.5, rel=1e-4)
    assert guard.counts == {part: 1}
    if log_every == 1:
        counts = [row[f"spikes/{part}"] for row in journal.logged]
        assert counts == [0] * 30 + [1] * 10


@pytest.mark.parametrize("kind", KINDS)
def test_warning_alone_changes_nothing(kind: str) -> None:
    make, module, _ = KINDS[kind]
    ours = make()
    with pytest.warns(UserWarning, match="step 30"):
        fitted(ours, SpikeGuard(**SENSITIVE), Faults(module, [30]))
    theirs = make()
    trainer(callbacks=[Faults(module, [30])], max_epochs=2).fit(theirs, batches(samples=160))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.filterwarnings(QUIET)
def test_a_level_that_lasts_is_adapted_to() -> None:
    guard = SpikeGuard(**SENSITIVE)
    fitted(Foreign(), guard, Faults("head", range(20, 80), 1e4), max_epochs=4)
    steps = [event["step"] for event in guard.events]
    assert steps[0] == 20
    assert len(steps) < 15
    assert max(steps) < 40


@pytest.mark.filterwarnings(QUIET)
def test_a_history_begins_when_a_part_or_a_stage_of_it_begins_to_train() -> None:
    guard = SpikeGuard(**SENSITIVE)
    unfreezing = GradualUnfreezing({"backbone": {"start": "14 steps", "every": "10 steps"}})
    fitted(Foreign(), guard, unfreezing, Faults("backbone", [30]))
    norms = {part: history["norms"] for part, history in guard.state_dict()["histories"].items()}
    assert norms == {"backbone": 40 - 34, "head": 40}
    assert not guard.events, "step 30 is within the warm-up of the stage that came at step 24"


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("log_every", [1, 7])
def test_a_warning_alone_reads_a_step_later_between_log_steps(log_every: int, monkeypatch: Any) -> None:
    made: dict[int, int] = {}
    waits: list[tuple[int, int]] = []
    read = LaterOnHost.read

    class Clock(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            self.step = trainer.global_step

        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.step += 1

    clock, original = Clock(), LaterOnHost.__init__

    def init(self: Any, values: Tensor) -> None:
        original(self, values)
        made[id(self)] = clock.step

    def reading(self: Any) -> list[float]:
        waits.append((made[id(self)], clock.step))
        return read(self)

    monkeypatch.setattr(LaterOnHost, "__init__", init)
    monkeypatch.setattr(LaterOnHost, "read", reading)
    fitted(Foreign(), SpikeGuard(), clock, log_every_n_steps=log_every)
    assert [step for step, _ in waits] == list(range(40))
    assert all(later - step == ((step + 1) % log_every != 0) for step, later in waits)


def test_only_the_first_spikes_are_shown(recwarn: Any) -> None:
    guard = SpikeGuard(**SENSITIVE)
    fitted(Foreign(), guard, Faults("head", range(20, 80), math.nan), max_epochs=4)
    told = [str(warning.message) for warning in recwarn if "SpikeGuard" in str(warning.message)]
    assert guard.counts == {"head": 60, "backbone": 59}
    assert len(told) == 10


# Skipping


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [None, "norm", "value"])
def test_a_skipped_step_leaves_everything_as_it_was(kind: str, clip: str | None) -> None:
    make, module, _ = KINDS[kind]
    guard = SpikeGuard("skip", **SENSITIVE)
    options = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": clip} if clip else {}
    if kind == "foreign" and clip == "value":
        with pytest.raises(ConfigError, match="torch's clipping by value fails without any"):
            fitted(make(), guard, **options)
        return
    runner, journal = fitted(make(), guard, Faults(module, [30, 35]), GradientNormMonitor(), **options)
    stood = [
        step
        for step in range(39)
        if all(map(torch.equal, journal.weights[step], journal.weights[step + 1]))
        and first_difference(journal.states[step], journal.states[step + 1], "state") is None
    ]
    assert stood == [30, 35]
    assert runner.global_step == 40
    assert guard.skipped == 2
    assert [row["skipped_steps/spikes"] for row in journal.logged] == [0] * 30 + [1] * 5 + [2] * 5
    assert [event["actions"] for event in guard.events] == [["skip"]] * 2


def test_after_too_many_skips_the_level_is_accepted() -> None:
    guard = SpikeGuard("skip", max_skips=3, **SENSITIVE)
    with pytest.warns(UserWarning, match="step 23: 3 steps in a row were skipped, so the gradient norms of 'head' are"):
        fitted(Foreign(), guard, Faults("head", range(20, 40), 1e6))
    assert guard.skipped == 3
    assert [event["actions"] for event in guard.events] == [["skip"]] * 3 + [["accept"]]
    assert guard.state_dict()["histories"]["head"]["norms"] == 40 - 23


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_a_spike_from_the_start_and_never_remembered(value: float) -> None:
    guard = SpikeGuard(["warn", "skip"], max_skips=2, **SENSITIVE)
    with pytest.warns(UserWarning, match="gradient norm of 'head' is not finite"):
        _, journal = fitted(Foreign(), guard, Faults("head", [0, 20, 21], value))
    assert guard.skipped == 3
    assert all(map(torch.equal, journal.weights[0], journal.weights[1]))
    assert all(event["actions"] == ["warn", "skip"] for event in guard.events)
    assert guard.state_dict()["histories"]["head"]["norms"] == 37


@pytest.mark.filterwarnings(QUIET)
def test_a_fit_whose_gradients_stay_non_finite_ends() -> None:
    with pytest.raises(ConfigError, match=r"at step 12 the gradients of 'head' are not finite, and 2 steps in a row"):
        fitted(Foreign(), SpikeGuard("skip", max_skips=2), Faults("head", range(10, 40), math.nan))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_steps_that_a_gradient_scaler_skips_are_no_spikes() -> None:
    guard = SpikeGuard("skip", **SENSITIVE)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=1000))
    _, journal = fitted(Decaying(), guard, plugins=scaled)
    finite = sum(all(map(math.isfinite, norms.values())) for norms in journal.norms)
    assert 0 < finite < 40
    assert not guard.events
    assert guard.state_dict()["histories"]["head"]["norms"] == finite


# Resuming and ranks


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize(
    ("kind", "actions", "accumulate"),
    [("task", [*ACTIONS], 1), ("foreign", [*ACTIONS], 2), ("foreign", ["warn"], 1)],
    ids=["task", "foreign", "warn"],
)
def test_a_fit_continues_exactly_from_any_checkpoint(
    kind: str, actions: list[str], accumulate: int, tmp_path: Path
) -> None:
    schedule = {"start": "3 steps", "every": "3 steps"}
    module = "network.parts.new" if kind == "task" else "head"

    def make() -> pl.LightningModule:
        return hybrid(schedule) if kind == "task" else Dropping()

    def run(path: Path | None = None, folder: Path | None = None) -> tuple[Run, dict[str, Any]]:
        guard = SpikeGuard(actions, z=3.0, ratio=3.0, warm_up=3, max_skips=2)
        callbacks = [Faults(module, [4, 6, 7, 8, 9, 16]), guard]
        options = {"log_every_n_steps": 50, "accumulate_grad_batches": accumulate}
        return Run(make, "samples", path, folder, callbacks=callbacks, **options), guard.state_dict()

    whole, state = run(folder=tmp_path)
    taken = {action for event in state["events"] for action in event["actions"]}
    assert taken == {*actions, "accept"} - ({"accept"} if actions == ["warn"] else set())
    paths = sorted(tmp_path.glob("batch-*.ckpt"))[:: 1 if accumulate > 1 else 3]
    for path in paths:
        again, state_again = run(path)
        assert first_difference(whole.state(), again.state(), path.name) is None
        assert first_difference(state, state_again, path.name) is None
    assert len(paths) >= 7


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_decide_the_same_although_only_one_has_the_spike(strategy: str, tmp_path: Path) -> None:
    succeed_on(2, "-m", "tests.gradients.spike_worker", strategy, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first_difference(first, second, "ranks") is None
    assert [event["step"] for event in first["guard"]["events"]] == [10, 14]
    assert first["guard"]["skipped"] == 2


# The front door


@pytest.mark.filterwarnings(QUIET)
def test_it_is_named_in_a_config(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    callback = {"class_path": "SpikeGuard", "init_args": {"actions": ["warn", "skip"], "warm_up": 2}}
    assert command("fit", config=changed({"trainer.callbacks": [callback]})) == 0
    [path] = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    saved = torch.load(path, weights_only=True)["callbacks"]["SpikeGuard"]
    assert saved["histories"]["body"]["norms"] == CONFIG["trainer"]["limit_train_batches"]
    [table] = tmp_path.glob("runs/*/*/metrics.csv")
    header = table.read_text().splitlines()[0].split(",")
    assert {"spikes/body", "skipped_steps/spikes"} <= set(header)


@pytest.mark.parametrize("action", ["lower_lr", "postpone"])
def test_a_config_with_a_removed_action_is_told_what_to_use(action: str, folder: Path, capsys: Any) -> None:
    callback = {"class_path": "SpikeGuard", "init_args": {"actions": ["warn", action]}}
    assert command("fit", config=changed({"trainer.callbacks": [callback]})) != 0
    assert f"SpikeGuard.actions: '{action}' was removed. Use 'skip', or" in capsys.readouterr().err


def test_the_state_of_a_release_with_more_actions_is_read() -> None:
    guard = SpikeGuard("skip")
    history = {"trains": 2, "norms": 30, "mean": 0.5, "variance": 0.1}
    state = {"counts": {"head": 1}, "skipped": 2, "spiky_steps": 1, "skips_in_a_row": 0, "lowered": {"head": 40}}
    events = [{"step": 12, "part": "head", "z": 9.0, "ratio": 7.0, "actions": ["lower_lr"]}]
    guard.load_state_dict({**state, "histories": {"head": history}, "events": events, "statistics": None})
    again = guard.state_dict()
    assert again == {key: value for key, value in {**again, **state}.items() if key != "lowered"}
    assert (again["histories"], again["events"]) == ({"head": history}, events)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": "skipp"}, r"SpikeGuard\.actions: unknown action 'skipp'. Did you mean 'skip'\?"),
        ({"actions": ["warn", "lower"]}, "unknown action 'lower'"),
        ({"actions": []}, "actions: none is given"),
        ({"z": 0}, "z: 0 is not a number above 0"),
        ({"ratio": 1}, "ratio: 1 is not a number above 1"),
        ({"decay": 1.0}, r"decay: 1\.0 is not"),
        ({"warm_up": 1}, "warm_up: 1 is not a number at least 2"),
        ({"max_skips": 0}, r"SpikeGuard\.max_skips: 0"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpikeGuard(**options)


def test_several_optimizers_are_refused() -> None:
    class Two(Foreign):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.backbone, self.head)]

    with pytest.raises(ConfigError, match="SpikeGuard: works with one optimizer; this module has 2"):
        fitted(Two(), SpikeGuard())
