"""``evaluate``: the metrics of a checkpoint on a new table, with intervals by bootstrap; it needs no config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.cli.config_files import mapping_at, read_config
from hybrid_lightning.cli.members import member_paths
from hybrid_lightning.cli.tables import check_output, write_table
from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.data.prepared import State, check_version
from hybrid_lightning.data.raw_samples import stored_inputs
from hybrid_lightning.data.splits import groups_of
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import FittedTarget, Target
from hybrid_lightning.errors import ConfigError, at, check_number, format_table, listing
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.sample_predictions import outputs_of

_TAIL = 0.025  # share of the draws on either side of an interval
_MOST_DRAWS = 100_000
_COLUMNS = ("metric", "value", "low", "high")


class Interval(NamedTuple):
    """A metric on all rows, and where 95 % of its bootstrap draws lie; nan where too few draws define it."""

    value: float
    low: float
    high: float


def evaluate(words: Sequence[str]) -> None:
    """Measures a checkpoint on a table of new rows, with the settings and statistics that it holds."""
    parser = WordParser("hybrid_lightning evaluate", description=evaluate.__doc__, allow_abbrev=False)
    parser.add_argument("table", metavar="NEW.csv", help="The new rows: a table like that of the fit, target included.")
    parser.add_argument("--ckpt_path", required=True, help="Checkpoint, or folder of a run, of which it is the best.")
    parser.add_argument("--root", help="Folder of the files that the table names (default: that of the table).")
    parser.add_argument("--groups", help="Column whose rows are drawn as a whole (default: split_by of the fit).")
    parser.add_argument("--draws", type=int, default=1000, help="Bootstrap draws of an interval (default 1000).")
    parser.add_argument("--batch_size", type=int, default=32, help="Samples per batch (default 32).")
    parser.add_argument("--output", help="The metrics as a table, .csv or .parquet (default: none).")
    parser.add_argument("--config", help="Config of the fit, for the inputs of a checkpoint that does not hold them.")
    options = parser.parse_args(words)
    check_number(options.draws, "--draws", low=20, high=_MOST_DRAWS)
    check_number(options.batch_size, "--batch_size", low=1)
    if options.output is not None:
        check_output(options.output, (".csv", ".parquet"))
    task = HybridTask.load_from_checkpoint(_checkpoint(options.ckpt_path))
    state = _state(task)
    data = _data(options, state)
    target, groups, column = _answers(options, state)
    task.objective.check_data(data)
    task.to("cuda" if torch.cuda.is_available() else "cpu")
    outputs = outputs_of(task, data.predict_dataloader())
    found = intervals(task.cpu(), outputs, target.values, groups, options.draws)
    _tell(found, len(outputs), groups, column, options)


def _checkpoint(given: str) -> str:
    paths = member_paths(given)
    if len(paths) > 1:
        raise ConfigError(f"{given!r} names {len(paths)} checkpoints. Give one.", "--ckpt_path")
    return paths[0]


def _state(task: HybridTask) -> State:
    """What the checkpoint keeps of its data, checked."""
    if task.data_state is None:
        raise ConfigError(
            "the checkpoint is not of a fit with ManifestDataModule, so nothing is known of its inputs. Use test with "
            "the config of the fit.",
            "--ckpt_path",
        )
    with at("--ckpt_path"):
        state = check_version(dict(task.data_state))
    if state["target"] is None:
        raise ConfigError("the fit had no target, so there is nothing to measure.", "--ckpt_path")
    return state


def _data(options: Any, state: State) -> ManifestDataModule:
    """The new table, as it is read for predictions."""
    if options.config is None:
        with at("--ckpt_path"):
            inputs: Mapping[str, Any] = stored_inputs(state)
    else:
        inputs = mapping_at(read_config(options.config), "data", "init_args", "inputs")
    path = options.table
    data = ManifestDataModule(path, dict(inputs), root=options.root, predict_path=path, batch_size=options.batch_size)
    data.load_state_dict(state)
    data.setup("predict")
    return data


def _answers(options: Any, state: State) -> tuple[FittedTarget, Tensor | None, str | None]:
    """The target of the new rows, the number of the group of each `(N,)`, and the column of the groups."""
    saved = state["target"]
    columns = saved["columns"]
    column = columns[0] if len(columns) == 1 else columns
    target = Target({"column": column, "kind": saved["kind"], "transform": saved.get("transform")})
    wanted = options.groups or state.get("groups")
    table = Table.read(options.table, "evaluate", [*target.text_columns, *([wanted] if wanted else [])])
    with at("evaluate"):
        fitted = target.fit(table, saved)
    if wanted is None or (options.groups is None and wanted not in table.columns):
        return fitted, None, None
    return fitted, torch.from_numpy(groups_of(table, wanted)), wanted


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


def _tell(found: Mapping[str, Interval], count: int, groups: Tensor | None, column: str | None, options: Any) -> None:
    """Prints the metrics, and writes them where that is wanted."""
    shown = []
    for name, one in found.items():
        interval = f"{one.low:.4g} to {one.high:.4g}" if one.low == one.low else "undefined in most draws"
        shown.append({"metric": name, "value": f"{one.value:.4g}", "95 % interval": interval})
    print(format_table(shown, ("metric", "value", "95 % interval"), ("value",)))
    unit = "rows" if groups is None else f"groups of rows, by {listing([str(column)])}"
    number = count if groups is None else int(groups.max()) + 1
    print(f"{count:,} rows; intervals: {options.draws:,} bootstrap draws of {number:,} {unit}")
    if options.output is None:
        return
    values = [[name, one.value, one.low, one.high] for name, one in found.items()]
    columns = {name: [row[index] for row in values] for index, name in enumerate(_COLUMNS)}
    write_table(columns, Path(options.output))
    print(f"evaluate: {options.output}")
