"""What a task is made with: checked once, and stored in checkpoints as plain data."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hybrid_lightning.cache.options import CacheOptions
from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError, at, check_choice, check_keys, check_number, listing
from hybrid_lightning.network.contracts import MakesOutputs
from hybrid_lightning.network.defaults import all_defaults
from hybrid_lightning.network.part import Part, parse_part, parse_parts, refuse_unused_defaults
from hybrid_lightning.network.registry import resolve
from hybrid_lightning.network.wiring import Wiring
from hybrid_lightning.optim.factory import named_class
from hybrid_lightning.tasks.init_from import InitFrom

_STEPS = ("forward", "training_step", "validation_step")
_ARGUMENTS = "_constructor_arguments"
_NOT_SETTINGS = ("parts", "fusion", "pretrained", "untrained", "objective")
"""Arguments of a task that its parts hold already, and the one that its class makes."""
_OF_OBJECTIVES = ("make_metrics", "check_target", "loss_weight", "prediction_columns", "contribution")
"""Methods that tasks had before there were objectives, where ``make_metrics`` is called ``metrics``."""

REMOVED = {
    "part_heads": "was removed: at the end of a run a table says what each part scores alone (see 'selection'). Delete "
    "this option."
}
"""Former argument of a task → what to do without it."""
SELECTIONS = ("validation", "none")
STARTS = ("default", "probe")
AVERAGES: dict[str, Any] = {"ema": "1 epochs", "soup": 5}
"""Kind of average → its half-life, or the number of weights, where nobody says it."""
Options = dict[str, Any]
"""Names and values, as a config gives them."""


class Arguments:
    """What the constructors of one task are given, noted by `recorded` from the outermost to that of `HybridTask`."""

    def __init__(self, takes_more: bool) -> None:
        self.values: Options = {}
        """Name → value, of all arguments that the outermost constructor can be given again."""
        self.changed: set[str] = set()
        """Names whose value an inner constructor was given otherwise, so that it would be changed again."""
        self.takes_more = takes_more
        """Whether the outermost constructor also takes what its signature does not name."""
        self._is_begun = False

    def note(self, given: Options, defaults: Options) -> None:
        """Adds what one more constructor is given, and what it takes for the rest."""
        is_outermost, self._is_begun = not self._is_begun, True
        for name, value in given.items():
            if is_outermost:
                self.values[name] = value
            elif name in self.values and self.values[name] is not value:
                self.changed.add(name)
        for name, default in defaults.items():
            if name not in given and (is_outermost or self.takes_more):
                self.values.setdefault(name, default)


def recorded(constructor: Callable[..., None]) -> Callable[..., None]:
    """Makes an ``__init__`` note its arguments in the instance."""
    parameters = list(inspect.signature(constructor).parameters.values())[1:]
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    takes_more = any(p.kind == p.VAR_KEYWORD for p in parameters)

    @functools.wraps(constructor)
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(positional):
            raise ConfigError(
                f"{type(self).__name__}: an argument without a name could not be stored in a checkpoint. Give it by "
                f"name, such as num_classes=3."
            )
        given = {**dict(zip(positional, args, strict=False)), **kwargs}
        for name in REMOVED.keys() & given.keys() - {parameter.name for parameter in parameters}:
            raise ConfigError(REMOVED[name], f"model.{name}")
        # not as an attribute: nothing can be assigned to a module before nn.Module.__init__
        arguments = vars(self).setdefault(_ARGUMENTS, Arguments(takes_more))
        arguments.note(given, defaults)
        constructor(self, *args, **kwargs)

    return noting


def prepare_subclass(task: type, base: type) -> None:
    """Lets the arguments of a user's own task, a subclass of `base`, reach the checkpoint without being named there."""
    moved = [name for name in _OF_OBJECTIVES if name in vars(task)]
    if moved:  # they would never be called
        raise TypeError(f"{task.__name__}: {listing(moved)} belong to the task's Objective, see docs/own_task.md.")
    definer = next(above for above in task.__mro__ if "__init__" in vars(above))
    if definer is task or not issubclass(definer, base):  # the latter: of a mixin
        task.__init__ = recorded(task.__init__)  # type: ignore[misc]


def has_own_steps(task: type, steps: Collection[str] = _STEPS) -> bool:
    """Whether a class of tasks has steps of its user, which may read and make anything."""
    homes = [getattr(task, name).__module__.partition(".")[0] for name in steps]
    return any(home != __name__.partition(".")[0] for home in homes)


def taken_arguments(task: object) -> Arguments:
    """What the constructors of an instance have noted, without parts; it is forgotten there."""
    arguments: Arguments = vars(task).pop(_ARGUMENTS)
    for name in _NOT_SETTINGS:
        arguments.values.pop(name, None)
    return arguments


@dataclass(frozen=True)
class TaskSettings:
    """The arguments of `HybridTask` apart from the parts; `arguments` are all with which a task can be made again."""

    lr: float
    weight_decay: float
    optimizer: str | Options | None
    rates: Options | None
    scheduler: str | Options | None
    unfreezing: Options | None
    init_from: InitFrom | None
    cache: bool | str | Options
    start: str
    selection: str
    average: str | dict[str, Any] | None
    calibrate: Options | None
    arguments: Arguments

    @classmethod
    @at("model")
    def parse(cls, *, init_from: Any, optimizer: Any, scheduler: Any, **options: Any) -> "TaskSettings":
        """Checks the arguments."""
        if options["rates"] and scheduler:
            raise ConfigError("give either 'rates' or 'scheduler', not both.", "scheduler")
        check_keys(options["rates"] or {}, ("shape", "warm_up"), "rates")
        check_keys(options["unfreezing"] or {}, ("restart_early_stopping", "check_ranks"), "unfreezing")
        check_choice(options["start"], "start", STARTS, "start")
        check_choice(options["selection"], "selection", SELECTIONS, "selection")
        check_average(options["average"])
        check_number(options["lr"], "lr", low=0, above_low=True)
        check_number(options["weight_decay"], "weight_decay", low=0)
        CacheOptions.parse(options["cache"])
        with at("init_from"):
            start = None if init_from is None else InitFrom.parse(init_from)
        optimizer = named_class(optimizer, torch.optim)
        scheduler = named_class(scheduler, torch.optim.lr_scheduler)
        return cls(init_from=start, optimizer=optimizer, scheduler=scheduler, **options)

    def plain(self, current: Options) -> Options:
        """Name → value of each argument, as a checkpoint stores them; `current` has those that the objective holds."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.init_from is not None:
            own["init_from"] = self.init_from.plain()
        values = dict(self.arguments.values)
        for name, value in {**own, **current}.items():
            # what a subclass fixes cannot be given again; what it changes is changed again
            if name in values and name not in self.arguments.changed:
                values[name] = value
        return values


def check_average(given: Any) -> tuple[str, Any]:
    """The kind of an average, ``ema``, ``soup`` or ``none``, and its half-life or size."""
    if given is None:
        return "none", None
    with at("average"):
        options = given if isinstance(given, Mapping) else {str(given): AVERAGES.get(str(given))}
        kind, value = next(iter(options.items())) if len(options) == 1 else ("", None)
        if kind not in AVERAGES:
            raise ConfigError(f"{given!r} is none of ema, {{ema: 200 steps}}, soup, {{soup: 8}} and null.")
        if kind == "soup":
            check_number(value, "soup", low=2)
            if not isinstance(value, int):
                raise ConfigError(f"{value!r} is not a whole number.", "soup")
        else:
            Duration.parse(value, "ema")
    return str(kind), value


def parse_network(
    parts: Options,
    fusion: Options | None,
    pretrained: Options | None,
    untrained: Options | None,
    start: str = "default",
    kind: str | None = None,
) -> tuple[dict[str, Part], Part]:
    """The parts with a head, and the fusion; `kind` is that of the targets, see `Objective.closed_form`."""
    is_probe = start == "probe"
    if is_probe and kind is None:
        raise ConfigError("this task's objective has no closed form. Write 'start: default'.", "model.start")
    parsed = parse_parts(parts, pretrained, untrained)
    is_single = len(Wiring(parsed).feeding) == 1
    if is_probe and is_single and "head" not in parts:
        parts = {**parts, "head": "ScaledHead"}
        parsed = parse_parts(parts, pretrained, untrained)
    options = {"module": "BlendFusion" if is_probe else "ConcatFusion", **(fusion or {})}
    defaults = all_defaults(pretrained, untrained)
    parsed_fusion = parse_part("fusion", options, defaults)
    refuse_unused_defaults(pretrained, {**parsed, "fusion": parsed_fusion})
    is_blend = parsed_fusion.module == "BlendFusion"
    if is_probe and not is_blend:
        raise ConfigError(f"{parsed_fusion.module!r} has no closed form. Leave it out for BlendFusion.", "model.fusion")
    if is_probe and not is_single and "head" in parts and parsed["head"].module != "torch.nn.Identity":
        raise ConfigError("with 'start: probe' the fusion makes the outputs. Leave the head out.", "model.parts.head")
    if is_blend and kind is not None:
        options["args"] = {**parsed_fusion.args, "kind": kind}
        parsed_fusion = parse_part("fusion", options, defaults)
    module = parsed_fusion.module
    if "head" not in parts:  # a checkpoint has one, so that none of its names is imported here
        module = resolve(module, "model.fusion.module") if isinstance(module, str) else module
        if isinstance(module, MakesOutputs) and module.makes_outputs:
            parsed = parse_parts({**parts, "head": "torch.nn.Identity"}, pretrained, untrained)
    return parsed, parsed_fusion


def check_plain(value: object) -> None:
    """Raises `ConfigError` if a checkpoint cannot hold a value; the place is that of the entry within it."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            with at(str(key)):
                check_plain(entry)
    elif isinstance(value, list | tuple | set):
        for entry in value:
            check_plain(entry)
    elif type(value) not in (type(None), bool, int, float, str, torch.dtype):
        raise ConfigError(
            f"{str(value)[:80]!r} is a {type(value).__name__}, which a checkpoint cannot hold. Give numbers, text, "
            f"lists or dicts of them; or pass the whole part as a live module: {{module: MyNet(...)}}."
        )
