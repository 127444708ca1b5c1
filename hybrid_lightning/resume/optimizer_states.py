"""The optimizer state of a checkpoint, looked at before it is restored: compiled optimizers check no shape."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, Adafactor, Adagrad, Optimizer

from hybrid_lightning.distributed.sharding import own_share
from hybrid_lightning.errors import ConfigError, listing

_NEVER_NEGATIVE = (
    *("step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "exp_inf"),
    *("variance", "row_var", "col_var"),
)
_REMEDY = "Continue from another checkpoint of the run, or start a new fit from its weights with model.init_from."
FreshState = Mapping[str, Any] | None
"""What an optimizer holds for a parameter after its first step; None if that is not known."""
Make = Callable[[list[nn.Parameter]], Optimizer]


def require_groups(checkpoint: Mapping[str, Any], groups: Mapping[str, list[str]]) -> None:
    """Refuses a checkpoint whose optimizer state is not that of one optimizer over these groups.

    Args:
        checkpoint: Of a fit that is to go on.
        groups: Group name → names of its parameters, of the checkpoint.

    Raises:
        ConfigError: If there is no state, or its groups have other names or numbers of parameters.
    """
    states = checkpoint.get("optimizer_states")
    if not states:
        raise ConfigError(
            f"--ckpt_path: the checkpoint holds no optimizer state, so a fit cannot go on from it. {_REMEDY}"
        )
    try:
        [state] = states
        counts = {group["name"]: len(group["params"]) for group in state["param_groups"]}
        indices = [index for group in state["param_groups"] for index in group["params"]]
        surplus = state["state"].keys() - set(indices)
        is_whole = len(counts) == len(state["param_groups"]) and len(set(indices)) == len(indices)
        is_whole = is_whole and all(isinstance(entry, dict) for entry in state["state"].values())
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise damaged("it is not that of one optimizer.") from error
    if not is_whole or surplus or list(counts.items()) != [(name, len(names)) for name, names in groups.items()]:
        raise damaged(f"its groups are not those of its model ({listing(groups, 4)}), with as many parameters.")


def damaged(problem: str) -> ConfigError:
    """The error for an optimizer state with a problem, a sentence."""
    return ConfigError(f"--ckpt_path: the optimizer state of the checkpoint is damaged: {problem} {_REMEDY}")


def first_problem(
    checkpoint: Mapping[str, Any],
    optimizer: Optimizer,
    names: Mapping[int, str],
    make: Make,
) -> str | None:
    """What is wrong with the optimizer state of a checkpoint, as a sentence; None if it can be restored.

    Args:
        checkpoint: See `require_groups`.
        optimizer: Of today, over the parameters that the state is for.
        names: ``id`` of a parameter → its name.
        make: Makes such an optimizer over other parameters.
    """
    [saved] = checkpoint["optimizer_states"]
    known: dict[Any, FreshState] = {}
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for option, value in saved_group.items():
            if isinstance(value, Tensor) and not isinstance(group.get(option), Tensor):
                return f"{option!r} of the group {group['name']!r} is a tensor."
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            state = saved["state"].get(index)
            if not state:  # it has not been trained yet
                continue
            kind = (parameter.shape, parameter.dtype, parameter.stride())
            if kind not in known:
                known[kind] = _after_first_step(make, parameter, type(optimizer))
            for problem in _problems(state, parameter, known[kind], optimizer):
                return f"of the parameter {names[id(parameter)]!r} {problem}."
    return None


def _after_first_step(make: Make, like: nn.Parameter, kind: type[Optimizer]) -> FreshState:
    """What an optimizer of a kind holds after a step for a parameter like another one, of a sharded one the whole."""
    whole = torch.zeros(like.shape, dtype=like.dtype)
    parameter = nn.Parameter(whole if isinstance(like, DTensor) else torch.zeros_like(like, device="cpu"))
    parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer = make([parameter])
        optimizer.step()
        found = dict(optimizer.state[parameter])
    except Exception:  # it may need a closure, sparse gradients or a device
        optimizer, found = None, None
    if type(optimizer) is kind:
        return found
    same_shapes = kind.__module__.startswith("torch.optim.") and not issubclass(kind, LBFGS | Adafactor)
    return {} if same_shapes else None


def _problems(state: Mapping[str, Any], parameter: Tensor, fresh: FreshState, optimizer: Optimizer) -> Iterator[str]:
    of_torch = type(optimizer).__module__.startswith("torch.optim.")
    lacking = [key for key in fresh or () if key not in state]
    if lacking and of_torch and "momentum_buffer" not in lacking:  # that one may be asked for later
        yield f"lacks {listing(lacking)}"
    for key, value in state.items():
        problem = _problem(key, value, parameter, fresh)
        if problem is None and isinstance(value, Tensor):
            is_square = key in _NEVER_NEGATIVE or (key == "sum" and isinstance(optimizer, Adagrad))
            problem = _wrong_values(value, is_square)
        if problem is not None:
            yield f"{key!r} {problem}"


def _problem(key: Any, value: Any, parameter: Tensor, fresh: FreshState) -> str | None:
    """What is wrong with the kind of an entry."""
    wanted = None if fresh is None else fresh.get(key)
    if not isinstance(value, Tensor):
        is_number = type(value) in (int, float)
        if is_number and (not math.isfinite(value) or (key == "step" and value < 0)):
            return f"is {value}"
        is_tensor_needed = isinstance(wanted, Tensor) and not (key == "step" and is_number)
        return f"is a {type(value).__name__}, not a tensor" if is_tensor_needed else None
    if not _is_plain(value, parameter):
        return "is no plain tensor"
    if fresh is None:
        return None
    like = wanted if isinstance(wanted, Tensor) else parameter  # options in the file may ask for entries of their own
    if value.shape != like.shape and not (key == "step" and value.ndim == 0):
        return f"has shape {tuple(value.shape)}, not {tuple(like.shape)}"
    same_kind = (value.is_floating_point(), value.is_complex()) == (like.is_floating_point(), like.is_complex())
    if value.dtype != like.dtype and not (same_kind and (like.is_floating_point() or like.is_complex())):
        return f"holds {value.dtype}, not {like.dtype}"
    return None


def _is_plain(value: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor's values lie in memory of its own, all of them, as compiled code takes for granted."""
    if isinstance(value, DTensor) and isinstance(parameter, DTensor):
        same_place = (value.placements, value.device_mesh) == (parameter.placements, parameter.device_mesh)
        if value.shape == parameter.shape and same_place and own_share(value).shape != own_share(parameter).shape:
            return False
        value = own_share(value)
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        return False
    if value.is_meta or value.is_nested or value.is_quantized:
        return False
    end = (value.storage_offset() + value.numel()) * value.element_size()
    return end <= value.untyped_storage().nbytes()


def _wrong_values(value: Tensor, never_negative: bool) -> str | None:
    value = own_share(value.detach())
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    if not value.is_floating_point() or not value.numel():
        return None
    low, high = (float(bound) for bound in torch.aminmax(value))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds values that are not finite"
    return "holds negative values" if never_negative and low < 0 else None
