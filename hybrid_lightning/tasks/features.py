"""What the parts of a network make of many samples: the features that a closed-form fit, or another program, reads."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from hybrid_lightning.data.loaders import plain_samples
from hybrid_lightning.drift.reference_batch import own_random_state
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.trainer import as_validation
from hybrid_lightning.unfreezing.freezing import dry_run, evaluating, has_statistics, reestimate_statistics

MOST_SAMPLES = 2048
"""Of the training split, for parts that read it before training; quantiles of more samples would hardly differ."""
MOST_FOR_STATISTICS = 512
"""For running statistics, which are means over samples and positions."""


class SplitFeatures(NamedTuple):
    """The features of the parts that feed the fusion or the head, in the order of the samples, on the CPU."""

    parts: dict[str, Tensor]  # part → (N, features) float32; zeros where a sample lacks the part
    present: dict[str, Tensor]  # part → (N,) bool, for parts that samples may lack
    target: Tensor | None  # (N, ...); None if the batches have none
    ids: Tensor | None  # (N,), the batches' own


def collect_features(
    network: HybridNetwork, batches: Iterable[Any], parts: Collection[str] | None = None
) -> SplitFeatures:
    """Runs the network in eval mode on batches that are on its device; `parts` are those to run, None all."""
    features: dict[str, list[Tensor]] = {}
    present: dict[str, list[Tensor]] = {}
    targets: list[Tensor] = []
    ids: list[Tensor] = []
    with dry_run(network):
        for batch in batches:
            found = network.features(batch, parts=parts)
            masks = network.presence(batch)
            for name, tensor in found.items():
                features.setdefault(name, []).append(tensor.float().cpu())
                everywhere = torch.ones(len(tensor), dtype=torch.bool)
                present.setdefault(name, []).append(masks.get(name, everywhere).cpu())
            for key, values in (("target", targets), ("id", ids)):
                if isinstance(batch.get(key), Tensor):
                    values.append(batch[key].cpu())
    if not features:
        raise ConfigError("the training data have no samples.", "data")
    joined = {name: torch.cat(chunks) for name, chunks in present.items()}
    return SplitFeatures(
        {name: torch.cat(chunks) for name, chunks in features.items()},
        {name: mask for name, mask in joined.items() if not bool(mask.all())},
        torch.cat(targets) if targets else None,
        torch.cat(ids) if ids else None,
    )


def settle_statistics(network: HybridNetwork, read: Callable[[], Iterable[Any]], origins: Collection[str]) -> None:
    """Estimates running statistics that have seen no batch yet, in parts of these origins, from training samples.

    In evaluation such a part would else work on features of any scale, unlike those that it trains on.
    """
    found = unsettled(network, origins)
    if not found:
        return
    norms = []
    ends: set[str] = set()
    for name, own in found.items():
        norms += own
        ends.update(network.wiring.leads_to[name])
    with evaluating(network):
        reestimate_statistics(norms, read(), lambda batch: network.features(batch, parts=ends))


def unsettled(network: HybridNetwork, origins: Collection[str]) -> dict[str, list[nn.Module]]:
    """Part of one of these origins → those of its normalizations whose running statistics have seen no batch."""
    found = {}
    for name in network.wiring.order:
        modules = network.parts[name].modules()
        own = [module for module in modules if has_statistics(module) and _has_seen_nothing(module)]
        if own and network.options[name].origin in origins:
            found[name] = own
    return found


def _has_seen_nothing(norm: nn.Module) -> bool:
    batches = getattr(norm, "num_batches_tracked", None)
    return batches is not None and int(batches) == 0


@contextmanager
def training_samples(trainer: Trainer, loaders: Callable[[], Any], most: int | None = None) -> Iterator[Any]:
    """A loader of training samples, see `plain_samples`, and what is to hold while they are read by a network."""
    with own_random_state(trainer):
        loader = plain_samples(trainer.datamodule, loaders(), most)  # type: ignore[attr-defined]
        with reading(trainer):
            yield loader


@contextmanager
def reading(trainer: Trainer) -> Iterator[None]:
    """A network reads samples as in a validation of the Trainer, and leaves no trace in its random numbers."""
    with own_random_state(trainer), as_validation(trainer), trainer.precision_plugin.forward_context():
        yield
