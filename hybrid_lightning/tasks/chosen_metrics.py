"""Metrics that a config names, of the collections of torchmetrics: each gives a number, or a table for a file."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import classification, regression

from hybrid_lightning.errors import ConfigError, at, check_keys, check_number, reason, unknown
from hybrid_lightning.importing import check_arguments, parameters_of

_NOT_VALUES = ("ROC", "PrecisionRecallCurve", "StatScores")  # curves, and counts that the confusion matrix has
_MADE_BY_US = ("num_classes", "num_labels", "num_outputs", "kwargs")
_SQUARE = ("ConfusionMatrix", "CohenKappa", "MatthewsCorrCoef", "JaccardIndex")
"""Metrics that keep a number for each pair of classes."""
_MOST_SQUARE = 2_000  # classes of these
_MOST = 1_000  # of a number or of entries among the arguments, some of which are sizes of arrays
_TRIED = 100  # classes or outputs with which a metric is tried, however many there are
_COUNTS = ("true_negatives", "false_positives", "false_negatives", "true_positives")
Row = list[Any]


@dataclass
class ChosenMetric:
    """An entry of ``metrics``."""

    key: str  # under which it is logged, such as f1_score_cat
    factory: type[torchmetrics.Metric]
    args: dict[str, Any]
    of_class: str | int | None  # the class or label that it is of; None: of all
    index: int | None = None  # the position of that class, once its name is known
    is_table: bool = False  # whether it gives more than one number

    def make(self) -> torchmetrics.Metric:
        """A new metric without samples."""
        return self.factory(**self.args)

    def find(self, names: Sequence[str]) -> None:
        """Finds the class among the names of the data; a number may be a name, too, which comes first."""
        name = str(self.of_class)
        if name in names:
            self.index = list(names).index(name)
        elif self.of_class is not None and self.index is None:
            raise unknown("model.metrics.class", "class", name, names)

    def require(self) -> None:
        """Raises `ConfigError` if the class is a name and the data have not said which one it is."""
        if self.of_class is not None and self.index is None:
            raise ConfigError(
                f"these data do not name their classes, so {self.of_class!r} cannot be found. Give its number, from 0 "
                f"on, or a DataModule with 'target_names'.",
                "model.metrics.class",
            )

    def read(self, value: Any) -> Tensor:
        """The number or the table in what the metric computes; of a value and its threshold the value."""
        self.require()
        found: Tensor = value[0] if isinstance(value, tuple | list) else value
        return found if self.index is None else found[self.index]

    def rows(self, value: Tensor, names: Sequence[str], counts: Tensor | None) -> list[Row]:
        """A table as lines, the header first: a line for each class, label or output, with its number of rows."""
        if value.ndim == 1:
            header, cells = [self.key], value[:, None]
        elif value.ndim == 2:
            header, cells = [f"predicted_{name}" for name in names], value
        else:
            header, cells = list(_COUNTS), value.flatten(1)
        first = "true" if value.ndim == 2 else "name"
        lines: list[Row] = [[first, *header]]
        for name, numbers in zip(names, cells.tolist(), strict=True):
            lines.append([name, *numbers])
        if counts is not None:
            for line, count in zip(lines, ["rows", *counts.tolist()], strict=True):
                line.append(count)
        return lines


def parse_metrics(given: Any, kind: str, outputs: int, taken: Sequence[str]) -> list[ChosenMetric]:
    """Reads ``metrics``, a list of names or of ``{name: ..., class: ..., args: {...}, as: ...}``.

    `kind` is ``Multiclass``, ``Multilabel`` or, for regression, empty; `taken` are the keys of other metrics.
    """
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        raise ConfigError(f"{given!r} is not a list, such as [F1Score, ConfusionMatrix].")
    chosen: list[ChosenMetric] = []
    for number, entry in enumerate(given):
        with at(str(number)):
            metric = _parse(entry, kind, outputs)
            if metric.key in [*taken, *(other.key for other in chosen)]:
                raise ConfigError(f"{metric.key!r} is measured already. Leave it out, or name it with 'as'.")
            chosen.append(metric)
    return chosen


def _parse(entry: Any, kind: str, outputs: int) -> ChosenMetric:
    given = entry if isinstance(entry, Mapping) else {"name": entry}
    check_keys(given, ("name", "class", "args", "as"))
    name, of_class, args = given.get("name"), given.get("class"), given.get("args") or {}
    collection = classification if kind else regression
    known = names_of(kind)
    if name not in known:
        raise unknown("name", "metric", str(name), known)
    factory = getattr(collection, f"{kind}{name}")
    parameters = [parameter for parameter in parameters_of(factory) if parameter not in _MADE_BY_US]
    with at("args"):
        if not isinstance(args, Mapping):
            raise ConfigError(f"{args!r} are not names and values.")
        check_keys(args, parameters, kind="argument")
        for argument, value in args.items():
            _check_plain(argument, value)
        own = _own_arguments(factory, kind, outputs, of_class is not None)
        check_arguments(factory, {**args, **own})
    index = _check_class(of_class, kind, outputs)
    key = given.get("as") or _key(f"{name}" if of_class is None else f"{name}_{of_class}")
    if not isinstance(key, str) or not re.fullmatch("[a-z][a-z0-9_]*", key):
        raise ConfigError(f"{key!r} is not a name of letters a to z, digits and _, which begins with a letter.", "as")
    if name in _SQUARE and kind == "Multiclass" and outputs > _MOST_SQUARE:
        raise ConfigError(f"{name} is for at most {_MOST_SQUARE:,} classes, because it keeps a number for each pair.")
    few = min(outputs, _TRIED)
    tried = {**args, **_own_arguments(factory, kind, few, of_class is not None)}
    value = _try(ChosenMetric(key, factory, tried, None), kind, few, of_class is not None)
    return ChosenMetric(key, factory, {**args, **own}, of_class, index, is_table=value.ndim > 0)


def _own_arguments(factory: Any, kind: str, outputs: int, is_of_class: bool) -> dict[str, Any]:
    """The arguments that the task knows."""
    possible: dict[str, Any] = {"num_classes": outputs, "num_labels": outputs}
    if is_of_class:
        possible["average"] = None  # a value for each class
    if not kind and outputs > 1:
        possible["num_outputs"] = outputs
    return {name: value for name, value in possible.items() if name in parameters_of(factory)}


def names_of(kind: str) -> list[str]:
    """The names that metrics may have, for a kind of `parse_metrics`."""
    collection = classification if kind else regression
    names = [name.removeprefix(kind) for name in collection.__all__ if name.startswith(kind)]
    return sorted(name for name in names if name not in _NOT_VALUES)


def _key(name: str) -> str:
    """``f1_score_cat`` for ``F1Score_cat``, ``auroc`` for ``AUROC``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub("[^a-z0-9]+", "_", words.lower()).strip("_")


def _check_plain(name: str, value: Any) -> None:
    """Raises `ConfigError` unless an argument is a word, or a number or list of a size that arrays may have."""
    for entry in value if isinstance(value, list | tuple) and len(value) <= _MOST else [value]:
        if entry is not None and not isinstance(entry, str | bool):
            check_number(entry, name, low=-_MOST, high=_MOST)


def _check_class(of_class: Any, kind: str, outputs: int) -> int | None:
    """The position of a class that is given by its number; None if only the data know it."""
    if of_class is not None and not kind:
        raise ConfigError("numbers have no classes. Leave it out.", "class")
    if of_class is not None and type(of_class) not in (int, str):
        raise ConfigError(f"{of_class!r} is neither the name of a class nor its number.", "class")
    return of_class if type(of_class) is int and 0 <= of_class < outputs else None


def _try(metric: ChosenMetric, kind: str, outputs: int, is_of_class: bool) -> Tensor:
    """What the metric gives for a few samples; `ConfigError` if it is neither a number nor a table of the outputs."""
    predictions, target = _samples(kind, outputs)
    try:
        made = metric.make()
        made.update(predictions, target)
        value = metric.read(computed(made))
        # whichever class it will be of, the first one stands for it
        value = value[0] if is_of_class else value
    except Exception as error:  # whatever a metric raises for its arguments, or for values that have no classes
        what = "it gives no value for each class" if isinstance(error, IndexError) else reason(error)
        raise ConfigError(f"{metric.factory.__name__} cannot be measured like this: {what}") from error
    shapes: list[tuple[int, ...]] = [()]
    if not is_of_class:
        shapes += [(outputs,), (outputs, 2, 2) if kind == "Multilabel" else (outputs, outputs)]
    if tuple(value.shape) not in shapes:
        raise ConfigError(
            f"{metric.factory.__name__} gives values of shape {tuple(value.shape)}, which are neither a number nor a "
            f"table of the {outputs} outputs. Take another metric, leave 'class' out, or give other args."
        )
    return value


def _samples(kind: str, outputs: int) -> tuple[Tensor, Tensor]:
    """Predictions and targets in which each class occurs, or some positive numbers."""
    if not kind:
        target = torch.linspace(1, 2, 16 * outputs).reshape(16, outputs)
        target = target.squeeze(1) if outputs == 1 else target
        return target + 0.1 * torch.sin(20 * target), target
    classes = torch.arange(2 * outputs) % outputs
    one_hot = torch.nn.functional.one_hot(classes, outputs)
    predictions = (one_hot + 0.5) / (1 + 0.5 * outputs) if kind == "Multiclass" else (one_hot + 0.5) / 2
    return predictions, classes if kind == "Multiclass" else one_hot


def computed(metric: torchmetrics.Metric) -> Any:
    """What a metric computes, without its warnings of classes that have no samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric.compute()
