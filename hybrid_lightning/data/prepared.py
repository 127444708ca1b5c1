"""What a manifest's DataModule keeps in checkpoints and writes into the run's folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.splits import SPLITS, Array
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import Target
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.files import whole_file
from hybrid_lightning.weights.safe_files import read_file

STATE_VERSION = 1
_WRITER = "ManifestDataModule"


def read_statistics(path: str, name: str, where: str = "data.statistics") -> dict[str, Any]:
    """The state of a manifest's DataModule in a checkpoint; no code of the file is run.

    Args:
        path: The checkpoint.
        name: Of the class that wrote it.
        where: Config path, for errors.

    Raises:
        ConfigError: If the file is broken or has none.
    """
    folder_options = {"tensors": False} if Path(path).is_dir() else {}
    content = read_file(path, where, **folder_options)
    state = content.get(name, content.get(_WRITER))
    if not isinstance(state, Mapping):
        raise ConfigError(f"{where}: {path!r} is no checkpoint of a run with ManifestDataModule.")
    return check_version(state, where)


def check_version(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The state; raises `ConfigError` if a newer program wrote it."""
    if state.get("version") != STATE_VERSION:
        raise ConfigError(
            f"{where}: the checkpoint's statistics have format {state.get('version')}; this program reads "
            f"{STATE_VERSION}. Install a newer hybrid_lightning."
        )
    return dict(state)


def fit_entries(
    entries: Mapping[str, Input],
    table: Table,
    folder: str,
    rows: Array,
    saved: Mapping[str, Any],
    refuse: bool,
) -> None:
    """Gives entries their statistics: those of the checkpoint if it has them, or else those of the training rows.

    Args:
        entries: Key → entry.
        table: The manifest.
        folder: Where relative paths start.
        rows: Numbers of the training rows.
        saved: State of a checkpoint, or empty.
        refuse: Whether the checkpoint, if there is one, has to know every entry.

    Raises:
        ConfigError: If a column is missing or cannot be fitted, or nothing tells the statistics.
    """
    for key, entry in entries.items():
        for column in entry.columns:
            table.require(column, entry.where)
        known = saved.get("inputs", {}).get(key)
        if known is not None and known["columns"] == entry.columns:
            entry.statistics = known["statistics"]
            continue
        if not len(rows) or (saved and refuse):
            raise no_statistics(entry, saved)
        if saved:
            rank_zero_info(f"{entry.where}: its columns are not those of the checkpoint; fitted anew")
        entry.folder = folder
        entry.statistics = entry.fit(table, rows)


def no_statistics(entry: Input, saved: Mapping[str, Any]) -> ConfigError:
    """An error for an input of which neither a checkpoint nor training rows tell anything."""
    if not saved:
        return ConfigError(
            f"{entry.where}: there is no training row to take statistics from. Give data.statistics, the checkpoint "
            f"of a run of this data."
        )
    return ConfigError(
        f"{entry.where}: the checkpoint has no statistics of this input, whose columns are {entry.columns}; it has: "
        f"{listing(saved.get('inputs', {}))}. Use the inputs of its run."
    )


def compare_names(target: Target, saved: Mapping[str, Any], refuse: bool) -> None:
    """Tells that the classes of the config are not those of the checkpoint, or refuses it.

    Raises:
        ConfigError: If they differ and `refuse` is set, because outputs would get the names of others.
    """
    old = (saved.get("target") or {}).get("names")
    if old is None or old == target.names:
        return
    difference = f"{listing(old, 8)} in the checkpoint, {listing(target.names or (), 8)} here"
    if refuse:
        raise ConfigError(f"{target.where}: other classes or columns: {difference}. Use the target of its run.")
    rank_zero_info(f"{target.where}: {difference}")


def digest(split: Array) -> str:
    """Tells splits apart."""
    return hashlib.blake2b(split.tobytes(), digest_size=16).hexdigest()


def unseen_lines(entries: Mapping[str, Input], table: Table) -> list[str]:
    """A line for each column with categories that no training row has."""
    import pyarrow
    import pyarrow.compute as compute

    lines = []
    for entry in entries.values():
        for column, known in entry.statistics.get("categories", {}).items():
            texts = table.texts(column).drop_null()
            strange = texts.filter(compute.invert(compute.is_in(texts, value_set=pyarrow.array(known, texts.type))))
            if len(strange):
                lines.append(
                    f"{entry.where}: {len(strange)} cells of {column!r} hold categories that no training row has, such "
                    f"as {strange[0].as_py()!r}; they count as unknown"
                )
    return lines


def write_split(path: Path, table: Table, split: Array, id: str | None = None) -> None:
    """Writes the split of each row as CSV with the columns id, row and split; the file appears whole or not at all."""
    import pyarrow
    from pyarrow import csv

    rows = pyarrow.array(np.arange(len(split)))
    names = pyarrow.DictionaryArray.from_arrays(pyarrow.array(split), list(SPLITS)).cast(pyarrow.string())
    columns = {"id": rows if id is None else table.texts(id), "row": rows, "split": names}
    with whole_file(path) as temporary:
        csv.write_csv(pyarrow.table(columns), temporary)
