"""Frozen means frozen: no gradient, no update, no moving statistics, no dropout."""

from collections.abc import Collection, Iterable

import torch
from torch import nn


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Turns gradients on or off; a parameter that is turned off loses its gradient.

    With ``.grad`` None an optimizer leaves the parameter alone, weight decay and momentum included.
    """
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None


def module_modes(root: nn.Module, governed: Collection[torch.Tensor]) -> dict[nn.Module, bool]:
    """Which modules have to be in train mode (True) or in eval mode (False) while `root` trains.

    A module trains if one of its governed parameters does. A module without governed parameters (dropout, a
    normalisation with ``affine=False``) follows its nearest ancestor that has some, except `root` itself. Modules that
    follow nobody are left out and keep their mode.

    Args:
        root: The module whose descendants are judged.
        governed: Parameters whose ``requires_grad`` decides.
    """
    governed_ids = {id(parameter) for parameter in governed}
    modes: dict[nn.Module, bool] = {}

    def visit(module: nn.Module, inherited: bool | None) -> None:
        own = [parameter.requires_grad for parameter in module.parameters() if id(parameter) in governed_ids]
        mode = any(own) if own else inherited
        if mode is not None:
            modes[module] = modes.get(module, False) or mode
        for child in module.children():
            visit(child, mode)

    for child in root.children():
        visit(child, None)
    return modes


def apply_modes(modes: dict[nn.Module, bool]) -> None:
    """Puts each module, without its children, into its mode; does nothing where that is so already."""
    for module, training in modes.items():
        if module.training is not training:
            module.training = training
