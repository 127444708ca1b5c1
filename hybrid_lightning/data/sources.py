"""The tables that a manifest's DataModule reads: files, shards, or what is in memory."""

from collections.abc import Mapping
from typing import Any

from hybrid_lightning.data.frames import frame_name, is_frame
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.shard_table import SPLIT, is_shards, shards_name
from hybrid_lightning.data.splits import SPLITS, SplitRule
from hybrid_lightning.data.table import Table, checked_path
from hybrid_lightning.data.target import Target
from hybrid_lightning.errors import ConfigError, at, check_keys


class TableSources:
    """Where the tables of a DataModule come from, under the names that stand for them."""

    id: str | None
    inputs: dict[str, Input]
    target: Target | None
    split_rule: SplitRule
    path: str
    _sources: dict[str, Any]  # name → table in memory, or patterns of shards
    _tables: dict[str, Table]

    def _named(self, source: Any, place: str) -> str:
        """The path of a manifest, or a name for one in memory or for shards of several splits, which are kept."""
        if is_frame(source):
            name = frame_name(source, place)
        elif is_shards(source):
            source = _in_order(source, place)
            name = shards_name(source)
        else:
            with at(place):
                return checked_path(source)
        self._sources[name] = source
        return name

    def hold(self, **frames: Any) -> None:
        """Takes tables in memory in the place of `path` or `predict_path`."""
        for key, frame in frames.items():
            setattr(self, key, self._named(frame, f"data.{key}"))

    @property
    def table(self) -> Table:
        """The manifest, after `setup`."""
        return self._tables[self.path]

    def _table(self, path: str, place: str) -> Table:
        """The manifest; in CSV all columns but those of numbers are read as the text that they are."""
        if path not in self._tables:
            texts = [self.id, self.split_rule.group_column, self.split_rule.column]
            others: list[str] = []
            readers: list[Input | Target] = [*self.inputs.values(), *([self.target] if self.target else [])]
            for reader in readers:
                texts += reader.text_columns
                others += reader.columns
            named = [column for column in texts if column is not None]
            table = Table.read(self._sources.get(path, path), place, named, [*named, *others])
            if self.id is not None:
                table.require(self.id, "data.id")
            for entry in self.inputs.values():
                for column in entry.columns:
                    table.require(column, entry.where)
            self._tables[path] = table
        return self._tables[path]


def _in_order(source: Any, place: str) -> Any:
    """Patterns of splits in the order of the splits, so that rows have the same numbers however a config is written."""
    if not isinstance(source, Mapping):
        return source
    check_keys(source, SPLITS, place, kind="split")
    return {split: source[split] for split in SPLITS if split in source}


def split_column_of(source: Any, given: str | None, is_drawn: bool) -> str | None:
    """The column of the splits, which shards have by themselves if there is a pattern per split."""
    if not isinstance(source, Mapping):
        return given
    if is_drawn:
        raise ConfigError(
            "a pattern per split decides the split. Name all shards by one pattern, such as 'shards/*.tar', or leave "
            "out 'fractions' and 'fold', which draw it.",
            "data.path",
        )
    if given is not None:
        raise ConfigError("data.path has a pattern per split, which decides. Leave this out.", "data.split_column")
    return SPLIT
