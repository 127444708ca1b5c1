"""Starting a new run from the weights of another one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hybrid_lightning.errors import ConfigError, check_number, listing, unknown
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.weights.loading import MERGE, Fit, parts_of, tensors_of
from hybrid_lightning.weights.safe_files import read_file

_KEYS = ("path", "parts", "coverage")
Tensors = dict[str, Tensor]


def parse_init_from(given: Any, where: str = "model.init_from") -> dict[str, Any]:
    """``init_from`` in its long form.

    Raises:
        ConfigError: If a key or a value is not possible.
    """
    facts = {"path": given} if isinstance(given, str) else given
    if not isinstance(facts, Mapping) or not isinstance(facts.get("path"), str):
        raise ConfigError(
            f"{where}: {given!r} is neither a path nor {{path: ..., parts: {{new: old}}, coverage: 0.5}}."
        )
    for key in facts:
        if key not in _KEYS:
            raise unknown(where, "key", str(key), _KEYS)
    check_number(facts.get("coverage", 0), f"{where}.coverage", low=0, high=1)
    if not isinstance(facts.get("parts") or {}, Mapping):
        raise ConfigError(f"{where}.parts: {facts['parts']!r} is not a dict {{part here: part in the file}}.")
    return {"parts": {}, "coverage": 0.0, **{key: value for key, value in facts.items() if value is not None}}


def read_parts(given: Any, known: Mapping[str, Any], where: str = "model.init_from") -> dict[str, Tensors]:
    """Part of this model → its tensors in the file, by the part's name or by that in ``parts``.

    Args:
        given: A path, or ``{path: ..., parts: {part here: part in the file}, coverage: ...}``.
        known: The parts of this model.
        where: Config path, for errors.

    Raises:
        ConfigError: If the file holds no network of this program, or a part is not there.
    """
    facts = parse_init_from(given, where)
    found = parts_of(tensors_of(read_file(facts["path"], where, without=("optimizer_states",))))
    if not found:
        raise ConfigError(
            f"{where}: {facts['path']!r} holds no network of this program; give a checkpoint of a fit. The weights of "
            f"any other file are those of a part: write 'weights: {facts['path']}' on it."
        )
    for new, old in facts["parts"].items():
        if new not in known:
            raise unknown(f"{where}.parts", "part", str(new), known)
        if old not in found:
            raise unknown(f"{where}.parts.{new}", "part of the file", str(old), found)
    sources = {name: facts["parts"].get(name, name) for name in known}
    return {name: found[old] for name, old in sources.items() if old in found}


def initialize(network: HybridNetwork, given: Any, parts: Mapping[str, Tensors], where: str = "model.init_from") -> str:
    """Loads what fits of each part; the rest keeps its fresh weights.

    Args:
        network: Newly built.
        given: See `read_parts`.
        parts: From `read_parts`.
        where: Config path, for errors.

    Returns:
        What was loaded, a line per part.

    Raises:
        ConfigError: If nothing fits, less than ``coverage`` of the network's values, or not all of a part that would
            otherwise have read pretrained weights, or adapters of the file would be lost.
    """
    facts = parse_init_from(given, where)
    fits = {name: Fit.of(network.parts[name], tensors) for name, tensors in parts.items()}
    for name, fit in fits.items():
        if fit.loses_adapters:
            raise ConfigError(f"{where}: part {name!r} is not adapted here as in {facts['path']!r}.{MERGE}")
        if network.options[name].weights is not None and (fit.missing or fit.other):
            raise ConfigError(
                f"{where}: part {name!r} is pretrained, and {facts['path']!r} covers {fit.share:.1%} of it. "
                f"{' '.join(fit.sentences())} Name another part of the file for it, or use modules that fit."
            )
    sizes = {name: sum(t.numel() for t in module.state_dict().values()) for name, module in network.parts.items()}
    share = sum(fit.share * sizes[name] for name, fit in fits.items()) / max(sum(sizes.values()), 1)
    if not any(fit.found for fit in fits.values()) or share < facts["coverage"]:
        raise ConfigError(
            f"{where}: {facts['path']!r} covers {share:.1%} of the values of this network, and "
            f"{facts['coverage']:.1%} are asked for (above 0 in any case). Parts here: {listing(network.parts)}; "
            f"parts that both have: {listing(fits)}. Map them with parts: {{part here: part in the file}}."
        )
    for name, fit in fits.items():
        if name in facts["parts"] and not fit.found:
            raise ConfigError(
                f"{where}.parts.{name}: nothing of {facts['parts'][name]!r} fits. {' '.join(fit.sentences())} Name "
                f"another part of the file, or leave it out."
            )
    for name, fit in fits.items():
        network.parts[name].load_state_dict(fit.found, strict=False)
    fresh = [name for name in network.parts if name not in fits]
    lines = [f"init_from {facts['path']}: {share:.1%} of the values."]
    lines += [f"  {name}: {fit}" for name, fit in fits.items()]
    return "\n".join(lines + ([f"  fresh: {listing(fresh)}."] if fresh else []))
