"""What the logs of gradients cost: a step that clips and logs them per part, against one that clips alone.

Both arms are a `Trainer.fit` of the same model on the same data, with AdamW (fused), ``gradient_clip_val``, a CSV log
and the same thread count. Ours is `HybridClassifier` with ``GradientNormMonitor(stages=True)``: norms before and after
clipping, clip coefficient, clip rates and update ratios of each part and stage. The other is the same task without
monitor, clipped as Lightning clips, with torch's ``clip_grad_norm_``. A round runs both arms in turn, in one process,
and every other round in the other order. Timed are whole steps, from the start of one batch to that of another a
multiple of the log interval later, so that the mean step has its share of the steps that log; the run's first steps,
which make the optimizer's state, are not. Neither arm looks for gradients that are not finite, unless it is said.

RESULT grad_monitor_cost: median over rounds of ours / clipping alone; 460 parameter tensors in 5 parts and 20 stages,
logged every 10 steps (the default of the command line).
RESULT grad_monitor_cost_small: the same of a small net, 14 tensors in 4 parts and 6 stages.
RESULT grad_monitor_cost_every_step, RESULT grad_monitor_cost_small_every_step: the same, logged every step.
RESULT grad_monitor_cost_checked, RESULT grad_monitor_cost_small_checked: ours also looks for gradients that are not
finite, with ``NonFiniteGradients("error")``, as it does by default; logged every 10 steps.
RESULT grad_monitor_cost_pass: without Lightning, the pass and its clipping / torch's ``clip_grad_norm_``, on the
gradients of the 460 tensors.

    python tests/benchmarks/grad_monitor_cost.py --rounds 40 --threads 1
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import GradientNormMonitor, HybridClassifier, NonFiniteGradients
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.gradients.norms import GradientPass, MeasuredGroups

CLIP = 0.5
FIRST, TIMED = 20, 40
"""Steps before those that are timed, and steps that are."""
BATCH = 16
WAYS = {"": ("ignore", 10), "_checked": ("error", 10), "_every_step": ("ignore", 1)}
"""What ours does about gradients that are not finite, and the log interval."""
CALLS = 20
"""Passes that are timed at a time."""
Clock = Callable[[], float]


class Residual(nn.Module):
    """A linear layer with batch statistics around which the input is passed: four tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.linear(x)))


class ConvResidual(nn.Module):
    """The same with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


def stages(block: Callable[[int], nn.Module], width: int, count: int, depth: int) -> list[nn.Module]:
    return [nn.Sequential(*(block(width) for _ in range(depth))) for _ in range(count)]


def large() -> HybridClassifier:
    """460 tensors: 4 + 60 × 4 in `image`, 42 × 4 in `table`, 10 × 4 in `sensor`, 6 in `fusion`, 2 in `head`."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16))
    image = nn.Sequential(stem, *stages(ConvResidual, 16, 6, 10))
    table, sensor = (nn.Sequential(*stages(Residual, 64, *size)) for size in ((6, 7), (5, 2)))
    return task({"image": image, "table": table, "sensor": sensor})


def small() -> HybridClassifier:
    """14 tensors: 4 in `image`, 4 in `table`, 4 in `fusion`, 2 in `head`."""
    image = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
    table = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    return task({"image": image, "table": table})


def task(parts: dict[str, nn.Module]) -> HybridClassifier:
    facts = {name: {"module": module} for name, module in parts.items()}
    return HybridClassifier(num_classes=5, lr=1e-4, parts=facts)


class ClippingAlone(HybridClassifier):
    """The same task as somebody without us would clip it."""

    configure_gradient_clipping = pl.LightningModule.configure_gradient_clipping

    def configure_callbacks(self) -> list[pl.Callback]:
        return [callback for callback in super().configure_callbacks() if not isinstance(callback, GradientNormMonitor)]


class Stopwatch(pl.Callback):
    """Seconds of the timed steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self.started = self.clock()
        if batch_idx == FIRST + TIMED:
            self.seconds = self.clock() - self.started


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    samples = BATCH * (FIRST + TIMED + 1)
    image, target = torch.randn(samples, 3, 16, 16, generator=generator), torch.arange(samples) % 5
    table, sensor = (torch.randn(samples, 64, generator=generator) for _ in range(2))
    entries = {"image": image, "table": table, "sensor": sensor, "target": target}
    return DataLoader(DictDataset(entries), BATCH, collate_fn=as_batch)


def fit(make: Callable[[], HybridClassifier], policy: str, every: int, clock: Clock, folder: str, ours: bool) -> float:
    torch.manual_seed(0)
    model = make()
    if not ours:
        model.__class__ = ClippingAlone
    stopwatch = Stopwatch(clock)
    trainer = pl.Trainer(
        max_epochs=1,
        gradient_clip_val=CLIP,
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=every,
        callbacks=[stopwatch, NonFiniteGradients(policy), *([GradientNormMonitor(stages=True)] if ours else [])],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the plan
        trainer.fit(model, loader())
    return stopwatch.seconds


def passes(clock: Clock) -> tuple[Callable[[], float], Callable[[], float]]:
    """Ours and torch's way to measure and clip the gradients of the large net; each returns the seconds of `CALLS`."""
    model = large()
    model.build(next(iter(loader())))
    groups = model.optimization()["optimizer"].param_groups
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)

    def timed(clip: Callable[[], object]) -> float:
        started = clock()
        for _ in range(CALLS):
            clip()
        return clock() - started

    return (
        lambda: timed(lambda: GradientPass(MeasuredGroups(groups, groups)).clip_norm(CLIP)),
        lambda: timed(lambda: nn.utils.clip_grad_norm_(parameters, CLIP)),
    )


def compare(name: str, ours: Clock, theirs: Clock, rounds: int, count: int) -> None:
    """Runs both in turn, first one and then the other first, and prints the median of the ratios."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for index in range(rounds + 1):
        for is_ours in (True, False) if index % 2 else (False, True):
            measured = (ours if is_ours else theirs)()
            if index:
                seconds[is_ours].append(measured / count * 1e3)
    ratios = sorted(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
    medians = [statistics.median(seconds[is_ours]) for is_ours in (True, False)]
    middle = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"{name}: {medians[0]:.3f} and {medians[1]:.3f} ms; half of the ratios: {middle[0]:.3f} to {middle[1]:.3f}")
    print(f"RESULT {name} {statistics.median(ratios):.3f} ratio", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="Counted rounds after one that is not.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    nets = {"": large, "_small": small}
    with tempfile.TemporaryDirectory() as folder:
        for suffix, (policy, every) in WAYS.items():
            for net, make in nets.items():
                ours = partial(fit, make, policy, every, clock, folder, ours=True)
                alone = partial(fit, make, "ignore", every, clock, folder, ours=False)
                compare(f"grad_monitor_cost{net}{suffix}", ours, alone, options.rounds, TIMED)
    compare("grad_monitor_cost_pass", *passes(clock), options.rounds, CALLS)


if __name__ == "__main__":
    main()
