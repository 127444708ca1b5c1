"""Writing checkpoints so that each is whole at every moment, and refusing one that is not as it was written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.files import whole_file
from hybrid_lightning.lightning_private import is_local
from hybrid_lightning.resume.saved_fit import refuse_damaged_head
from hybrid_lightning.weights.safe_files import peek, verify

_FULL = 2**20  # bytes that are free on a disk that counts as full


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one, which it then replaces in one step; compares checksums before reading.

    Lightning's own writes to the system's folder for temporary files and moves the result, which is a copy in many
    steps where that folder is another file system. For a Trainer without the command line:
    ``Trainer(plugins=[AtomicCheckpointIO()])``. A path that is a URL is treated as Lightning does it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint; for the arguments see the base class."""
        if storage_options is not None or not is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with whole_file(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            cause = _cause(error, Path(path))
            raise ConfigError(f"{str(path)!r} cannot be written: {cause}. {_whole(Path(path))}") from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint, unmapped, because the optimizer keeps its tensors; arguments as in the base class."""
        if is_local(path):
            verify(path, "--ckpt_path")
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        refuse_damaged_head(checkpoint)
        return checkpoint


@contextmanager
def rewriting(path: Path) -> Iterator[dict[str, Any]]:
    """A checkpoint's content, to be changed in place; the file is replaced when this ends without an error."""
    files = AtomicCheckpointIO()
    checkpoint = files.load_checkpoint(path, weights_only=True)
    yield checkpoint
    files.save_checkpoint(checkpoint, path)


def _cause(error: Exception, path: Path) -> str:
    """Why a file could not be written; torch's writer does not say that a disk is full."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    is_full = path.parent.is_dir() and shutil.disk_usage(path.parent).free < _FULL
    return os.strerror(errno.ENOSPC) if is_full else reason(error).rstrip(".")


def _whole(path: Path) -> str:
    """What can be continued after a checkpoint could not be written, and how."""
    try:
        step = peek(path).get("global_step")
    except ConfigError:  # there is none
        return "Nothing was saved under this name before. Make room or mend the cause, and start again."
    return f"The file of step {step} is whole. Make room or mend the cause, and go on with --resume auto."
