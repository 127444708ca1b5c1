"""From what a part's module returns to one tensor, and from that to features."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError

POOLS = ("mean", "max", "flatten", "time", "tokens")
_KNOWN_OUTPUTS = ("last_hidden_state", "out")


def described(value: Any) -> str:
    """A value in words for an error: the shape of a tensor, the entries of a container, the type of anything else."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"tensor {tuple(value.shape)} {dtype}"
    entries: Any = None
    if isinstance(value, Mapping):
        brackets, entries = "{}", value.items()
    elif isinstance(value, tuple | list):
        brackets, entries = "()", enumerate(value)
    if entries is not None:
        return brackets[0] + ", ".join(f"{key}: {described(entry)}" for key, entry in entries) + brackets[1]
    return f"a {type(value).__name__}"


def find_output(output: Any, given: str | int | None, kind: str) -> str | int | None:
    """Which entry of what a module returned is the part's output; None if that is the output itself.

    A lone tensor is taken out of its container; of several, ``last_hidden_state`` (transformers) and ``out``
    (torchvision's segmentation) are known. `given` is the part's ``output``, `kind` the module's class.
    """
    if isinstance(output, Tensor):
        if given is not None:
            raise ConfigError(f"{given!r} has no meaning; {kind} returns {described(output)}. Remove it.", "output")
        return None
    entries: dict[str | int, Any] = {}
    if isinstance(output, Mapping):
        entries = dict(output)
    elif isinstance(output, tuple | list):
        entries = dict(enumerate(output))
    tensors = [key for key, entry in entries.items() if isinstance(entry, Tensor)]
    if given is not None and given in tensors:
        return given
    if given is None:
        known = [key for key in _KNOWN_OUTPUTS if key in tensors]
        if known or len(tensors) == 1:
            return (known or tensors)[0]
    what = "choose one of" if given is None else f"{given!r} is not a tensor of"
    raise ConfigError(
        f"{what} what {kind} returns: {described(output)[:500]}. Write 'output: {tensors[0] if tensors else 'KEY'}' on "
        f"the part, with the key or position of the tensor to use, or wrap the module in one that returns one tensor.",
        "" if given is None else "output",
    )


def find_pool(output: Tensor, called: Sequence[nn.Module]) -> str:
    """How a part's output becomes features: by where the last of the layers `called` left the channels."""
    if output.ndim == 2:
        return "flatten"
    last = output.ndim - 1
    for module in reversed(called):
        own = [parameter.shape for parameter in module.parameters(recurse=False) if parameter.numel()]
        if not own:
            continue
        if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._NormBase | nn.GroupNorm):
            # a transposed convolution has its output channels in the second dimension of its weight
            made = own[0][1 if getattr(module, "transposed", False) else 0]
            fits = [1] if made == output.shape[1] else []
        else:
            fits = [d for d in (last, 1) if any(output.shape[d] in shape for shape in own)]
        # these leave the channels last whatever the other dimension is
        is_last = isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding | nn.RNNBase)
        if len(fits) == 1 or is_last:
            return "tokens" if fits and fits[0] == last else "mean"
    raise ConfigError(
        f"the output is {described(output)}; say where its channels are: 'pool: mean' (or max, flatten) for (B, "
        f"channels, ...), 'pool: tokens' for (B, ..., channels).",
        "pool",
    )


def pooled(output: Tensor, how: str, mask: Tensor | None = None) -> Tensor:
    """A part's output `(B, C, ...)`, or tokens `(B, ..., C)`, as `(B, features)`; a `mask` `(B, T)` counts tokens."""
    if output.ndim == 2:
        return output
    if output.ndim < 2 or how == "flatten":
        return output.flatten(1)
    if how == "mean":
        return output.flatten(2).mean(2)
    if how == "time":
        return output.mean(-1).flatten(1)
    if how == "max":
        return output.flatten(2).amax(2)
    tokens = output.flatten(1, -2)
    if mask is None or mask.shape != tokens.shape[:2]:
        return tokens.mean(1)
    weight = mask.to(tokens.dtype).unsqueeze(-1)
    # a sequence of nothing but padding becomes 0
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def fix_unused(module: nn.Module, output: Tensor) -> None:
    """Takes the gradients off parameters that an output does not depend on by its graph: DDP would wait for them."""
    used = set()
    seen = {output.grad_fn}
    nodes = [output.grad_fn]
    # backwards through the graph; its leaves hold the parameters
    while nodes:
        node = nodes.pop()
        used.add(id(getattr(node, "variable", None)))
        following = {after for after, _ in getattr(node, "next_functions", ())} - seen - {None}
        seen |= following
        nodes += following
    for parameter in module.parameters():
        if parameter.requires_grad and id(parameter) not in used:
            parameter.requires_grad_(False)


def mask_of(inputs: Sequence[Any]) -> Tensor | None:
    """The ``attention_mask`` or ``mask`` `(B, T)` of a part's only input, if that is a dict that has one."""
    if len(inputs) != 1 or not isinstance(inputs[0], Mapping):
        return None
    mask = inputs[0].get("attention_mask", inputs[0].get("mask"))
    return mask if isinstance(mask, Tensor) else None
