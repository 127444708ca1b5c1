"""Building a network for a Trainer: along a batch as the Trainer gives it, and in its precision."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities import apply_to_collection
from torch import Tensor, nn

from hybrid_lightning.data.loaders import require_dict
from hybrid_lightning.drift.reference_batch import batches_on_device, own_random_state
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.batch import Batch
from hybrid_lightning.network.part import Part
from hybrid_lightning.trainer import as_validation

_CPU = torch.device("cpu")


def given_dtype(trainer: Trainer) -> torch.dtype:
    """In which precision the Trainer gives numbers to the module, and keeps its weights."""
    converted: Tensor = trainer.precision_plugin.convert_input(torch.zeros((), dtype=torch.float32, device=_CPU))
    return converted.dtype


@contextmanager
def building(trainer: Trainer, parts: Iterable[Part]) -> Iterator[None]:
    """Weights are made on the CPU and in the Trainer's precision; if that has 16 bits, first in float32.

    For not all operations on the CPU know 16 bits. See `in_given_precision` for what follows.
    """
    dtype = given_dtype(trainer)
    before = torch.get_default_dtype()
    if dtype != torch.float32:
        working = _working(dtype)
        torch.set_default_dtype(working)
        for part in parts:
            if isinstance(part.module, nn.Module):
                _convert(part.module, working)
    try:
        # the Trainer moves what has been built to its device
        with _CPU:
            yield
    finally:
        torch.set_default_dtype(before)


def in_given_precision(trainer: Trainer, network: nn.Module) -> None:
    """Puts a network into the Trainer's precision, as it will do itself, but before a checkpoint is loaded."""
    dtype = given_dtype(trainer)
    if dtype != torch.float32:
        _convert(network, dtype)


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    # `to` would make real numbers of complex ones
    if dtype == torch.float64:
        module.double()
    else:
        module.to(dtype)


def example_as_given(trainer: Trainer, module: LightningModule, read: Callable[[], Any]) -> Batch:
    """A batch that `read` returns, after the hooks of batches, on the CPU; for use within `building`.

    Hooks that need the network, or a GPU, cannot run yet; then the batch is as it was read.
    """
    dtype = given_dtype(trainer)
    # other commands than a run have their own stage, on which hooks may depend
    is_fit = trainer.state.fn in (None, "fit")
    with own_random_state(trainer):
        raw = read()
        with as_validation(trainer) if is_fit else nullcontext():
            try:
                batch = next(batches_on_device(trainer, module, [raw], checked=False, device=_CPU))
            except ConfigError:
                raise
            except Exception:  # a fault of a hook shows itself with the first batch
                batch = trainer.precision_plugin.convert_input(raw)
    require_dict(batch)
    example: Mapping[str, Any] = apply_to_collection(batch, Tensor, _in_working_precision, dtype)
    return example


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _in_working_precision(tensor: Tensor, given: torch.dtype) -> Tensor:
    return tensor.to(_working(given)) if tensor.dtype == given else tensor
