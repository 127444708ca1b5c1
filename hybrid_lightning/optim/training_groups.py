"""Optimizer steps that cost nothing for what is frozen: the groups that train are found once and stepped together."""

from collections.abc import Callable
from operator import attrgetter, itemgetter
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

Group = dict[str, Any]
_TRAINS = attrgetter("requires_grad")
_GRADIENT = attrgetter("grad")


class TrainingGroups:
    """The param groups of an optimizer in which something trains or has a gradient, in their order.

    It is out of date once a parameter of another group does.
    """

    def __init__(self, every: list[Group]) -> None:
        self._every = every
        self._count = len(every)
        self.are_final = False
        """Whether somebody has looked since the gradients of this step were computed."""
        self.are_stepped = False
        """Whether the optimizer has stepped with these gradients, and so has looked."""
        self.groups: list[Group] = []
        self._frozen: list[nn.Parameter] = []
        for group in every:
            parameters = group["params"]
            if any(parameter.requires_grad or parameter.grad is not None for parameter in parameters):
                self.groups.append(group)
            else:
                self._frozen += parameters

    def are_of(self, every: list[Group]) -> bool:
        """Whether these are of the groups that the optimizer has now; restoring a state replaces its list."""
        return every is self._every and len(every) == self._count

    def is_current(self, every: list[Group]) -> bool:
        """Whether the groups that the optimizer has now are these, and those that were frozen still are."""
        return self.has_all_gradients(every) and not any(map(_TRAINS, self._frozen))

    def has_all_gradients(self, every: list[Group]) -> bool:
        """Whether the groups that the optimizer has now are these, and no parameter of another one has a gradient."""
        # at each step, so that it runs over the parameters without Python's own loop
        return self.are_of(every) and set(map(_GRADIENT, self._frozen)) <= {None}


_FOUND: WeakKeyDictionary[Optimizer, TrainingGroups] = WeakKeyDictionary()


def training_groups(optimizer: Optimizer) -> TrainingGroups:
    """The groups of an optimizer that train now: the same object for as long as no other group does."""
    found = _FOUND.get(optimizer)
    if found is None or not found.is_current(optimizer.param_groups):
        found = TrainingGroups(optimizer.param_groups)
        _FOUND[optimizer] = found
    return found


def groups_with_gradients(optimizer: Optimizer) -> TrainingGroups:
    """Those that train, perhaps without some that have no gradient and so make no difference to a step."""
    found = _FOUND.get(optimizer)
    if found is None or not found.has_all_gradients(optimizer.param_groups):
        found = training_groups(optimizer)
    found.are_final = True
    return found


def _known_groups(optimizer: Optimizer, clears: bool) -> TrainingGroups:
    """The same for a step, or to clear its gradients; does not look a second time at the same ones."""
    found = _FOUND.get(optimizer)
    is_known = found is not None and found.are_of(optimizer.param_groups)
    if found is None or not is_known or not (found.are_final or (clears and found.are_stepped)):
        found = groups_with_gradients(optimizer)
    found.are_final = False
    found.are_stepped = not clears
    return found


def step_what_trains(optimizer: Optimizer) -> None:
    """Makes an optimizer of torch step the groups that train alone, Adam and AdamW those of equal options at once.

    Weights and state become what they would be, bit by bit. Hooks of the step see the groups as they are stepped.
    """
    # what another one does with its groups is unknown, and LBFGS calls its closure several times
    if type(optimizer).__module__.startswith("torch.optim") and not isinstance(optimizer, LBFGS):
        optimizer.step = MethodType(_step, optimizer)  # type: ignore[method-assign]
        optimizer.zero_grad = MethodType(_zero_grad, optimizer)  # type: ignore[method-assign]


def _step(optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        # first, because it has to see all groups
        with torch.enable_grad():
            loss = closure()
    every = optimizer.param_groups
    stepped = _known_groups(optimizer, clears=False).groups
    # states are made in the order of the groups; SGD cannot step parameters with and without one together
    have_states = all(group["params"][0] in optimizer.state for group in stepped)
    if have_states and type(optimizer) in (Adam, AdamW):
        stepped = _merged(stepped, optimizer.defaults)
    elif type(optimizer) is SGD:
        stepped = [_rightly_stepped(group) for group in stepped]
    optimizer.param_groups = stepped
    try:
        type(optimizer).step(optimizer)
    finally:
        optimizer.param_groups = every
    return loss


def has_16_bits(group: Group) -> bool:
    """Whether a param group has a parameter of 16 bits, which torch's fused SGD does not step rightly on the CPU.

    Up to torch 2.13 most of its weights stay as they are, and its momentum holds what lies in memory beside it; see
    https://github.com/pytorch/pytorch/issues/191763.
    """
    return any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in group["params"])


def _rightly_stepped(group: Group) -> Group:
    """The group of an SGD, not fused where it must not be, whether somebody chose that or a checkpoint says so."""
    if not group.get("fused") or not has_16_bits(group):
        return group
    on_cpu = any(parameter.device.type == "cpu" for parameter in group["params"])
    return {**group, "fused": False} if on_cpu else group


def _merged(groups: list[Group], options: dict[str, Any]) -> list[Group]:
    """One group for all that have the same `options`, such as the rate and the decay of this step."""
    merged: dict[tuple[Any, ...], Group] = {}
    values_of = itemgetter(*options)
    for group in groups:
        values = values_of(group)
        if list in map(type, values):
            values = tuple(map(_hashable, values))
        if values in merged:
            merged[values]["params"] += group["params"]
        else:
            merged[values] = {**group, "params": [*group["params"]]}
    return list(merged.values())


def _hashable(value: Any) -> Any:
    """An option's value; a list, as YAML has it and older versions of torch keep it, as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _zero_grad(optimizer: Optimizer, set_to_none: bool = True) -> None:
    if not set_to_none:
        type(optimizer).zero_grad(optimizer, set_to_none=False)
        return
    for group in _known_groups(optimizer, clears=True).groups:
        for parameter in group["params"]:
            parameter.grad = None
