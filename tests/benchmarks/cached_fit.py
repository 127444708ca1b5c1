"""A whole run of a config with the cache of frozen features and without it: seconds and peak memory, phase by phase.

Each run is a process of its own, the two modes of a seed one after the other, with the same number of threads. A phase
ends where another set of parts trains; the first one, ``start``, is all that comes before the first batch of training:
data, the pass that prepares random parts, a closed-form start, the fill of a cache that begins with the first epoch.
Seconds are CPU time of the process, so that other programs count little. Memory is the largest resident set of the
process in the phase, mapped files of features included.

RESULT cached_fit: median over the seeds of the seconds with ``cache: false`` / those with ``cache: auto``.
RESULT cached_fit_loss: largest difference between the two modes' last validation losses.

    python tests/benchmarks/cached_fit.py configs/quickstart.yaml --seeds 0 1 2 --threads 2
"""

import argparse
import contextlib
import io
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from hybrid_lightning import from_config

_OWN = Path("/proc/self")


class Phase(NamedTuple):
    """What a phase took."""

    name: str
    seconds: float  # of CPU time
    peak: float  # MiB


class Phases(pl.Callback):
    """Times the phases of a run."""

    def __init__(self) -> None:
        self.found: list[Phase] = []
        self._begin("start")

    def _begin(self, name: str) -> None:
        self._name = name
        self._started = time.process_time()
        # the kernel forgets the largest size so far
        (_OWN / "clear_refs").write_text("5")

    def end(self) -> None:
        """Ends the running phase."""
        seconds = time.process_time() - self._started
        status = (_OWN / "status").read_text()
        kibibytes = status.split("VmHWM:")[1].split()[0]
        self.found.append(Phase(self._name, seconds, int(kibibytes) / 1024))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        trains = set()
        for group in trainer.optimizers[0].param_groups:
            if any(parameter.requires_grad for parameter in group["params"]):
                trains.add(group["part"])
        name = ", ".join(sorted(trains))
        if name != self._name:
            self.end()
            self._begin(name)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.end()


def fit(config: Path, cache: bool | str, seed: int, threads: int, epochs: int | None) -> tuple[list[Phase], float]:
    """The phases of a run, and its last validation loss."""
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    phases = Phases()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options: dict[str, Any] = {"default_root_dir": folder, "enable_progress_bar": False}
        if epochs is not None:
            options["max_epochs"] = epochs
        model, data, trainer = from_config(config, seed_everything=seed, model={"cache": cache}, trainer=options)
        trainer.callbacks.insert(0, phases)
        trainer.fit(model, data)
    return phases.found, float(trainer.callback_metrics["val/loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="A config file.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Seeds of the fits.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of torch.")
    parser.add_argument("--epochs", type=int, help="In place of those of the config.")
    options = parser.parse_args()
    # children begin with everything imported
    context = multiprocessing.get_context("fork")
    ratios, differences = [], []
    for seed in options.seeds:
        seconds, losses = [], []
        for cache in (False, "auto"):
            with context.Pool(1) as pool:
                given = (options.config.resolve(), cache, seed, options.threads, options.epochs)
                phases, loss = pool.apply(fit, given)
            print(f"seed {seed}, cache {cache}: last validation loss {loss:.6f}")
            for phase in phases:
                print(f"  {phase.seconds:7.1f} s {phase.peak:7.0f} MiB  {phase.name}", flush=True)
            seconds.append(sum(phase.seconds for phase in phases))
            losses.append(loss)
        ratios.append(seconds[0] / seconds[1])
        differences.append(abs(losses[0] - losses[1]))
    print(f"RESULT cached_fit {statistics.median(ratios):.3f} ratio")
    print(f"RESULT cached_fit_loss {max(differences):.6f} nats")


if __name__ == "__main__":
    main()
