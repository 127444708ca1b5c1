"""Named optimizer param groups: every parameter in exactly one, by part, stage and decay."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, at, check_keys, listing

Patterns = str | Sequence[str]


@dataclass(frozen=True)
class PartRates:
    """How the groups of one part learn."""

    lr_scale: float = 1.0  # factor on the base rate, 0 or more
    # factor per stage towards the input, in (0, 1]; in use: 0.8 for ELECTRA, 0.65 to 0.75 for MAE and BEiT
    layer_decay: float = 1.0
    weight_decay: float | None = None  # weight decay of the part; None takes the model's
    decay_all: bool = False  # whether biases and other 1-d parameters decay too


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern covers a dotted parameter name."""
    # The pattern's segments are compared with the leading segments of the name: ``layers.1`` covers ``layers.1.weight``
    # and never ``layers.10.weight``. ``*``, ``?`` and ``[...]`` work within one segment.
    wanted, given = pattern.split("."), name.split(".")
    return len(wanted) <= len(given) and all(map(fnmatchcase, given, wanted))


def partition(
    names: Iterable[str], patterns: Mapping[str, Patterns], tied: Collection[str] = ()
) -> dict[str, list[str]]:
    """Distributes dotted parameter names over labels, each to exactly one, in the order of `names`."""
    names = list(names)
    label_of: dict[str, str] = {}
    for label, wanted in patterns.items():
        for pattern in [wanted] if isinstance(wanted, str) else wanted:
            covered = [name for name in names if matches(pattern, name)]
            if not covered and not any(matches(pattern, name) for name in tied):
                # names cut to as many segments as the pattern has, so that they show what it could be
                segments = pattern.count(".") + 1
                starts = dict.fromkeys(".".join(name.split(".")[:segments]) for name in names)
                problem = f"pattern {pattern!r} matches no parameter. Names start with: {listing(starts)}."
                raise ConfigError(problem, label)
            for name in covered:
                if label_of.setdefault(name, label) != label:
                    raise ConfigError(
                        f"parameter {name!r} is in two, {label_of[name]!r} and {label!r}. Narrow the patterns of one "
                        f"of them."
                    )
    forgotten = [name for name in names if name not in label_of]
    if forgotten:
        raise ConfigError(f"no pattern covers {listing(forgotten, 5)}. Add it to one of: {listing(patterns)}.")
    found: dict[str, list[str]] = {label: [] for label in patterns}
    for name in names:
        found[label_of[name]].append(name)
    return found


def named_param_groups(
    module: nn.Module,
    parts: Mapping[str, Patterns],
    *,
    lr: float,
    weight_decay: float = 0.01,
    rates: Mapping[str, PartRates | Mapping[str, Any]] | None = None,
    stages: Mapping[str, Mapping[str, Patterns] | Sequence[str]] | None = None,
    fixed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Param groups for any torch optimizer, one per part × stage × (decay or no decay).

    Parameters are taken by identity, frozen ones included and tied ones once, so the groups never have to change when
    something unfreezes.

    Args:
        module: The module whose parameters are distributed; all of them have to be covered.
        parts: Part name → anchored pattern or patterns of parameter names, such as ``{"image": "backbone"}``.
        lr: Base rate. A group's rate is ``lr × lr_scale × layer_decay ** (stages above it)``.
        weight_decay: Decay of parameters with two or more dimensions.
        rates: Part name → `PartRates` or its fields as a dict.
        stages: Part name → stages from input to output: stage name → patterns, or a list of patterns, which name the
            stages by what follows the part's own pattern.
        fixed: Parameter names that never train, such as constant position tables; they get groups of their own.

    Returns:
        Dicts with ``params``, ``name`` (``image.layer4/no_decay``), ``part``, ``stage`` (0 is nearest the input),
        ``lr``, ``lr_factor`` (share of the base rate), ``weight_decay``, ``unfrozen_at`` (step of its unfreezing; None
        before) and ``fixed``.

    Raises:
        ConfigError: If a part is unknown, a pattern matches nothing, or a parameter is in two groups or in none.
    """
    check_keys(rates or {}, parts, "rates", "part")
    check_keys(stages or {}, parts, "stages", "part")
    parameters = dict(module.named_parameters())
    every_name = dict(module.named_parameters(remove_duplicate=False))
    check_keys(fixed, every_name, "fixed", "parameter")
    # a tied parameter is in the group of its first name; its other names still count for the patterns
    tied = every_name.keys() - parameters.keys()
    fixed_ids = {id(every_name[name]) for name in fixed}

    groups: list[dict[str, Any]] = []
    with at("parts"):
        names_of_part = partition(parameters, parts, tied)
    for part, names in names_of_part.items():
        rate = _part_rates(part, (rates or {}).get(part, PartRates()))
        decay = weight_decay if rate.weight_decay is None else rate.weight_decay
        names_of_stage = _stages_of(part, names, (stages or {}).get(part), parts[part], tied)
        for index, (stage, stage_names) in enumerate(names_of_stage.items()):
            # the last stage, at the output, takes the part's full rate
            factor = rate.lr_scale * rate.layer_decay ** (len(names_of_stage) - 1 - index)
            common = {"part": part, "stage": index, "lr": lr * factor, "lr_factor": factor}
            label = part if len(names_of_stage) == 1 else f"{part}.{stage}"
            chosen = {name: parameters[name] for name in stage_names}
            groups += _by_kind(label, chosen, common, decay, rate.decay_all, fixed_ids)
    return groups


def _part_rates(part: str, given: PartRates | Mapping[str, Any]) -> PartRates:
    if isinstance(given, PartRates):
        return given
    check_keys(given, PartRates.__dataclass_fields__, f"rates.{part}")
    return PartRates(**given)


def _stages_of(
    part: str,
    names: list[str],
    stages: Mapping[str, Patterns] | Sequence[str] | None,
    patterns: Patterns,
    tied: Collection[str],
) -> dict[str, list[str]]:
    """Stage → names, from input to output; a part without stages is one."""
    if stages is None:
        return {part: names}
    if not isinstance(stages, Mapping):
        prefix = f"{patterns}." if isinstance(patterns, str) else ""
        # `backbone.layer4` of the part `backbone` is its stage `layer4`
        stages = {pattern.removeprefix(prefix): pattern for pattern in stages}
    with at(f"parts.{part}.stages"):
        return partition(names, stages, tied)


def _by_kind(
    label: str,
    parameters: Mapping[str, nn.Parameter],
    common: Mapping[str, Any],
    weight_decay: float,
    decay_all: bool,
    fixed_ids: Collection[int],
) -> list[dict[str, Any]]:
    """The groups of one stage that have parameters: those that decay, that do not, and that never train."""
    decaying, others, fixed = [], [], []
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise ConfigError(
                f"parameter {name!r} is complex-valued; norms and limits of gradients need real ones. Register "
                f"torch.view_as_real of it, and view it as complex in forward."
            )
        # parameters of integers, such as quantized weights, have no gradient
        if id(parameter) in fixed_ids or not parameter.is_floating_point():
            fixed.append(parameter)
        elif decay_all or parameter.ndim > 1:
            decaying.append(parameter)
        else:
            others.append(parameter)
    groups = [
        {"params": decaying, "name": label, "weight_decay": weight_decay, "fixed": False, "unfrozen_at": 0},
        {"params": others, "name": f"{label}/no_decay", "weight_decay": 0.0, "fixed": False, "unfrozen_at": 0},
        {"params": fixed, "name": f"{label}/fixed", "weight_decay": 0.0, "fixed": True, "unfrozen_at": None},
    ]
    return [{**group, **common} for group in groups if group["params"]]


def refuse_one_rate(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ConfigError` if a scheduler has given groups with different shares one and the same rate."""
    # torch's schedulers note the rate that they start from as initial_lr
    rates = {group.get("initial_lr", group["lr"]) for group in groups}
    shares = {group["lr_factor"] for group in groups}
    if len(rates) == 1 and len(shares) > 1:
        raise ConfigError(
            f"the scheduler starts all groups at one rate ({rates.pop():g}), although their shares differ. Use "
            f"hybrid_lightning.GroupScheduler(optimizer, lambda one: OneCycleLR(one, max_lr=...)), which keeps them, "
            f"or give the scheduler a list of rates.",
            "configure_optimizers",
        )
