"""What `SpikeGuard` sees of injected faults, how early, and how often it cries wolf.

Each run fits a small net on real digits, batch size 32: a tower that was pretrained to tell odd from even, an
untrained tower, a head. Runs differ in seed, optimizer (Adam, SGD with momentum), course of the rates (constant,
one-cycle) and unfreezing (all from the start; the pretrained tower stage by stage from 25 % on). `SpikeGuard("warn")`
with its defaults watches through the Trainer and changes nothing. In a faulty run one fault begins at a random step of
the second half:

- lr × 30: all rates, from there to the end;
- inputs × 100: one batch;
- inputs noise: one batch of normal noise with the mean and deviation of the data;
- wrong labels: random ones for 10 steps;
- gradients × 1e6: of one part, one step; gradients inf: one value of one part, one step;
- inputs nan: one batch.

Clean runs are the same fits without a fault, and longer ones.

The baseline is an absolute alarm: the global norm is not finite, or above 10 × its running mean (same memory, same
warm-up).

- detected: an alarm at the fault's first step or in the 10 after it; recall: share of the faulty runs.
- precision: of the detected runs, the alarms before the fault (those within 10 steps are one) and the runs whose first
  alarm after the fault comes later than 10 steps: share of the detected ones.
- harm: the median of the last five training losses is above 3 × their median over the 20 steps before the fault, or not
  finite. Without smoothing one bad batch would be harm. Lead: step of the harm − step of the alarm, median over the
  detected runs with harm; a median of five can be two steps late, for both ways of alarm.
- false alarms: steps of clean runs with an alarm, per 10,000 steps, warm-up included; and how many of them lie in the
  30 steps after an unfreezing.

The defaults of z, ratio, warm_up and decay were chosen on the seeds from 1000 on (``--first_seed 1000``), with other
learning rates (``--lr_scale 0.5``); those reported start at 0.

RESULT spike_guard: recall over all faults. RESULT spike_guard_precision, RESULT spike_guard_false_alarms, RESULT
spike_guard_lead: as above.

    python tests/benchmarks/spike_guard.py --faulty 280 --clean_steps 100000 --threads 1
"""

import argparse
import logging
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import GradualUnfreezing, GroupRates, SpikeGuard, named_param_groups
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.gradients.step import shared_pass

FAULTS = ("lr × 30", "inputs × 100", "inputs noise", "wrong labels", "gradients × 1e6", "gradients inf", "inputs nan")
WINDOW, WRONG_LABEL_STEPS, FAULTY_STEPS, CLEAN_STEPS, BATCH = 10, 10, 240, 1000, 32
STAGES = {"old": ["old.0", "old.1"]}


@dataclass(frozen=True)
class Setting:
    """What a run is like."""

    seed: int
    optimizer: str
    rates: str
    unfreezes: bool
    lr_scale: float = 1.0

    @classmethod
    def number(cls, index: int, first_seed: int, lr_scale: float) -> "Setting":
        return cls(
            first_seed + index,
            ("Adam", "SGD")[index % 2],
            ("constant", "one_cycle")[index // 2 % 2],
            bool(index // 4 % 2),
            lr_scale,
        )


@dataclass
class Seen:
    """What happened in a run."""

    fault_at: int | None
    losses: list[float] = field(default_factory=list)
    guard: list[int] = field(default_factory=list)
    """Steps with an alarm."""
    unfreezings: list[int] = field(default_factory=list)
    """Steps after 0 at which a stage was unfrozen."""
    baseline: list[int] = field(default_factory=list)

    def harm(self) -> int | None:
        """The step at which harm is seen."""
        assert self.fault_at is not None
        level = statistics.median(self.losses[self.fault_at - 20 : self.fault_at])
        for step in range(self.fault_at, len(self.losses)):
            last = self.losses[step - 4 : step + 1]
            median = statistics.median(loss if math.isfinite(loss) else math.inf for loss in last)
            if not median <= 3 * level:
                return step
        return None


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.data).float() / 16
    return (images - images.mean()) / images.std(), torch.from_numpy(data.target).long()


def old_tower() -> nn.Sequential:
    blocks = (nn.Sequential(nn.Linear(size, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.1)) for size in (64, 48))
    return nn.Sequential(*blocks)


@lru_cache(maxsize=1)
def pretrained() -> dict[str, Tensor]:
    """A tower after 300 steps of telling odd from even."""
    torch.manual_seed(0)
    tower, head = old_tower(), nn.Linear(48, 2)
    optimizer = torch.optim.Adam([*tower.parameters(), *head.parameters()], 1e-3)
    x, y = digits()
    for _ in range(300):
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(tower(x[chosen])), y[chosen] % 2).backward()
        optimizer.step()
    return {name: value.clone() for name, value in tower.state_dict().items()}


class TwoTowers(pl.LightningModule):
    """A pretrained tower on the image, an untrained one on its transpose, and a head."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.old = old_tower()
        self.old.load_state_dict(pretrained())
        self.new = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x = batch["image"]
        turned = x.view(-1, 8, 8).transpose(1, 2).flatten(1)
        return nn.functional.cross_entropy(self.head(torch.cat([self.old(x), self.new(turned)], 1)), batch["target"])

    def configure_optimizers(self) -> Any:
        lr = self.setting.lr_scale * {"Adam": 2e-3, "SGD": 2e-2}[self.setting.optimizer]
        parts = {"old": "old", "new": "new", "head": "head"}
        groups = named_param_groups(self, parts, lr=lr, stages=STAGES, rates={"old": {"lr_scale": 0.3}})
        adam = self.setting.optimizer == "Adam"
        optimizer = torch.optim.Adam(groups) if adam else torch.optim.SGD(groups, momentum=0.9)
        return [optimizer], [{"scheduler": GroupRates(optimizer, self.setting.rates), "interval": "step"}]

    def on_train_start(self) -> None:
        scheduler: Any = self.lr_schedulers()
        scheduler.bind(self.trainer.callbacks[0]._length)


class Fault(pl.Callback):
    """One fault at one step; placed before the callbacks that watch."""

    def __init__(self, kind: str, at: int, seed: int) -> None:
        self.kind, self.at, self.random = kind, at, torch.Generator().manual_seed(seed)
        self.part = ("old", "new", "head")[seed % 3]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.kind == "wrong labels" and self.at <= step < self.at + WRONG_LABEL_STEPS:
            batch["target"] = torch.randint(10, (len(batch["target"]),), generator=self.random)
        if step != self.at:
            return
        if self.kind == "inputs × 100":
            batch["image"] = batch["image"] * 100
        elif self.kind == "inputs noise":
            batch["image"] = torch.randn(batch["image"].shape, generator=self.random)
        elif self.kind == "inputs nan":
            batch["image"] = torch.full_like(batch["image"], math.nan)
        elif self.kind == "lr × 30":
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            scheduler.base_lrs = [30 * lr for lr in scheduler.base_lrs]
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= 30

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_step == self.at and self.kind.startswith("gradients"):
            for parameter in getattr(pl_module, self.part).parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = math.inf if self.kind.endswith("inf") else parameter.grad.view(-1)[0]
                    parameter.grad.mul_(1e6)


class Watch(pl.Callback):
    """The losses, and the absolute alarm on the global norm."""

    def __init__(self, seen: Seen, guard: SpikeGuard) -> None:
        self.seen, self.memory, self.warm_up = seen, guard.sensitivity.decay, guard.sensitivity.warm_up
        self.mean, self.steps = 0.0, 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        measured = shared_pass(trainer, "Watch")
        total = float(measured.before.norm())
        if not math.isfinite(total) or (self.steps >= self.warm_up and total > 10 * self.mean):
            self.seen.baseline.append(trainer.global_step)
        if math.isfinite(total):
            self.steps += 1
            self.mean += (1 - self.memory) / (1 - self.memory**self.steps) * (total - self.mean)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.losses.append(float(outputs["loss"]))


def fit(setting: Setting, steps: int, fault: str | None = None) -> Seen:
    torch.manual_seed(setting.seed)
    at = random.Random(setting.seed).randrange(steps // 2, steps - 40) if fault else None
    seen, guard = Seen(at), SpikeGuard("warn")
    schedule = {"start": "25%", "every": "10%"} if setting.unfreezes else "always"
    callbacks: list[pl.Callback] = [GradualUnfreezing({"old": schedule})]
    if fault and at:
        callbacks.append(Fault(fault, at, setting.seed))
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[*callbacks, guard, Watch(seen, guard)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x, y = digits()
    data = DictDataset({"image": x, "target": y})
    trainer.fit(TwoTowers(setting), DataLoader(data, BATCH, shuffle=True, drop_last=True, collate_fn=as_batch))
    seen.guard = sorted({event["step"] for event in guard.events})
    seen.unfreezings = sorted({group["unfrozen_at"] for group in trainer.optimizers[0].param_groups} - {0})
    if len(seen.losses) != steps:
        raise AssertionError(f"{len(seen.losses)} of {steps} steps")
    return seen


def episodes(alarms: Sequence[int]) -> int:
    """Number of alarms, where those within 10 steps of the one before are none of their own."""
    return sum(index == 0 or step - alarms[index - 1] > WINDOW for index, step in enumerate(alarms))


@dataclass
class Score:
    """Measures over several faulty runs."""

    runs: int
    detected: int
    false: int
    harmed: int
    leads: list[int]

    @classmethod
    def of(cls, runs: Sequence[Seen], arm: str) -> "Score":
        detected = false = harmed = 0
        leads = []
        for seen in runs:
            assert seen.fault_at is not None
            alarms: list[int] = getattr(seen, arm)
            first = next((step for step in alarms if step >= seen.fault_at), None)
            in_time = first is not None and first <= seen.fault_at + WINDOW
            detected += in_time
            false += episodes([step for step in alarms if step < seen.fault_at]) + (first is not None and not in_time)
            harm = seen.harm()
            harmed += harm is not None
            if harm is not None and in_time and first is not None:
                leads.append(harm - first)
        return cls(len(runs), detected, false, harmed, leads)

    @property
    def recall(self) -> float:
        return self.detected / self.runs

    @property
    def precision(self) -> float:
        return self.detected / max(self.detected + self.false, 1)

    @property
    def lead(self) -> float:
        return statistics.median(self.leads) if self.leads else math.nan

    def __str__(self) -> str:
        return f"{self.precision:9.3f} {self.recall:7.3f} {self.lead:5.1f}"


def report(faulty: dict[str, list[Seen]], clean: Sequence[Seen]) -> None:
    everything = [seen for runs in faulty.values() for seen in runs]
    print(f"{'':16} {'':5} {'':5}   {'guard':^23}   {'global norm > 10 × mean':^23}")
    print(f"{'fault':16} {'runs':>5} {'harm':>5}   {'precision':>9} {'recall':>7} {'lead':>5}", end="")
    print(f"   {'precision':>9} {'recall':>7} {'lead':>5}")
    for name, runs in [*faulty.items(), ("all", everything)]:
        guard, baseline = Score.of(runs, "guard"), Score.of(runs, "baseline")
        print(f"{name:16} {guard.runs:5} {guard.harmed:5}   {guard}   {baseline}")
    steps = sum(len(seen.losses) for seen in clean)
    rates = {arm: 1e4 * sum(len(getattr(seen, arm)) for seen in clean) / steps for arm in ("guard", "baseline")}
    print(f"false alarms per 10,000 of {steps} clean steps: guard {rates['guard']:.2f}, global {rates['baseline']:.2f}")
    moments = [(seen, moment) for seen in clean for moment in seen.unfreezings]
    near = sum(moment <= step < moment + 30 for seen, moment in moments for step in seen.guard)
    print(f"alarms of the guard in the 30 steps after the {len(moments)} unfreezings of the clean runs: {near}")
    score = Score.of(everything, "guard")
    print(f"RESULT spike_guard {score.recall:.3f} share")
    print(f"RESULT spike_guard_precision {score.precision:.3f} share")
    print(f"RESULT spike_guard_false_alarms {rates['guard']:.2f} per_10000_steps")
    print(f"RESULT spike_guard_lead {score.lead:.1f} steps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faulty", type=int, default=280, help="Faulty runs in all.")
    parser.add_argument("--clean_steps", type=int, default=100_000, help="Steps of clean runs in all.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--lr_scale", type=float, default=1.0, help="Factor on the learning rates.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    start = time.monotonic()
    faulty: dict[str, list[Seen]] = {
        fault: [
            fit(Setting.number(index, options.first_seed, options.lr_scale), FAULTY_STEPS, fault)
            for index in range(options.faulty // len(FAULTS))
        ]
        for fault in FAULTS
    }
    clean = [
        fit(Setting.number(index, options.first_seed + 500, options.lr_scale), CLEAN_STEPS)
        for index in range(-(-options.clean_steps // CLEAN_STEPS))
    ]
    report(faulty, clean)
    print(f"{time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
