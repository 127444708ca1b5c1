"""Kills a run at random moments, continues it each time, and compares its end with that of a run that was left alone.

``python -m tests.soak --kills 20 --seed 0``
"""

import argparse
import csv
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hybrid_lightning.cli.run_folder import last_whole_checkpoint
from hybrid_lightning.files import TEMPORARY
from hybrid_lightning.network.modules.convolution import ConvExtractor
from hybrid_lightning.weights.safe_files import save_weights
from tests.processes import LIMIT, Running

PARTS = {
    "stem": {
        "module": "ConvExtractor",
        "args": {"channels": [4, 6], "norm": True},
        "input": "image",
        "weights": "stem.safetensors",
        "unfreeze": {"start": "10%", "every": "2 epochs"},
    },
    "body": {"module": "ConvExtractor", "args": {"channels": [8], "norm": True}, "input": "stem"},
    "head": {"module": "LinearHead", "args": {"dropout": 0.3}},
}


@dataclass
class Kills:
    """What the kills met; each comes at a moment before `latest`, in seconds from the start of its process."""

    wanted: int
    signal: signal.Signals
    latest: float
    hit: int = 0
    after_progress: int = 0
    during_save: int = 0
    runs: int = 0

    def enough(self) -> bool:
        """Whether as many hit as wanted, one of them at least after its process had saved something."""
        return self.hit >= self.wanted and self.after_progress > 0


def config(epochs: int) -> dict[str, Any]:
    model = {"num_classes": 3, "parts": PARTS, "rates": {"shape": "cosine", "warm_up": "10 steps"}}
    return {
        "model": {"class_path": "HybridClassifier", "init_args": model},
        "data": {"class_path": "DigitsDataModule", "init_args": {"classes": [0, 1, 2], "size": 16, "batch_size": 16}},
        "trainer": {
            "max_epochs": epochs,
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.5,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "accelerator": "cpu",
        },
        "save_every": "3 steps",
    }


def prepare(folder: Path, epochs: int) -> Path:
    """A folder with a config and the weights of a pretrained stem."""
    folder.mkdir()
    torch.manual_seed(0)
    save_weights(ConvExtractor(3, [4, 6], norm=True).state_dict(), folder / "stem.safetensors")
    (folder / "soak.yaml").write_text(yaml.safe_dump(config(epochs)))
    return folder


def start(folder: Path) -> Running:
    return Running("-m", "hybrid_lightning", "fit", "--config", "soak.yaml", "--resume", "auto", cwd=folder)


def run_folder(folder: Path) -> Path:
    """The one run there is: a continued run makes no second one."""
    [run] = (folder / "runs" / "soak").iterdir()
    return run


def check_end(running: Running) -> None:
    if running.process.wait(LIMIT):
        raise AssertionError("".join(running.texts())[-4000:])


def reference(folder: Path) -> tuple[float, float]:
    """Fits without a kill.

    Returns:
        Seconds until the first checkpoint, and until the end.
    """
    began = time.monotonic()
    first = 0.0
    with start(folder) as running:
        while running.process.poll() is None:
            if not first and list(folder.glob("runs/soak/*/checkpoints/*.ckpt")):
                first = time.monotonic() - began
            time.sleep(0.02)
        check_end(running)
    return first, time.monotonic() - began


def fit_with_kills(folder: Path, kills: Kills, chance: random.Random) -> None:
    """Fits to the end; until enough kills have hit, ends each process at a random moment."""
    kills.runs += 1
    steps = 0
    while not kills.enough():
        if ended_before_its_kill(folder, kills, chance.uniform(0, kills.latest)):
            return
        kills.hit += 1
        kills.during_save += bool(list(folder.rglob(f"*{TEMPORARY}")))
        steps, before = steps_saved(folder), steps
        kills.after_progress += steps > before
        print(f"kill {kills.hit}: step {before} → {steps}", flush=True)
    with start(folder) as running:
        check_end(running)


def ended_before_its_kill(folder: Path, kills: Kills, moment: float) -> bool:
    """Starts a run and ends it at a moment, in seconds, unless it ends by itself."""
    with start(folder) as running:
        process = running.process
        try:
            process.wait(moment)
            check_end(running)
            kills.latest *= 0.8  # the machine is faster than it was for the run that was left alone
            return True
        except subprocess.TimeoutExpired:
            process.send_signal(kills.signal)
        if process.wait(LIMIT) not in (-kills.signal, 128 + kills.signal):
            check_end(running)
        return process.returncode == 0


def steps_saved(folder: Path) -> int:
    checkpoints = folder / "runs" / "soak" / "version_0" / "checkpoints"
    found = last_whole_checkpoint(checkpoints) if checkpoints.is_dir() else None
    return found[1] if found else 0


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two states differ, tensors bit by bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) and first.dtype == second.dtype else [where]
    if isinstance(first, dict):
        missing = [f"{where}/{key}" for key in first.keys() ^ second.keys()]
        return missing + [
            d for key in first if key in second for d in differences(first[key], second[key], f"{where}/{key}")
        ]
    if isinstance(first, list | tuple):
        pairs = list(zip(first, second, strict=True))
        return [d for index, pair in enumerate(pairs) for d in differences(*pair, f"{where}/{index}")]
    return [] if first == second else [f"{where}: {first!r} and {second!r}"]


def table(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the loss since the last row, which a new process has not seen."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "train/loss"} for row in csv.DictReader(file)]


def compare(wanted: Path, given: Path) -> None:
    """Raises AssertionError unless two runs ended alike."""
    for name in ("last.ckpt", "best.ckpt"):
        states = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (wanted, given)]
        for key in ("global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers"):
            assert not (found := differences(*(state[key] for state in states), key)), (name, found[:5])
        scores = [[callback.get("best_model_score") for callback in state["callbacks"].values()] for state in states]
        assert not (found := differences(*scores, "best_model_score")), (name, found)
    assert not (found := differences(table(wanted), table(given), "metrics.csv")), found[:5]
    assert {path.name for path in wanted.rglob("*")} == {path.name for path in given.rglob("*")}


def soak(folder: Path, kills: int, seed: int, epochs: int, number: signal.Signals = signal.SIGKILL) -> Kills:
    """Runs everything below `folder`.

    Raises:
        AssertionError: If a run that was killed did not end as the one that was left alone.
    """
    left_alone = prepare(folder / "left_alone", epochs)
    first, whole = reference(left_alone)
    print(f"left alone: first checkpoint after {first:.1f} s, end after {whole:.1f} s", flush=True)
    # so that a run takes several kills: with moments up to its end, every other process would end it
    latest = first + (whole - first) * min(1.0, 1.5 / kills**0.5)
    count, chance = Kills(kills, number, latest), random.Random(seed)
    while not count.enough():
        killed = prepare(folder / f"killed_{count.runs}", epochs)
        fit_with_kills(killed, count, chance)
        compare(run_folder(left_alone), run_folder(killed))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="Kills that have to hit a living process.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the moments.")
    parser.add_argument("--epochs", type=int, default=60, help="Length of the run.")
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL", help="KILL, or TERM, which saves.")
    options = parser.parse_args()
    number = signal.Signals[f"SIG{options.signal}"]
    with tempfile.TemporaryDirectory() as folder:
        count = soak(Path(folder), options.kills, options.seed, options.epochs, number)
    print(
        f"bit-equal to the run left alone after {count.hit} kills that hit a living process, {count.after_progress} of"
    )
    print(f"them after new progress and {count.during_save} during a save, in {count.runs} run(s)")


if __name__ == "__main__":
    main()
