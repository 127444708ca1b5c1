"""What the runs of a comparison say: means over seeds, intervals, paired differences, and the files of them."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_lightning.cli.comparison_rows import Row
from hybrid_lightning.cli.comparison_run import Result
from hybrid_lightning.errors import format_table
from hybrid_lightning.files import whole_file, write_csv

Results = Mapping[str, Mapping[int, Result]]  # row → seed → its result
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Quantile 0.975 of Student's t for 1, 2, ... degrees of freedom."""
_Z_95 = 1.959964
_MOST_DECIMALS = 6


class Mean(NamedTuple):
    """A mean over seeds, and half of its 95 % interval; None of a single seed."""

    value: float
    half: float | None

    def __str__(self) -> str:
        if not self.half:
            return f"{self.value:.4g}" + ("" if self.half is None else " ± 0")
        decimals = 1 - math.floor(math.log10(self.half))  # two digits of the interval
        decimals = min(max(decimals, 0), _MOST_DECIMALS)
        return f"{self.value:.{decimals}f} ± {self.half:.{decimals}f}"


def t_quantile(freedom: int) -> float:
    """The quantile 0.975 of Student's t, within 0.001."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    # the first terms of its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5)
    first = (_Z_95**3 + _Z_95) / 4
    second = (5 * _Z_95**5 + 16 * _Z_95**3 + 3 * _Z_95) / 96
    third = (3 * _Z_95**7 + 19 * _Z_95**5 + 17 * _Z_95**3 - 15 * _Z_95) / 384
    return _Z_95 + first / freedom + second / freedom**2 + third / freedom**3


def mean_of(values: Sequence[float]) -> Mean | None:
    """The mean of independent values, with its interval; None of none."""
    if not values:
        return None
    value = statistics.fmean(values)
    if len(values) == 1:
        return Mean(value, None)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Mean(value, t_quantile(len(values) - 1) * error)


def summary(rows: Sequence[Row], results: Results, main: str) -> list[dict[str, Any]]:
    """A line per row that has results, by its main metric; differences are to the first, over seeds of both."""
    first = results.get(rows[0].name, {})
    lines = []
    for row in rows:
        own = results.get(row.name, {})
        if not own:
            continue
        line: dict[str, Any] = {"recipe": row.title, "baseline": row.is_baseline, "seeds": len(own)}
        for split in ("validation", "test"):
            values = _values(own, split, main)
            before = _values(first, split, main)
            paired = [values[seed] - before[seed] for seed in values if seed in before]
            line[split] = mean_of(list(values.values()))
            line[f"{split}_difference"] = None if row is rows[0] else mean_of(paired)
        seconds = [each.seconds for each in own.values() if each.seconds is not None]
        line["seconds"] = statistics.fmean(seconds) if seconds else None
        line["drift"] = _mean_drift(own)
        lines.append(line)
    return lines


def _values(results: Mapping[int, Result], split: str, main: str) -> dict[int, float]:
    """Seed → the main metric of a split, where it has a value."""
    found = {}
    for seed, result in results.items():
        value = getattr(result, split).get(main, math.nan)
        if math.isfinite(value):
            found[seed] = value
    return found


def _mean_drift(results: Mapping[int, Result]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for result in results.values():
        for part, value in result.drift.items():
            values.setdefault(part, []).append(value)
    return {part: statistics.fmean(of_part) for part, of_part in values.items()}


def readings(rows: Sequence[Row], results: Results, main: str, is_better_high: bool) -> list[str]:
    """What the validation rows say about recipes: which is best, which are as good, which change nothing."""
    recipes = [row for row in rows if not row.is_baseline and row.name in results]
    best = chosen(recipes, results, main, is_better_high)
    if best is None:
        return ["No recipe has a score on validation."]
    sentences = [f"Best recipe on validation: {best.title}."]
    near = [row.title for row in recipes if row is not best and _is_near(results[row.name], results[best.name], main)]
    if near:
        sentences.append(f"By these seeds not told apart from it: {', '.join(near)}.")
    for index, row in enumerate(recipes):
        twins = [one.title for one in recipes[:index] if _are_twins(results[one.name], results[row.name])]
        if twins:
            sentences.append(f"{row.title} trains this config as {twins[0]} does: every score is the same.")
    return sentences


def chosen(recipes: Sequence[Row], results: Results, main: str, is_better_high: bool) -> Row | None:
    """The recipe that is best on validation."""
    sign = 1 if is_better_high else -1
    scored = [row for row in recipes if _values(results[row.name], "validation", main)]

    def score(row: Row) -> float:
        return sign * statistics.fmean(_values(results[row.name], "validation", main).values())

    return max(scored, key=score, default=None)


def _is_near(one: Mapping[int, Result], other: Mapping[int, Result], main: str) -> bool:
    """Whether the 95 % interval of the paired differences of two rows on validation covers 0."""
    before = _values(other, "validation", main)
    values = _values(one, "validation", main)
    mean = mean_of([values[seed] - before[seed] for seed in values if seed in before])
    return mean is not None and mean.half is not None and abs(mean.value) <= mean.half


def _are_twins(one: Mapping[int, Result], other: Mapping[int, Result]) -> bool:
    """Whether two rows agree in every metric of every seed that both have, to the last bit."""
    both = one.keys() & other.keys()
    return bool(both) and all(one[seed][:2] == other[seed][:2] for seed in both)


def cells(lines: Sequence[Mapping[str, Any]], main: str, first: str) -> list[dict[str, str]]:
    """The lines as text, by the columns of the table."""
    shown = []
    for line in lines:
        drift = [f"{part} {value:.2g}" for part, value in line["drift"].items()]
        if len(drift) == 1:
            drift = [drift[0].rpartition(" ")[2]]
        cell = {
            "recipe": line["recipe"],
            "seeds": str(line["seeds"]),
            f"{main}, validation": _text(line["validation"]),
            f"above {first}": _text(line["validation_difference"]),
            f"{main}, test": _text(line["test"]),
            f"above {first}, test": _text(line["test_difference"]),
            "seconds": "" if line["seconds"] is None else f"{line['seconds']:.3g}",
            "drift": ", ".join(drift),
        }
        shown.append(cell)
    return shown


def _text(mean: Mean | None) -> str:
    return "" if mean is None else str(mean)


def as_text(shown: Sequence[dict[str, str]]) -> str:
    """The table for a terminal."""
    columns = list(shown[0])
    return format_table(shown, columns, columns[1:])


def as_markdown(shown: Sequence[dict[str, str]]) -> str:
    """The table for a page."""
    columns = list(shown[0])
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *(list(row.values()) for row in shown)]
    text = ""
    for line in lines:
        escaped = [cell.replace("|", "\\|") for cell in line]
        text += f"| {' | '.join(escaped)} |\n"
    return text


def write_files(
    folder: Path, lines: Sequence[Mapping[str, Any]], shown: Sequence[dict[str, str]], results: Results, notes: str
) -> None:
    """Writes compare.csv, compare.md, and compare.json with the values of every seed."""
    numbers = [_flat(line) for line in lines]
    write_csv(folder / "compare.csv", numbers[0], [list(row.values()) for row in numbers])
    with whole_file(folder / "compare.md") as temporary:
        temporary.write_text(f"{as_markdown(shown)}\n{notes}\n", encoding="utf-8")
    runs = []
    for row, by_seed in results.items():
        runs += [{"row": row, "seed": seed, **result._asdict()} for seed, result in by_seed.items()]
    with whole_file(folder / "compare.json") as temporary:
        temporary.write_text(json.dumps({"rows": numbers, "runs": runs}, indent=1), encoding="utf-8")


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as numbers: of a mean the value and the ends of its interval; the largest drift of its parts."""
    row: dict[str, Any] = {}
    for name, value in line.items():
        if name in ("recipe", "baseline", "seeds", "seconds"):
            row[name] = value
        elif name == "drift":
            row[name] = max(value.values(), default=None)
        else:
            half = value.half if value is not None else None
            row[name] = value.value if value is not None else None
            row[f"{name}_low"] = None if half is None else value.value - half
            row[f"{name}_high"] = None if half is None else value.value + half
    return row
