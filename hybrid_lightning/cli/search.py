"""``compare --search``: values of a row's settings that are best on validation, by Optuna (extra ``tune``)."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_lightning.cli.comparison_rows import Config, Row
from hybrid_lightning.cli.comparison_run import Job, Result, read_result, refusal
from hybrid_lightning.cli.config_files import overlaid, read_yaml
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.importing import import_extra

_RANGE = re.compile(r"([a-z][a-z0-9_.]*)=(\S+?)\.\.(\S+)")
_WIDE = 10  # ratio from which on a range is searched by its logarithm
_SEED = 0  # of every trial: values are compared, not seeds


class Range(NamedTuple):
    """A setting of the model, and between what it is searched."""

    key: str  # dotted, within the arguments of the model
    low: float | int
    high: float | int

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Reads ``lr=1e-4..1e-2``; whole numbers stay whole."""
        found = _RANGE.fullmatch(text)
        numbers = [read_yaml(end) for end in found.groups()[1:]] if found else []
        if found is None or not all(type(end) in (int, float) for end in numbers) or not numbers[0] < numbers[1]:
            raise ConfigError(f"{text!r} is not a range. Write a key of the model, as in lr=1e-4..1e-2.", "--search")
        return cls(found[1], *numbers)

    def suggest(self, trial: Any) -> float | int:
        """A value that a trial shall try."""
        is_wide = self.low > 0 and self.high / self.low >= _WIDE
        method = trial.suggest_int if isinstance(self.low, int) and isinstance(self.high, int) else trial.suggest_float
        value: float | int = method(self.key, self.low, self.high, log=is_wide)
        return value


def ranges_of(texts: Sequence[str]) -> list[Range]:
    """The ranges of ``--search``, of which no two set the same."""
    ranges = [Range.parse(text) for text in texts]
    for one, other in combinations(ranges, 2):
        shorter, longer = sorted([f"{one.key}.", f"{other.key}."], key=len)
        if longer.startswith(shorter):
            raise ConfigError(f"{one.key!r} and {other.key!r} name one setting. Leave one of them out.", "--search")
    return ranges


def overlay_of(values: Mapping[str, float | int]) -> Config:
    """Dotted keys of the model as a config."""
    arguments: Config = {}
    for key, value in values.items():
        *above, last = key.split(".")
        place = arguments
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return {"model": {"init_args": arguments}}


class Search:
    """Finds values for rows, some trials at a time; the trials of an earlier sitting count."""

    def __init__(self, folder: Path, ranges: Sequence[Range], trials: int, at_a_time: int, tested: str) -> None:
        self.optuna = import_extra("optuna", "tune", "compare --search")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        backend = import_extra("optuna.storages.journal", "tune", "compare --search").JournalFileBackend
        folder.mkdir(parents=True, exist_ok=True)
        self.storage = self.optuna.storages.JournalStorage(backend(str(folder / "search.log")))
        self.folder = folder
        self.ranges = ranges
        self.trials = trials
        self.at_a_time = at_a_time
        self.tested = tested

    def refusal(self, row: Row) -> str | None:
        """Why a row takes no values of these ranges, by both ends of them."""
        for end in ("low", "high"):
            values = {one.key: getattr(one, end) for one in self.ranges}
            found = refusal(overlaid(row.config, overlay_of(values)))
            if found is not None:
                return found
        return None

    def best(self, row: Row, fit_all: Callable[[Sequence[Row], Sequence[Job]], None]) -> Row:
        """The row with the values whose trial is best on validation; `fit_all` runs jobs of rows."""
        states = self.optuna.trial.TrialState
        name = f"{row.name}: {', '.join(f'{one.key}={one.low}..{one.high}' for one in self.ranges)}"
        study = self.optuna.create_study(
            storage=self.storage, study_name=name, load_if_exists=True, direction="maximize"
        )
        for left in study.get_trials(states=(states.RUNNING,)):
            study.tell(left.number, state=states.FAIL)  # of a sitting that was cut off
        # another seed in each sitting, which would try the first values again
        study.sampler = self.optuna.samplers.TPESampler(seed=len(study.trials))
        while (missing := self.trials - len(study.trials)) > 0:
            asked = [study.ask() for _ in range(min(missing, self.at_a_time))]
            tried = [self._row_of(row, trial) for trial in asked]
            jobs = [Job(self.folder, one.name, _SEED, self.tested, validates_only=True) for one in tried]
            fit_all(tried, jobs)
            for trial, job in zip(asked, jobs, strict=True):
                value = _signed(read_result(job.result))
                study.tell(trial, value, states.COMPLETE if value is not None else states.FAIL)
        if not study.get_trials(states=(states.COMPLETE,)):  # such as of pretrained parts, where there are none
            print(f"{row.name}: no trial has a score, so it stays as it is; see {self.folder / 'logs'}")
            return row
        values = study.best_params
        print(f"{row.name}: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}, the best of its trials")
        return row._replace(config=overlaid(row.config, overlay_of(values)))

    def _row_of(self, row: Row, trial: Any) -> Row:
        values = {one.key: one.suggest(trial) for one in self.ranges}
        return Row(f"{row.name}_trial{trial.number}", row.title, overlaid(row.config, overlay_of(values)))


def _signed(result: Result | None) -> float | None:
    """The main metric of a trial on validation, higher being better."""
    value = None if result is None else result.validation.get(result.main)
    if result is None or value is None or value != value:
        return None
    return value if result.is_better_high else -value
