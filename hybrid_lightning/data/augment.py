"""Augmentation of whole batches on their device, while training."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.data.transforms import make_steps
from hybrid_lightning.errors import ConfigError, check_number, unknown


class RandomFlip(nn.Module):
    """Mirrors samples along one dimension, each with the same probability.

    Args:
        p: Probability.
        dim: The dimension, counted from the last one: -1 is left and right in images.
    """

    def __init__(self, p: float = 0.5, dim: int = -1) -> None:
        super().__init__()
        check_number(p, "RandomFlip.p", 0, 1)
        self.p, self.dim = p, dim

    def forward(self, values: Tensor) -> Tensor:
        """`(B, ...)`, any shape; stays as it is."""
        chosen = torch.rand(len(values), *[1] * (values.ndim - 1), device=values.device) < self.p
        return torch.where(chosen, values.flip(self.dim), values)


class RandomNoise(nn.Module):
    """Adds normal noise.

    Args:
        std: Its standard deviation; that of each sample is drawn evenly from 0 to this.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        check_number(std, "RandomNoise.std", 0)
        self.std = std

    def forward(self, values: Tensor) -> Tensor:
        """`(B, ...)`, any shape; stays as it is."""
        amount = self.std * torch.rand(len(values), *[1] * (values.ndim - 1), device=values.device)
        return values + amount * torch.randn_like(values)


AUGMENTATIONS: dict[str, Callable[..., nn.Module]] = {"RandomFlip": RandomFlip, "RandomNoise": RandomNoise}
"""Names that an item of a list of augmentations may take without a dot."""


class BatchAugmentation:
    """Changes entries of a batch at random, without gradients.

    Modules draw from the random state of torch, on the CPU or on the batch's device; both are seeded for each batch, so
    a resumed fit repeats them. Parameters that they have are not trained. Samples that are absent stay zeros.

    Args:
        modules: Batch key → modules, called in turn with a tensor, samples first.
        where: Config path, for errors.
    """

    def __init__(self, modules: Mapping[str, Sequence[nn.Module]], where: str = "data.augment") -> None:
        self.modules, self.where = {key: list(steps) for key, steps in modules.items()}, where

    def __bool__(self) -> bool:
        return any(self.modules.values())

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch with these entries replaced; of a dict of tensors, ``values``.

        Raises:
            ConfigError: If there is no such entry, or a module fails or changes the number of samples.
        """
        changed = dict(batch)
        for key, steps in self.modules.items():
            entry = changed.get(key)
            value = entry.get("values") if isinstance(entry, Mapping) else entry
            if not isinstance(value, Tensor) or not value.is_floating_point():
                raise ConfigError(f"{self.where}.{key}: the batch has no tensor of floating numbers under this key.")
            present = changed.get(f"present/{key}")
            for index, step in enumerate(steps):
                value = _applied(step.to(value.device), value, f"{self.where}.{key}.{index}")
            if present is not None:
                value = torch.where(present.view(-1, *[1] * (value.ndim - 1)), value, 0.0)
            changed[key] = {**entry, "values": value} if isinstance(entry, Mapping) else value
        return changed


def _applied(step: nn.Module, value: Tensor, where: str) -> Tensor:
    name = type(step).__name__
    try:
        result = step(value)
    except Exception as error:  # somebody else's code may raise anything
        raise ConfigError(f"{where}: {name} fails on a tensor {tuple(value.shape)}: {str(error)[:300]}") from error
    if not isinstance(result, Tensor) or len(result) != len(value):
        what = f"a tensor {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ConfigError(
            f"{where}: {name} returns {what} for a tensor {tuple(value.shape)}. It has to return one tensor with as "
            f"many samples; what mixes labels too belongs into a module of your own."
        )
    return result


def make_augmentation(config: Any, keys: Collection[str], where: str = "data.augment") -> BatchAugmentation:
    """Augmentations from the config.

    Args:
        config: Batch key → list; each item is a name of `AUGMENTATIONS`, or ``{class_path: ..., init_args: {...}}``
            with the dotted path of a module's class, such as ``kornia.augmentation.RandomAffine`` (extra ``kornia``).
            None stands for no key.
        keys: Those that there are.
        where: Config path, for errors.

    Raises:
        ConfigError: If a key or name is unknown, the arguments do not fit, or something is no module.
    """
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"{where}: {config!r} is no dict. Write such as {{photo: [RandomFlip]}}.")
    for key in config or {}:
        if key not in keys:
            raise unknown(where, "input", str(key), keys)
    made = {str(key): make_steps(items, f"{where}.{key}", AUGMENTATIONS) for key, items in (config or {}).items()}
    for key, steps in made.items():
        for index, step in enumerate(steps):
            if not isinstance(step, nn.Module):
                raise ConfigError(f"{where}.{key}.{index}: a {type(step).__name__} is no torch module.")
    return BatchAugmentation(made, where)
