"""A DataModule for a table of one's own: a row per sample, cells with values and with paths of files."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import Sampler

from hybrid_lightning.data.augment import make_augmentation
from hybrid_lightning.data.in_memory import Loader
from hybrid_lightning.data.inputs import members_of, parse_inputs
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.loaders import padded_sampler
from hybrid_lightning.data.named_files import NamedFiles
from hybrid_lightning.data.overview import ManifestToCheck
from hybrid_lightning.data.predicted_rows import PredictedRows
from hybrid_lightning.data.preflight import check_on_first_rank
from hybrid_lightning.data.prepared import (
    State,
    check_target,
    check_version,
    fit_inputs,
    read_statistics,
    report_unseen,
    state_of,
    warn_of_other_split,
    write_split,
)
from hybrid_lightning.data.row_groups import RowGroups
from hybrid_lightning.data.samples import SampleDataset, Samples, dataset_of, make_loader
from hybrid_lightning.data.sampling import balanced_sampler, check_sampling, shard_sampler
from hybrid_lightning.data.sources import TableSources, split_column_of
from hybrid_lightning.data.splits import SPLITS, TRAIN, SplitRule
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.target import FittedTarget, Target
from hybrid_lightning.errors import ConfigError, at, check_number


class ManifestDataModule(TableSources, PredictedRows, RowGroups, NamedFiles, pl.LightningDataModule):
    """Data from a manifest: a table with a row per sample, in a file or in memory, or a folder per class.

    Batches have an entry per key of ``inputs``; ``target``, int64 `(B,)` for classes, float32 `(B, labels)` for labels,
    float32 `(B,)` or `(B, columns)` for numbers; ``id``, int64 `(B,)`, the row in the manifest; and ``present/<key>``,
    bool `(B,)`, for each input of which a cell is empty anywhere in the manifest. Absent samples are zeros.

    What inputs need to know of the data, such as means and categories, is taken from the training rows, and goes into
    checkpoints with the names of the classes. A run writes ``split.csv`` (id, row, split) into the run's folder.

    Args:
        path: The manifest: ``.csv`` (commas), ``.tsv``, ``.parquet``, ``.json``, ``.jsonl``; or ``.xlsx`` with pandas.
            Or a folder with a folder of files per class, which is a table with the columns ``file`` and ``label``, and
            ``split`` where folders named train, val and test stand between them. Or, in Python, a DataFrame of pandas
            or polars, a table of Arrow, or what else has Arrow's PyCapsule interface or dataframe interchange.
            Or tar shards, ``shards/train-{000..099}.tar`` or ``shards/*.tar``, or a pattern per split, ``{train: ...,
            val: ...}``: a table with a column per extension (``jpg``, ``cls``, ``json.age``), ``key`` and ``shard``.
        inputs: Batch key → kind of input with its column or columns, and options: ``photo: {image: file, size: 64}``;
            of several files per sample ``image: [front, back], pool: mean``, or a column with a ``separator: ";"``.
        target: Column to predict; a list of columns (several numbers, or labels of 0 and 1); or ``{column: ...,
            kind: binary | multiclass | multilabel | regression, classes: [...]}``. Without kind: text, booleans and
            whole numbers 0, 1, ... up to 20 of them are classes, other numbers a quantity, and doubtful ones an error.
            Classes are in sorted order unless listed. Labels in one column are separated by ``;``. ``transform: log``
            (or ``log1p``) lets the network learn logarithms of numbers. Null: only predict.
        root: Folder that relative paths in cells start from; null is the folder of the manifest, or of a DataFrame the
            working directory.
        id: Column that names the samples for predictions; null names them by row.
        split_column: Column with train, val, test or calibration in each row; null draws the split.
        fractions: Shares of val and test, 0.15 each if left out, and of calibration, none if left out; with ``fold``,
            shares of val and calibration in the other folds. A model with ``calibrate: {coverage: 0.9}`` takes the
            calibration rows for its sets or intervals, and nothing else reads them.
        fold: Such as 2/5: the second of five folds is the test split. Each row is in one of them.
        stratify: Whether classes, combinations of labels, or ranges of a number are split alike.
        split_by: Column such as a patient; rows of one value stay together. With ``split_column`` it is checked.
        split_seed: Seed of the drawn split and of balanced sampling; does not follow the seed of the model.
        batch_size: Samples per batch and device.
        workers: Processes that load files, per device and loader; null takes as many as there are cores, at most 8, and
            none if no input is a file.
        sampling: Of training rows: shuffle, each once per epoch; or balanced, each class equally often, by drawing as
            many rows with replacement; or of shards ``{shards: 4}``, each once, shuffled within 4 shards at a time,
            which are read one after the other.
        augment: Batch key → list of transforms of whole training batches on the device, such as ``[{class_path:
            kornia.augmentation.RandomHorizontalFlip, init_args: {p: 0.5}}]``.
        predict_path: Manifest for predict, as `path`, which needs no target or split; null predicts the test rows.
        statistics: Checkpoint of a run of this data whose statistics and classes are used; null takes them from the
            training rows.
        checks: Whether all files are opened, and ids, shapes and columns compared, before the first step of a run, and
            the files of ``predict_path`` before a prediction.
    """

    def __init__(
        self,
        path: str | Any,
        inputs: dict[str, Any],
        target: str | list[str] | dict[str, Any] | None = None,
        root: str | None = None,
        id: str | None = None,
        split_column: str | None = None,
        fractions: dict[str, float] | None = None,
        fold: str | None = None,
        stratify: bool = True,
        split_by: str | None = None,
        split_seed: int = 0,
        batch_size: int = 32,
        workers: int | None = None,
        sampling: str | dict[str, int] = "shuffle",
        augment: dict[str, Any] | None = None,
        predict_path: str | Any = None,
        statistics: str | None = None,
        checks: bool = True,
    ) -> None:
        super().__init__()
        check_number(batch_size, "data.batch_size", low=1)
        if workers is not None:
            check_number(workers, "data.workers", low=0)
        self.batch_size, self.workers, self.sampling = batch_size, workers, check_sampling(sampling)
        split_column = split_column_of(path, split_column, bool(fractions or fold))
        self.split_rule = SplitRule(split_column, fold, fractions, stratify, split_by, split_seed)
        self._sources = {}
        self.path: str = self._named(path, "data.path")
        self.predict_path = None if predict_path is None else self._named(predict_path, "data.predict_path")
        self.root, self.id, self.statistics, self.checks = root, id, statistics, checks
        with at("data.target"):
            self.target = None if target is None else Target(target)
        self.inputs = parse_inputs(inputs, self.target.columns if self.target else ())
        self.augment = make_augmentation(augment, list(self.inputs))
        self._forget()

    def _forget(self) -> None:
        """Begins anew: nothing has been read."""
        self.datasets: dict[str, SampleDataset] = {}
        """Split → dataset, after `setup`; ``predict`` only with its own manifest."""
        self.split: Array = np.zeros(0, dtype=np.int8)
        """Split of each row of the manifest, a position in `SPLITS`, after `setup`."""
        self._target: FittedTarget | None = None
        self._tables: dict[str, Table] = {}
        self._saved: State = {}  # state of a checkpoint, which comes before what training rows would give
        self._state: State = {}
        self._stage: str | None = None
        self._checked: set[Path] = set()
        self._decode: bool | None = None  # whether `check`, while it runs, reads whole files; None at other times

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifest, splits its rows and fits the inputs, once."""
        self._stage = stage
        if self.statistics is not None and not self._saved:
            self._saved = read_statistics(self.statistics, type(self).__qualname__)
        self._state = self._state or self._saved
        # New rows need no more than a state; the manifest of the training may be elsewhere.
        is_alone = stage == "predict" and self.predict_path is not None and self._state
        if not is_alone and "test" not in self.datasets:
            self._prepare()
        if self.predict_path is not None and stage in ("predict", None) and "predict" not in self.datasets:
            self._prepare_predict(self.predict_path)
        if stage == "fit":
            # Rows that were set up without a Trainer have not been checked yet.
            self._check(self.table, self.split)
            write_split(self.trainer, self.table, self.split, self.id)

    def _prepare(self) -> None:
        table = self._table(self.path, "data.path")
        if self.target is not None:
            with at("data.target"):
                self._target = self.target.fit(table, self._saved.get("target"))
        elif self._stage == "fit":
            raise ConfigError("a run needs a column to learn. Name it.", "data.target")
        self.split = self._split_rows(table)
        if self._stage == "fit":
            self._check(table, self.split)
        samples = self._samples(table, np.flatnonzero(self.split == TRAIN), self._saved)
        for code, split in enumerate(SPLITS):
            rows = torch.from_numpy(np.flatnonzero(self.split == code))
            # Random transforms are drawn for training alone.
            self.datasets[split] = dataset_of(samples, rows, training=split == "train")
        self._state = state_of(samples, self._target, self.id, self.split, self.split_rule.group_column)

    def _split_rows(self, table: Table) -> Array:
        target, rule = self._target, self.split_rule
        strata = labels = None
        if target is not None and rule.column is None:
            strata, labels = target.strata(), target.labels
        split = rule.split(table, strata, labels)
        if self._stage == "fit" and not (split == TRAIN).any():
            raise ConfigError(f"none of the {len(table)} rows of {str(table.path)!r} is a training row.", "data")
        if target is not None:
            check_target(target, split, self._saved, refuse=self._stage != "fit")
        if rule.column is None:
            warn_of_other_split(split, self._saved)
        return split

    def _prepare_predict(self, path: str) -> None:
        table = self._table(path, "data.predict_path")
        self._check(table)
        samples = self._samples(table, np.zeros(0, dtype=np.int64), self._state, has_target=False)
        self.datasets["predict"] = dataset_of(samples, torch.arange(len(table)))

    def _samples(self, table: Table, rows: Array, saved: State, has_target: bool = True) -> Samples:
        """The manifest with its inputs fitted on `rows`, or as in a checkpoint."""
        entries = self._unbound_inputs(table)
        fit_inputs(entries, table, rows, saved, refuse=self._stage != "fit")
        shapes = {key: known["shape"] for key, known in saved.get("inputs", {}).items()}
        target = self._target.values if has_target and self._target else None
        samples = Samples(entries, table, saved.get("incomplete", ()), target, shapes)
        report_unseen(entries, table, refuse=not has_target)
        return samples

    def _unbound_inputs(self, table: Table) -> dict[str, Input]:
        """Copies, as each manifest and each check binds its own."""
        entries = copy.deepcopy(self.inputs)
        for entry in entries.values():
            entry.folder = str(table.path.parent) if self.root is None else self.root
        return entries

    def prefetch(self) -> list[str]:
        """Downloads what inputs load offline, such as tokenizers; a line for each that is here now."""
        lines = []
        for entry in self.inputs.values():
            lines += entry.prefetch()
        return lines

    def check(self, decode: bool = True) -> None:
        """Checks the manifest and that of ``predict_path`` as a run does, and prints what they hold.

        Args:
            decode: Whether files are read as a whole; otherwise their first bytes.
        """
        self.datasets, self._checked, self._decode = {}, set(), decode
        try:
            self.setup("fit")
            if self.predict_path is not None:
                self._prepare_predict(self.predict_path)
        finally:
            self._decode = None

    def _check(self, table: Table, split: Array | None = None) -> None:
        """Checks a manifest once, before its files are read: by `check`, or under a Trainer."""
        is_wanted = self._decode is not None or (self.checks and self.trainer is not None)
        if not is_wanted or table.path in self._checked:
            return
        entries, group_column = members_of(self._unbound_inputs(table)), self.split_rule.group_column
        manifest = ManifestToCheck(table, entries, self.id, split, self._target, group_column, self.batch_size > 1)
        check_on_first_rank(manifest, self.trainer, bool(self._decode))
        self._checked.add(table.path)

    def state_dict(self) -> State:
        """What a checkpoint keeps, plain data: statistics of the inputs, incomplete keys, names of the classes."""
        return dict(self._state)

    def use_statistics(self, path: str) -> None:
        """Takes statistics and classes from this checkpoint, unless ``statistics`` names another one."""
        if self.statistics is None:
            self.statistics = path

    def load_state_dict(self, state_dict: State) -> None:
        """Takes the statistics of a checkpoint in place of those of the training rows."""
        # Equal statistics are the usual case when a run goes on; its rows are ready already.
        if not state_dict or state_dict == self._state:
            return
        with at("--ckpt_path"):
            self._saved = self._state = check_version(state_dict)
        prepared = set(self.datasets)
        self.datasets = {}
        if "test" in prepared:
            self._prepare()
        if "predict" in prepared and self.predict_path is not None:
            self._prepare_predict(self.predict_path)

    # What a task reads

    @property
    def inferred_arguments(self) -> dict[str, dict[str, Any]]:
        """Batch key → arguments that a part reading it may leave out, such as ``categories``."""
        samples = next(iter(self.datasets.values())).samples
        return {key: entry.inferred_arguments for key, entry in samples.entries.items()}

    @property
    def plain_train_dataset(self) -> SampleDataset:
        """The training rows in their order, without random transforms."""
        train = self.datasets["train"]
        return dataset_of(train.samples, train.rows)

    # Loading

    def train_dataloader(self) -> Loader:
        """Training batches in random order; the last one is dropped if it holds a single sample."""
        if self.sampling == "shuffle":
            return self._loader("train")
        if isinstance(self.sampling, int):
            return self._loader("train", shard_sampler(self.table, self.datasets["train"].rows, self.sampling))
        if self.target_kind not in ("binary", "multiclass"):
            raise ConfigError(
                f"'balanced' needs classes; the target is {self.target_kind}. Use 'shuffle'.", "data.sampling"
            )
        return self._loader("train", balanced_sampler(self.datasets["train"].targets, self.split_rule.seed))

    def val_dataloader(self) -> Loader | list[Any]:
        """Validation batches in order of the rows; none if there are no such rows."""
        return self._loader("val") if len(self.datasets["val"]) or self._stage == "validate" else []

    def test_dataloader(self) -> Loader:
        """Test batches in order of the rows."""
        return self._loader("test")

    def calibration_dataloader(self) -> Loader | list[Any]:
        """Batches of the rows that nothing but the sets and intervals of a model may see; none if there are none."""
        return self._loader("calibration") if len(self.datasets["calibration"]) else []

    def predict_dataloader(self) -> Loader:
        """The rows of ``predict_path``, or else the test batches."""
        split = "predict" if "predict" in self.datasets else "test"
        return self._loader(split, padded_sampler(self.datasets[split], self.trainer))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments training batches on their device."""
        is_training = self.trainer is not None and self.trainer.training
        return self.augment(batch) if is_training else batch

    def _loader(self, split: str, sampler: Sampler[int] | None = None) -> Loader:
        dataset = self.datasets[split]
        if not len(dataset):
            raise ConfigError(f"there are no {split} rows in {self.path!r}.", "data")
        is_repeated = split in ("train", "val")  # read in every epoch
        return make_loader(dataset, self.batch_size, self.workers, is_repeated, sampler, self.trainer)
