"""Frozen means frozen: no gradient, no update, no dropout; running statistics fixed, kept, or estimated anew."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

BATCH_NORM_MODES = ("frozen", "recalibrate", "train")
"""What a part can do with normalizations that have running statistics, see `Part`."""
_IS_TRAINING = itemgetter("training")


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Turns gradients on or off; a parameter that is turned off loses its gradient, so that no optimizer moves it."""
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            # a gradient of zeros would still be decayed and moved by momentum
            parameter.grad = None


def module_modes(
    root: nn.Module, parts: Mapping[nn.Parameter, str], batch_norm: Mapping[str, str] | None = None
) -> dict[nn.Module, bool]:
    """Which modules have to be in train mode (True) or in eval mode (False) while `root` trains."""
    # A module trains if one of its parameters does. A module without parameters of its own (dropout, a normalization
    # with ``affine=False``) follows its nearest ancestor that has some, except `root` itself. Modules that follow
    # nobody are left out and keep their mode. Of `batch_norm` only ``frozen`` and ``train`` make a difference.
    modes: dict[nn.Module, bool] = {}

    def visit(module: nn.Module, trains: bool | None, part: str | None) -> None:
        own = [parameter for parameter in module.parameters() if parameter in parts]
        if own:
            trains = any(parameter.requires_grad for parameter in own)
            owners = {parts[parameter] for parameter in own}
            part = owners.pop() if len(owners) == 1 else None
        mode = (batch_norm or {}).get(part or "")
        if has_statistics(module) and mode in ("frozen", "train"):
            modes[module] = mode == "train"
        elif trains is not None:
            # a module that stands in two places trains if one of them does
            modes[module] = modes.get(module, False) or trains
        for child in module.children():
            visit(child, trains, part)

    for child in root.children():
        visit(child, None, None)
    return modes


def apply_modes(modes: dict[nn.Module, bool]) -> None:
    """Puts each module, without its children, into its mode; does nothing where that is so already."""
    for module, training in modes.items():
        if module.training is not training:
            module.training = training


class KeptModes:
    """Modes in which modules have to be before each batch.

    Args:
        modes: Module → whether it is in train mode.
    """

    def __init__(self, modes: dict[nn.Module, bool]) -> None:
        self.modes = modes
        self._attributes = [vars(module) for module in modes]
        self._wanted = list(modes.values())

    def apply(self) -> None:
        """See `apply_modes`."""
        # before each batch, so that it runs over the attributes of hundreds of modules without Python's own loop
        try:
            if list(map(_IS_TRAINING, self._attributes)) == self._wanted:
                return
        except KeyError:
            pass  # such as of a scripted module, which keeps its mode elsewhere
        apply_modes(self.modes)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards, also after an exception, the module and all below it have the modes that they had."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        apply_modes(modes)


@contextmanager
def dry_run(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes, buffers and the random state are as before afterwards."""
    buffers = {}
    for name, buffer in module.named_buffers():
        if not is_lazy(buffer):  # has no values yet
            buffers[name] = buffer.clone()
    try:
        with evaluating(module), torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        for name, buffer in module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics: batch and instance normalization, in any number of dimensions."""
    return getattr(module, "running_mean", None) is not None


class KeptStatistics:
    """A copy of all running statistics, for a step that then is not made.

    Also of normalizations in eval mode: what trains from this step on is switched after the first batch has begun.
    """

    def __init__(self, root: nn.Module, copies: Mapping[str, Tensor] | None = None) -> None:
        self._buffers: dict[str, Tensor] = {}
        for name, module in root.named_modules():
            if has_statistics(module):
                for own, buffer in module.named_buffers(prefix=name, recurse=False):
                    self._buffers[own] = buffer
        self.copies = {name: buffer.clone() for name, buffer in self._buffers.items()}
        """Name → value to be restored; those of another process that this one continues come first."""
        for name, copy in (copies or {}).items():
            if name in self._buffers and copy.shape == self._buffers[name].shape:
                self.copies[name] = copy

    def restore(self) -> None:
        """Puts the copies back."""
        for name, buffer in self._buffers.items():
            buffer.copy_(self.copies[name])


def reestimate_statistics(norms: Sequence[Any], batches: Iterable[Any], forward: Callable[[Any], Any]) -> None:
    """Replaces running statistics by their plain average over batches, weights unchanged (arXiv 2105.07576, section 3).

    Running statistics average over weights that are long gone; with a momentum of 0.01 and few steps they never arrive.

    The `norms` have running statistics; they are put into train mode and back. `forward` runs the network on a batch,
    with the other modules in the mode that they have. There has to be at least one batch.
    """
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.training = True
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches, 1):
                for norm in norms:
                    # the weight of the newest batch in a plain average
                    norm.momentum = 1 / number
                forward(batch)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training
