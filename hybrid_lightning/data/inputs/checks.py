"""Checks of the options of an input."""

from collections.abc import Collection, Sequence
from typing import Any

from hybrid_lightning.errors import ConfigError, check_number, unknown


def check_count(value: Any, where: str, low: int = 1) -> int:
    """A whole number of at least `low`.

    Raises:
        ConfigError: If it is something else.
    """
    check_number(value, where, low)
    if not isinstance(value, int):
        raise ConfigError(f"{where}: {value!r} is not a whole number.")
    return value


def check_choice(value: Any, where: str, choices: Collection[Any]) -> Any:
    """One of `choices`.

    Raises:
        ConfigError: If it is something else.
    """
    if isinstance(value, bool) != (bool in map(type, choices)) or value not in choices:
        raise unknown(where, "value", str(value), map(str, choices))
    return value


def check_size(value: Any, where: str, names: Sequence[str]) -> list[int] | None:
    """One side per name; a single number stands for all, None stays None.

    Raises:
        ConfigError: If it is something else.
    """
    if value is None:
        return None
    sides = [value] * len(names) if isinstance(value, int) else value
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != len(names):
        raise ConfigError(f"{where}: {value!r} is neither a number nor [{', '.join(names)}].")
    return [check_count(side, where) for side in sides]


def check_columns(value: Any, where: str, empty: bool = False) -> list[str]:
    """Names of columns; a single name stands for a list of one.

    Args:
        value: As given.
        where: Config path, for errors.
        empty: Whether there may be none.

    Raises:
        ConfigError: If it is something else, or a name stands twice.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{where}: {value!r} is neither the name of a column nor a list of names.")
    if len(set(names)) != len(names):
        raise ConfigError(f"{where}: {list(names)!r} names a column twice.")
    if not names and not empty:
        raise ConfigError(f"{where}: there is no column in the list; name at least one.")
    return list(names)


def check_column(value: Any, where: str) -> str:
    """The name of one column.

    Raises:
        ConfigError: If it is something else.
    """
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}: {value!r} is not the name of a column.")
    return value
