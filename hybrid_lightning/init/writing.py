"""What was found in a table, as a commented config and as notes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_lightning.data.splits import groups_of
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.target import FittedTarget, Target
from hybrid_lightning.errors import listing
from hybrid_lightning.init.columns import Column
from hybrid_lightning.init.files import Files
from hybrid_lightning.init.pieces import Piece
from hybrid_lightning.init.roles import Roles, as_spec
from hybrid_lightning.init.text import CommentedYaml

_TRAINED = 0.7  # share of the rows
_SAMPLES = 25_000  # that a run reads, of which the number of epochs follows
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 30
_LARGE = 20_000  # rows without files, from which batches are larger
_LARGE_BATCH = 256
_UNEVEN = 4  # times the rarest class, from which the most frequent one is told
_SKEWED = 10  # times the median, from which the largest of 100 numbers asks for logarithms
_PATH = "samples.csv"  # stands for a table in memory in the commands


@dataclass(frozen=True)
class Findings:
    """What a table holds."""

    table: Table
    path: str | None  # as a config names it; None: the table is in memory
    target: Target
    fitted: FittedTarget
    columns: list[Column]  # that are inputs
    left_out: list[Column]  # that are none, with the reason
    files: dict[str, Files]
    root: str | None  # folder of the files, where it is not that of the table
    roles: Roles

    @property
    def is_regression(self) -> bool:
        """Whether numbers are learned."""
        return self.fitted.kind == "regression"

    @property
    def counts(self) -> Array:
        """Rows of each class or label, `(classes,)`."""
        counts: Array = self.fitted.counts(np.zeros(len(self.table), dtype=np.int8))[0]
        return counts


def config_text(found: Findings, pieces: Sequence[Piece]) -> str:
    """A config as commented YAML."""
    yaml = CommentedYaml()
    name = _PATH if found.path is None else found.path
    yaml.comment(
        0,
        f"A first model for {name}: {len(found.table):,} rows, {_listed(found.target.columns)} to predict.",
        "python -m hybrid_lightning check --config THIS.yaml    # reads every file, and says what is wrong",
        "python -m hybrid_lightning probe --config THIS.yaml    # what each part knows before any training",
        "python -m hybrid_lightning fit --config THIS.yaml      # then: predict --config THIS.yaml --ckpt_path best",
    )
    _model(yaml, found, pieces)
    _data(yaml, found, pieces)
    _trainer(yaml, found)
    return str(yaml)


def _listed(names: Sequence[str]) -> str:
    return listing(names, 4)


def _model(yaml: CommentedYaml, found: Findings, pieces: Sequence[Piece]) -> None:
    fitted = found.fitted
    yaml.section(0, "model")
    yaml.value(1, "class_path", "HybridRegressor" if found.is_regression else "HybridClassifier")
    yaml.section(1, "init_args")
    if found.is_regression:
        if len(fitted.names) > 1:
            yaml.value(2, "num_outputs", len(fitted.names))
    else:
        yaml.value(2, "num_classes", len(fitted.names), _counted(found))
        if fitted.kind == "multilabel":
            yaml.value(2, "kind", "multilabel")
        _on_uneven_classes(yaml, found)
    yaml.value(2, "lr", 1.0e-3, "the only rate; 'lr_scale' of a part is a multiple of it")
    yaml.section(2, "parts")
    for piece in pieces:
        yaml.comment(3, *piece.of_part)
        yaml.value(3, piece.part_name, piece.part)


def _counted(found: Findings) -> str:
    """Classes with their numbers of rows, the first ones."""
    pairs = list(zip(found.fitted.names, found.counts.tolist(), strict=True))
    shown = ", ".join(f"{name[:30]} {count:,}" for name, count in pairs[:6])
    return shown if len(pairs) <= 6 else f"{shown}, ..."


def _on_uneven_classes(yaml: CommentedYaml, found: Findings) -> None:
    """What to write where one class is much rarer than another."""
    counts = found.counts
    if counts.max() < _UNEVEN * counts.min():
        return
    rarest = found.fitted.names[int(counts.argmin())]
    shown = f"{rarest!r} has {counts.min():,} of {len(found.table):,} rows."
    yaml.comment(
        2,
        f"{shown} 'class_weights' lets all classes count alike (accuracy may fall, macro F1",
        "rise), and 'checkpoint: {monitor: val/macro_f1}' at the end of the file keeps what is best by macro F1:",
        "class_weights: balanced",
    )


def _data(yaml: CommentedYaml, found: Findings, pieces: Sequence[Piece]) -> None:
    yaml.section(0, "data")
    yaml.value(1, "class_path", "ManifestDataModule")
    yaml.section(1, "init_args")
    if found.path is not None:
        yaml.value(2, "path", found.path)
    if found.root is not None:
        yaml.value(2, "root", found.root, "the folder in which the files are")
    yaml.section(2, "inputs")
    for piece in pieces:
        if piece.input is not None:
            yaml.value(3, piece.key, piece.input, piece.of_input)
    for column in found.left_out:
        yaml.comment(2, f"not read: {column.name!r}, which holds {column.why}")
    yaml.value(2, "target", as_spec(found.target, found.fitted), _on_target(found))
    if found.roles.id is not None:
        yaml.value(2, "id", found.roles.id, "names the rows in predictions.csv")
    _split(yaml, found)
    if not found.files and len(found.table) >= _LARGE:
        yaml.value(2, "batch_size", _LARGE_BATCH, "of 32 by default; many rows without files go faster so")


def _on_target(found: Findings) -> str:
    if not found.is_regression:
        return ""
    values = found.fitted.values.numpy()
    shown = f"{values.min():.6g} to {values.max():.6g}"
    if values.ndim == 1 and values.min() >= 0 and np.quantile(values, 0.99) > _SKEWED * np.median(values):
        form = "log" if values.min() > 0 else "log1p"
        return f"{shown}; {{column: {found.target.columns[0]}, transform: {form}}} learns its logarithm"
    return shown


def _split(yaml: CommentedYaml, found: Findings) -> None:
    """Where the split comes from."""
    roles = found.roles
    if roles.split is not None:
        yaml.value(2, "split_column", roles.split, "it says which rows train, validate and test")
    else:
        what = "rows" if roles.group is None else f"values of {roles.group!r}"
        yaml.comment(2, f"15 % of the {what} validate and 15 % test, drawn once; 'fractions: {{test: 0.2}}' changes it")
    if roles.group is not None:
        yaml.value(2, "split_by", roles.group, "all rows of one are in one split, or the test would be too easy")


def _trainer(yaml: CommentedYaml, found: Findings) -> None:
    rows = max(1, round(_TRAINED * len(found.table)))
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, math.ceil(_SAMPLES / rows)))
    yaml.section(0, "trainer")
    yaml.value(1, "max_epochs", epochs, "best.ckpt is that of the best epoch by the validation rows")
    yaml.comment(
        1,
        "this ends the run once val/loss has been no better for 5 epochs; then let max_epochs be larger:",
        "callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: 5}}]",
    )
    yaml.value(0, "test_after_fit", "best", "test rows are read once, at the end")


def notes_on(found: Findings) -> list[str]:
    """What was seen, a line each."""
    table, roles = found.table, found.roles
    if found.is_regression:
        what = "a number" if len(found.fitted.names) == 1 else f"{len(found.fitted.names)} numbers"
    else:
        what = f"{len(found.fitted.names)} {'labels' if found.fitted.kind == 'multilabel' else 'classes'}"
    lines = [f"{len(table):,} rows; {_listed(found.target.columns)} is the target, {what}: {_range(found)}"]
    kinds: dict[str, list[str]] = {}
    for column in found.columns:
        kinds.setdefault(_PLURALS[str(column.kind)], []).append(column.name)
    for plural, names in kinds.items():
        verb = "holds" if len(names) == 1 else "hold"
        lines.append(f"{listing(names, 8)} {verb} {plural}")
    if roles.split is not None:
        lines.append(f"{roles.split!r} splits the rows")
    if roles.group is not None:
        lines.append(f"{roles.group!r} groups rows: {len(np.unique(groups_of(table, roles.group))):,} values")
    if roles.id is not None:
        lines.append(f"{roles.id!r} names the rows")
    lines += [f"not read: {column.name!r}, which holds {column.why}" for column in found.left_out]
    lines += _missing(found)
    return lines


_PLURALS = {
    "image": "images",
    "audio": "sounds",
    "series": "series",
    "array": "arrays",
    "volume": "volumes",
    "text": "texts",
    "numeric": "numbers",
    "categorical": "categories",
}


def _range(found: Findings) -> str:
    return _on_target(found) if found.is_regression else _counted(found)


def _missing(found: Findings) -> list[str]:
    """Lines on empty cells, on files that are not there, and on rows without anything."""
    lines = []
    empty = {column.name: found.table.empty(column.name) for column in found.columns if column.has_gaps}
    if empty:
        shares = [f"{name!r} {values.mean():.0%}" for name, values in list(empty.items())[:8]]
        lines.append(f"empty cells: {', '.join(shares)}{', ...' if len(empty) > 8 else ''}")
    for name, seen in found.files.items():
        if not seen.shapes and not seen.problem:
            lines.append(f"the files of {name!r} were not found; write data.root, the folder in which they are")
    if len(empty) == len(found.columns) and empty:
        bare = int(np.logical_and.reduce(list(empty.values())).sum())
        if bare:
            rows, them = ("1 row has", "it") if bare == 1 else (f"{bare:,} rows have", "them")
            lines.append(f"{rows} no input at all; remove {them}, as a run refuses {them}")
    return lines
