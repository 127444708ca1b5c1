"""The one error of this package that is meant to be read by a user, and the text around it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any


class ConfigError(ValueError):
    """A setting is wrong; the message says where, what was given, what is possible and what to do.

    The command line prints it without a traceback.
    """


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Names in quotes, at most `limit` of them, with a count of the rest."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"


def reason(error: BaseException, limit: int = 300) -> str:
    """What somebody else's exception says, as one sentence; the name of its class if it says nothing."""
    return (str(error).strip() or type(error).__name__)[:limit].rstrip(".") + "."


def unknown(where: str, kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """An error for a name that is not among `known`, with the closest one suggested.

    Args:
        where: Config path of the setting.
        kind: What the name stands for ("key", "part").
        given: The name that was given.
        known: The names that are possible.
    """
    known = list(known)
    close = get_close_matches(given, known, n=6)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if close and len(known) > 50:  # the first ones would say nothing
        possible = listing(sorted(known, key=lambda name: name not in close), len(close))
    else:
        possible = listing(known)
    return ConfigError(f"{where}: unknown {kind} {given!r}.{hint} Possible: {possible}.")


def check_number(value: Any, where: str, low: float, high: float | None = None, above_low: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a finite number of at least `low` (above it: `above_low`)."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not numeric or value < low or (above_low and value == low) or (high is not None and value > high):
        bounds = f"{'above' if above_low else 'at least'} {low}" + (f" and at most {high}" if high is not None else "")
        hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) else ""
        raise ConfigError(f"{where}: {value!r} is not a number {bounds}{hint}.")


def format_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str], right: Iterable[str] = ()) -> str:
    """Rows as an aligned text table with a header."""
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}

    def line(row: Mapping[str, str]) -> str:
        cells = [row[c].rjust(widths[c]) if c in right else row[c].ljust(widths[c]) for c in columns]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * widths[column] for column in columns)
    return "\n".join([line({column: column for column in columns}), rule, *map(line, rows)])


def shortened(message: str, lines: int = 10) -> str:
    """The first lines of a message, each of bounded length."""
    kept = [line.rstrip()[:1000] for line in message.strip().splitlines() if line.strip()]
    more = [f"... ({len(kept) - lines} more lines)"] if len(kept) > lines else []
    return "\n".join(kept[:lines] + more)
