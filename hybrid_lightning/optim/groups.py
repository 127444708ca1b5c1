"""Named optimizer param groups: every parameter in exactly one, by part, stage and decay."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, listing, unknown

Patterns = str | Sequence[str]


@dataclass(frozen=True)
class PartRates:
    """How the groups of one part learn.

    Args:
        lr_scale: Factor on the base rate, 0 or more.
        layer_decay: Factor per stage towards the input, in (0, 1]; 1 gives all stages one rate. Values in use: 0.8 for
            ELECTRA, 0.65 to 0.75 for MAE and BEiT.
        weight_decay: Weight decay of the part; None takes the model's.
        decay_all: Whether biases and other 1-d parameters decay too.
    """

    lr_scale: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float | None = None
    decay_all: bool = False


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern covers a dotted parameter name.

    The pattern's segments are compared with the leading segments of the name: ``layers.1`` covers ``layers.1.weight``
    and never ``layers.10.weight``. ``*``, ``?`` and ``[...]`` work within one segment.
    """
    wanted, given = pattern.split("."), name.split(".")
    return len(wanted) <= len(given) and all(map(fnmatchcase, given, wanted))


def partition(
    names: Iterable[str],
    patterns: Mapping[str, Patterns],
    where: str = "parts",
    demand_all: bool = True,
    tied: Collection[str] = (),
) -> dict[str, list[str]]:
    """Distributes names over labels, each to exactly one.

    Args:
        names: Dotted parameter names.
        patterns: Label → pattern or patterns, see `matches`.
        where: Config path named in errors.
        demand_all: Whether a name that no pattern covers is an error.
        tied: Further names of the same parameters; a pattern may match only these, but they are not distributed.

    Returns:
        Label → its names, in the order of `names`.

    Raises:
        ConfigError: If a pattern matches nothing, or a name belongs to two labels or to none.
    """
    names = list(names)
    found: dict[str, list[str]] = {label: [] for label in patterns}
    owner: dict[str, str] = {}
    for label, wanted in patterns.items():
        for pattern in [wanted] if isinstance(wanted, str) else wanted:
            covered = [name for name in names if matches(pattern, name)]
            if not covered and not any(matches(pattern, name) for name in tied):
                tops = dict.fromkeys(".".join(name.split(".")[: pattern.count(".") + 1]) for name in names)
                raise ConfigError(
                    f"{where}.{label}: pattern {pattern!r} matches no parameter. Names start with: {listing(tops)}."
                )
            for name in covered:
                if owner.setdefault(name, label) != label:
                    raise ConfigError(
                        f"{where}: parameter {name!r} is in two, {owner[name]!r} and {label!r}. "
                        f"Narrow the patterns of one of them."
                    )
    for name in names:
        if name in owner:
            found[owner[name]].append(name)
    forgotten = [name for name in names if name not in owner]
    if forgotten and demand_all:
        raise ConfigError(f"{where}: no pattern covers {listing(forgotten, 5)}. Add it to one of: {listing(patterns)}.")
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
    parameters = dict(module.named_parameters())
    every_name = dict(module.named_parameters(remove_duplicate=False))
    tied = every_name.keys() - parameters.keys()
    for name in fixed:
        if name not in every_name:
            raise unknown("fixed", "parameter", name, parameters)
    fixed_ids = {id(every_name[name]) for name in fixed}
    for option, given in (("rates", rates), ("stages", stages)):
        for part in given or {}:
            if part not in parts:
                raise unknown(option, "part", part, parts)
    groups: list[dict[str, Any]] = []
    for part, names in partition(parameters, parts, tied=tied).items():
        fact = (rates or {}).get(part, PartRates())
        fact = fact if isinstance(fact, PartRates) else _part_rates(part, fact)
        by_stage = _stages_of(part, names, (stages or {}).get(part), parts[part], tied)
        for index, (stage, stage_names) in enumerate(by_stage.items()):
            factor = fact.lr_scale * fact.layer_decay ** (len(by_stage) - 1 - index)
            decay = weight_decay if fact.weight_decay is None else fact.weight_decay
            common = {"part": part, "stage": index, "lr": lr * factor, "lr_factor": factor}
            label = part if len(by_stage) == 1 else f"{part}.{stage}"
            for suffix, chosen in _by_decay(stage_names, parameters, fact.decay_all, fixed_ids).items():
                chosen_decay = decay if suffix == "" else 0.0
                own = {"name": label + suffix, "weight_decay": chosen_decay, "fixed": suffix == "/fixed"}
                params = [parameters[name] for name in chosen]
                groups.append({"params": params, **own, **common, "unfrozen_at": None if own["fixed"] else 0})
    return groups


def _part_rates(part: str, given: Mapping[str, Any]) -> PartRates:
    known = [field.name for field in fields(PartRates)]
    for key in given:
        if key not in known:
            raise unknown(f"rates.{part}", "key", str(key), known)
    return PartRates(**given)


def _stages_of(
    part: str,
    names: list[str],
    stages: Mapping[str, Patterns] | Sequence[str] | None,
    patterns: Patterns,
    tied: Collection[str],
) -> dict[str, list[str]]:
    if stages is None:
        return {part: names}
    if not isinstance(stages, Mapping):
        prefix = f"{patterns}." if isinstance(patterns, str) else ""
        stages = {pattern.removeprefix(prefix): pattern for pattern in stages}
    return partition(names, stages, where=f"parts.{part}.stages", tied=tied)


def _by_decay(
    names: list[str], parameters: Mapping[str, nn.Parameter], decay_all: bool, fixed_ids: Collection[int]
) -> dict[str, list[str]]:
    """Names under the suffix of their group; suffixes without names are left out."""
    chosen: dict[str, list[str]] = {"": [], "/no_decay": [], "/fixed": []}
    for name in names:
        parameter = parameters[name]
        if id(parameter) in fixed_ids or not (parameter.is_floating_point() or parameter.is_complex()):
            chosen["/fixed"].append(name)
        else:
            chosen["" if decay_all or parameter.ndim > 1 else "/no_decay"].append(name)
    return {suffix: of_suffix for suffix, of_suffix in chosen.items() if of_suffix}
