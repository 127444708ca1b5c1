"""Series that are written as text: a step a line."""

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from hybrid_lightning.data.table import Array

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": None}
"""Suffix of a text → what separates its fields; None is any run of spaces."""
_GAPS = {"", "NA", "N/A", "NULL", "null"}
_LARGEST = 2**30  # bytes
_LONGEST = 400  # letters of a field, on average over a line; longer ones are no numbers
_COMPARED = 20  # lines that a doubtful first line is compared with
_SURE_COUNT = 4  # a line 0, 1, 2, 3 is taken for names


class SeriesText(NamedTuple):
    """What a text holds."""

    steps: Array  # (T, C) float64, nan in empty fields
    header: str  # the first line, if it names channels
    has_index: bool  # whether a first column that counts the steps was left out


def read_text(path: Path, header: bool | None = None) -> SeriesText:
    """Lines of numbers; `header` says whether the first line names channels, None decides by the line."""
    suffix = path.suffix.lower()
    if suffix not in _SEPARATORS:
        raise ValueError(f"its name ends in none of .npy, .npz, .csv, .tsv and .txt, but in {path.suffix!r}")
    if path.stat().st_size > _LARGEST:
        raise ValueError("it is larger than 1 GiB; save it as .npy")
    separator = _SEPARATORS[suffix]
    with path.open(encoding="utf-8-sig") as file:
        rows = _rows_of(file, separator)
        beginning = list(islice(rows, 1 + _COMPARED))
        if not beginning:
            raise ValueError("it holds no numbers")
        first, *others = beginning
        is_named = has_header(first, others) if header is None else header
        is_unnamed_first = is_named and first[0] == ""
        kept = others if is_named else [first, *others]
        if not kept:
            raise ValueError("it holds no numbers")
        # row by row, because fields as Python's texts take ten times the memory of their numbers
        between = separator or " "
        lines = (between.join(_with_nan(fields)) for fields in chain(kept, rows))
        steps = np.loadtxt(lines, np.float64, comments=None, delimiter=separator, ndmin=2)
    has_index = is_unnamed_first and steps.shape[1] > 1 and np.array_equal(steps[:, 0], np.arange(len(steps)))
    names = between.join(first) if is_named else ""
    return SeriesText(steps[:, 1:] if has_index else steps, names, has_index)


def _rows_of(file: TextIO, separator: str | None) -> Iterator[list[str]]:
    """The fields of each line that is neither empty nor a comment before the first."""
    is_first = True
    for line in file:
        if not line.strip() or (is_first and line.lstrip().startswith("#")):
            continue
        is_first = False
        fields = [field.strip() for field in line.split(separator)]
        if len(line) > _LONGEST * len(fields):
            raise ValueError(f"its line {line[:40]!r}... of {len(line)} letters does not hold numbers")
        yield fields


def _with_nan(fields: list[str]) -> list[str]:
    """Fields in which the words for an empty one are nan."""
    return ["nan" if field in _GAPS else field for field in fields]


def has_header(first: list[str], others: list[list[str]]) -> bool:
    """Whether a first line names channels; `ValueError` if its numbers may be names or values."""
    if not all(field in _GAPS or _is_number(field) for field in first):
        return True
    names = first[1:] if first[0] == "" else first
    is_counting = bool(names) and names == [str(number) for number in range(len(names))]
    if not is_counting or not others:
        return False
    if first[0] == "" or len(names) >= _SURE_COUNT:
        return True
    below = [field for fields in islice(others, _COMPARED) for field in fields if field not in _GAPS]
    if len(names) > 1 and not any(field.lstrip("+-").isdecimal() for field in below):
        return True
    raise ValueError(
        f"its first line {','.join(first)!r} may name the channels, as pandas does, or be the first step. Say which "
        f"with the input's option 'header: true' or 'header: false'"
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
