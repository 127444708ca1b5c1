"""Which columns of a table are not read by the model: the target, a split, groups of rows, and ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_lightning.data.spelling import positions
from hybrid_lightning.data.splits import SPLITS
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import FittedTarget, Target
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.init.columns import CODES, COUNT, NAMES, Column

_TARGETS = ("target", "label", "labels", "class", "y", "outcome", "diagnosis")
_GROUPS = ("patient", "subject", "participant", "person", "speaker", "user", "customer", "client", "donor", "animal")
_NAMED_FOR = re.compile(r"(.*_)?(id|nr|no|number|code|key)s?")
_IDS = ("id", "sample", "key", "name", "uid", "uuid", "file", "filename", "index", "row")
_SPLIT_NAMES = ("split", "fold", "subset", "partition")
_MOST_FOLDS = 20
_NAMING = (NAMES, CODES, COUNT)
_READ = ("image", "audio", "series", "array", "volume", "text")  # kinds of input that are neither
_FEWEST_GROUPS = 4
_MOST_OF_GROUP = 20  # rows on average, of a column that is only named as an id
_VALUES = 20  # distinct ones, up to which a column is proposed as a target


@dataclass(frozen=True)
class Roles:
    """What columns are for."""

    split: str | None = None
    group: str | None = None
    id: str | None = None
    unused: Mapping[str, str] = field(default_factory=dict)  # column that nearly has a role → what it holds


def words_of_name(name: str) -> str:
    """``patient_id`` for ``patientId`` and ``Patient ID``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", name).lower().strip("_")


def find_target(table: Table, columns: Sequence[Column]) -> str:
    """The only column that is named as a target; `ConfigError` that proposes some if there is none."""
    named = [name for name in table.columns if words_of_name(name) in _TARGETS]
    if len(named) == 1:
        return named[0]
    likely = named or [column.name for column in columns if _may_be_target(table, column)]
    last = columns[-1]  # many tables end with it
    if not named and last.name not in likely and (last.kind in ("categorical", "numeric") or last.why in _NAMING):
        likely.append(last.name)
    shown = [f"{name!r} ({_sample(table, name)})" for name in likely[:6]]
    raise ConfigError(
        f"which column is to be predicted? Write --target COLUMN. Likely: {', '.join(shown)}. All columns: "
        f"{listing(table.columns, 30)}."
    )


def _may_be_target(table: Table, column: Column) -> bool:
    is_group = not set(_GROUPS).isdisjoint(words_of_name(column.name).split("_"))
    few = column.kind in ("categorical", "numeric") and not column.has_gaps and not is_group
    return few and len(table.texts(column.name).unique()) <= _VALUES


def _sample(table: Table, name: str) -> str:
    """Some values of a column."""
    found = table.texts(name).unique().drop_null().to_pylist()
    shown = ", ".join(str(value)[:20] for value in found[:3])
    return f"{shown}, ..." if len(found) > 3 else shown


def fit_target(table: Table, target: Target) -> FittedTarget:
    """The target of all rows; `ConfigError` if it is none, which says how `init` is told what it means."""
    for column in target.columns:
        table.require(column, "--target")
    try:
        fitted = target.fit(table)
    except ConfigError as error:
        if "kind: " in error.args[0] and target.kind is None:
            error.args = (f"{error.args[0]} For init that is: --kind regression, or such as --kind multiclass.",)
        raise
    if fitted.kind == "multiclass" and 2 * len(fitted.names) > len(table):
        raise ConfigError(
            f"column {target.columns[0]!r} holds {len(fitted.names)} different values in {len(table)} rows, which are "
            f"no classes to learn. Name another column, or write --kind regression for numbers.",
            "--target",
        )
    return fitted


def find_roles(table: Table, columns: Mapping[str, Column]) -> Roles:
    """What the columns beside the target are for."""
    unused: dict[str, str] = {}
    with_values = [name for name, column in columns.items() if column.kind in ("categorical", "numeric")]
    splits = [name for name in with_values if _is_split(table, name, unused)]
    rest = [column for name, column in columns.items() if name not in (*splits, *unused)]
    groups = _groups(table, rest, unused)
    for name in (*splits[1:], *groups[1:]):
        unused[name] = "another split" if name in splits else "another grouping of rows"
    rest = [column for column in rest if column.name not in (*groups, *unused)]
    return Roles(next(iter(splits), None), next(iter(groups), None), _id_of(rest), unused)


def _is_split(table: Table, name: str, unused: dict[str, str]) -> bool:
    """Whether a column holds names of splits alone, with rows to train and to validate."""
    texts = table.names(name)
    is_named = words_of_name(name) in _SPLIT_NAMES
    if len(texts.unique()) > (_MOST_FOLDS if is_named else len(SPLITS)):
        return False
    codes = positions(texts, SPLITS)
    found = {SPLITS[code] if code >= 0 else "" for code in codes}
    if {"train", "val"} <= found and "" not in found:
        return True
    if "" not in found and len(found) > 1:
        unused[name] = (
            f"{', '.join(sorted(found))} and no val, so that the split is drawn anew from all rows; mark some rows "
            f"val and write 'split_column: {name}'"
        )
    elif is_named:
        unused[name] = f"{_sample(table, name)}; as a split, it would hold train, val and test"
    return False


def _groups(table: Table, columns: Sequence[Column], unused: dict[str, str]) -> list[str]:
    """Columns whose name says that rows of one value belong together, and whose values repeat; patients first."""
    ranked = []
    for column in columns:
        words = words_of_name(column.name).split("_")
        named = [place for place, word in enumerate(_GROUPS) if word in words]
        is_value = column.kind in ("categorical", "numeric") or column.why in _NAMING
        if column.differs or not is_value or not (named or words[-1] == "id"):
            continue
        distinct = len(table.texts(column.name).unique())
        # a site with three values is a category, and no group
        if distinct < _FEWEST_GROUPS or (not named and distinct * _MOST_OF_GROUP < len(table)):
            continue
        if column.has_gaps:
            unused[column.name] = "groups of rows, but has empty cells; fill them and write 'split_by'"
            continue
        ranked.append((named[0] if named else len(_GROUPS), column.name))
    ranked.sort(key=lambda pair: pair[0])
    return [name for _, name in ranked]


def _id_of(columns: Sequence[Column]) -> str | None:
    """The column that names each row: by its own name, or else the first whose short texts all differ."""
    unique = [column for column in columns if column.differs and not column.has_gaps]
    for column in unique:
        words = words_of_name(column.name)
        is_named = words in _IDS or _NAMED_FOR.fullmatch(words) or words.split("_")[0] in _GROUPS
        if column.kind not in _READ and is_named:
            return column.name
    return next((column.name for column in unique if column.why in _NAMING), None)


def as_spec(target: Target, fitted: FittedTarget) -> Any:
    """The target as a config has it, in its shortest form."""
    columns: Any = target.columns[0] if len(target.columns) == 1 else target.columns
    return columns if target.kind is None else {"column": columns, "kind": fitted.kind}
