"""The target of a manifest: what kind it is, its classes, and its tensor."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.splits import SPLITS, TEST, TRAIN, VAL, Array, combinations_of, quantile_bins, rows_of
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError, listing, unknown

if TYPE_CHECKING:
    import pyarrow

KINDS = ("binary", "multiclass", "multilabel", "regression")
_MOST_CODES = 20
"""Distinct whole numbers up to which a column may mean classes; with more it is a quantity."""
_SEPARATOR = ";"
_ASK = "Say which with target: {{column: {column}, kind: regression}}, or kind: multiclass."


class Target:
    """What a manifest says about the target.

    Args:
        spec: A column; a list of columns; or ``{column: ..., kind: ..., classes: ...}``.
        where: Config path, for errors.

    Raises:
        ConfigError: If a key or value is impossible.
    """

    def __init__(self, spec: str | Sequence[str] | Mapping[str, Any], where: str = "data.target") -> None:
        self.where = where
        given: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"column": spec}
        for key in given:
            if key not in ("column", "kind", "classes"):
                raise unknown(where, "key", str(key), ("column", "kind", "classes"))
        columns = given.get("column")
        self.single = isinstance(columns, str)
        """Whether one column was given by its name, not in a list."""
        self.columns: list[str] = [columns] if isinstance(columns, str) else list(columns or [])
        if not self.columns or not all(isinstance(name, str) for name in self.columns):
            raise ConfigError(f"{where}: {columns!r} is neither the name of a column nor a list of names.")
        self.kind: str | None = given.get("kind")
        """One of `KINDS`; None until it is inferred."""
        if self.kind not in (None, *KINDS):
            raise unknown(f"{where}.kind", "kind", str(self.kind), KINDS)
        classes = given.get("classes")
        self.given_classes = None if classes is None else _class_names(classes, f"{where}.classes")
        self.names: list[str] | None = self.given_classes
        """Names of classes, labels or numbers in order of their index, once they are known."""
        if len(self.columns) > 1 and self.kind in ("binary", "multiclass"):
            raise ConfigError(f"{where}: a {self.kind} target is one column, not {len(self.columns)}.")
        if self.given_classes and (len(self.columns) > 1 or self.kind == "regression"):
            raise ConfigError(f"{where}.classes: only a target of one column with classes has them.")

    @property
    def text_columns(self) -> list[str]:
        """Columns to read as text, so that a class 007 keeps its name."""
        has_classes = self.kind in ("binary", "multiclass") or self.given_classes
        return self.columns if has_classes else []

    def values(self, table: Table, saved: Mapping[str, Any] | None = None) -> Tensor:
        """The target of all rows, on the first call with the kind and the names inferred.

        Args:
            table: The manifest.
            saved: ``kind`` and ``names`` of an earlier run, which hold again unless the config gives others.

        Returns:
            int64 `(rows,)` for classes, float32 `(rows, labels)` of 0 and 1 for labels, float32 `(rows,)` or
            `(rows, columns)` for numbers.

        Raises:
            ConfigError: If a column is missing, a cell empty or impossible, or the kind open.
        """
        for column in self.columns:
            table.require(column, self.where)
            empty = np.flatnonzero(table.empty(column))
            if len(empty):
                raise ConfigError(
                    f"{self.where}: column {column!r} of {str(table.path)!r} is empty in {rows_of(empty)}. Fill in "
                    f"these cells or remove the rows; data to predict go into predict_path."
                )
        names = (saved or {}).get("names")
        self.kind = self.kind or (saved or {}).get("kind") or self._inferred(table)
        if self.kind == "regression":
            return self._numbers(table)
        if self.kind == "multilabel":
            return self._labels_of_columns(table) if len(self.columns) > 1 else self._listed_labels(table, names)
        return self._classes(table, names)

    def _inferred(self, table: Table) -> str:
        if len(self.columns) > 1:
            every = [table.numbers(column, self.where) for column in self.columns]
            return "multilabel" if all(np.isin(values, (0, 1)).all() for values in every) else "regression"
        [column] = self.columns
        return "multiclass" if self.given_classes else inferred_kind(table, column, self.where)

    def _numbers(self, table: Table) -> Tensor:
        columns = [torch.from_numpy(table.numbers(column, self.where)).float() for column in self.columns]
        self.names = list(self.columns)
        return columns[0] if len(columns) == 1 else torch.stack(columns, dim=1)

    def _labels_of_columns(self, table: Table) -> Tensor:
        for column in self.columns:
            values = table.numbers(column, self.where)
            wrong = np.flatnonzero(~np.isin(values, (0, 1)))
            if len(wrong):
                raise ConfigError(
                    f"{self.where}: a column of labels holds 0 and 1; {column!r} holds {values[wrong[0]]:g} in row "
                    f"{wrong[0]} ({len(wrong)} such cells)."
                )
        self.names = list(self.columns)
        return torch.stack([torch.from_numpy(table.numbers(c, self.where)).float() for c in self.columns], dim=1)

    def _listed_labels(self, table: Table, names: Sequence[str] | None) -> Tensor:
        """Labels in one cell, such as ``dog;cat``; a lone ``;`` is none."""
        import pyarrow.compute as compute

        lists = compute.split_pattern(table.texts(self.columns[0]), _SEPARATOR)
        rows, labels = compute.list_parent_indices(lists), compute.utf8_trim_whitespace(compute.list_flatten(lists))
        kept = compute.not_equal(labels, "")
        rows, labels = rows.filter(kept), labels.filter(kept)
        known, codes = self._codes(labels, names, table, lambda wrong: np.asarray(rows)[wrong])
        values = torch.zeros(len(table), len(known))
        values[torch.from_numpy(np.array(rows, dtype=np.int64)), torch.from_numpy(codes)] = 1
        return values

    def _classes(self, table: Table, names: Sequence[str] | None) -> Tensor:
        known, codes = self._codes(table.texts(self.columns[0]), names, table, lambda wrong: wrong)
        if len(known) < 2 or (self.kind == "binary" and len(known) > 2):
            wanted = "exactly two" if self.kind == "binary" else "at least two"
            raise ConfigError(
                f"{self.where}: column {self.columns[0]!r} has {len(known)} classes, {listing(known, 6)}; a "
                f"{self.kind} target has {wanted}."
            )
        return torch.from_numpy(codes)

    def _codes(
        self, texts: "pyarrow.Array", names: Sequence[str] | None, table: Table, rows: Any
    ) -> tuple[list[str], Array]:
        """Names of the labels, and the position of each text in them; `rows` gives the rows of positions in `texts`."""
        import pyarrow
        import pyarrow.compute as compute

        known = self.given_classes or list(names or ()) or in_order(texts.unique().to_pylist())
        codes = compute.index_in(texts, value_set=pyarrow.array(known, type=texts.type))
        wrong = np.flatnonzero(np.asarray(codes.is_null()))
        if len(wrong):
            source = f"{self.where}.classes" if self.given_classes else "the checkpoint"
            others = listing(texts.take(pyarrow.array(wrong)).unique().to_pylist(), 5)
            raise ConfigError(
                f"{self.where}: column {self.columns[0]!r} of {str(table.path)!r} holds {others} "
                f"({rows_of(rows(wrong))}), which {source} does not know; it has {listing(known, 8)}."
            )
        self.names = known
        return known, np.asarray(codes).astype(np.int64)


def inferred_kind(table: Table, column: str, where: str = "data.target") -> str:
    """What a column without empty cells means.

    Text and booleans are classes, binary if there are two. Whole numbers are classes if they are 0, 1, ..., at most
    `_MOST_CODES` of them and none left out; more distinct ones are a quantity, as are numbers with decimals.

    Raises:
        ConfigError: If it could be either: few whole numbers with gaps or not from 0; decimals that are all 0 and 1.
    """
    from pyarrow import types

    values = table.values(column)
    distinct = len(values.unique())
    ask = _ASK.format(column=column)
    if types.is_floating(values.type) or types.is_decimal(values.type):
        if distinct <= 2 and np.isin(table.numbers(column, where), (0, 1)).all():
            raise ConfigError(f"{where}: column {column!r} holds 0.0 and 1.0: two classes, or a quantity? {ask}")
        return "regression"
    if types.is_integer(values.type):
        numbers = table.numbers(column, where)
        if distinct > _MOST_CODES:
            return "regression"
        if numbers.min() != 0 or numbers.max() != distinct - 1:
            shown = sorted({int(number) for number in numbers})
            raise ConfigError(
                f"{where}: column {column!r} holds the {distinct} whole numbers {', '.join(map(str, shown[:8]))}"
                f"{', ...' if distinct > 8 else ''}: classes, or a quantity? {ask}"
            )
    elif types.is_temporal(values.type):
        raise ConfigError(f"{where}: column {column!r} holds dates, which are no target. Write them as numbers.")
    return "binary" if distinct == 2 else "multiclass"


def in_order(names: Sequence[str]) -> list[str]:
    """Names sorted, by value if all are numbers."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)


def strata_of(target: Target, values: Tensor) -> Array:
    """Stratum of each row: its class, its combination of labels, or its quantile bin."""
    array = values.numpy()
    if target.kind == "regression":
        return quantile_bins(array)
    return combinations_of(array) if target.kind == "multilabel" else array


def check_split(target: Target, values: Tensor, split: Array) -> None:
    """Raises `ConfigError` if a class or label of a validation or test row has no training row."""
    if target.kind == "regression" or not (split == TRAIN).any():
        return
    names, counts = target.names or [], label_counts(target, values, split)
    for code in (VAL, TEST):
        lacking = np.flatnonzero((counts[TRAIN] == 0) & (counts[code] > 0))
        if len(lacking):
            first = int(lacking[0])
            array = values.numpy()
            has = array[:, first] == 1 if target.kind == "multilabel" else array == first
            rows = np.flatnonzero(has & (split == code))
            raise ConfigError(
                f"{target.where}: {listing([names[label] for label in lacking], 5)} stand in {SPLITS[code]} rows, but "
                f"in no training row; {names[first]!r} in {rows_of(rows)}. A model cannot learn them. Move rows to the "
                f"training split, gather more, or leave these rows out; another split_seed may help."
            )


def label_counts(target: Target, values: Tensor, split: Array) -> Array:
    """Rows of each split and class or label, `(3, labels)`."""
    array, labels = values.numpy(), len(target.names or ())
    if target.kind == "multilabel":
        return np.stack([array[split == code].sum(axis=0).astype(np.int64) for code in range(len(SPLITS))])
    return np.stack([np.bincount(array[split == code], minlength=labels) for code in range(len(SPLITS))])


def few_rows(target: Target, values: Tensor, split: Array) -> str | None:
    """A line about classes that have too few rows for each split to have one; None if all have."""
    if target.kind == "regression":
        return None
    counts = label_counts(target, values, split)
    used = [code for code in range(len(SPLITS)) if (split == code).any()]
    short = np.flatnonzero((counts[used] == 0).any(axis=0) & (counts.sum(axis=0) > 0))
    if not len(short):
        return None
    names = target.names or []
    shown = [
        f"{names[label]!r} ({', '.join(f'{SPLITS[code]} {counts[code, label]}' for code in used)})"
        for label in short[:5].tolist()
    ]
    more = f" and {len(short) - 5} more" if len(short) > 5 else ""
    return f"{target.where}: too few rows for one in each split: {', '.join(shown)}{more}"


def _class_names(classes: Any, where: str) -> list[str]:
    names = [str(name) for name in classes] if isinstance(classes, list | tuple) else []
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"{where}: {classes!r} is not a list of two or more different names.")
    return names
