"""What a column of a table holds, and which kind of input reads it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_lightning.data.class_folders import kind_of_file
from hybrid_lightning.data.inputs.cells import lists_in
from hybrid_lightning.data.spelling import seem_codes
from hybrid_lightning.data.table import Table, is_plain_number, is_written_number
from hybrid_lightning.data.target import is_code
from hybrid_lightning.errors import ConfigError, listing

COUNT = "a number that grows from row to row"
NAMES = "names, almost each of another row"
CODES = "codes, almost each of another row"
SEPARATORS = (";", "|", ",")
_MOSTLY = 0.9  # share of the texts that are paths of files, from which a column holds files
_FEWEST = 10  # cells with a value; of fewer, all may be in other rows than those that train
_LOOKED_AT = 1000  # distinct texts
_MOST_CATEGORIES = 1000
_WORDS_OF_TEXT = 3  # on average, from which cells that differ from row to row are texts
_WORDS_OF_LONG_TEXT = 6  # from which they are texts although some repeat
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")
_ADDRESS = re.compile(r"(https?|ftp|s3|gs)://")


@dataclass(frozen=True)
class Column:
    """A column as a kind of input, or None with the reason why it is none."""

    name: str
    kind: str | None  # image, audio, series, array, volume, text, numeric or categorical
    why: str = ""  # what it holds instead
    has_gaps: bool = False
    differs: bool = False  # whether each cell that is filled holds another value
    separator: str | None = None  # between the paths of files in a cell; None if a cell has one


def describe(table: Table, name: str) -> Column:
    """What a column holds."""
    import pyarrow

    if not name:
        return Column(name, None, "cells under an empty name")
    kind = table.values(name).type
    paths = _paths_in_lists(table, name)
    if paths:
        return Column(name, _kind_of_files(paths), "", bool(table.values(name).null_count), False, SEPARATORS[0])
    if pyarrow.types.is_nested(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return Column(name, None, f"{kind} values")
    empty = table.empty(name)
    known = int((~empty).sum())
    if known < min(_FEWEST, len(table)):
        return Column(name, None, f"{known} filled cells" if known else "nothing")
    texts = table.texts(name).drop_null().dictionary_encode()
    distinct = len(texts.dictionary)
    if distinct == 1:
        return Column(name, None, f"nothing but {texts.dictionary[0].as_py()[:40]!r}")
    if pyarrow.types.is_temporal(kind):
        return Column(name, None, "dates")
    differs = distinct == known
    some = texts.dictionary.to_pylist()[:: max(1, distinct // _LOOKED_AT)]
    separator = _separator_of(some)
    if separator is not None:
        paths = [path for text in some for path in split_paths(text, separator)]
        return Column(name, _kind_of_files(paths), "", bool(empty.any()), differs, separator)
    if pyarrow.types.is_boolean(kind):
        found, why = "categorical", ""
    elif pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind):
        found, why = _of_numbers(table, name, distinct, known)
    else:
        found, why = _of_texts(texts.dictionary.to_pylist(), distinct, known)
    return Column(name, found or None, why, bool(empty.any()), differs)


def _of_numbers(table: Table, name: str, distinct: int, known: int) -> tuple[str, str]:
    """Kind and reason of a column of numbers."""
    try:
        numbers = table.numbers(name)
    except ConfigError:
        return "", "numbers that are not finite"
    values = numbers[~np.isnan(numbers)]
    is_whole = bool((values == np.floor(values)).all())
    if is_whole and (np.diff(values) > 0).all():
        return "", COUNT
    if not seem_codes(name, numbers):
        return "numeric", ""
    return ("categorical", "") if _repeats(distinct, known) else ("", CODES)


def _of_texts(distinct: Sequence[str], count: int, known: int) -> tuple[str, str]:
    """Kind and reason of a column of text, by its distinct cells."""
    some = distinct[:: max(1, count // _LOOKED_AT)]
    if _share(some, _is_file) > _MOSTLY:
        return _kind_of_files(some), ""
    if _share(some, _ADDRESS.match) > 0.5:
        return "", "addresses; fetch the files and name them instead"
    if _share(some, _DATE.fullmatch) > 0.5:
        return "", "dates"
    if _share(some, is_plain_number) == 1 and len(some) > 2 and not any(map(_is_code, some)):
        return "numeric", ""
    numbers = [text for text in some if is_plain_number(text) or is_written_number(text)]
    if len(numbers) > len(some) / 2 and count > 20:
        others = [text for text in some if not is_plain_number(text)]
        return "", f"numbers but for such as {listing(others, 2)}; write plain ones, and nothing where there is none"
    words = float(np.mean([len(text.split()) for text in some]))
    if words >= _WORDS_OF_LONG_TEXT and count > 50:
        return "text", ""
    if _repeats(count, known):
        return "categorical", ""
    return ("text", "") if words >= _WORDS_OF_TEXT else ("", NAMES)


def split_paths(cell: str, separator: str) -> list[str]:
    """The paths in a cell."""
    return [path.strip() for path in cell.split(separator) if path.strip()]


def _separator_of(texts: Sequence[str]) -> str | None:
    """What stands between the paths of files in these cells; None if they are no such, or none has several."""
    for separator in SEPARATORS:
        paths = [split_paths(text, separator) for text in texts]
        is_list = max(map(len, paths)) > 1
        if is_list and _share([path for own in paths for path in own], _is_file) > _MOSTLY:
            return separator
    return None


def _paths_in_lists(table: Table, name: str) -> list[str]:
    """Some paths of files in a column whose cells are lists of them; none if they are others."""
    cells = lists_in(table, name)
    if cells is None:
        return []
    some = cells[:_LOOKED_AT].flatten().drop_null().to_pylist()
    texts = [text for text in some if isinstance(text, str)]
    return texts if texts and len(texts) == len(some) and _share(texts, _is_file) > _MOSTLY else []


def _kind_of_files(paths: Sequence[str]) -> str:
    """The kind of most files."""
    kinds = [kind_of_file(path.strip()) for path in paths]
    return str(max(set(kinds), key=kinds.count))


def _repeats(distinct: int, known: int) -> bool:
    return 2 * distinct <= known and distinct <= _MOST_CATEGORIES


def _is_code(text: str) -> bool:
    return text.isdecimal() and is_code(text)


def _is_file(text: str) -> bool:
    return len(text) < 1000 and not _ADDRESS.match(text) and kind_of_file(text) is not None


def _share(texts: Sequence[str], test: Any) -> float:
    """The share of texts that pass a test."""
    return sum(bool(test(text.strip())) for text in texts) / len(texts)
