"""Which part reads what, and the order in which parts run."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.network.batch import Batch
from hybrid_lightning.network.missing import PREFIX, Presence
from hybrid_lightning.network.part import Part

OWN = ("fusion", "head")
"""What follows the parts, in this order."""


class Wiring:
    """The graph of the parts, without what follows them."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.reads: dict[str, list[str]] = {}
        """Part → what it reads: keys of the batch, and other parts."""
        for name, part in parts.items():
            if name not in OWN:
                wanted = part.input or name
                self.reads[name] = wanted if isinstance(wanted, list) else [wanted]
        self._owners = {name: part.share for name, part in parts.items() if part.share}
        self.order = self._execution_order()
        """The parts, each after those that it reads, and after the one whose module it shares."""
        read: set[str] = set()
        for name in self.reads:
            read.update(self.parts_read(name))
        self.feeding = [name for name in self.order if name not in read]
        """The parts that no other part reads: they feed the fusion, or the head if there is only one."""
        self.leads_to = self._find_ends()
        """Part → the feeding parts that it reaches; itself, if it is one of them."""

    def parts_read(self, name: str) -> list[str]:
        """The other parts that a part reads; a part wins over a key of the batch of the same name."""
        return [key for key in self.reads[name] if key in self.reads and key != name]

    def chained_by_name(self) -> list[tuple[str, str]]:
        """Pairs of a part and another part that it reads, which itself reads a key of the batch of its own name."""
        pairs = []
        for reader in self.reads:
            chained = [name for name in self.parts_read(reader) if name in self.keys_of(name)]
            pairs += [(reader, name) for name in chained]
        return pairs

    def keys_of(self, name: str) -> list[str]:
        """The keys of the batch that a part reads; none for what follows the parts."""
        return [key for key in self.reads.get(name, ()) if key not in self.parts_read(name)]

    def _execution_order(self) -> list[str]:
        order: list[str] = []
        waiting = list(self.reads)
        while waiting:
            ready = []
            for name in waiting:
                before = [*self.parts_read(name), self._owners.get(name)]
                if set(waiting).isdisjoint(before):
                    ready.append(name)
            if not ready:
                raise ConfigError(
                    f"{listing(waiting)} depend on each other (a circular dependency), or share with a part that reads "
                    f"them; let one read a batch key.",
                    "model.parts",
                )
            # parts of the same depth in the order of the config, in which initial weights are drawn
            order += ready
            waiting = [name for name in waiting if name not in ready]
        return order

    def _find_ends(self) -> dict[str, list[str]]:
        found = {name: [name] for name in self.feeding}
        # backwards, so that the ends of all that read a part are known
        for name in reversed(self.order):
            ends = found.setdefault(name, [])
            for other in self.order:
                if name in self.parts_read(other):
                    ends += [end for end in found[other] if end not in ends]
        return found

    def needed(self, cached: Collection[str], last: Collection[str] | None = None) -> set[str]:
        """The parts whose output is needed if some are cached: what only a cached part would read is not.

        `last` are those to arrive at; None takes the feeding ones.
        """
        needed = set(self.feeding if last is None else last)
        for name in reversed(self.order):
            if name in needed and name not in cached:
                needed.update(self.parts_read(name))
        return needed

    def reached_by_gradient(self, blocking: Collection[str]) -> set[str]:
        """The parts at whose output a gradient arrives, if those in `blocking` pass none on to their inputs."""
        reached = set(self.feeding)
        for name in reversed(self.order):
            if name in reached and name not in blocking:
                reached.update(self.parts_read(name))
        return reached

    def inputs(self, name: str, batch: Batch, outputs: Mapping[str, Tensor]) -> list[Any]:
        """What a part is called with, given the outputs of the parts before it."""
        found = []
        for key in self.reads[name]:
            # a part wins over a key of the same name
            if key in outputs:
                found.append(outputs[key])
            elif key in batch:
                found.append(batch[key])
            else:
                raise ConfigError(
                    f"part {name!r} reads {key!r}, which is neither a part before it nor in the batch. The batch has: "
                    f"{listing(batch)}. Set 'input' to one of them.",
                    f"model.parts.{name}.input",
                )
        return found

    def mask(self, name: str, present: Presence) -> Tensor | None:
        """The samples for which a part has work: those that have its input, and one of the parts it leads to."""
        own = present.get(name)
        needed = []
        for last in self.leads_to[name]:
            if last not in present:
                # it is there in all samples
                return own
            needed.append(present[last])
        anywhere = torch.stack(needed).any(0)
        return anywhere if own is None else own & anywhere

    def keys_read(self, absent: Collection[str]) -> list[str]:
        """The keys of a batch that the parts read, then the masks of those that lead to a part in `absent`."""
        keys: dict[str, bool] = {}
        for name in self.order:
            may_lack = not set(absent).isdisjoint(self.leads_to[name])
            for key in self.keys_of(name):
                keys[key] = keys.get(key, False) or may_lack
        masks = [PREFIX + key for key, may_lack in keys.items() if may_lack]
        return [*keys, *masks]
