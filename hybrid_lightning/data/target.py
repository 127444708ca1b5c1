"""The target of a manifest: what kind it is, its classes, and its tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.rounding import as_float32
from hybrid_lightning.data.spelling import alike, positions
from hybrid_lightning.data.splits import SPLITS, TRAIN, combinations_of, quantile_bins
from hybrid_lightning.data.table import Array, Table, is_plain_number, is_written_number, rows_of
from hybrid_lightning.errors import ConfigError, check_choice, check_keys, counted, listing

if TYPE_CHECKING:
    import pyarrow

KINDS = ("binary", "multiclass", "multilabel", "regression")
TRANSFORMS = {"log": 0, "log1p": -1}  # transform of numbers → what they have to be above
_MOST_CODES = 20  # distinct whole numbers up to which a column may mean classes; with more it is a quantity
_SEPARATOR = ";"
_DATE = r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?)?"
_MOST_SHOWN = 5
_EMPTY = ". Fill in these cells or remove the rows; data to predict go into predict_path."
_IN_NO_FOLDER = (
    ": their files are in no folder of a class. Sort them into folders named like the classes, or write a table."
)


@dataclass(frozen=True)
class FittedTarget:
    """The target of the rows of a manifest."""

    columns: list[str]
    kind: str
    names: list[str]  # of classes, labels or numbers, in order of their index
    values: (
        Tensor  # int64 (rows,) for classes, float32 (rows, labels) of 0 and 1, or numbers (rows,) or (rows, columns)
    )
    transform: str | None = None  # of numbers, for the network alone: `values` are in their units

    @property
    def labels(self) -> Array | None:
        """The class of each row `(rows,)`, or whether it has each label `(rows, labels)`; None for numbers."""
        return None if self.kind == "regression" else self.values.numpy()

    def strata(self) -> Array:
        """Stratum of each row: its class, its combination of labels, or its quantile bin."""
        array = self.values.numpy()
        if self.kind == "regression":
            return quantile_bins(array)
        return combinations_of(array) if self.kind == "multilabel" else array

    def counts(self, split: Array) -> Array:
        """Rows of each split and class or label, `(splits, labels)`; there are none of numbers."""
        array, number = self.values.numpy(), len(self.names)
        if self.kind == "regression":
            return np.zeros((len(SPLITS), 0), dtype=np.int64)
        if self.kind == "multilabel":
            return np.stack([array[split == code].sum(axis=0) for code in range(len(SPLITS))]).astype(np.int64)
        cells = split * np.int64(number) + array  # of the table of counts, line by line
        return np.bincount(cells, minlength=len(SPLITS) * number).reshape(len(SPLITS), number)

    def check_split(self, split: Array) -> None:
        """Raises `ConfigError` if a class or label of a row of another split has no training row."""
        if not (split == TRAIN).any():  # another run trained
            return
        counts = self.counts(split)
        for code in range(TRAIN + 1, len(SPLITS)):
            lacking = np.flatnonzero((counts[TRAIN] == 0) & (counts[code] > 0))
            if len(lacking):
                first = int(lacking[0])
                array = self.values.numpy()
                has_first = array[:, first] == 1 if self.kind == "multilabel" else array == first
                rows = np.flatnonzero(has_first & (split == code))
                shown = listing([self.names[label] for label in lacking], _MOST_SHOWN)
                raise ConfigError(
                    f"{shown} stand in {SPLITS[code]} rows, but in no training row; {self.names[first]!r} in "
                    f"{rows_of(rows)}. A model cannot learn them. Move rows to the training split, gather more, or "
                    f"leave these rows out; another split_seed may help."
                )


class Target:
    """What a manifest predicts, from the config."""

    def __init__(self, spec: str | Sequence[str] | Mapping[str, Any]) -> None:
        given: Mapping[str, Any] = spec if isinstance(spec, Mapping) else {"column": spec}
        check_keys(given, ("column", "kind", "classes", "transform"))
        columns, self.kind = given.get("column"), given.get("kind")
        self.columns: list[str] = [columns] if isinstance(columns, str) else list(columns or [])
        if not self.columns or not all(isinstance(name, str) for name in self.columns):
            raise ConfigError(f"{columns!r} is neither the name of a column nor a list of names.")
        if self.kind is not None:
            check_choice(self.kind, "kind", KINDS, "kind")
        self.transform = given.get("transform")
        if self.transform is not None:
            check_choice(self.transform, "transform", tuple(TRANSFORMS), "transform")
            if self.kind not in (None, "regression") or given.get("classes") is not None:
                raise ConfigError(
                    "only numbers have logarithms. Leave it out, or write 'kind: regression'.", "transform"
                )
            self.kind = "regression"
        self.names = None if given.get("classes") is None else _class_names(given["classes"])
        if self.kind in ("binary", "multiclass") and len(self.columns) > 1:
            raise ConfigError(f"a {self.kind} target is one column, not {len(self.columns)}.")
        if self.names and (len(self.columns) > 1 or self.kind == "regression"):
            raise ConfigError("only a target of one column with classes has them.", "classes")

    @property
    def text_columns(self) -> list[str]:
        """Columns to read as text, so that a class 007 or True keeps its name."""
        return self.columns if len(self.columns) == 1 and self.kind != "regression" else []

    def fit(self, table: Table, saved: Mapping[str, Any] | None = None) -> FittedTarget:
        """Reads the target of all rows, and finds the kind and the names that the config leaves open."""
        for column in self.columns:
            table.require_filled(column, _IN_NO_FOLDER if table.path.is_dir() else _EMPTY)
        saved = saved or {}
        kind = self.kind or saved.get("kind") or self._inferred_kind(table)
        if kind == "regression" or len(self.columns) > 1:
            return FittedTarget(self.columns, kind, self.columns, self._numbers(table, kind), self.transform)
        labels, places, rows = self._labels(table, kind)
        names = self.names or saved.get("names")
        if not names:
            names = in_order(labels.to_pylist())
            _refuse_alike(self.columns[0], names)
        if kind != "multilabel" and (len(names) < 2 or (kind == "binary" and len(names) > 2)):
            wanted = "exactly two" if kind == "binary" else "at least two"
            raise ConfigError(
                f"column {self.columns[0]!r} has {counted(len(names), 'class')}, {listing(names, 6)}; a {kind} target "
                f"has {wanted}."
            )
        codes_of_labels = positions(labels, names)
        codes = codes_of_labels[places]
        wrong = np.flatnonzero(codes < 0)
        if len(wrong):
            source = "data.target.classes" if self.names else "the checkpoint"
            others = labels.take(np.flatnonzero(codes_of_labels < 0)).to_pylist()
            wrong_rows = wrong if rows is None else rows[wrong]
            raise ConfigError(
                f"column {self.columns[0]!r} of {str(table.path)!r} holds {listing(others, _MOST_SHOWN)} "
                f"({rows_of(wrong_rows)}), which {source} does not have; it has {listing(names, 8)}."
            )
        values = torch.from_numpy(codes)
        if rows is not None:
            values = torch.zeros(len(table), len(names))
            values[torch.from_numpy(rows), torch.from_numpy(codes)] = 1
        return FittedTarget(self.columns, kind, names, values)

    def _labels(self, table: Table, kind: str) -> "tuple[pyarrow.Array, Array, Array | None]":
        """The different labels, the place among them of each that stands in a cell, and its row; None: one in each."""
        column = self.columns[0]
        if kind != "multilabel":
            return *table.coded(column), None
        labels, rows = labels_of(table.names(column))
        encoded = labels.dictionary_encode()
        return encoded.dictionary, np.asarray(encoded.indices), rows

    def _inferred_kind(self, table: Table) -> str:
        if self.names:
            return "multiclass"
        if len(self.columns) == 1:
            return inferred_kind(table, self.columns[0])
        for column in self.columns:
            if not np.isin(table.numbers(column), (0, 1)).all():
                return "regression"
        return "multilabel"

    def _numbers(self, table: Table, kind: str) -> Tensor:
        """Columns of numbers, or of labels, which hold 0 and 1."""
        tensors = []
        for column in self.columns:
            numbers = table.numbers(column)
            wrong = np.flatnonzero(~np.isin(numbers, (0, 1)))
            if kind == "multilabel" and len(wrong):
                raise ConfigError(
                    f"a column of labels holds 0 and 1; {column!r} holds {numbers[wrong[0]]:g} in row "
                    f"{wrong[0]} ({len(wrong)} such cells)."
                )
            self._check_range(column, numbers)
            try:
                tensors.append(torch.from_numpy(as_float32(numbers)))
            except ValueError as error:
                raise ConfigError(f"column {column!r} cannot be learned: {error}.") from None
        return tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=1)

    def _check_range(self, column: str, numbers: Array) -> None:
        """Raises `ConfigError` for numbers that have no logarithm."""
        low = TRANSFORMS.get(self.transform or "", -np.inf)
        wrong = np.flatnonzero(numbers <= low)
        if self.transform is not None and len(wrong):
            hint = " log1p takes those above -1." if self.transform == "log" and numbers.min() > -1 else ""
            raise ConfigError(
                f"{self.transform} takes numbers above {low}; column {column!r} holds {numbers[wrong[0]]:g} in row "
                f"{wrong[0]} ({len(wrong)} such cells).{hint} Correct or remove these rows, or leave 'transform' out.",
                "transform",
            )


def _class_names(classes: Any) -> list[str]:
    names = [str(name) for name in classes] if isinstance(classes, list | tuple) else []
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"{classes!r} is not a list of two or more different names.", "classes")
    return names


def labels_of(texts: "pyarrow.Array") -> "tuple[pyarrow.Array, Array]":
    """The labels in cells that hold several, as ``dog;cat``, and the row of each."""
    import pyarrow.compute as compute

    lists = compute.split_pattern(texts, _SEPARATOR)
    labels = compute.utf8_trim_whitespace(compute.list_flatten(lists))
    filled = compute.not_equal(labels, "")  # a lone separator stands for a row without labels
    rows = compute.list_parent_indices(lists).filter(filled)
    return labels.filter(filled), np.array(rows, dtype=np.int64)


def _refuse_alike(column: str, names: Sequence[str]) -> None:
    """Raises `ConfigError` if classes are spellings of one class."""
    same = alike(names)
    if same:
        raise ConfigError(
            f"column {column!r} holds {listing(same[0])}, which seem to be one class in several spellings. Write them "
            f"alike, or list all classes under data.target.classes."
        )


def inferred_kind(table: Table, column: str) -> str:
    """What a column without empty cells means.

    Text and booleans are classes, binary if there are two; so are codes such as 007. Whole numbers are classes if they
    are 0, 1, ..., at most `_MOST_CODES` of them and none left out; more distinct ones are a quantity, as are numbers
    with decimals.
    """
    what_to_write = f"Say which with target: {{column: {column}, kind: regression}}, or kind: multiclass."
    meaning = _meaning(table, column, what_to_write)
    if meaning == "dates":
        raise ConfigError(f"column {column!r} holds dates, which are not a target. Write them as numbers.")
    is_text = meaning == "names"
    distinct = len(table.coded(column)[0] if is_text else np.unique(table.numbers(column)))
    if meaning == "real":
        if distinct <= 2 and np.isin(table.numbers(column), (0, 1)).all():
            raise ConfigError(f"column {column!r} holds 0.0 and 1.0: two classes, or a quantity? {what_to_write}")
        return "regression"
    if meaning == "whole":
        if distinct > _MOST_CODES:
            return "regression"
        found = np.unique(table.numbers(column)).astype(np.int64)
        if not np.array_equal(found, np.arange(distinct)):  # 1 to 5 may be classes or a score
            shown = ", ".join(map(str, found[:8])) + (", ..." if distinct > 8 else "")
            raise ConfigError(
                f"column {column!r} holds the {distinct} whole numbers {shown}: classes, or a quantity? {what_to_write}"
            )
    return "binary" if distinct == 2 else "multiclass"


def _meaning(table: Table, column: str, what_to_write: str) -> str:
    """``real`` or ``whole`` numbers, ``dates`` or ``names``: by the type of a column, or the text of an untyped one."""
    from pyarrow import types

    kind = table.values(column).type
    if types.is_floating(kind) or types.is_decimal(kind):
        return "real"
    if types.is_integer(kind):
        return "whole"
    if types.is_temporal(kind):
        return "dates"
    texts = table.coded(column)[0].to_pylist()
    if column not in table.untyped or not all(map(is_plain_number, texts)):
        _refuse_doubtful(column, texts, what_to_write)
        are_dates = all(re.fullmatch(_DATE, text) for text in texts)
        return "dates" if are_dates else "names"
    if not all(text.lstrip("+-").isdecimal() for text in texts):
        return "real"
    return "names" if any(map(is_code, texts)) else "whole"


def is_code(text: str) -> bool:
    """Whether a whole number is written with zeros that say nothing of its size, as 007."""
    return len(text) > 1 and text[0] == "0"


def _refuse_doubtful(column: str, texts: Sequence[str], what_to_write: str) -> None:
    """Raises `ConfigError` for texts that may be numbers, or several labels."""
    written = [text for text in texts if is_written_number(text)]
    plain = [text for text in texts if is_plain_number(text)]
    numbers = len(written) + len(plain)
    if numbers > len(texts) / 2 and (written or len(texts) > _MOST_CODES):
        others = written or [text for text in texts if not is_plain_number(text)]
        if others:
            raise ConfigError(
                f"{numbers} of the {len(texts)} different values of column {column!r} are numbers, but for what stands "
                f"in such as {listing(others, 3)}: classes, or a quantity? For a quantity write plain numbers, without "
                f"commas, blanks, % and currencies. {what_to_write}"
            )
    several = [text for text in texts if _SEPARATOR in text]
    if several:
        raise ConfigError(
            f"column {column!r} holds {listing(several, 3)}: several labels in a cell, or classes? Say which with "
            f"target: {{column: {column}, kind: multilabel}}, or kind: multiclass."
        )


def in_order(names: Sequence[str]) -> list[str]:
    """Names sorted, by value if all are numbers."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)
