"""Where a cache can cut a part of which some stages are frozen: at the outputs of modules before all that trains."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hybrid_lightning.cache.splits import CannotCacheError, Split, all_random_state, as_the_module_gets_it, computing
from hybrid_lightning.cache.verification import relative_difference, tolerance
from hybrid_lightning.drift.reference_batch import own_random_state
from hybrid_lightning.network.calling import run_module
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import take
from hybrid_lightning.network.outputs import mask_of
from hybrid_lightning.network.short_circuit import ShortCircuit, layout, likes_in, part_of, place_in, tensors_in_tree
from hybrid_lightning.unfreezing.freezing import apply_modes, has_statistics

_FILLERS = (1.0, float("nan"))
_ROWS = 8  # that are read at least, as some may lack the part


@contextmanager
def about_to_train(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Within it these have ``requires_grad``, as they will once the batch starts with which they are unfrozen."""
    changed = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class _Call:
    """A call of a module that has ended before all that trains."""

    name: str
    output: Any
    is_first: bool
    begun: int  # modules that had begun by then


class _Trace:
    """The calls in a forward pass that end before anything that trains or varies begins, without those within them."""

    def __init__(self, module: nn.Module, random: Callable[[], str]) -> None:
        self.calls: list[_Call] = []
        self.begun: list[str] = []
        self._random = random
        self._before = random()
        self._names = {each: name for name, each in module.named_modules()}
        self._counts: Counter[str] = Counter()
        self._open: list[int] = []  # how many calls there were when each running module began
        self._is_cut = False

    def begin(self, module: nn.Module, _inputs: Any) -> None:
        """Hook for each module before its forward pass."""
        self._open.append(len(self.calls))
        self.begun.append(self._names[module])
        own = module.parameters(recurse=False)
        follows_batches = has_statistics(module) and module.training
        if follows_batches or any(parameter.requires_grad for parameter in own):
            self._is_cut = True

    def end(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Hook for each module after its forward pass."""
        start = self._open.pop()
        name = self._names[module]
        self._counts[name] += 1
        # also where a parameter is used without a call of the module that has it
        depends = any(tensor.requires_grad for tensor in tensors_in_tree(output))
        if depends or self._is_cut or self._random() != self._before:
            self._is_cut = True
            return
        is_first = self._counts[name] == 1
        self.calls[start:] = [_Call(name, output, is_first, len(self.begun))]


def _traced(module: nn.Module, inputs: list[Any], random: Callable[[], str]) -> _Trace:
    trace = _Trace(module, random)
    hooks = []
    for each in module.modules():
        hooks.append(each.register_forward_pre_hook(trace.begin))
        hooks.append(each.register_forward_hook(trace.end))
    try:
        # whether an output has a gradient tells whether it depends on what trains
        with torch.enable_grad():
            run_module(module, inputs, None)
    finally:
        for hook in hooks:
            hook.remove()
    return trace


def short_circuits(module: nn.Module, inputs: list[Any], random: Callable[[], str]) -> list[ShortCircuit]:
    """The ways to run a module from a boundary on, the deepest first, in its modes and with its flags of now.

    Args:
        module: The module; nothing of what it draws or writes is undone.
        inputs: What it is called with, three samples or more.
        random: Gives another text after each draw of a random number.
    """
    smaller = [take(value, torch.arange(2)) for value in inputs]
    larger = [take(value, torch.arange(3)) for value in inputs]
    two = _traced(module, smaller, random)
    three = _traced(module, larger, random)
    arguments = layout(smaller, larger)
    returned: dict[str, list[Any]] = {}
    found: list[ShortCircuit] = []
    for call, same in zip(two.calls, three.calls, strict=False):
        if call.name != same.name:
            break
        like = layout(call.output, same.output)
        returned.setdefault(call.name, []).append(like)
        if call.name and call.is_first and _can_be_kept(like):
            so_far = {name: list(layouts) for name, layouts in returned.items()}
            tensors = _tensors(module, two.begun[: call.begun], so_far)
            found.append(ShortCircuit(call.name, arguments, so_far, tensors))
    return found[::-1]


def _can_be_kept(like: Any) -> bool:
    likes = likes_in(like)
    return len(likes) == 1 and likes[0].has_samples_first


def _tensors(module: nn.Module, begun: Collection[str], ended: Collection[str]) -> list[str]:
    """The names of the tensors of modules that have ended, and of those that only have begun their own ones."""
    used: set[int] = set()
    for name in begun:
        layer = module.get_submodule(name)
        recurse = name in ended
        used.update(map(id, layer.parameters(recurse)))
        used.update(map(id, layer.buffers(recurse)))
    every: list[tuple[str, Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in every if id(tensor) in used]


def find_boundaries(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    split: Split,
    name: str,
    modes: Mapping[nn.Module, bool],
) -> dict[str, ShortCircuit]:
    """Place → how to run a part from there on, the deepest first; to be called within `about_to_train`.

    Raises:
        CannotCacheError: If that cannot be told from three samples.
    """
    module = network.parts[name]
    device = trainer.strategy.root_device
    with computing(trainer, network, split):
        inputs = _inputs(trainer, pl_module, network, split, name, 3)
        if network.record.parts[name].files is not None:
            raise CannotCacheError("it reads several files per sample")
        if mask_of(inputs) is not None and name in network.feeding:
            raise CannotCacheError("its features are pooled by the mask of what it reads")
        apply_modes(_own(module, modes))
        found = short_circuits(module, inputs, lambda: all_random_state(device))
    return {place_in(name, cut.boundary): cut for cut in found}


def _own(module: nn.Module, modes: Mapping[nn.Module, bool]) -> dict[nn.Module, bool]:
    return {each: modes[each] for each in module.modules() if each in modes}


def _inputs(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    split: Split,
    name: str,
    rows: int,
) -> list[Any]:
    """What a part is called with for so many rows that have it, if there are as many."""
    batch = split.read(split.spread_rows(max(split.size, _ROWS)))
    inputs = network.inputs_of(name, as_the_module_gets_it(trainer, pl_module, batch))
    counts = {len(tensor) for tensor in tensors_in_tree(inputs) if tensor.ndim}
    if min(counts, default=0) < 3:
        raise CannotCacheError("fewer than three samples have what it reads")
    return [take(value, torch.arange(min(rows, *counts))) for value in inputs]


def check_boundary(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    split: Split,
    place: str,
    modes: Mapping[nn.Module, bool],
) -> None:
    """`CannotCacheError` if what follows a boundary reads anything else of what comes before.

    Compared with live forward passes: of a full batch as in training, of a ragged one as in a validation.
    """
    name = part_of(place)
    module = network.parts[name]
    own = _own(module, modes)
    evaluation = dict.fromkeys(own, False)
    ragged = max(1, split.size // 4 - 1)
    for size, in_modes in ((split.size, own), (ragged, evaluation)):
        with computing(trainer, network, split):
            inputs = _inputs(trainer, pl_module, network, split, name, size)
            gap, allowed = _gap(trainer, network, place, inputs, in_modes)
            if gap > allowed:
                raise CannotCacheError(
                    f"run from {place} on it differs from a live forward by {gap:.2g} of the largest value, more than "
                    f"{allowed:.2g}, as what follows reads something else, too"
                )
            if in_modes is own:
                _check_backward(network, place, inputs)


def _check_backward(network: HybridNetwork, place: str, inputs: list[Any]) -> None:
    """`CannotCacheError` if a backward pass runs the start again, as one of checkpointed activations does."""
    module, cut = network.parts[part_of(place)], network.short_circuits[place]
    kept = cut.capture(module, inputs)
    with torch.enable_grad():
        returned = tensors_in_tree(cut.run(module, kept))
    outputs = [tensor for tensor in returned if tensor.requires_grad]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    ones = [torch.ones_like(tensor) for tensor in outputs]
    # not `backward`, which would add to gradients and tell other ranks
    found = torch.autograd.grad(outputs, trained, ones, allow_unused=True) if outputs else ()
    for gradient in found:
        if gradient is not None and not gradient.isfinite().all():
            raise CannotCacheError(f"run from {place} on it has no finite gradients, as activations are checkpointed")


def _gap(
    trainer: Trainer,
    network: HybridNetwork,
    place: str,
    inputs: list[Any],
    modes: dict[nn.Module, bool],
) -> tuple[float, float]:
    """The largest difference of a part that is run from a boundary on to a live forward; what may be."""
    name = part_of(place)
    module, cut = network.parts[name], network.short_circuits[place]
    key = network.record.parts[name].output
    in_evaluation = cut.capture(module, inputs)
    apply_modes(modes)

    def output(run: Callable[[], Any]) -> Tensor:
        with own_random_state(trainer):
            returned = run()
        return returned if key is None else returned[key]  # type: ignore[no-any-return]

    kept = cut.capture(module, inputs)
    live = output(lambda: run_module(module, inputs, None))
    gaps = [relative_difference(kept, in_evaluation)]
    for number in _FILLERS:
        again = output(lambda number=number: cut.run(module, kept, number))  # type: ignore[misc]
        gaps.append(relative_difference(again, live))
        # the first of them that is too large says by how much
        if gaps[-1] > tolerance(live.dtype):
            break
    return max(gaps), tolerance(live.dtype)
