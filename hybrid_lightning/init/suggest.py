"""A first config for a table of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from hybrid_lightning.data.answers import telling_columns
from hybrid_lightning.data.class_folders import KIND_OF_SUFFIX
from hybrid_lightning.data.frames import is_frame
from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import KINDS, FittedTarget, Target
from hybrid_lightning.errors import ConfigError, check_choice
from hybrid_lightning.init.columns import NAMES, Column, describe
from hybrid_lightning.init.files import Files, describe_files, find_root, is_column_of_series
from hybrid_lightning.init.pieces import make_pieces, replace_parts
from hybrid_lightning.init.roles import find_roles, find_target, fit_target
from hybrid_lightning.init.writing import Findings, config_text, notes_on

_FILES = tuple(dict.fromkeys(KIND_OF_SUFFIX.values()))


class Suggestion(dict[str, Any]):
    """A config as `from_config` takes it; its text has a comment on each choice.

    Attributes:
        text: The config as commented YAML.
        notes: What was seen, a line each.
        frame: The DataFrame that it was made for, which `from_config` takes where no other ``path`` is given; None of
            a file, whose name stands in the config.
    """

    def __init__(self, text: str, notes: Sequence[str], frame: Any = None) -> None:
        super().__init__(yaml.safe_load(text))
        self.text = text
        self.notes = list(notes)
        self.frame = frame

    def __str__(self) -> str:
        return self.text


def suggest(
    source: Any,
    target: str | Sequence[str] | None = None,
    kind: str | None = None,
    parts: Mapping[str, str] | None = None,
) -> Suggestion:
    """Looks at a table and suggests a config: inputs, parts, split and length of the run.

    Nothing is trained, and of files only some are opened.

    Args:
        source: A table as `ManifestDataModule` takes it: the path of a CSV or Parquet file, a folder per class, or a
            DataFrame, whose config has no ``data.path``.
        target: Column or columns to predict; None takes the one that is named label, target, class or alike.
        kind: ``binary``, ``multiclass``, ``multilabel`` or ``regression``; None finds it out, and doubtful ones are
            errors.
        parts: Input, or kind of input, → what reads it, in place of what would be suggested: ``{"image":
            "timm:resnet18"}``, ``torchvision:...``, ``transformers:...`` or the name of one of our own modules.

    Returns:
        The config, a dict. Its ``text`` is commented YAML, its ``notes`` are lines on what was seen.

    Raises:
        ConfigError: If there is no such table or column, or if it is not clear what is to be predicted.
    """
    found = look_at(source, target, kind)
    pieces = replace_parts(make_pieces(found.columns, found.files), parts or {})
    return Suggestion(config_text(found, pieces), notes_on(found), source if is_frame(source) else None)


def look_at(source: Any, target: str | Sequence[str] | None, kind: str | None) -> Findings:
    """Reads a table, and finds what its columns hold and what they are for."""
    if kind is not None:
        check_choice(kind, "--kind", KINDS, "kind")
    table = Table.read(source, "init")
    if target is None:
        target = find_target(table, [describe(table, name) for name in table.columns])
    names = [target] if isinstance(target, str) else list(target)
    spec: Any = names[0] if len(names) == 1 else names
    wanted = Target(spec if kind is None else {"column": spec, "kind": kind})
    for name in names:
        table.require(name, "--target")
    if wanted.text_columns:  # as the config will have it read
        table = Table.read(source, "init", wanted.text_columns)
    fitted = fit_target(table, wanted)
    used = [*names, "shard"] if table.shards is not None else names  # where a sample is stored tells nothing
    columns = {name: _described(table, name) for name in table.columns if name not in used}
    roles = find_roles(table, columns)
    rest = []
    for name, column in columns.items():
        if name not in (roles.split, roles.group, roles.id):
            why = roles.unused.get(name)
            rest.append(column if why is None else replace(column, kind=None, why=why))
    rest, files, root = _with_files(table, rest)
    rest = _without_answers(table, rest, fitted)
    inputs = [column for column in rest if column.kind is not None]
    left_out = [column for column in rest if column.kind is None]
    if not inputs:
        reasons = [f"{column.name!r} holds {column.why}" for column in left_out[:8]]
        raise ConfigError(f"there is no column to predict from, beside the target. {'; '.join(reasons)}", "init")
    path = None if is_frame(source) else str(source)
    return Findings(table, path, wanted, fitted, inputs, left_out, files, root, roles)


def _with_files(table: Table, columns: Sequence[Column]) -> tuple[list[Column], dict[str, Files], str | None]:
    """The columns, those of files by what these are; what was seen of each; and the folder where they are."""
    of_files = [column for column in columns if column.kind in _FILES]
    root = find_root(table, of_files) if of_files and not table.members else None
    files: dict[str, Files] = {}
    found = []
    for column in columns:
        if column.kind in _FILES:
            seen = describe_files(table, column, root)
            files[column.name] = seen
            is_bad = bool(seen.problem)
            column = replace(
                column, kind=None if is_bad else seen.kind, why=f"files that cannot be read: {seen.problem}"
            )
        found.append(column)
    return found, files, root


def _described(table: Table, name: str) -> Column:
    """What a column holds; volumes if its cells name folders of DICOM files."""
    column = describe(table, name)
    may_be_folders = column.differs and (column.why == NAMES or column.kind == "text")
    if may_be_folders and is_column_of_series(table, name):
        return replace(column, kind="volume", why="")
    return column


def _without_answers(table: Table, columns: Sequence[Column], target: FittedTarget) -> list[Column]:
    """The columns; those that tell the target of every row are no inputs."""
    given: dict[str, Any] = {}
    for number, column in enumerate(columns):
        if column.kind in ("numeric", "categorical", "text"):
            given[f"c{number}"] = {column.kind: column.name}
    telling = {name for _, name in telling_columns(table, parse_inputs(given), target)} if given else set()
    why = "what tells the target of each row, as a copy of it would"
    return [replace(column, kind=None, why=why) if column.name in telling else column for column in columns]
