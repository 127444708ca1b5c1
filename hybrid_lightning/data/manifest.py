"""A DataModule for a table of one's own: a row per sample, cells with values and with paths of files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from hybrid_lightning.data import inputs as kinds
from hybrid_lightning.data.augment import make_augmentation
from hybrid_lightning.data.loaders import balanced_sampler, padded_sampler, worker_count
from hybrid_lightning.data.overview import Checked
from hybrid_lightning.data.preflight import check_on_first_rank
from hybrid_lightning.data.prepared import (
    STATE_VERSION,
    check_version,
    compare_names,
    digest,
    fit_entries,
    read_statistics,
    unseen_lines,
    write_split,
)
from hybrid_lightning.data.samples import SampleDataset, Samples, dataset_of
from hybrid_lightning.data.splits import (
    SPLITS,
    TRAIN,
    Array,
    groups_of,
    parse_fold,
    parse_fractions,
    refuse_shared,
    split_by_fold,
    split_by_fractions,
    split_from_column,
)
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import Target, check_split, few_rows, strata_of
from hybrid_lightning.errors import ConfigError, check_number, unknown

SAMPLING = ("shuffle", "balanced")


class ManifestDataModule(pl.LightningDataModule):
    """Data from a manifest: a CSV or Parquet file with a row per sample.

    Batches have an entry per key of ``inputs``; ``target``, int64 `(B,)` for classes, float32 `(B, labels)` for labels,
    float32 `(B,)` or `(B, columns)` for numbers; ``id``, int64 `(B,)`, the row in the manifest; and ``present/<key>``,
    bool `(B,)`, for each input of which a cell is empty anywhere in the manifest. Absent samples are zeros.

    What inputs need to know of the data, such as means and categories, is taken from the training rows, and goes into
    checkpoints with the names of the classes. A fit writes ``split.csv`` (id, row, split) into the run's folder.

    Args:
        path: The manifest: ``.csv`` (commas), ``.tsv`` or ``.parquet``.
        inputs: Batch key → kind of input with its column or columns, and options: ``photo: {image: file, size: 64}``.
        target: Column to predict; a list of columns (several numbers, or labels of 0 and 1); or ``{column: ...,
            kind: binary | multiclass | multilabel | regression, classes: [...]}``. Without kind: text, booleans and
            whole numbers 0, 1, ... up to 20 of them are classes, other numbers a quantity, and doubtful ones an error.
            Classes are in sorted order unless listed. Labels in one column are separated by ``;``. Null: only predict.
        root: Folder that relative paths in cells start from; null is the folder of the manifest.
        id: Column that names the samples for predictions; null names them by row.
        split_column: Column with train, val or test in each row; null draws the split.
        fractions: Shares of val and test, 0.15 each if left out; with ``fold``, share of val in the other folds.
        fold: Such as 2/5: the second of five folds is the test split. Each row is in one of them.
        stratify: Whether classes, combinations of labels, or ranges of a number are split alike.
        split_by: Column such as a patient; rows of one value stay together. With ``split_column`` it is checked.
        split_seed: Seed of the drawn split and of balanced sampling; does not follow the seed of the model.
        batch_size: Samples per batch and device.
        workers: Processes that load files, per device and loader; null takes as many as there are cores, at most 8, and
            none if no input is a file.
        sampling: Of training rows: shuffle, each once per epoch; or balanced, each class equally often, by drawing as
            many rows with replacement.
        augment: Batch key → list of transforms of whole training batches on the device, such as ``[{class_path:
            kornia.augmentation.RandomHorizontalFlip, init_args: {p: 0.5}}]``.
        predict_path: Manifest for predict, which needs no target or split; null predicts the test rows.
        statistics: Checkpoint of a run of this data whose statistics and classes are used; null takes them from the
            training rows.
        checks: Whether all files are opened, and ids, shapes and columns compared, before the first step of a fit, and
            the files of ``predict_path`` before a prediction.

    Raises:
        ConfigError: If an argument is impossible; in `setup`, if the manifest does not fit them.
    """

    def __init__(
        self,
        path: str,
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
        sampling: str = "shuffle",
        augment: dict[str, Any] | None = None,
        predict_path: str | None = None,
        statistics: str | None = None,
        checks: bool = True,
    ) -> None:
        super().__init__()
        check_number(batch_size, "data.batch_size", low=1)
        check_number(split_seed, "data.split_seed", low=0, high=2**32 - 1)
        if workers is not None:
            check_number(workers, "data.workers", low=0)
        if sampling not in SAMPLING:
            raise unknown("data.sampling", "sampling", sampling, SAMPLING)
        if split_column is not None and (fractions or fold):
            raise ConfigError("data.split_column: it decides the split; leave out 'fractions' and 'fold', or this.")
        self.path, self.inputs, self.root, self.id = path, inputs, root, id
        self.split_column, self.fold = split_column, None if fold is None else parse_fold(fold)
        self.fractions = parse_fractions(fractions, fold)
        self.stratify, self.split_by, self.split_seed = stratify, split_by, split_seed
        self.batch_size, self.workers, self.sampling = batch_size, workers, sampling
        self.predict_path, self.statistics, self.checks = predict_path, statistics, checks
        self.target = None if target is None else Target(target)
        self.augment = make_augmentation(augment, list(kinds.parse_inputs(inputs)))  # refuses what is impossible
        self.datasets: dict[str, SampleDataset] = {}
        """Split → dataset, after `setup`; ``predict`` only with its own manifest."""
        self.split: Array = np.zeros(0, dtype=np.int8)
        """Split of each row of the manifest, a position in `SPLITS`, after `setup`."""
        self._tables: dict[str, Table] = {}
        self._state: dict[str, Any] | None = None
        self._given: dict[str, Any] | None = None
        self._stage: str | None = None
        self._checked: set[Path] = set()
        self._decode: bool | None = None

    # Preparing

    def setup(self, stage: str | None = None) -> None:
        """Reads the manifest, splits its rows and fits the inputs, once.

        Raises:
            ConfigError: If the manifest does not fit the arguments; it says which rows or cells.
        """
        self._stage = stage
        if self._given is None and self.statistics is not None:
            self._given = read_statistics(self.statistics, type(self).__qualname__)
        self._state = self._state or self._given
        alone = stage == "predict" and self.predict_path is not None and self._state is not None
        if not alone and "test" not in self.datasets:
            self._prepare()
        if self.predict_path is not None and stage in ("predict", None) and "predict" not in self.datasets:
            self._prepare_predict(self.predict_path)
        if stage == "fit":
            self._check(self._tables[self.path], self.datasets["test"].samples.target, self.split)  # if set up before
            self._write_split()

    def _prepare(self) -> None:
        table, saved = self._table(self.path, "data.path"), self._given or {}
        target = None
        if self.target is not None:
            target = self.target.values(table, saved.get("target"))
        elif self._stage == "fit":
            raise ConfigError("data.target: a fit needs a column to learn. Name it.")
        self.split = self._split_rows(table, target)
        if self.target is not None and target is not None:
            check_split(self.target, target, self.split)
            compare_names(self.target, saved, refuse=self._stage != "fit")
            line = few_rows(self.target, target, self.split)
            if line:
                rank_zero_info(line)
        self._compare_split(saved)
        if self._stage == "fit":
            self._check(table, target, self.split)
        samples = self._samples(table, np.flatnonzero(self.split == TRAIN), saved, target)
        for code, split in enumerate(SPLITS):
            own = torch.from_numpy(np.flatnonzero(self.split == code))
            self.datasets[split] = dataset_of(samples, own, training=split == "train")
        self._state = self._made_state(samples)

    def _prepare_predict(self, path: str) -> None:
        assert self._state is not None
        table = self._table(path, "data.predict_path")
        self._check(table)
        samples = self._samples(table, np.zeros(0, dtype=np.int64), self._state)
        self.datasets["predict"] = dataset_of(samples, torch.arange(len(table)))

    def _table(self, path: str, where: str) -> Table:
        """The manifest; in CSV all columns but those of numbers are read as the text that they are."""
        if path not in self._tables:
            columns = [self.id, self.split_by, self.split_column, *(self.target.text_columns if self.target else ())]
            for key, entry in kinds.parse_inputs(self.inputs).items():
                numbers = self.inputs[key].get("numeric", ())
                columns += [column for column in entry.columns if column != numbers and column not in numbers]
            self._tables[path] = Table.read(path, where, [column for column in columns if column is not None])
            if self.id is not None:
                self._tables[path].require(self.id, "data.id")
        return self._tables[path]

    def _split_rows(self, table: Table, target: Tensor | None) -> Array:
        if self.split_column is not None:
            split = split_from_column(table, self.split_column)
            if self.split_by is not None:
                refuse_shared(split, table, self.split_by)
        else:
            split = self._drawn_split(table, target)
        if self._stage == "fit" and not (split == TRAIN).any():
            raise ConfigError(f"data: none of the {len(table)} rows of {str(table.path)!r} is a training row.")
        return split

    def _drawn_split(self, table: Table, target: Tensor | None) -> Array:
        strata = labels = None
        if self.target is not None and target is not None:
            strata = strata_of(self.target, target) if self.stratify else None
            labels = None if self.target.kind == "regression" else target.numpy()
        groups = None if self.split_by is None else groups_of(table, self.split_by)[0]
        rest: dict[str, Any] = {"seed": self.split_seed, "strata": strata, "groups": groups, "labels": labels}
        if self.fold is not None:
            return split_by_fold(len(table), self.fold, self.fractions["val"], **rest)
        return split_by_fractions(len(table), self.fractions, **rest)

    def _compare_split(self, saved: Mapping[str, Any]) -> None:
        """Warns if a split that is drawn is not that of the checkpoint."""
        if self.split_column is None and saved.get("split", digest(self.split)) != digest(self.split):
            rank_zero_warn(
                "data: the rows are split otherwise than in the checkpoint's run, which may have trained on rows that "
                "are now for validation or test. If the manifest has changed, add the run's split.csv as split_column."
            )

    def _samples(self, table: Table, rows: Array, saved: Mapping[str, Any], target: Tensor | None = None) -> Samples:
        """The manifest with its inputs fitted on `rows`, or as a checkpoint knows them."""
        entries, folder = kinds.parse_inputs(self.inputs), self._folder(table)
        fit_entries(entries, table, folder, rows, saved, refuse=self._stage != "fit")
        shapes = {key: known["shape"] for key, known in saved.get("inputs", {}).items() if known.get("shape")}
        samples = Samples(entries, table, folder, saved.get("incomplete", ()), target, shapes)
        for line in unseen_lines(entries, table):
            rank_zero_info(line)
        return samples

    def _folder(self, table: Table) -> str:
        """Where relative paths in cells start."""
        return str(table.path.parent) if self.root is None else self.root

    def prefetch(self) -> list[str]:
        """Fetches what inputs take from this machine alone, such as tokenizers; lines that say what is here now."""
        return [line for entry in kinds.parse_inputs(self.inputs).values() for line in entry.prefetch()]

    # Checking

    def check(self, decode: bool = True) -> None:
        """Checks the manifest and that of ``predict_path``, as a fit does at its start, and prints what they hold.

        Args:
            decode: Whether files are read as a whole; otherwise their first bytes.

        Raises:
            ConfigError: If something is wrong; see `check_manifest`.
        """
        self.datasets, self._checked, self._decode = {}, set(), decode
        try:
            self.setup("fit")
            if self.predict_path is not None:
                self._prepare_predict(self.predict_path)
        finally:
            self._decode = None

    def _check(self, table: Table, target: Tensor | None = None, split: Array | None = None) -> None:
        """Checks a manifest once, before its files are read: when asked to, or under a Trainer; see `Checked`."""
        wanted = self._decode is not None or (self.checks and self.trainer is not None)
        if not wanted or table.path in self._checked:
            return
        entries, folder = kinds.parse_inputs(self.inputs), self._folder(table)
        joined = self.batch_size > 1
        checked = Checked(table, entries, folder, self.id, split, self.target, target, self.split_by, joined)
        check_on_first_rank(checked, self.trainer, bool(self._decode))
        self._checked.add(table.path)

    # State

    def _made_state(self, samples: Samples) -> dict[str, Any]:
        inputs = {
            key: {"columns": entry.columns, "statistics": entry.statistics, "shape": samples.shapes.get(key)}
            for key, entry in samples.entries.items()
        }
        target = self.target and {"columns": self.target.columns, "kind": self.target.kind, "names": self.target.names}
        return {
            "version": STATE_VERSION,
            "inputs": inputs,
            "incomplete": samples.incomplete,
            "target": target,
            "id": self.id,
            "split": digest(self.split),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, plain data: statistics of the inputs, incomplete keys, names of the classes."""
        return dict(self._state or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the statistics of a checkpoint in place of those of the training rows."""
        if not state_dict or state_dict == self._state:
            return
        self._given = self._state = check_version(state_dict, "--ckpt_path")
        prepared = set(self.datasets)
        self.datasets = {}
        if "test" in prepared:
            self._prepare()
        if "predict" in prepared and self.predict_path is not None:
            self._prepare_predict(self.predict_path)

    def _write_split(self) -> None:
        """Writes ``split.csv`` into the run's folder, on the first rank."""
        trainer = self.trainer
        if trainer is None or not trainer.loggers:
            return
        folder = trainer.log_dir  # every rank has to ask, because the answer is broadcast
        if trainer.is_global_zero and folder:
            write_split(Path(folder) / "split.csv", self._tables[self.path], self.split, self.id)

    # What a task may ask

    @property
    def incomplete(self) -> list[str]:
        """Keys with a ``present/<key>`` in the batches of the stage that was set up last."""
        return next(reversed(self.datasets.values())).samples.incomplete

    @property
    def input_facts(self) -> dict[str, dict[str, Any]]:
        """Batch key → arguments that a part reading it may leave out, such as ``categories``."""
        return {
            key: entry.inferred_arguments for key, entry in next(iter(self.datasets.values())).samples.entries.items()
        }

    @property
    def target_names(self) -> list[str] | None:
        """Names of classes, labels or numbers, in order of their index; also of a checkpoint's."""
        saved = (self._state or {}).get("target")
        return list(saved["names"]) if saved else None

    @property
    def target_kind(self) -> str | None:
        """``binary``, ``multiclass``, ``multilabel`` or ``regression``."""
        saved = (self._state or {}).get("target")
        return saved["kind"] if saved else None

    @property
    def predict_ids(self) -> Sequence[Any] | None:
        """The id of each sample that predict sees, in its order; None if no column has ids."""
        if self.id is None:
            return None
        own = "predict" in self.datasets
        table = self._tables[self.predict_path if own and self.predict_path is not None else self.path]
        rows = self.datasets["predict" if own else "test"].rows
        return list(table.texts(self.id).take(rows.numpy()).to_pylist())

    # Loading

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training batches in random order; the last one is dropped if it holds a single sample."""
        if self.sampling == "shuffle":
            return self._loader("train")
        if self.target_kind not in ("binary", "multiclass"):
            raise ConfigError(
                f"data.sampling: 'balanced' needs classes; the target is {self.target_kind}. Use 'shuffle'."
            )
        return self._loader("train", balanced_sampler(self.datasets["train"].targets, self.split_seed))

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Validation batches in order of the rows; none if there are no such rows."""
        return self._loader("val") if len(self.datasets["val"]) or self._stage == "validate" else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test batches in order of the rows."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The rows of ``predict_path``, or else the test batches."""
        split = "predict" if "predict" in self.datasets else "test"
        return self._loader(split, padded_sampler(self.datasets[split], self.trainer))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments training batches on their device."""
        training = self.augment and self.trainer is not None and self.trainer.training
        return self.augment(batch) if training else batch

    def _loader(self, split: str, sampler: Sampler[int] | None = None) -> DataLoader[dict[str, Any]]:
        dataset, training = self.datasets[split], split == "train"
        if not len(dataset):
            raise ConfigError(f"data: there are no {split} rows in {self.path!r}.")
        per_rank = -(-len(dataset) // (self.trainer.world_size if self.trainer else 1))
        processes = self.trainer.num_devices if self.trainer else 1
        most = worker_count(processes, -(-per_rank // self.batch_size)) if dataset.samples.files else 0
        workers = most if self.workers is None else self.workers
        device = self.trainer.strategy.root_device.type if self.trainer else "cpu"
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=training and sampler is None,
            sampler=sampler,
            collate_fn=dataset.collate,
            drop_last=training and per_rank > 1 and per_rank % self.batch_size == 1,
            num_workers=workers,
            persistent_workers=workers > 0 and split in ("train", "val"),  # validation draws nothing at random
            pin_memory=device != "cpu",
        )
