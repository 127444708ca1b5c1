"""The option `cache` of a task."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hybrid_lightning.errors import ConfigError, at, check_choice, check_keys, check_number

MODES = ("auto", True, False)
MOST_VIEWS = 64


class CacheOptions(NamedTuple):
    """What `FrozenFeatureCache` is made with."""

    mode: bool | str
    views: int | None = None

    @classmethod
    def parse(cls, given: Any) -> "CacheOptions":
        """``auto``, true, false, or ``{views: 4}``, beside which may stand ``mode: true``."""
        if not isinstance(given, Mapping):
            return cls(check_choice(given, "cache", MODES))
        with at("cache"):
            check_keys(given, cls._fields)
            if "views" not in given:
                raise ConfigError("it lacks 'views'. Write such as {views: 4}, or one of auto, true and false.")
            options = cls(given.get("mode", "auto"), given["views"])
            options.check()
        return options

    def check(self) -> None:
        """Raises `ConfigError` unless both can be."""
        check_choice(self.mode, "mode", MODES)
        if self.views is None:
            return
        check_number(self.views, "views", low=1, high=MOST_VIEWS)
        if not isinstance(self.views, int):
            raise ConfigError(f"{self.views!r} is not a whole number.", "views")
