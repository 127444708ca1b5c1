"""Whether the parts can take the longest sequence that the data may give, which a dry run on two samples does not show.

A part with one vector per position fails in the first batch with a longer text, perhaps after hours.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hybrid_lightning.errors import ConfigError, listing, reason
from hybrid_lightning.network.batch import Batch
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import PREFIX
from hybrid_lightning.unfreezing.freezing import dry_run

MOST_STEPS = "most_steps"
"""Among the arguments inferred for a key: the most steps of its sequences."""
_MOST_TRIED = 1025  # one more than many models have positions; beyond it attention would take much memory here


def refuse_longer_texts(
    network: HybridNetwork, example: Batch, inferred: Mapping[str, Mapping[str, Any]] | None
) -> None:
    """Raises `ConfigError` if a part that takes the example fails on as long a sequence as its key may have."""
    for key, arguments in (inferred or {}).items():
        steps = min(arguments.get(MOST_STEPS, 0), _MOST_TRIED)
        longer = _stretched(example.get(key), steps)
        parts = _readers(network, key)
        if longer is None or not parts:
            continue
        # without masks of what samples lack, which could leave the part out
        one = {name: _first_sample(entry) for name, entry in example.items() if not name.startswith(PREFIX)}
        one[key] = longer
        try:
            with dry_run(network):
                network.kept_outputs(one, parts)
        except Exception as error:  # third-party code may raise any exception
            raise ConfigError(
                f"texts may have {arguments[MOST_STEPS]} pieces, and {listing(parts)} fails on one of {steps}: "
                f"{reason(error)} Write 'length: N' there, N being the number of positions that the model has.",
                f"data.inputs.{key}",
            ) from error


def _readers(network: HybridNetwork, key: str) -> list[str]:
    """The parts that a key reaches, directly or through other parts."""
    found: list[str] = []
    for name in network.wiring.order:
        reads = network.wiring.reads[name]
        if key in network.wiring.keys_of(name) or not set(reads).isdisjoint(found):
            found.append(name)
    return found


def _stretched(entry: Any, steps: int) -> dict[str, Tensor] | None:
    """The first sample of tokens `(B, T)` and their masks with `steps` steps, `(1, steps)`; None if it has as many."""
    if not isinstance(entry, Mapping):
        return None
    longer = {}
    for name, values in entry.items():
        if values.ndim != 2 or not 0 < values.shape[1] < steps:
            return None
        # the first step of a text is no padding
        longer[name] = values[:1, :1].repeat(1, steps)
    return longer


def _first_sample(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return {name: _first_sample(value) for name, value in entry.items()}
    return entry[:1] if isinstance(entry, Tensor) and entry.ndim else entry
