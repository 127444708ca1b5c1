"""``evaluate``: the metrics of a checkpoint on a new table, with intervals by bootstrap; it needs no config."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.cli.config_files import mapping_at, read_config
from hybrid_lightning.cli.members import member_paths
from hybrid_lightning.cli.report import page_of
from hybrid_lightning.cli.tables import Columns, check_output, refuse_named_file, write_table
from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.data.prepared import State, check_version
from hybrid_lightning.data.raw_samples import stored_inputs
from hybrid_lightning.data.splits import groups_of
from hybrid_lightning.data.table import rows_of
from hybrid_lightning.errors import ConfigError, at, check_number, counted, format_table, listing
from hybrid_lightning.files import is_regular_file
from hybrid_lightning.report.describe import record_of_table
from hybrid_lightning.report.evaluations import Evaluation, title_of
from hybrid_lightning.report.record import require_plotly
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.sample_predictions import outputs_of

_TAIL = 0.025  # share of the draws on either side of an interval
_MOST_DRAWS = 100_000
_PLACES = {"checkpoint_path": "--ckpt_path", "data.predict_path": "evaluate", "data.split_by": "--groups"}
"""Where the settings of a config come from here."""


class Interval(NamedTuple):
    """A metric on all rows, and where 95 % of its bootstrap draws lie; nan where too few draws define it."""

    value: float
    low: float
    high: float


def evaluate(words: Sequence[str]) -> None:
    """Measures a checkpoint on a table of new rows, with the settings and statistics that it holds."""
    options = _parser().parse_args(words)
    with _by_its_own_words():
        _evaluate(options)


def _evaluate(options: Any) -> None:
    """Does what the options say."""
    check_number(options.draws, "--draws", low=20, high=_MOST_DRAWS)
    check_number(options.batch_size, "--batch_size", low=1)
    if options.output is not None:
        check_output(options.output, (".csv", ".parquet"), "--output", [options.table])
    checkpoint = _checkpoint(options.ckpt_path)
    folder = _run_folder(checkpoint) if options.report else None
    task = HybridTask.load_from_checkpoint(checkpoint)
    state = _state(task)
    column = options.groups or state.get("groups")
    data = _data(options, state, column)
    if column not in data.predicted_table.columns and options.groups is None:
        column = None  # the new rows need not be grouped as those of the run
    if options.output is not None:
        refuse_named_file(options.output, data, "--output")
    target, groups = _answers(data, state, column)
    task.objective.check_data(data)
    task.to("cuda" if torch.cuda.is_available() else "cpu")
    outputs = outputs_of(task, data.predict_dataloader())
    _refuse_not_finite(outputs)
    found = intervals(task.cpu(), outputs, target, groups, options.draws)
    number = len(outputs) if groups is None else int(groups.max()) + 1
    of_groups = "" if column is None else f" of rows, by {listing([column])}"
    drawn = f"{options.draws:,} bootstrap draws of {counted(number, 'row' if column is None else 'group')}{of_groups}"
    _tell(found, f"{counted(len(outputs), 'row')}; intervals: {drawn}")
    if options.output is not None:
        _write(found, options.output)
    if folder is not None:
        record = record_of_table(task, data, outputs, target)
        table = Path(options.table)
        Evaluation(title_of(table), drawn, _as_plain(found), record).write(folder, table)
        print(f"report: {page_of(folder)}")


def _parser() -> WordParser:
    parser = WordParser("hybrid_lightning evaluate", description=evaluate.__doc__, allow_abbrev=False)
    parser.add_argument("table", metavar="NEW.csv", help="The new rows: a table like that of the run, target included.")
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint, or folder of a run, of which it is the best.")
    parser.add_argument("--root", help="Folder of the files that the table names (default: that of the table).")
    parser.add_argument("--groups", help="Column whose rows are drawn as a whole (default: split_by of the run).")
    parser.add_argument("--draws", type=int, default=1000, help="Bootstrap draws of an interval (default 1000).")
    parser.add_argument("--batch_size", type=int, default=32, help="Samples per batch (default 32).")
    parser.add_argument("--output", help="The metrics as a table, .csv or .parquet (default: none).")
    parser.add_argument("--config", help="Config of the run, for the inputs of a checkpoint that does not hold them.")
    parser.add_argument(
        "--report", action="store_true", help="Also show the metrics and predictions in the report of the run."
    )
    return parser


def _run_folder(checkpoint: str) -> Path:
    """The folder of the run of a checkpoint, which has a report."""
    require_plotly()
    path = Path(checkpoint)
    folder = path.parent.parent
    if path.parent.name != "checkpoints" or not is_regular_file(folder / "config.yaml"):
        raise ConfigError(
            f"{checkpoint!r} does not lie in the folder of a run, so there is no report to show it in. Give the folder "
            f"of a run as --ckpt_path, or leave out --report.",
            "--report",
        )
    return folder


@contextmanager
def _by_its_own_words() -> Iterator[None]:
    """Names the place of an error by the words of this command, which has no config."""
    try:
        yield
    except ConfigError as error:
        error.place = _PLACES.get(error.place, error.place)
        raise


def _checkpoint(given: str) -> str:
    if given in ("best", "last"):
        raise ConfigError(f"of which run is {given!r}? Give its folder, such as runs/mine, or a file.", "--ckpt_path")
    paths = member_paths(given)
    if len(paths) > 1:
        raise ConfigError(f"{given!r} names {len(paths)} checkpoints. Give one.", "--ckpt_path")
    return paths[0]


def _state(task: HybridTask) -> State:
    """What the checkpoint keeps of its data, checked."""
    if task.data_state is None:
        raise ConfigError(
            "the checkpoint is not of a run with ManifestDataModule, so nothing is known of its inputs. Use test with "
            "the config of the run.",
            "--ckpt_path",
        )
    with at("--ckpt_path"):
        state = check_version(dict(task.data_state))
    if state["target"] is None:
        raise ConfigError("the run had no target, so there is nothing to measure.", "--ckpt_path")
    return state


def _data(options: Any, state: State, groups: str | None) -> ManifestDataModule:
    """The new table, as it is read for predictions; it has the target of the run, and may have the column `groups`."""
    if options.config is None:
        with at("--ckpt_path"):
            inputs: Mapping[str, Any] = stored_inputs(state)
    else:
        inputs = mapping_at(read_config(options.config), "data", "init_args", "inputs")
    saved = state["target"]
    columns = saved["columns"]
    target = {"column": columns[0] if len(columns) == 1 else columns, "kind": saved["kind"]}
    data = ManifestDataModule(
        options.table,
        dict(inputs),
        target={**target, "transform": saved.get("transform")},
        root=options.root,
        split_by=groups,
        batch_size=options.batch_size,
        predict_path=options.table,
    )
    data.load_state_dict(state)
    data.setup("predict")
    return data


def _answers(data: ManifestDataModule, state: State, column: str | None) -> tuple[Tensor, Tensor | None]:
    """The target of the new rows, and the number of the group of each `(N,)`."""
    assert data.target is not None  # of the checkpoint, see `_state`
    with at("evaluate"):
        target = data.target.fit(data.predicted_table, state["target"])
    groups = None if column is None else torch.from_numpy(groups_of(data.predicted_table, column))
    return target.values, groups


def intervals(
    task: HybridTask, outputs: Tensor, target: Tensor, groups: Tensor | None, draws: int
) -> dict[str, Interval]:
    """Metric → its value for outputs `(N, outputs)`, and its interval by drawing rows, or whole groups, anew."""
    values = _metrics(task, outputs, target)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        rows = _draw(len(outputs), groups, generator)
        for name, value in _metrics(task, outputs[rows], target[rows]).items():
            if name in drawn:
                drawn[name].append(value)
    found = {}
    for name, value in values.items():
        of_metric = torch.tensor(drawn[name], dtype=torch.float64)
        # one that most draws leave undefined, such as the area of a class of one row, has no interval
        is_known = len(of_metric) > draws / 2
        low, high = of_metric.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)) if is_known else _UNKNOWN
        found[name] = Interval(value, float(low), float(high))
    return found


_UNKNOWN = (float("nan"), float("nan"))


def _draw(count: int, groups: Tensor | None, generator: torch.Generator) -> Tensor:
    """Rows with replacement, or all rows of groups with replacement."""
    if groups is None:
        return torch.randint(count, (count,), generator=generator)
    number = int(groups.max()) + 1
    times = torch.randint(number, (number,), generator=generator).bincount(minlength=number)
    return torch.arange(count).repeat_interleave(times[groups])


@torch.no_grad()
def _metrics(task: HybridTask, outputs: Tensor, target: Tensor) -> dict[str, float]:
    """The metrics of a test, as far as these rows define them."""
    metrics = task.evaluator.metrics_of("test")
    weight = task.objective.loss_weight(outputs, target)
    metrics.update(task.loss(outputs, target), weight, task.predictions(outputs), target)
    values, _ = metrics.compute()
    return {name: float(value) for name, value in values.items()}


def _refuse_not_finite(outputs: Tensor) -> None:
    """Raises `ConfigError` where outputs `(N, outputs)` are nan or infinite."""
    wrong = ~outputs.reshape(len(outputs), -1).isfinite().all(1)
    if wrong.any():
        rows = rows_of(wrong.nonzero().flatten().tolist())
        raise ConfigError(f"the predictions of {rows} are not finite. Look at their inputs.", "evaluate")


def _tell(found: Mapping[str, Interval], drawn: str) -> None:
    """Prints the metrics, and below them how many rows and draws they are of."""
    shown = []
    for name, one in found.items():
        interval = f"{one.low:.4g} to {one.high:.4g}" if one.low == one.low else "undefined in most draws"
        shown.append({"metric": name, "value": f"{one.value:.4g}", "95 % interval": interval})
    print(format_table(shown, ("metric", "value", "95 % interval"), ("value",)))
    print(drawn)


def _write(found: Mapping[str, Interval], path: str) -> None:
    """Writes the metrics as a table."""
    columns: Columns = {"metric": list(found)}
    for place, name in enumerate(Interval._fields):
        columns[name] = [one[place] for one in found.values()]
    write_table(columns, Path(path))
    print(f"evaluate: {path}")


def _as_plain(found: Mapping[str, Interval]) -> list[dict[str, Any]]:
    """The metrics as a report reads them: None for what is undefined."""
    plain = []
    for name, one in found.items():
        numbers = {key: value if math.isfinite(value) else None for key, value in one._asdict().items()}
        plain.append({"name": name, **numbers})
    return plain
