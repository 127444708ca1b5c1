"""Checks of the optimizer state in a checkpoint before it is restored: compiled optimizers check no shape."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, Adafactor, Adagrad, Optimizer

from hybrid_lightning.distributed.sharding import own_share
from hybrid_lightning.errors import ConfigError, listing, reason
from hybrid_lightning.importing import parameters_of
from hybrid_lightning.weights.tensor_values import FLOATS, is_plain, value_range

_NEVER_NEGATIVE = {
    "acc_delta",
    "col_var",
    "exp_avg_sq",
    "exp_inf",
    "max_exp_avg_sq",
    "row_var",
    "square_avg",
    "step",
    "variance",
}
"""Entries of torch's optimizers that count, or sum up squares."""
_CHOSEN = ("maximize", "amsgrad", "nesterov", "centered")
"""Options that decide in which direction, and with which memory, an optimizer goes."""
_REMEDY = "Continue from another checkpoint of the run, or start a new fit from its weights with model.init_from."
FreshState = Mapping[str, Any] | None
"""What an optimizer holds for a parameter after its first step; None if that is not known."""
Make = Callable[[list[nn.Parameter]], Optimizer]


def require_groups(checkpoint: Mapping[str, Any], groups: Mapping[str, list[str]]) -> None:
    """Raises `ConfigError` unless the optimizer state of a checkpoint is that of one optimizer over these groups."""
    states = checkpoint.get("optimizer_states")
    if not states:
        raise ConfigError(
            f"--ckpt_path: the checkpoint holds no optimizer state, so a run cannot go on from it. {_REMEDY}"
        )
    sizes, indices = [], []
    try:
        (state,) = states
        for group in state["param_groups"]:
            sizes.append((group["name"], len(group["params"])))
            indices += group["params"]
        surplus = state["state"].keys() - set(indices)
        all_dicts = all(isinstance(entry, dict) for entry in state["state"].values())
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise damaged("it is not that of one optimizer.") from error
    wanted = [(name, len(names)) for name, names in groups.items()]
    is_repeated = len(set(indices)) < len(indices)
    if sizes != wanted or is_repeated or surplus or not all_dicts:
        raise damaged(f"its groups are not those of its model ({listing(groups, 4)}), with as many parameters.")


def damaged(problem: str) -> ConfigError:
    """The error for an optimizer state with a problem, a sentence."""
    return ConfigError(f"--ckpt_path: the optimizer state of the checkpoint is damaged: {problem} {_REMEDY}")


def first_problem(
    checkpoint: Mapping[str, Any],
    optimizer: Optimizer,
    names: Mapping[int, str],
    make: Make,
    stated: Mapping[str, Any],
) -> str | None:
    """What is wrong with the optimizer state of a checkpoint, as a sentence; None if it can be restored."""
    # `stated` are the arguments of the optimizer in the settings of the checkpoint
    defaults = {name: parameter.default for name, parameter in parameters_of(type(optimizer)).items()}
    said = {**defaults, **stated}.get
    (saved,) = checkpoint["optimizer_states"]
    fresh: dict[Any, FreshState] = {}  # parameters of one kind share it, because a step of a new optimizer takes time
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for option, value in saved_group.items():
            problem = _option_problem(value, group.get(option)) if option != "params" else None
            if option == "unfrozen_at" and value is not None and not (type(value) is int and value >= 0):
                problem = f"is {value!r}, not a step"
            if not problem and option in _CHOSEN and value not in (group.get(option), said(option)):
                problem = f"is {value!r}, which neither the config nor the settings of the checkpoint say"
            if problem:
                return f"{option!r} of the group {group['name']!r} {problem}."
        problem = _refusal(saved_group, group, type(optimizer))
        if problem:
            return f"torch refuses the options of the group {group['name']!r}: {problem}"
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            state = saved["state"].get(index)
            if not state:  # it has not been trained yet
                continue
            kind = (parameter.shape, parameter.dtype, parameter.stride())
            if kind not in fresh:
                fresh[kind] = _after_first_step(make, parameter, type(optimizer))
            problem = _state_problem(state, parameter, fresh[kind], optimizer)
            if problem is not None:
                return f"of the parameter {names[id(parameter)]!r} {problem}."
    return None


def _refusal(saved_group: Mapping[str, Any], group: Mapping[str, Any], kind: type[Optimizer]) -> str:
    """What torch says of the options of a group, such as ``Invalid beta parameter``; it looks only when it begins."""
    if not kind.__module__.startswith("torch.optim."):
        return ""
    options = {name: value for name, value in saved_group.items() if name in parameters_of(kind)}
    try:
        kind(**{**options, "params": group["params"][:1]})
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        return reason(error)
    return ""


def _option_problem(value: Any, own: Any) -> str | None:
    """What is wrong with an option of a group, in comparison with the one of today."""
    if isinstance(value, Tensor):
        return None if isinstance(own, Tensor) else "is a tensor"
    if isinstance(value, int | float) and not math.isfinite(value):
        return f"is {value}"
    if own is None or (value is None and isinstance(own, int)):  # a step that has not come, a choice left to torch
        return None
    if isinstance(own, list | tuple) and isinstance(value, list | tuple):
        for entry, own_entry in zip(value, own, strict=False):
            problem = _option_problem(entry, own_entry)
            if problem:
                return problem
        return None if len(value) == len(own) else f"has {len(value)} values, not {len(own)}"
    numbers = (int, float, Tensor)
    both_numbers = type(own) in numbers and type(value) in numbers  # true and false are not numbers
    if both_numbers or isinstance(value, type(own)):
        return None
    return f"is a {type(value).__name__}, not a {type(own).__name__}"


def _after_first_step(make: Make, like: nn.Parameter, kind: type[Optimizer]) -> FreshState:
    """The state of an optimizer of this kind after a step for a parameter like another one, on the CPU, not sharded."""
    if isinstance(like, DTensor):
        values = torch.zeros(like.shape, dtype=like.dtype)
    else:
        values = torch.zeros_like(like, device="cpu")
    parameter = nn.Parameter(values)
    parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer = make([parameter])
        optimizer.step()
        if type(optimizer) is kind:
            return dict(optimizer.state[parameter])
    except Exception:  # it may need a closure, sparse gradients or a device
        pass
    same_shapes = kind.__module__.startswith("torch.optim.") and not issubclass(kind, LBFGS | Adafactor)
    return {} if same_shapes else None


def _state_problem(state: Mapping[str, Any], parameter: Tensor, fresh: FreshState, optimizer: Optimizer) -> str | None:
    """The first thing that is wrong with the state of one parameter."""
    of_torch = type(optimizer).__module__.startswith("torch.optim.")
    lacking = [key for key in fresh or () if key not in state]
    if lacking and of_torch and "momentum_buffer" not in lacking:  # that one may be asked for later
        return f"lacks {listing(lacking)}"
    for key, value in state.items():
        if isinstance(value, Tensor):
            is_square = key in _NEVER_NEGATIVE or (key == "sum" and isinstance(optimizer, Adagrad))
            problem = _tensor_problem(key, value, parameter, fresh) or _wrong_values(value, is_square)
        else:
            problem = _number_problem(key, value, fresh)
        if problem is not None:
            return f"{key!r} {problem}"
    return None


def _number_problem(key: Any, value: Any, fresh: FreshState) -> str | None:
    """What is wrong with an entry that is not a tensor."""
    is_number = type(value) in (int, float)
    if is_number and (not math.isfinite(value) or (key == "step" and value < 0)):
        return f"is {value}"
    is_tensor_needed = fresh is not None and isinstance(fresh.get(key), Tensor)
    if is_tensor_needed and not (key == "step" and is_number):
        return f"is a {type(value).__name__}, not a tensor"
    return None


def _tensor_problem(key: Any, value: Tensor, parameter: Tensor, fresh: FreshState) -> str | None:
    """What is wrong with the kind of a tensor."""
    if not _is_plain(value, parameter):
        return "is not a plain tensor"
    if fresh is None:
        return None
    like = fresh.get(key)
    if not isinstance(like, Tensor):  # options in the file may ask for entries of their own
        like = parameter
    if value.shape != like.shape and not (key == "step" and value.ndim == 0):
        return f"has shape {tuple(value.shape)}, not {tuple(like.shape)}"
    if value.dtype != like.dtype and not (value.dtype in FLOATS and like.dtype in FLOATS):
        return f"holds {value.dtype}, not {like.dtype}"
    return None


def _is_plain(value: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor is plain, or sharded as its parameter is, with a plain local shard."""
    if isinstance(value, DTensor) and isinstance(parameter, DTensor):
        same_place = (value.placements, value.device_mesh) == (parameter.placements, parameter.device_mesh)
        if value.shape == parameter.shape and same_place and own_share(value).shape != own_share(parameter).shape:
            return False
        value = own_share(value)
    return is_plain(value)


def _wrong_values(value: Tensor, never_negative: bool) -> str | None:
    low, high = value_range(own_share(value))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "holds values that are not finite"
    return "holds negative values" if never_negative and low < 0 else None
