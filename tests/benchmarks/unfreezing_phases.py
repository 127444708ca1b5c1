"""What a run costs in which a backbone of six stages is unfrozen stage by stage, live and with ``cache: auto``.

A convolution backbone on synthetic images beside a table. In phase 0 the backbone is frozen, in each further phase one
stage more trains, from the output down; in the last one all but the first. A phase is timed from the start of its first
epoch to the end of its last one, so validation, the fill, and what is decided count. The peak of memory is that of the
process. Both fits run in turn, in one process, with the same number of threads.

RESULT unfreezing_phases: seconds of all phases live / cached.

    python tests/benchmarks/unfreezing_phases.py --rows 384 --epochs 4 --source files --threads 1
"""

import argparse
import contextlib
import io
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hybrid_lightning import FrozenFeatureCache, HybridClassifier

CHANNELS = (16, 32, 48, 64, 96, 128)
PHASES = len(CHANNELS)
BATCH = 32
STATUS = Path("/proc/self/status")


class Stage(nn.Sequential):
    """Two convolutions; the first one halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for index in range(2):
            stride = 2 - index
            channels = outputs if index else inputs
            layers += [nn.Conv2d(channels, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers)


class Backbone(nn.Module):
    """Six stages: `(B, 3, size, size)` → `(B, 128)`."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *CHANNELS)
        self.stages = nn.Sequential(*map(Stage, inputs, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.stages(x)
        return maps.mean((2, 3))


class Samples(Dataset[dict[str, Tensor]]):
    """Images in memory, or in a file each, with a table."""

    def __init__(self, rows: int, size: int, folder: Path | None, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.target = torch.randint(2, (rows,), generator=generator)
        self.table = torch.randn(rows, 4, generator=generator)
        shift = self.target.view(-1, 1, 1, 1) * 40
        images = torch.randint(180, (rows, 3, size, size), generator=generator) + shift
        self.images = images.to(torch.uint8).numpy()
        self.paths: list[Path] = []
        if folder is not None:
            folder.mkdir()
            for index, image in enumerate(self.images):
                path = folder / f"{index}.npy"
                np.save(path, image)
                self.paths.append(path)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = np.load(self.paths[index]) if self.paths else self.images[index]
        pixels = torch.from_numpy(image).float() / 255 - 0.5
        return {"image": pixels, "table": self.table[index], "target": self.target[index]}


class Phases(pl.Callback):
    """Seconds, peak of memory in MB, and what was served, of each phase of so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        self.served: list[str] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before the cache, which comes later in the list of callbacks."""
        if trainer.current_epoch % self.epochs == 0:
            forget_peak()
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Notes what is served in the first epoch of a phase."""
        if trainer.global_step % (self.epochs * trainer.num_training_batches) == 1:
            [*caches] = [each for each in trainer.callbacks if isinstance(each, FrozenFeatureCache)]  # type: ignore[attr-defined]
            names = [place for cache in caches for place in cache.serving]
            self.served.append(", ".join(names) or "-")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """After the validation of the epoch."""
        if (trainer.current_epoch + 1) % self.epochs == 0:
            self.seconds.append(time.perf_counter() - self.started)
            self.peaks.append(peak())


def forget_peak() -> None:
    """Starts the process's peak of memory anew, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """The process's peak of memory in MB; nan where the system does not say."""
    if not STATUS.exists():
        return float("nan")
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def fit(cache: bool | str, train: Samples, val: Samples, epochs: int, folder: str) -> tuple[Phases, float]:
    torch.manual_seed(0)
    moments: dict[str, Any] = {}
    for phase in range(1, PHASES):
        moments[f"stages.{PHASES - phase}"] = f"{phase * epochs} epochs"
    moments["*"] = "never"
    parts: dict[str, Any] = {
        "image": {"module": Backbone, "unfreeze": {"stages": moments}},
        "table": {"module": "MLP"},
    }
    model = HybridClassifier(num_classes=2, parts=parts, lr=1e-3, cache=cache)
    phases = Phases(epochs)
    trainer = pl.Trainer(
        max_epochs=PHASES * epochs,
        accelerator="cpu",
        callbacks=[phases],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit(model, DataLoader(train, BATCH, shuffle=True), DataLoader(val, BATCH))
    return phases, float(trainer.callback_metrics["val/loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=384, help="Training rows; a sixth as many for validation.")
    parser.add_argument("--size", type=int, default=96, help="Pixels of an image's side.")
    parser.add_argument("--epochs", type=int, default=4, help="Of each phase.")
    parser.add_argument("--source", choices=("memory", "files"), default="memory", help="Where images are read from.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name if options.source == "files" else None for name in ("train", "val")]
        train = Samples(options.rows, options.size, places[0], seed=0)
        val = Samples(max(options.rows // 6, 2), options.size, places[1], seed=1)
        live, live_loss = fit(False, train, val, options.epochs, folder)
        cached, cached_loss = fit("auto", train, val, options.epochs, folder)
    print("phase  live s  cached s  ratio  live MB  cached MB  served")
    for phase in range(PHASES):
        slow, fast = live.seconds[phase], cached.seconds[phase]
        print(
            f"{phase:5}  {slow:6.2f}  {fast:8.2f}  {slow / fast:5.2f}  {live.peaks[phase]:7.0f}  "
            f"{cached.peaks[phase]:9.0f}  {cached.served[phase]}"
        )
    print(f"validation loss at the end: live {live_loss:.6f}, cached {cached_loss:.6f}")
    print(f"RESULT unfreezing_phases {sum(live.seconds) / sum(cached.seconds):.3f} ratio")


if __name__ == "__main__":
    main()
