"""Frozen means frozen: no gradient, no update, no moving statistics, no dropout."""

from collections.abc import Iterable, Mapping

from torch import nn

from hybrid_lightning.norms import has_statistics


def set_trainable(parameters: Iterable[nn.Parameter], trainable: bool) -> None:
    """Turns gradients on or off; a parameter that is turned off loses its gradient.

    With ``.grad`` None an optimizer leaves the parameter alone, weight decay and momentum included.
    """
    for parameter in parameters:
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None


def module_modes(
    root: nn.Module, parts: Mapping[nn.Parameter, str], norm: Mapping[str, str] | None = None
) -> dict[nn.Module, bool]:
    """Which modules have to be in train mode (True) or in eval mode (False) while `root` trains.

    A module trains if one of its parameters does. A module without parameters of its own (dropout, a normalisation with
    ``affine=False``) follows its nearest ancestor that has some, except `root` itself. Modules that follow nobody are
    left out and keep their mode.

    Args:
        root: The module whose descendants are judged.
        parts: Parameter → name of its part; only these parameters' ``requires_grad`` decides.
        norm: Part → mode of its normalisations with running statistics, whether the part trains or not: ``eval`` uses
            and keeps the stored statistics, ``train`` those of the batch. ``stats`` makes no difference here.
    """
    by_id = {id(parameter): part for parameter, part in parts.items()}
    modes: dict[nn.Module, bool] = {}

    def visit(module: nn.Module, trains: bool | None, part: str | None) -> None:
        own = [parameter for parameter in module.parameters() if id(parameter) in by_id]
        if own:
            trains, owners = any(p.requires_grad for p in own), {by_id[id(p)] for p in own}
            part = owners.pop() if len(owners) == 1 else None
        forced = (norm or {}).get(part or "") if has_statistics(module) else None
        if forced in ("eval", "train"):
            modes[module] = forced == "train"
        elif trains is not None:
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
