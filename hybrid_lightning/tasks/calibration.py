"""What a run finds out about its certainty on held-out rows: asked for in a config, and kept in a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from hybrid_lightning.errors import ConfigError, at, check_choice, check_keys, check_number
from hybrid_lightning.probe.calibration import TEMPERATURES
from hybrid_lightning.probe.thresholds import METRICS

CALIBRATION = "calibration"
"""The entry of a checkpoint that has the record."""
_COVERAGES = (0.5, 0.99)
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Calibration:
    """What calibrates the outputs of a model."""

    temperature: float = 1.0
    """By which logits are divided."""
    metric: str | None = None
    """What the thresholds are best for; None: there are none."""
    thresholds: list[float] | None = None
    """0 to 1, of the second of two classes, or of each label; a probability above it decides for the class."""
    coverage: float | None = None
    """The share of cases in which a set or an interval holds the truth; None: there are no sets."""
    quantiles: list[float] | None = None
    """What scores do not exceed in this share of cases: one of classes, one of each number, see `score_quantiles`."""

    def plain(self) -> dict[str, Any]:
        """As plain data, for checkpoints, without what there is not."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def parse(cls, given: Any, objective: Any) -> Self:
        """Reads what `plain` has written for an objective, which may come from a stranger's file."""
        has_logits = objective.closed_form in ("classes", "labels")
        most = 1.0 if has_logits else math.inf
        known = isinstance(given, Mapping) and set(given) <= set(cls.__dataclass_fields__)
        if not known:
            raise _damaged("", given)
        found = cls(**given)
        low, high = TEMPERATURES if has_logits else (1.0, 1.0)
        if not _is_number(found.temperature, low, high):
            raise _damaged("temperature", found.temperature)
        if (found.metric is None) != (found.thresholds is None) or found.metric not in (None, *METRICS):
            raise _damaged("metric", found.metric)
        if found.thresholds is not None and not _are_numbers(found.thresholds, objective.thresholds, 1.0):
            raise _damaged("thresholds", found.thresholds)
        if (found.coverage is None) != (found.quantiles is None):
            raise _damaged("coverage", found.coverage)
        if found.coverage is not None and not _is_number(found.coverage, *_COVERAGES):
            raise _damaged("coverage", found.coverage)
        if found.quantiles is not None and not _are_numbers(found.quantiles, objective.intervals, most):
            raise _damaged("quantiles", found.quantiles)
        return found


def _is_number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _are_numbers(values: Any, count: int, most: float) -> bool:
    """Whether it is a list of `count` numbers, which is not 0, from 0 to `most`."""
    if not isinstance(values, list) or not count or len(values) != count:
        return False
    return all(_is_number(value, 0.0, most) for value in values)


def _damaged(place: str, value: Any) -> ConfigError:
    return ConfigError(f"the record of the calibration is damaged: {value!r:.100}. Use another checkpoint.", place)


def check_options(given: Options | None, objective: Any, has_own_steps: bool) -> Options | None:
    """The option ``calibrate`` of a task, checked for what its objective can have."""
    if given is None:
        return None
    with at("model.calibrate"):
        if not isinstance(given, Mapping):
            raise ConfigError(f"{given!r} is not a mapping such as {{threshold: f1, coverage: 0.9}}.")
        check_keys(given, ("temperature", "threshold", "coverage"))
        temperature, threshold, coverage = (given.get(key) for key in ("temperature", "threshold", "coverage"))
        check_choice(temperature, "temperature", (None, True, False))
        if (temperature or threshold or coverage is not None) and (has_own_steps or objective.closed_form is None):
            raise ConfigError(
                "a task with steps, or an objective, of its own says itself what its outputs mean. Leave it out."
            )
        if temperature and objective.closed_form == "values":
            raise ConfigError("numbers have no temperature. Leave it out.", "temperature")
        if threshold is not None:
            check_choice(threshold, "threshold", METRICS, "metric")
            if not objective.thresholds:
                problem = "only two classes, or labels, are decided by thresholds. Leave it out."
                raise ConfigError(problem, "threshold")
        if coverage is not None:
            check_number(coverage, "coverage", *_COVERAGES)
            if not objective.intervals:
                raise ConfigError(
                    "sets are of classes, of which a row has one; these are labels. Leave it out.", "coverage"
                )
    return dict(given)
