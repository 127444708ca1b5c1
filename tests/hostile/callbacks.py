"""Callbacks that make faults happen at a moment of a run."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class Slow(pl.Callback):
    """Makes every batch last, so that another process comes meanwhile."""

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.15)


class Kill(pl.Callback):
    """Ends the process at once, within the batch after so many."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx >= self.batches:
            os._exit(77)


class Fault(pl.Callback):
    """Does something to the run's folder before the batch after so many."""

    def __init__(self, kind: str, batches: int = 4) -> None:
        self.kind, self.batches = kind, batches

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batches:
            getattr(self, self.kind)(Path(trainer.log_dir or "."))

    def removed_folder(self, folder: Path) -> None:
        shutil.rmtree(folder)

    def removed_table(self, folder: Path) -> None:
        (folder / "metrics.csv").unlink()

    def folder_for_table(self, folder: Path) -> None:
        (folder / "metrics.csv").unlink()
        (folder / "metrics.csv").mkdir()

    def file_for_folder(self, folder: Path) -> None:
        shutil.rmtree(folder / "checkpoints")
        (folder / "checkpoints").touch()

    def folder_for_mark(self, folder: Path) -> None:
        (folder / "finished.yaml" / "x").mkdir(parents=True)

    def full_disk(self, folder: Path) -> None:
        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full

    def read_only(self, folder: Path) -> None:
        original = Path.open

        def refused(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if "r" not in mode or "+" in mode:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return original(path, mode, *rest, **more)

        Path.open = refused  # type: ignore[method-assign]

    def input_output_error(self, folder: Path) -> None:
        def broken(*_: Any) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        Path.replace = broken  # type: ignore[method-assign,assignment]
