"""Whether something beside the schedule sets the rates of an optimizer's groups."""

import warnings
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from hybrid_lightning.errors import listing

_RATE = itemgetter("lr")


class RateWatch:
    """Remembers the rates that a schedule has `written`, one for each group."""

    def __init__(self) -> None:
        self.written: Sequence[float] = ()
        self._has_told = False

    def tell_others(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Warns once if a group has another rate, which would last until the schedule's next step."""
        if self._has_told:
            return
        # so it is at nearly every step
        if list(map(_RATE, groups)) == self.written:
            return
        # of a scheduler that is being made, nothing is written yet
        pairs = zip(groups, self.written, strict=False)
        changed = [str(group.get("name", "a group")) for group, rate in pairs if group["lr"] != rate]
        if changed:
            self._has_told = True
            warnings.warn(
                f"something beside the schedule, such as a callback, sets the rates of {listing(changed, 4)}. They "
                f"last until the schedule's next step, which sets its own again. Say it with 'rates', 'scheduler' or "
                f"'lr_scale' instead, or set model.lr.",
                stacklevel=2,
            )
