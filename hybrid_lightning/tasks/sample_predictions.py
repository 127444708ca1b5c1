"""Predictions for single samples in Python, from raw values and what a checkpoint keeps of its data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor

from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.data.raw_samples import manifest_of
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import trainer_of
from hybrid_lightning.unfreezing.freezing import evaluating


def predict_samples(task: Any, samples: Any, inputs: Mapping[str, Any] | None) -> Any:
    """The rows of predictions for one or several samples; see `HybridTask.predict`."""
    is_one = isinstance(samples, Mapping)
    given = [samples] if is_one else samples if isinstance(samples, list | tuple) else []
    if not given or not all(isinstance(sample, Mapping) for sample in given):
        raise ConfigError("predict: give a sample as a dict such as {'image': 'a.png', 'age': 61}, or a list of them.")
    state = task.data_state or _state_of_trainer(task)
    if state is None:
        raise ConfigError(
            "predict: nothing is known of how the samples of the training were read, because its data were no "
            "ManifestDataModule. Make a batch of tensors yourself, and call model.predictions(model(batch))."
        )
    with manifest_of(given, dict(state), inputs) as data:
        predictions = task.predictions(outputs_of(task, data.predict_dataloader()))
        names = data.target_names
    if not predictions.isfinite().all():
        raise ConfigError("predict: the prediction is not a finite number. Look at the values of the sample.")
    columns = task.objective.prediction_columns(predictions, names)
    rows = [{name: _plain(values[number]) for name, values in columns.items()} for number in range(len(given))]
    return rows[0] if is_one else rows


def _state_of_trainer(task: Any) -> Mapping[str, Any] | None:
    """What the data of a run in this process know of themselves; None if they are no manifest."""
    trainer = trainer_of(task)
    data = getattr(trainer, "datamodule", None)
    return data.state_dict() if isinstance(data, ManifestDataModule) else None


def outputs_of(task: Any, loader: Iterable[Any]) -> Tensor:
    """Outputs for all batches `(N, outputs)`, on the CPU; the modes of all modules are afterwards what they were."""
    with evaluating(task), torch.no_grad():
        found = [task(move_data_to_device(batch, task.device)).cpu() for batch in loader]
    return torch.cat(found)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
