"""What a manifest's DataModule keeps in checkpoints and writes into the run's folder."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.text import words_of
from hybrid_lightning.data.samples import Samples
from hybrid_lightning.data.saved_state import check_state, check_statistics
from hybrid_lightning.data.spelling import positions
from hybrid_lightning.data.splits import SPLITS
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.target import FittedTarget, Target
from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.files import write_csv
from hybrid_lightning.weights.safe_files import peek

if TYPE_CHECKING:
    import pyarrow

STATE_VERSION = 2  # splits by groups of format 1 were drawn otherwise
_WRITER = "ManifestDataModule"
_BLOCK = 2**16  # rows

State = dict[str, Any]
"""Plain data: statistics and shapes of the inputs, kind and names of the target, and a digest of the split."""


class TargetOfState:
    """What a task reads of the target of a DataModule, which may be a checkpoint's."""

    _state: State
    path: str
    target: Target | None
    statistics: str | None

    def _table(self, path: str, place: str) -> Table:
        raise NotImplementedError

    def find_classes(self) -> list[str] | None:
        """The names of the classes, labels or numbers of the manifest, before its `setup`; None without a target."""
        if self.target is None:
            return None
        saved = {} if self.statistics is None else read_statistics(self.statistics, type(self).__qualname__)
        table = self._table(self.path, "data.path")
        with at("data.target"):
            return self.target.fit(table, saved.get("target")).names

    @property
    def target_names(self) -> list[str] | None:
        """Names of classes, labels or numbers, in order of their index; also of a checkpoint's."""
        saved = self._state.get("target")
        return list(saved["names"]) if saved else None

    @property
    def target_kind(self) -> str | None:
        """``binary``, ``multiclass``, ``multilabel`` or ``regression``."""
        saved = self._state.get("target")
        return saved["kind"] if saved else None

    @property
    def target_transform(self) -> str | None:
        """``log`` or ``log1p`` if the network is to learn logarithms of the numbers."""
        saved = self._state.get("target")
        return saved.get("transform") if saved else None


def read_statistics(path: str, name: str) -> State:
    """The state that a DataModule of class `name` left in a checkpoint; no code of the file is run."""
    content = peek(path, "data.statistics")
    state = content.get(name, content.get(_WRITER))  # a subclass may have written it, or read it
    with at("data.statistics"):
        if not isinstance(state, dict):
            raise ConfigError(f"{path!r} is not a checkpoint of a run with ManifestDataModule.")
        return check_version(state)


def check_version(state: State) -> State:
    """The state; raises `ConfigError` if a newer program wrote it."""
    if state.get("version") not in (1, STATE_VERSION):
        raise ConfigError(
            f"the checkpoint's statistics have format {state.get('version')}; this program reads {STATE_VERSION}. "
            f"Install a newer hybrid_lightning."
        )
    with at("the checkpoint's statistics"):
        check_state(state)
    return dict(state)


def state_of(samples: Samples, target: FittedTarget | None, id: str | None, split: Array, groups: str | None) -> State:
    """What a checkpoint keeps, as plain data; `groups` is the column by which the split keeps rows together."""
    inputs = {}
    for key, entry in samples.entries.items():
        shape = samples.shapes.get(key)
        known = {"columns": entry.columns, "statistics": entry.statistics, "shape": shape}
        inputs[key] = known if entry.options is None else {**known, "options": entry.options}
    of_target = target and {"columns": target.columns, "kind": target.kind, "names": target.names}
    if of_target and target and target.transform:
        of_target["transform"] = target.transform
    return {
        "version": STATE_VERSION,
        "inputs": inputs,
        "incomplete": list(samples.present),
        "target": of_target,
        "id": id,
        "groups": groups,
        "split": digest(split),
    }


def fit_inputs(entries: Mapping[str, Input], table: Table, rows: Array, saved: State, refuse: bool) -> None:
    """Gives inputs their statistics: those of the checkpoint if it has them, or else those of the training rows."""
    for key, entry in entries.items():
        known = saved.get("inputs", {}).get(key)
        if known is not None and known["columns"] == entry.columns:
            check_statistics(entry, known["statistics"])
            entry.statistics = known["statistics"]  # a run that goes on keeps its scales
            continue
        if saved and (refuse or not len(rows)):
            raise ConfigError(
                f"the checkpoint has no statistics of this input, whose columns are {entry.columns}; it has: "
                f"{listing(saved.get('inputs', {}))}. Use the inputs of its run.",
                entry.where,
            )
        if not len(rows):
            raise ConfigError(
                "no training row to take statistics from. Give data.statistics, the checkpoint of a run of this data.",
                entry.where,
            )
        if saved:
            rank_zero_info(f"{entry.where}: its columns are not those of the checkpoint; fitted anew")
        entry.statistics = entry.fit(table, rows)


def check_target(target: FittedTarget, split: Array, saved: State, refuse: bool) -> None:
    """Compares a target with the split, and its names with those of a checkpoint."""
    old = (saved.get("target") or {}).get("names")
    with at("data.target"):
        target.check_split(split)
        if old is None or old == target.names:
            return
        difference = f"{listing(old, 8)} in the checkpoint, {listing(target.names, 8)} here"
        if refuse:  # outputs would get the names of others
            raise ConfigError(f"other classes or columns: {difference}. Use the target of its run.")
    rank_zero_info(f"data.target: {difference}")


def warn_of_other_split(split: Array, saved: State) -> None:
    """Warns if a split that is drawn is not that of the checkpoint."""
    if saved.get("split", digest(split)) != digest(split):
        rank_zero_warn(
            "data: the rows are split otherwise than in the checkpoint's run, which may have trained on rows that "
            "are now for validation or test. If the manifest has changed, add the run's split.csv as split_column."
        )


def digest(split: Array) -> str:
    """Differs between different splits."""
    return hashlib.blake2b(split.tobytes(), digest_size=16).hexdigest()


def _refuse_unknown_words(entries: Mapping[str, Input], table: Table) -> None:
    """Raises `ConfigError` if a column of several texts has no word that was trained on, as in another language."""
    for entry in entries.values():
        words = entry.statistics.get("words")
        if words is None:
            continue
        known = set(words)
        texts = table.texts(entry.columns[0]).drop_null()
        has_known = any(not known.isdisjoint(words_of(text.as_py())) for text in texts)  # stops at the first
        if len(texts) > 1 and not has_known:
            raise ConfigError(
                f"no cell of column {entry.columns[0]!r} of {str(table.path)!r} has a word that was trained on; the "
                f"first is {texts[0].as_py()[:60]!r}. Is it the right column, in the right encoding and language?",
                entry.where,
            )


def report_unseen(entries: Mapping[str, Input], table: Table, refuse: bool) -> None:
    """Reports each column with categories that no training row has; `refuse`: raises an error if nothing is known."""
    if refuse:
        _refuse_unknown_words(entries, table)
    for entry in entries.values():
        for column, known in entry.statistics.get("categories", {}).items():
            names, places = table.coded(column)
            is_unknown = np.append(positions(names, known) < 0, False)  # the last one: an empty cell
            unknown = np.flatnonzero(is_unknown[places])
            if refuse and len(unknown) == np.count_nonzero(places >= 0) > 1:
                found = names.to_pylist()
                raise ConfigError(
                    f"no cell of column {column!r} of {str(table.path)!r} holds a category that was trained on: it "
                    f"holds {listing(found, 5)}, and known are {listing(known, 5)}. Write them as in the training "
                    f"table; or leave the cells empty, if they are all new.",
                    entry.where,
                )
            if len(unknown):
                rank_zero_info(
                    f"{entry.where}: {len(unknown)} cells of {column!r} hold categories that no training row has, "
                    f"such as {names[int(places[unknown[0]])].as_py()!r}; they count as unknown"
                )


def write_split(trainer: pl.Trainer | None, table: Table, split: Array, id: str | None) -> None:
    """Writes ``split.csv`` into the run's folder, on the first rank: id, row and split; a second for a million rows."""
    if trainer is None or not trainer.loggers:
        return
    folder = trainer.log_dir  # collective: read on every rank
    if trainer.is_global_zero and folder:
        ids = None if id is None else table.texts(id)
        write_csv(Path(folder) / "split.csv", ["id", "row", "split"], _split_lines(split, ids))


def _split_lines(split: Array, ids: "pyarrow.Array | None") -> Iterator[tuple[Any, int, str]]:
    """Id, row and split of each row; all of them as Python's objects would take a gigabyte for ten million."""
    for start in range(0, len(split), _BLOCK):
        codes = split[start : start + _BLOCK].tolist()
        rows = range(start, start + len(codes))
        names = rows if ids is None else ids.slice(start, len(codes)).to_pylist()
        for name, row, code in zip(names, rows, codes, strict=True):
            yield name, row, SPLITS[code]
