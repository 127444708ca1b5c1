"""``embed``: the features of each part for every row of the data, for other programs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.cli.probe import given, prepared_on_device, training_features
from hybrid_lightning.cli.tables import Columns, as_array, write_table
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.tasks.features import SplitFeatures, collect_features, reading

_COLUMNS = ("split", "row")  # beside the target, of which no part has the name


def embed(setup: Setup, output: str, ckpt_path: str | None = None) -> None:
    """Writes a table with a row per sample of the training, validation and test split.

    Its columns: ``split``; ``row``, the batch's ``id`` (of a manifest the number of its row, from 0) or the position in
    the split; ``target``, if all splits have it; each part's features; ``present/<part>``, where samples may lack a
    part.

    Args:
        setup: The model and its data.
        output: The file to write: .npz, an array `(rows, features)` per part; or .parquet (extra 'data'), a column of
            lists per part.
        ckpt_path: Checkpoint whose weights are used: best, last (of the newest run of this name) or a path; null takes
            the weights with which training would start.
    """
    taken = [name for name in setup.model.parts if name in _COLUMNS]
    if taken:
        raise ConfigError(
            f"{listing(taken)} would be columns of two meanings in the table. Rename these parts.", "model.parts"
        )
    data = setup.data
    network, training = prepared_on_device(setup, ckpt_path)
    splits = {"train": training_features(setup, network, training)}
    for split, loader in evaluation_splits(data):
        with reading(setup.trainer):
            splits[split] = collect_features(network, given(setup, loader))
    columns = joined(splits)
    write_table(columns, output)
    widths = [f"{name} {columns[name].shape[1]:,}" for name in network.feeding]
    counts = [f"{split} {len(next(iter(found.parts.values()))):,}" for split, found in splits.items()]
    print(f"features: {', '.join(widths)}; rows: {', '.join(counts)}\nembed: {output}")


def evaluation_splits(data: LightningDataModule) -> Iterator[tuple[str, Any]]:
    """The validation and the test split, as far as a DataModule has them, with a loader of each."""
    for split, method in (("val", "val_dataloader"), ("test", "test_dataloader")):
        if not is_overridden(method, data, LightningDataModule):
            continue
        if split == "test":  # the other one is ready since the training samples were read
            data.setup("test")
        datasets = getattr(data, "datasets", {})  # of a manifest, whose loader of a split without rows is an error
        if split in datasets and not len(datasets[split]):
            continue
        loader = getattr(data, method)()
        loaders = loader if isinstance(loader, list | tuple) else [loader]
        if len(loaders) > 1:
            raise ConfigError(f"{method} gives {len(loaders)} loaders; embed reads one per split.", "data")
        for one in loaders:
            yield split, one


def joined(splits: dict[str, SplitFeatures]) -> Columns:
    """The splits one after the other, as columns."""
    has_target = all(found.target is not None for found in splits.values())
    of_splits: dict[str, list[Any]] = {}
    for split, found in splits.items():
        count = len(next(iter(found.parts.values())))
        columns: Columns = {"split": np.full(count, split)}
        columns["row"] = torch.arange(count) if found.ids is None else found.ids
        if has_target:
            columns["target"] = found.target
        for name, features in found.parts.items():
            columns[name] = features
            columns[f"present/{name}"] = found.present.get(name, torch.ones(count, dtype=torch.bool))
        for name, values in columns.items():
            of_splits.setdefault(name, []).append(as_array(values))
    whole = {name: np.concatenate(values) for name, values in of_splits.items()}
    # a column that says nothing is left out
    return {name: values for name, values in whole.items() if not (name.startswith("present/") and values.all())}
