"""Activation checkpointing: what a part's stages compute is not kept for the backward pass but computed again there."""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from hybrid_lightning.distributed.sharding import outermost
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.calling import replaced_forwards
from hybrid_lightning.network.stages import Stages
from hybrid_lightning.optim.groups import matches
from hybrid_lightning.unfreezing.freezing import apply_modes

Buffers = dict[nn.Module, dict[str, Tensor]]
_KINDS_OF_LAYERS = ("linear", "conv", "sparse", "batchnorm", "normalization")
_LAYERS = tuple(f"torch.nn.modules.{kind}" for kind in _KINDS_OF_LAYERS)
"""Where torch has layers that keep their input and little else, so that nothing is gained from running them again."""


def recomputed_modules(module: nn.Module, stages: Stages) -> list[nn.Module]:
    """The modules of a part that run again in its backward pass: the outermost ones of each stage.

    If these are all single layers, it is the part as a whole.
    """
    found: dict[nn.Module, None] = {}
    for patterns in stages.values():
        wanted = set()
        for name, parameter in module.named_parameters():
            if any(matches(pattern, name) for pattern in patterns):
                wanted.add(id(parameter))
        found.update(dict.fromkeys(outermost(module, wanted)))
    worth_it = [inner for inner in found if type(inner).__module__ not in _LAYERS]
    return worth_it or [module]


@contextmanager
def recomputing(modules: Collection[nn.Module], place: str, without: Collection[nn.Module] = ()) -> Iterator[None]:
    """Within it, calls of these modules keep their inputs alone, and the backward pass calls them again.

    Modules that have one of `without` within them are called as ever. `place` is that of the option, for errors.
    """
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for module in modules:
        is_cut = without and any(inner in without for inner in module.modules())
        if not is_cut:
            forwards[module] = _recomputed(module, module.forward, place)
    with replaced_forwards(forwards):
        yield


def _recomputed(module: nn.Module, forward: Callable[..., Any], place: str) -> Callable[..., Any]:
    """A function that does what `forward` does, and does it again in the backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        # flat, because torch keeps the random state of the devices of positional tensors alone
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not _keeps_something(module, tensors):
            return forward(*args, **kwargs)

        def forward_of_leaves(*values: Any) -> Any:
            given, named = pytree.tree_unflatten(list(values), structure)
            return forward(*given, **named)

        state = _State(module)
        versions = _versions(tensors)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), state

        result = checkpoint(forward_of_leaves, *leaves, use_reentrant=False, context_fn=contexts)
        if versions != _versions(tensors):
            raise ConfigError(
                f"{type(module).__name__} overwrites what it reads, as layers with inplace=True do, so that it cannot "
                f"run again. Leave this out.",
                place,
            )
        return result

    return run


def _keeps_something(module: nn.Module, inputs: Collection[Tensor]) -> bool:
    """Whether a call keeps activations: if a parameter trains, or a part before it does."""
    if not is_grad_enabled():
        return False
    return any(tensor.requires_grad for tensor in (*inputs, *module.parameters()))


def _versions(tensors: Collection[Tensor]) -> list[int]:
    """How often each tensor has been written to; those of inference mode do not count it."""
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


class _State:
    """The buffers and modes with which a module ran: running statistics have moved when it runs again.

    Within it, as often as a backward pass comes to the module, it has them again; what it writes into its buffers is
    lost, as it has done so before.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modes = {each: each.training for each in module.modules()}
        self._buffers: Buffers = {}
        for each in module.modules():
            own = dict(each.named_buffers(recurse=False))
            if own:
                self._buffers[each] = {name: buffer.detach().clone() for name, buffer in own.items()}

    def __enter__(self) -> None:
        self._modes_now = {module: module.training for module in self._modes}
        copies: Buffers = {}
        for module, own in self._buffers.items():
            copies[module] = {name: buffer.clone() for name, buffer in own.items()}
        self._buffers_now = _exchanged(copies)
        apply_modes(self._modes)

    def __exit__(self, *error: object) -> None:
        apply_modes(self._modes_now)
        _exchanged(self._buffers_now)


def _exchanged(buffers: Buffers) -> Buffers:
    """Gives modules these buffers, and returns those that they had."""
    before: Buffers = {}
    for module, of_module in buffers.items():
        before[module] = {name: getattr(module, name) for name in of_module}
        for name, buffer in of_module.items():
            setattr(module, name, buffer)
    return before
