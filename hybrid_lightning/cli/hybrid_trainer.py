"""The Trainer of the command line: its own commands, each with a model and its data."""

import math
from typing import Any, Literal

import lightning.pytorch as pl

from hybrid_lightning.cli.export import export_network
from hybrid_lightning.data.loaders import first_batch, number_of_batches
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.checkpoint import read_checkpoint, refuse_other_model
from hybrid_lightning.trainer import length_of


def built_from_data(model: HybridTask, datamodule: pl.LightningDataModule, load: bool = True) -> Any:
    """Builds a task's network from two training samples of its data; returns the loader of these data."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    model.build_for(datamodule, lambda: first_batch(loader), load)
    return loader


class HybridTrainer(pl.Trainer):
    """Lightning's Trainer with ``plan``, ``check``, ``prefetch`` and ``export``."""

    def plan(self, model: HybridTask, datamodule: pl.LightningDataModule) -> None:
        """Prints what would train when and at which rate; trains nothing.

        Args:
            model: The task.
            datamodule: Its first two samples decide the sizes, its length the moments.
        """
        loader = built_from_data(model, datamodule)
        limit = self.limit_train_batches
        batches = number_of_batches(loader) / self.world_size
        if isinstance(limit, int):
            batches = min(batches, limit)
        elif not math.isinf(batches):
            batches = int(math.ceil(batches) * limit)
        length = length_of(self, batches)
        optimization = model.optimization()
        optimization["lr_scheduler"]["scheduler"].bind(length)
        print(model.plan(optimization["optimizer"].param_groups, self, length))

    def check(self, model: HybridTask, datamodule: pl.LightningDataModule) -> None:
        """Checks the data, reading each file as a whole; trains nothing.

        Args:
            model: The task; it is not built.
            datamodule: Of a class that checks its data, such as ``ManifestDataModule``.

        Raises:
            ConfigError: If it has no checks, or finds something wrong.
        """
        check = getattr(datamodule, "check", None)
        if not callable(check):
            raise ConfigError(f"check: {type(datamodule).__name__} has no checks; ManifestDataModule has.")
        datamodule.prepare_data()
        check(decode=True)
        print("check: nothing is wrong")

    def prefetch(self, model: HybridTask, datamodule: pl.LightningDataModule) -> None:
        """Reads all pretrained weights once, so that they are in the caches of a machine without a network.

        Args:
            model: The task.
            datamodule: Its first two samples decide the sizes.
        """
        for line in getattr(datamodule, "prefetch", list)():
            print(line)
        built_from_data(model, datamodule)
        for name, part in model.built().facts.items():
            if part.weights is not None:
                print(f"{name}: the weights of {part.module!r} are here")

    def export(
        self,
        model: HybridTask,
        datamodule: pl.LightningDataModule,
        output: str,
        format: Literal["torch_export", "safetensors"] = "torch_export",
        ckpt_path: str | None = None,
    ) -> None:
        """Writes the plain network of a checkpoint, with adapters merged, and prints the file's sha256.

        Args:
            model: The task.
            datamodule: A batch of its training data is what the exported program is checked on.
            output: The file to write: .pt2 for torch_export, .safetensors for safetensors.
            format: A program of torch.export for a batch of any number of samples, or the tensors alone.
            ckpt_path: best, last (of the newest run of this name) or a path.
        """
        loader = built_from_data(model, datamodule, load=False)
        _, state = read_checkpoint(ckpt_path, "--ckpt_path")
        model.follow_part_heads(state)
        refuse_other_model(model.state_dict(), state)
        model.load_state_dict(state)
        export_network(model.built(), next(iter(loader)), output, format, model.objective.program_facts())
