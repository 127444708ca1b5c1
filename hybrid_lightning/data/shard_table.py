"""Tar shards as a table: a row per sample, a column per extension."""

import glob
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hybrid_lightning.data.shard_index import INDEX, TEXTS, ShardIndex, read_indices
from hybrid_lightning.data.shard_members import Array, Members, ShardFiles
from hybrid_lightning.errors import ConfigError, at, listing, reason
from hybrid_lightning.files import is_regular_file
from hybrid_lightning.importing import import_extra

if TYPE_CHECKING:
    import pyarrow

SPLIT = "split"
"""The column that says which pattern a row is from, where there is one per split."""
BETWEEN = ";"  # stands between extensions of which a sample has one
_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_MOST_EXTENSIONS = 1000


class ShardTable(NamedTuple):
    """What a `Table` is made of."""

    arrow: "pyarrow.Table"
    """``key``, ``shard``, ``split`` if there is a pattern per split, and a column per extension."""
    members: dict[str, Members]  # extension → the files in its column
    samples: "pyarrow.Array"  # the name of each row, in errors
    shards: Array  # the number of each row's shard


def is_shards(source: Any) -> bool:
    """Whether ``data.path`` names shards: a pattern that ends in .tar, or a pattern per split."""
    return isinstance(source, Mapping) or (isinstance(source, str | Path) and str(source).endswith(_ENDINGS))


def shards_name(source: Any) -> str:
    """How errors call them."""
    if not isinstance(source, Mapping):
        return str(source)
    return ", ".join(f"{split}: {pattern}" for split, pattern in source.items() if pattern is not None)


def read_shards(source: Any, wanted: Collection[str] = ()) -> ShardTable:
    """The samples of shards, in the order of the patterns, of the shards' names and of the members.

    Names in `wanted` such as ``jpg;png`` become columns that take the first of these extensions that a sample has.
    """
    import_extra("pyarrow", "data", "a table of shards")
    shards, splits = _paths_of(source)
    indices = read_indices(shards)
    files = ShardFiles(indices)
    is_one_folder = len({path.parent for path in shards}) == 1
    names = [path.name if is_one_folder else str(path) for path in shards]
    table = _table_of(indices, files, names, splits)
    for name in wanted:
        if BETWEEN in name:
            table = _with_first_of(table, name)
    return table


def expanded(pattern: str) -> list[str]:
    """A pattern without braces: ``{000..099}`` counts, with as many digits, and ``{train,val}`` lists."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[piece] if number % 2 == 0 else _choices(piece) for number, piece in enumerate(pieces)]
    count = int(np.prod([len(choice) for choice in choices], dtype=np.float64))
    if count > _MOST_SHARDS:
        raise ConfigError(f"{pattern!r} names {count:,} shards, and {_MOST_SHARDS:,} are possible.")
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(text: str) -> list[str]:
    """What stands for one pair of braces."""
    counted = _RANGE.fullmatch(text)
    if counted is None:
        return text.split(",")
    first, last = int(counted[1]), int(counted[2])
    if last - first >= _MOST_SHARDS:
        raise ConfigError(f"'{{{text}}}' names {last - first + 1:,} shards, and {_MOST_SHARDS:,} are possible.")
    if first > last:
        raise ConfigError(f"'{{{text}}}' counts down. Write '{{{counted[2]}..{counted[1]}}}'.")
    return [str(number).zfill(len(counted[1])) for number in range(first, last + 1)]


def _paths_of(source: Any) -> tuple[list[Path], list[str] | None]:
    """The shards, and the split of each if there is a pattern per split."""
    if not isinstance(source, Mapping):
        return _matching(str(source)), None
    paths: list[Path] = []
    splits: list[str] = []
    for split, pattern in source.items():
        if pattern is None:
            continue
        with at(split):
            own = _matching(pattern)
            known = set(paths)
            shared = [path for path in own if path in known]
            if shared:
                raise ConfigError(f"the shards {listing(map(str, shared), 3)} are in another split too.")
        paths += own
        splits += [split] * len(own)
    if not paths:
        raise ConfigError("no split has shards. Write such as {train: 'shards/train-*.tar', val: 'shards/val-*.tar'}.")
    return paths, splits


def _matching(pattern: Any) -> list[Path]:
    """The shards that a pattern names, sorted by name; none is an error."""
    if not isinstance(pattern, str) or not pattern.endswith(_ENDINGS):
        raise ConfigError(
            f"{pattern!r} names no shards. Write such as 'shards/train-{{000..099}}.tar' or 'shards/*.tar'."
        )
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ConfigError(f"{pattern!r} is not on a file system. Fetch the shards, or mount what holds them.")
    paths: list[Path] = []
    for one in expanded(str(Path(pattern).expanduser())):
        is_name = not glob.has_magic(one) or is_regular_file(one)
        found = [one] if is_name else sorted(glob.glob(one))  # noqa: PTH207  Path.glob takes no full path
        absent = [path for path in found if not is_regular_file(path)]
        if absent or not found:
            raise ConfigError(
                f"there is no shard {absent[0] if absent else one!r} (looked up from {str(Path.cwd())!r})."
            )
        paths += map(Path, found)
    return list(dict.fromkeys(paths))


def _table_of(
    indices: Sequence[ShardIndex], files: ShardFiles, names: Sequence[str], splits: Sequence[str] | None
) -> ShardTable:
    import pyarrow
    import pyarrow.compute as compute

    members = pyarrow.concat_tables(index.members for index in indices).combine_chunks()
    shards = np.repeat(np.arange(len(indices)), [len(index.members) for index in indices])
    is_first = _are_first(members, shards)
    shard_of_row = shards[is_first]
    key = _column(members, "key").filter(pyarrow.array(is_first))
    shard = pyarrow.array(names, pyarrow.large_string()).take(pyarrow.array(shard_of_row))
    samples = _joined(shard, key, "/")
    columns: dict[str, Any] = {"key": key, "shard": shard}
    if splits is not None:
        columns[SPLIT] = pyarrow.array(splits).take(pyarrow.array(shard_of_row))
    found: dict[str, Members] = {}
    offsets, sizes = (_column(members, name).to_numpy() for name in ("offset", "bytes"))
    for extension, member_of_row in _members_of_rows(members, np.cumsum(is_first) - 1):
        is_there = member_of_row >= 0
        if extension.rpartition(".")[2] in TEXTS:
            texts = _column(members, "text").take(pyarrow.array(member_of_row, mask=~is_there))
            own = _cells(extension, texts, samples)
        else:
            own = {extension: compute.if_else(pyarrow.array(is_there), _joined(samples, extension, "."), None)}
            places = np.stack([shard_of_row, offsets[member_of_row], sizes[member_of_row]], axis=1)
            found[extension] = Members(files, places, own[extension])
        twice = sorted(own.keys() & columns.keys())
        if twice:
            raise ConfigError(f"{twice[0]!r} cannot be an extension, as another column of the table has that name.")
        columns |= own
    return ShardTable(pyarrow.table(columns), found, samples, shard_of_row)


def _with_first_of(table: ShardTable, name: str) -> ShardTable:
    """The table with a column of the first of several extensions that a sample has; without, if there is none."""
    import pyarrow.compute as compute

    found = [extension for extension in name.split(BETWEEN) if extension in table.members]
    if not found:
        return table
    joined = table.members[found[0]]
    for extension in found[1:]:
        joined = joined.or_else(table.members[extension])
    cells = compute.coalesce(*(table.arrow.column(extension) for extension in found))
    return table._replace(arrow=table.arrow.append_column(name, cells), members={**table.members, name: joined})


def _column(members: "pyarrow.Table", name: str) -> "pyarrow.Array":
    return members.column(name).combine_chunks()


def _joined(texts: "pyarrow.Array", others: Any, between: str) -> "pyarrow.Array":
    """Texts with others, or one other, behind them."""
    import pyarrow
    import pyarrow.compute as compute

    kind = pyarrow.large_string()
    last = pyarrow.scalar(others, kind) if isinstance(others, str) else others
    return compute.binary_join_element_wise(texts, last, pyarrow.scalar(between, kind))


def _are_first(members: "pyarrow.Table", shards: Array) -> Array:
    """Whether each member is the first of its sample, `(members,)` bool; two shards may have a key in common."""
    import pyarrow.compute as compute

    key = _column(members, "key")
    is_first: Array = np.diff(shards, prepend=-1) != 0
    is_first[1:] |= np.asarray(compute.not_equal(key.slice(1), key.slice(0, len(key) - 1)))
    return is_first


def _members_of_rows(members: "pyarrow.Table", rows: Array) -> Iterator[tuple[str, Array]]:
    """Each extension, and which member each row has of it, `(rows,)`, -1 for none; `rows` is the row of each member."""
    encoded = _column(members, "extension").dictionary_encode()
    numbers = encoded.indices.to_numpy()
    if len(encoded.dictionary) > _MOST_EXTENSIONS:
        shown = listing(encoded.dictionary[:3].to_pylist())
        raise ConfigError(
            f"there are {len(encoded.dictionary):,} extensions, such as {shown}. A key ends at the first dot of a "
            f"member's name; give each sample a key without dots."
        )
    for number, extension in enumerate(encoded.dictionary.to_pylist()):
        own = np.flatnonzero(numbers == number)
        member_of_row = np.full(rows[-1] + 1, -1)
        member_of_row[rows[own]] = own
        yield extension, member_of_row


def _cells(extension: str, texts: "pyarrow.Array", samples: "pyarrow.Array") -> "dict[str, pyarrow.Array]":
    """The columns of members that are texts: whole numbers of classes as such, and a column per field of JSON."""
    import pyarrow
    import pyarrow.compute as compute

    if extension.endswith("json"):
        return _fields(extension, texts, samples)
    if extension.endswith("cls"):
        texts = compute.utf8_trim_whitespace(texts)
        if compute.all(compute.match_substring_regex(texts, r"^(0|[1-9]\d{0,17})$")).as_py():
            texts = texts.cast(pyarrow.int64())
    return {extension: texts}


def _fields(extension: str, texts: "pyarrow.Array", samples: "pyarrow.Array") -> "dict[str, pyarrow.Array]":
    """A column ``json.<field>`` per field of any sample."""
    import pyarrow

    values = [{} if text is None else _object(text) for text in texts.to_pylist()]
    fields = dict.fromkeys(name for value in values for name in value)
    if len(fields) * len(values) > 2**26:
        raise ConfigError(f"the {extension} of {len(values)} samples name {len(fields)} fields. Leave out some.")
    columns = {}
    for field in fields:
        cells = [value.get(field) for value in values]
        try:
            columns[f"{extension}.{field}"] = pyarrow.array(cells)
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            kind = type(next(cell for cell in cells if cell is not None))
            others = [row for row, cell in enumerate(cells) if cell is not None and type(cell) is not kind]
            example = f"; that of {samples[others[0]].as_py()!r} is another than the first" if others else ""
            raise ConfigError(
                f"the field {field!r} of {extension} cannot be a column: {reason(error)} Write values of one "
                f"type{example}."
            ) from None
    return columns


def _object(text: str) -> Mapping[str, Any]:
    """The object that a JSON text of an index holds."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"a {INDEX} beside the shards has {text[:60]!r} for an object of JSON. Remove that file.")
    return value
