"""Writing checkpoints so that each is whole at every moment, and refusing one that is not as it was written."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from hybrid_lightning.files import whole_file
from hybrid_lightning.lightning_private import is_local
from hybrid_lightning.weights.safe_files import verify


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
        with whole_file(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint, unmapped, because the optimizer keeps its tensors; arguments as in the base class."""
        if is_local(path):
            verify(path, "--ckpt_path")
        return super().load_checkpoint(path, *args, **kwargs)
