"""What is served: decided once, on the first rank, and followed by all ranks and restarts."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from hybrid_lightning.cache.boundaries import check_boundary, find_boundaries
from hybrid_lightning.cache.decision import (
    FEWEST_READS,
    FEWEST_SPARED,
    Outlook,
    may_be_kept,
    measure,
    outlook,
    pays,
    saving,
)
from hybrid_lightning.cache.filling import together
from hybrid_lightning.cache.fingerprints import all_tensors, part_fingerprint
from hybrid_lightning.cache.frozen_parts import boundary
from hybrid_lightning.cache.splits import CannotCacheError, Scene
from hybrid_lightning.network.short_circuit import is_inside, part_of, parts_of


def stay_live(places: Collection[str]) -> str:
    """Such as ``image stays live`` or ``image, sound stay live``."""
    return f"{', '.join(places)} {'stays' if len(places) == 1 else 'stay'} live"


class Choices:
    """Decisions about parts and about boundaries within parts.

    Args:
        mode: As of `FrozenFeatureCache`.
        memory: Bytes that may stay in memory.
        report: Takes a line on what stays live.
        views: As of `FrozenFeatureCache`.
    """

    def __init__(
        self, mode: bool | str, memory: float, report: Callable[[str], None], views: int | None = None
    ) -> None:
        self.mode = mode
        self.memory = memory
        self.views = views
        self._report = report
        self.decided: dict[str, bool] = {}
        """Part → whether it is served."""
        self.boundaries: dict[str, str] = {}
        """Deepest place of a part that could be served → the one that is; an empty text for none."""
        self.saved: float | None = None
        """Seconds that the newest decisions save."""
        self.offered: dict[str, Tensor] = {}
        """Fingerprint of a part → its features of all training samples, which something else has computed."""

    def give_up(self, places: Collection[str]) -> None:
        """From now on these stay live."""
        for deepest, chosen in self.boundaries.items():
            if chosen in places:
                self.boundaries[deepest] = ""
        whole = [place for place in places if not is_inside(place)]
        self.decided.update(dict.fromkeys(whole, False))

    # Parts as a whole

    def is_short(self, scene: Scene, ahead: Outlook, parts: Collection[str] = ()) -> bool:
        """Whether so little is read while the parts stay frozen that it is not worth a timing, nor a line."""
        if self.mode is True:
            return False
        rows = self._rows_to_fill(scene, parts)
        is_ready = rows < self._rows_to_fill(scene, ())
        is_short = ahead.reads - rows < FEWEST_SPARED if is_ready else ahead.reads < max(FEWEST_READS, 2 * rows)
        return bool(scene.trainer.strategy.broadcast(is_short))

    def _rows_to_fill(self, scene: Scene, parts: Collection[str]) -> float:
        """Samples of which a process has to compute the features of parts."""
        rows = scene.rows
        offered = self.offered if scene.splits[0].view is None else {}
        if offered and parts and all(part_fingerprint(scene.network, name) in offered for name in parts):
            rows -= scene.splits[0].rows
        return rows / scene.trainer.world_size

    def may_pay(self, scene: Scene, parts: Collection[str]) -> bool:
        """Whether there is something to decide or to serve about parts."""
        if self.mode is True:
            return bool(parts)
        undecided = [name for name in parts if name not in self.decided]
        for ahead, names in _equally_long(scene, undecided):
            if self.is_short(scene, ahead, names):
                self.decided.update(dict.fromkeys(names, False))
                self._report_short(names, ahead)
        return any(self.decided.get(name, True) for name in parts)

    def _report_short(self, names: Sequence[str], ahead: Outlook) -> None:
        """A line for those who have asked for views."""
        if self.views is not None:
            self._report(
                f"{stay_live(names)}: {ahead.reads:,.0f} samples are read in the frozen steps, too few for features to "
                f"save time."
            )

    def whole(
        self, scene: Scene, fixed: Sequence[str], places: Sequence[str], only: Collection[str] | None
    ) -> list[str]:
        """The parts that are served as a whole, beside `places` within others."""
        started = parts_of(places)
        parts = within(boundary(scene.network, fixed, started), only)
        undecided = [name for name in parts if name not in self.decided]
        if self.mode is True:
            self.decided.update(dict.fromkeys(parts, True))
            return parts
        for ahead, names in _equally_long(scene, undecided):
            served = [name for name in parts if self.decided.get(name)]
            rows = self._rows_to_fill(scene, names)
            does_pay = self._does_pay(scene, names, ahead, rows, [*places, *served])
            self.decided.update(dict.fromkeys(names, does_pay))
        return [name for name in parts if self.decided[name]]

    def _does_pay(
        self,
        scene: Scene,
        places: Sequence[str],
        ahead: Outlook,
        rows: float,
        beside: Sequence[str],
        disk: int = 0,
    ) -> bool:
        """Whether serving them pays if `rows` are to be filled, by the first rank's timing; a line if it does not."""
        trainer, pl_module, network, splits, _ = scene
        views = splits[0].copies
        if views > 1 and ahead.epochs <= views:
            self._report(
                f"{stay_live(places)}: {views} views save nothing in the frozen epochs ({ahead.epochs:g}). Ask for "
                f"fewer views or more epochs."
            )
            return False
        timing = partial(measure, trainer, pl_module, network, splits[0], places, beside)
        seconds = together(trainer, timing)
        saved: float = trainer.strategy.broadcast(saving(ahead, seconds, rows, disk))
        does_pay = pays(saved)
        if does_pay:
            self.saved = saved + (self.saved or 0.0)
        else:
            self._report(f"{stay_live(places)}: serving features would save {max(saved, 0):.1f} s.")
        return does_pay

    # Boundaries within parts

    def may_start(self, scene: Scene, name: str) -> bool:
        """Whether a boundary within a part is worth a look."""
        # a restart may have less ahead than there was when it was decided
        known = any(part_of(place) == name for place in self.boundaries)
        parameters = scene.network.parts[name].parameters()
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        ahead = outlook(scene.trainer, frozen, scene.splits)
        is_short = not known and self.is_short(scene, ahead)
        if is_short:
            self._report_short([name], ahead)
        return not is_short

    def inside(
        self,
        scene: Scene,
        fixed: Sequence[str],
        started: Sequence[str],
        modes: Mapping[nn.Module, bool],
        only: Collection[str] | None,
    ) -> list[str]:
        """The places at which the `started` parts are served; to be called within `about_to_train`.

        `fixed` are the parts that may be served as a whole; `only` the places that an earlier process served.
        """
        self.saved = None
        # what is read for these alone will not be read either
        beside = [name for name in boundary(scene.network, fixed) if self.decided.get(name, True)]
        places = []
        for name in started:
            try:
                place = self._boundary(scene, name, modes, beside, only)
            except CannotCacheError as problem:
                self._report(f"{stay_live([name])}: {problem}.")
                continue
            if place:
                places.append(place)
        return places

    def _boundary(
        self,
        scene: Scene,
        name: str,
        modes: Mapping[nn.Module, bool],
        beside: Sequence[str],
        only: Collection[str] | None,
    ) -> str:
        """The place at which a part is served; an empty text if it stays live."""
        trainer, pl_module, network, splits, _ = scene
        find = partial(find_boundaries, trainer, pl_module, network, splits[0], name, modes)
        found = together(trainer, find)
        network.short_circuits.update(found)
        places: list[str] = trainer.strategy.broadcast(list(found))
        together(trainer, partial(_require_same, places, list(found)))
        if only is not None:
            known = within(places, only)
            return known[0] if known else ""
        if not places:
            return ""
        deepest = places[0]
        if deepest not in self.boundaries:
            # stays so if any of what follows fails
            self.boundaries[deepest] = ""
            place = self._fitting(scene, places)
            together(trainer, partial(check_boundary, trainer, pl_module, network, splits[0], place, modes))
            if self.mode is True or self._boundary_pays(scene, place, beside):
                self.boundaries[deepest] = place
        return self.boundaries[deepest]

    def _fitting(self, scene: Scene, places: Sequence[str]) -> str:
        """The deepest place whose features can be kept."""
        trainer, _, network, _, folder = scene
        sizes = {place: scene.rows * network.short_circuits[place].kept.bytes for place in places}
        found = ""
        for place in reversed(places):
            if may_be_kept(sizes[place], self.memory, folder, trainer.num_nodes):
                found = place
        found = trainer.strategy.broadcast(found)
        if not found:
            least = min(sizes.values()) / 1e9
            raise CannotCacheError(f"its features take {least:.1f} GB, too much for memory and disk")
        return found

    def _boundary_pays(self, scene: Scene, place: str, beside: Sequence[str]) -> bool:
        trainer, _, network, splits, _ = scene
        ahead = outlook(trainer, all_tensors(network, place), splits)
        size = network.short_circuits[place].kept.bytes
        # beyond the budget of memory a file is written and read
        on_disk = size if scene.rows * size > self.memory else 0
        return self._does_pay(scene, [place], ahead, self._rows_to_fill(scene, ()), beside, on_disk)


def _equally_long(scene: Scene, parts: Collection[str]) -> list[tuple[Outlook, list[str]]]:
    """The parts that stay frozen for the same time, and how much is read until then; the longest first."""
    found: dict[Outlook, list[str]] = {}
    for name in parts:
        ahead = outlook(scene.trainer, all_tensors(scene.network, name), scene.splits)
        found.setdefault(ahead, []).append(name)
    ordered = sorted(found.items(), reverse=True)
    broadcast: list[tuple[Outlook, list[str]]] = scene.trainer.strategy.broadcast(ordered)
    return broadcast


def within(places: Sequence[str], only: Collection[str] | None) -> list[str]:
    """Those of the places that are among `only`; None allows all."""
    return [place for place in places if only is None or place in only]


def _require_same(places: list[str], found: list[str]) -> None:
    if places != found:
        raise CannotCacheError("its modules run in another order on another rank")
