"""The one error of this package that is meant to be read by a user, and the text around it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

RENAMED = {
    "norm": "batch_norm",
    "eval": "frozen",
    "stats": "recalibrate",
    "normalise": "normalize",
    "standardise": "standardize",
}
"""Former name of an option or of a choice → its name now, for messages and for older checkpoints."""


_CONTROLS = {chr(number) for number in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Characters that move the cursor, ring, or turn the direction of a text around."""


class ConfigError(ValueError):
    """A setting is wrong; the message says where, what was given, what is possible and what to do.

    The command line prints it without a traceback.

    Args:
        message: What is wrong and what to do.
        place: Path of the setting, such as ``lr_scale``, within the places that `at` adds.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.place}: {message}" if self.place else message


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts `place` before the place of every `ConfigError` that is raised inside."""
    # Blocks within blocks make a path: ``model.parts.image``, then ``unfreeze``, then ``every``. So what parses a value
    # does not have to know where in the config it stands.
    try:
        yield
    except ConfigError as error:
        error.place = ".".join(name for name in (place, error.place) if name)
        raise


def listing(names: Iterable[str], limit: int = 16) -> str:
    """Names in quotes, at most `limit` of them, with a count of the rest."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "") or "none"


def counted(number: int, unit: str) -> str:
    """``1 file``, ``1,200 files``, ``2 batches``, ``4 processes``."""
    ending = "" if number == 1 else "es" if unit.endswith(("tch", "ss")) else "s"
    return f"{number:,} {unit}{ending}"


def reason(error: BaseException) -> str:
    """What somebody else's exception says, as one sentence; the name of its class if it says nothing."""
    text = str(error).strip() or type(error).__name__
    if len(text) > 300:
        whole_words = text[:300].rsplit(maxsplit=1)[0]
        return f"{whole_words} …"
    return text.rstrip(".") + "."


def unknown(place: str, kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """An error for a name that is not among `known`, with the closest one suggested."""
    known = list(known)
    renamed = RENAMED.get(given)
    if renamed in known:
        return ConfigError(f"{kind} {given!r} is called {renamed!r} now; write {renamed!r}.", place)
    # of a name that is much longer its beginning is enough
    close = get_close_matches(given, known, n=6) or [name for name in known if given and name.startswith(given)]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if close and len(known) > 50:  # the first ones would say nothing
        possible = listing(sorted(known, key=lambda name: name not in close), len(close))
    else:
        possible = listing(known, 20)
    return ConfigError(f"unknown {kind} {given!r}.{hint} Possible: {possible}.", place)


def check_keys(given: Iterable[Any], known: Iterable[str], place: str = "", kind: str = "key") -> None:
    """Raises `ConfigError` for the first name of `given` that is not among `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise unknown(place, kind, str(name), known)


def check_choice(value: Any, place: str, choices: Sequence[Any], kind: str = "value") -> Any:
    """The value; raises `ConfigError` unless it is one of `choices`, of the same type: 1 is not true."""
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    if all(isinstance(choice, str) for choice in choices):
        raise unknown(place, kind, str(value), choices)
    # without quotes, because 'true' would be a text
    possible = ", ".join(map(_as_yaml, choices))
    raise ConfigError(f"unknown {kind} {_as_yaml(value)}. Possible: {possible}.", place)


def _as_yaml(value: Any) -> str:
    """A plain value as YAML writes it."""
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def check_number(value: Any, place: str, low: float, high: float | None = None, above_low: bool = False) -> None:
    """Raises `ConfigError` unless `value` is a finite number of at least `low` (above it: `above_low`)."""
    if not _is_number(value) or value < low or (above_low and value == low) or (high is not None and value > high):
        bounds = f"{'above' if above_low else 'at least'} {low}" + (f" and at most {high}" if high is not None else "")
        hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if isinstance(value, str) else ""
        raise ConfigError(f"{value!r} is not a number {bounds}{hint}.", place)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def format_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str], right: Iterable[str] = ()) -> str:
    """Rows as an aligned text table with a header."""
    rows = [{name: _in_one_line(cell) for name, cell in row.items()} for row in rows]
    names = {column: _in_one_line(column) for column in columns}
    widths = {column: max(len(row[column]) for row in (names, *rows)) for column in columns}

    def line(row: Mapping[str, str]) -> str:
        cells = [row[c].rjust(widths[c]) if c in right else row[c].ljust(widths[c]) for c in columns]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * widths[column] for column in columns)
    return "\n".join([line(names), rule, *map(line, rows)])


def _in_one_line(cell: str) -> str:
    """A cell without control characters, of which a line end would make another row."""
    return printable(cell).replace("\n", "\\n")


@contextmanager
def writing(path: object, remedy: str) -> Iterator[None]:
    """Turns an OSError that is raised inside into a `ConfigError` with the path, the cause and what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}. {remedy}") from error


def printable(text: str) -> str:
    """A text whose control characters, which could steer a terminal, are written as escapes; lines stay lines."""
    shown = [
        character if character in "\n\t" or character not in _CONTROLS else repr(character)[1:-1] for character in text
    ]
    return "".join(shown)


def has_controls(text: str) -> bool:
    """Whether a text holds characters that could steer a terminal, line ends included."""
    return not _CONTROLS.isdisjoint(text)


def shortened(message: str) -> str:
    """The first ten lines of a message, each of bounded length, without control characters."""
    kept = [line.rstrip()[:1000] for line in printable(message).strip().split("\n") if line.strip()]
    more = [f"... ({len(kept) - 10} more lines)"] if len(kept) > 10 else []
    return "\n".join(kept[:10] + more)
