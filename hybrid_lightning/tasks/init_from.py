"""Starting a new run from the weights of another one."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from hybrid_lightning.errors import ConfigError, at, check_keys, check_number, listing, unknown
from hybrid_lightning.network.contracts import ReadsTrainingData
from hybrid_lightning.network.fusion import follow_shrinking
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.weights.loading import MERGE, Fit, parts_of, tensors_of
from hybrid_lightning.weights.safe_files import read_file

_PLACE = "model.init_from"
Tensors = dict[str, Tensor]
Options = dict[str, Any]
OBJECTIVE = "objective."
"""What the names of an objective's tensors begin with in a task's ``state_dict``."""


@dataclass(frozen=True)
class InitFrom:
    """The option ``init_from``, see `HybridTask`; `parts` is part here → part in the file, where the names differ."""

    path: str
    parts: dict[str, str] = field(default_factory=dict)
    coverage: float = 0.0

    @classmethod
    def parse(cls, given: Any) -> Self:
        """Reads a path or the long form."""
        options = {"path": given} if isinstance(given, str) else given
        if not isinstance(options, Mapping) or not isinstance(options.get("path"), str):
            raise ConfigError(f"{given!r} is neither a path nor {{path: ..., parts: {{new: old}}, coverage: 0.5}}.")
        check_keys(options, ("path", "parts", "coverage"))
        coverage: Any = options.get("coverage") or 0.0
        check_number(coverage, "coverage", low=0, high=1)
        parts = options.get("parts") or {}
        if not isinstance(parts, Mapping):
            raise ConfigError(f"{parts!r} is not a dict {{part here: part in the file}}.", "parts")
        return cls(options["path"], dict(parts), coverage)

    def plain(self) -> dict[str, Any]:
        """The long form, for checkpoints."""
        return {"path": self.path, "parts": dict(self.parts), "coverage": self.coverage}


@dataclass(frozen=True)
class StartTensors:
    """What an earlier checkpoint holds for a new model: tensors of its parts, by their new names, and objective."""

    source: InitFrom
    parts: dict[str, Tensors]
    objective: Tensors
    options: dict[str, Options]
    """Part → what it was made with there, see `_made_with`; not of parts that the file does not describe."""

    @classmethod
    def read(cls, source: InitFrom, known: Collection[str], key: str) -> Self:
        """Reads the file once; `known` are the names of the new model's parts, `key` is that of a task's settings."""
        # the optimizer's state may be twice as large as the weights
        content = read_file(source.path, _PLACE, without=("optimizer_states",))
        tensors = tensors_of(content)
        found = parts_of(tensors)
        with at(_PLACE):
            if not found:
                raise ConfigError(
                    f"{source.path!r} holds no network of this program; give a checkpoint of a run. The weights of any "
                    f"other file are those of a part: write 'weights: {source.path}' on it."
                )
            check_keys(source.parts, known, "parts", "part")
            for new, old in source.parts.items():
                if old not in found:
                    raise unknown(f"parts.{new}", "part of the file", str(old), found)
        described = made_with(content.get(key))
        parts = {}
        options = {}
        for name in known:
            old = source.parts.get(name, name)
            if old in found:
                parts[name] = found[old]
            if old in described:
                options[name] = described[old]
        objective = {}
        for name, tensor in tensors.items():
            if name.startswith((OBJECTIVE, "scale.")):  # the scale of format 3
                objective[name.removeprefix(OBJECTIVE)] = tensor
        return cls(source, parts, objective, options)

    def load_into(self, network: HybridNetwork) -> str:
        """Loads what fits of each part, and reports it, a line per part; the rest keeps its fresh weights.

        Parts that read training data are taken whole, and only where they were made alike, or not at all: quantiles of
        one geometry mean nothing in another, and a part that counts as prepared never reads its own data. What reads a
        random part that stays fresh is not taken either.

        Raises `ConfigError` if too little fits, not all of a pretrained part, or adapters of the file would be lost.
        """
        fits = {}
        refused = {}
        for name, tensors in self.parts.items():
            if name not in network.parts:
                continue
            fit = Fit.of(network.parts[name], tensors)
            reason = self._refusal(name, network, fit)
            if reason:
                refused[name] = reason
                fit = _nothing_of(network, name)
            fits[name] = fit
        for name, part in _readers_of_fresh_random_parts(network, fits).items():
            if name in fits and name not in refused:
                refused[name] = f"in the file it was trained on other random features than those of {part!r} here."
                fits[name] = _nothing_of(network, name)
        with at(_PLACE):
            self._check_parts(network, fits, refused)
            share = covered_share(network, fits)
            self._check_share(share, network, fits, refused)
        # only now, so that an error leaves the network as it was built
        for name, fit in fits.items():
            network.parts[name].load_state_dict(fit.found, strict=False)
        if "fusion" in fits and fits["fusion"].found:
            follow_shrinking(network, self.options.get("fusion"))
        lines = [f"init_from {self.source.path}: {share:.1%} of the values."]
        for name, fit in fits.items():
            said = f"fresh, because {refused[name]}" if name in refused else str(fit)
            lines.append(f"  {name}: {said}")
        fresh = [name for name in network.parts if name not in fits]
        if fresh:
            lines.append(f"  fresh: {listing(fresh)}.")
        return "\n".join(lines)

    def _refusal(self, name: str, network: HybridNetwork, fit: Fit) -> str:
        """Why nothing is taken of a part that reads training data; empty if it may be, and for other parts."""
        if name not in network.wiring.reads or not isinstance(network.parts[name], ReadsTrainingData):
            return ""
        if fit.missing or fit.other or fit.resized:
            return f"what it has read from training data is taken whole or not at all. {' '.join(fit.sentences())}"
        if name not in self.options:
            return "the file does not say how it was made."
        there = self.options[name]
        here = _made_with(network.options[name].plain(), network.record.parts[name].sizes)
        return "" if there == here else f"it was made with {there} there, and with {here} here."

    def _check_parts(
        self,
        network: HybridNetwork,
        fits: Mapping[str, Fit],
        refused: Mapping[str, str],
    ) -> None:
        path = self.source.path
        for name, fit in fits.items():
            fit.refuse_unfit(path)
            if fit.loses_adapters:
                raise ConfigError(f"part {name!r} is not adapted here as in {path!r}.{MERGE}")
            if network.options[name].weights is not None and (fit.missing or fit.other):
                raise ConfigError(
                    f"part {name!r} is pretrained, and {path!r} covers {fit.share:.1%} of it. "
                    f"{_reasons(name, fit, refused)} Name another part of the file for it, or use modules that fit."
                )

    def _check_share(
        self, share: float, network: HybridNetwork, fits: Mapping[str, Fit], refused: Mapping[str, str]
    ) -> None:
        source = self.source
        whys = [f" Of {name!r} nothing is taken: {reason}" for name, reason in refused.items()]
        if not any(fit.found for fit in fits.values()) or share < source.coverage:
            raise ConfigError(
                f"{source.path!r} covers {share:.1%} of the values of this network, and {source.coverage:.1%} are "
                f"asked for (above 0 in any case). Parts here: {listing(network.parts)}; parts that both have: "
                f"{listing(fits)}. Map them with parts: {{part here: part in the file}}.{''.join(whys)}"
            )
        for name, old in source.parts.items():
            owner = network.options[name].share if name in network.options else None
            if owner is not None:
                raise ConfigError(f"it has the module of {owner!r}. Name that part instead.", f"parts.{name}")
            if name in fits and not fits[name].found:
                raise ConfigError(
                    f"nothing of {old!r} fits. {_reasons(name, fits[name], refused)} Name another part of the file, or "
                    f"leave it out.",
                    f"parts.{name}",
                )

    def objective_of_head(self, network: HybridNetwork) -> Tensors:
        """The objective's state, if what makes the network's outputs is now that of the file; else nothing."""
        # the scale of targets belongs to the head that has learned them, and to no other
        own = network.parts["head"].state_dict()
        theirs = self.parts.get("head", {})
        if not own and "fusion" in network.parts:
            own = network.parts["fusion"].state_dict()
            theirs = self.parts.get("fusion", {})
        is_same = all(name in theirs and theirs[name].equal(tensor.cpu()) for name, tensor in own.items())
        return self.objective if own and is_same else {}


def _nothing_of(network: HybridNetwork, name: str) -> Fit:
    return Fit(missing=list(network.parts[name].state_dict()))


def _readers_of_fresh_random_parts(network: HybridNetwork, fits: Mapping[str, Fit]) -> dict[str, str]:
    """What reads a random part that is not that of the file → this part, which will never become it by training."""
    readers = {}
    for name in network.wiring.order:
        if network.options[name].origin != "random":
            continue
        fit = fits.get(name)
        # a fusion has fresh weights for a part that is new, where a head would take it for another one
        if fit is None and "fusion" in network.parts:
            continue
        if fit is not None and not fit.missing and not fit.other:
            continue
        for other in network.wiring.order:
            if name in network.wiring.parts_read(other):
                readers[other] = name
        if name in network.feeding:
            readers |= {"fusion": name, "head": name}
    return readers


def _reasons(name: str, fit: Fit, refused: Mapping[str, str]) -> str:
    """Why not all of a part is taken, as sentences."""
    if name in refused:
        return refused[name][0].upper() + refused[name][1:]
    return " ".join(fit.sentences())


def _made_with(options: Any, sizes: Any) -> Options:
    """What a part was made with, of plain data that may come from a stranger's file; a live module has no name."""
    if not isinstance(options, Mapping):
        return {}
    found: Options = {}
    # a size is an argument like any other, filled in or stated
    for arguments in (sizes, options.get("args")):
        if isinstance(arguments, Mapping):
            found.update(arguments)
    return {"module": options.get("module"), "args": found}


def made_with(saved: Any) -> dict[str, Options]:
    """Part, or fusion → what it was made with, of what a task added to a checkpoint; nothing where that is damaged."""
    network = saved.get("network") if isinstance(saved, Mapping) else None
    sizes = network.get("sizes") if isinstance(network, Mapping) else None
    parts = saved.get("parts") if isinstance(saved, Mapping) else None
    if not isinstance(sizes, Mapping) or not isinstance(parts, Mapping):
        return {}
    with_fusion = {**parts, "fusion": saved.get("fusion")}
    return {name: _made_with(options, sizes.get(name)) for name, options in with_fusion.items()}


def covered_share(network: HybridNetwork, fits: Mapping[str, Fit]) -> float:
    """Share of the network's values that a file gives, in [0, 1]."""
    covered = total = 0.0
    for name, module in network.parts.items():
        size = sum(tensor.numel() for tensor in module.state_dict().values())
        total += size
        if name in fits:
            covered += fits[name].share * size
    return covered / max(total, 1)
