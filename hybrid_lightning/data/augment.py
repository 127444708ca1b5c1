"""Augmentation of whole batches on their device, while training."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.data.tensors import PRESENT, per_sample
from hybrid_lightning.data.transforms import Names, RandomFlip, apply_step, make_steps
from hybrid_lightning.errors import ConfigError, at, check_keys, check_number


class BatchFlip(RandomFlip):
    """`RandomFlip` of each sample of a batch by itself."""

    def forward(self, values: Tensor) -> Tensor:
        """`(B, ...)`, any shape, which it keeps."""
        chosen = _uniform(values) < self.p
        return torch.where(chosen, values.flip(self.dim), values)


class RandomNoise(nn.Module):
    """Adds normal noise.

    Args:
        std: Its standard deviation; that of each sample is drawn evenly from 0 to this.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        check_number(std, "std", 0)
        self.std = std

    def forward(self, values: Tensor) -> Tensor:
        """`(B, ...)`, any shape, which it keeps."""
        amount = self.std * _uniform(values)
        return values + amount * torch.randn_like(values)


AUGMENTATIONS: Names = {"RandomFlip": BatchFlip, "RandomNoise": RandomNoise}
"""Names that an item of a list of augmentations may take without a dot."""


class BatchAugmentation:
    """Changes entries of a batch at random, without gradients.

    Modules draw from the random state of torch, on the CPU or on the batch's device; both are seeded for each batch, so
    a resumed run repeats them. Parameters that they have are not trained. Samples that are missing stay zeros.
    """

    def __init__(self, modules: Mapping[str, Sequence[nn.Module]]) -> None:
        self.modules = dict(modules)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with these entries replaced; of a dict of tensors, ``values``."""
        changed = dict(batch)
        for key, modules in self.modules.items():
            with at(f"data.augment.{key}"):
                present = batch.get(f"present/{key}")  # None where no sample lacks this modality
                changed[key] = _augmented(batch.get(key), modules, present)
        return changed


def make_augmentation(config: Any, keys: Collection[str]) -> BatchAugmentation:
    """The augmentation of ``data.augment``: batch key, one of `keys`, → list as in `make_steps`; None for nothing."""
    config = {} if config is None else config
    modules = {}
    with at("data.augment"):
        if not isinstance(config, Mapping):
            raise ConfigError(f"{config!r} is not a dict. Write such as {{photo: [RandomFlip]}}.")
        check_keys(config, keys, kind="input")
        for key, items in config.items():
            with at(key):
                modules[key] = _make_modules(items)
    return BatchAugmentation(modules)


def _make_modules(items: Any) -> list[nn.Module]:
    modules = []
    for index, step in enumerate(make_steps(items, AUGMENTATIONS)):  # a function cannot be moved to a device
        if not isinstance(step, nn.Module):
            raise ConfigError(f"a {type(step).__name__} is not a torch module.", str(index))
        modules.append(step)
    return modules


def _augmented(entry: Any, modules: Sequence[nn.Module], present: Tensor | None) -> Any:
    value = entry.get("values") if isinstance(entry, Mapping) else entry
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ConfigError("the batch has no tensor of floating numbers under this key.")
    files = entry.get(PRESENT) if isinstance(entry, Mapping) else None
    if files is not None:
        # each file is changed by itself
        value, present = value.flatten(0, 1), files.flatten()
    for index, module in enumerate(modules):
        with at(str(index)):
            value = _apply(module.to(value.device), value)
    if present is not None:  # noise on a missing modality would be a signal
        value = torch.where(per_sample(present, value), value, 0.0)
    if files is not None:
        value = value.reshape(*files.shape, *value.shape[1:])
    return {**entry, "values": value} if isinstance(entry, Mapping) else value


def _apply(module: nn.Module, value: Tensor) -> Tensor:
    result = apply_step(module, value)
    if result.shape[:1] != value.shape[:1]:
        raise ConfigError(
            f"{type(module).__name__} returns a tensor {tuple(result.shape)} for a tensor {tuple(value.shape)}. It has "
            f"to return as many samples; what mixes labels too belongs into a module of your own."
        )
    return result


def _uniform(values: Tensor) -> Tensor:
    """A number from 0 to 1 per sample, `(B, 1, ...)`."""
    return per_sample(torch.rand(len(values), device=values.device), values)
