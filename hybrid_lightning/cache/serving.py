"""What is served now: put into the loaders of a run, followed while parts unfreeze, and taken out again."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hybrid_lightning.cache.filling import Filling
from hybrid_lightning.cache.fingerprints import WatchedTensors, all_tensors
from hybrid_lightning.cache.frozen_parts import live_keys, unread_keys
from hybrid_lightning.cache.ranks import gathered
from hybrid_lightning.cache.served import ServedDataset, ServedViews
from hybrid_lightning.cache.splits import Scene, Split
from hybrid_lightning.cache.store import FeatureStore
from hybrid_lightning.drift.reference_batch import batches_on_device, own_random_state
from hybrid_lightning.network.batch import CACHED, CACHED_INDEX
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.resume.replay import epoch_of


class Serving:
    """What is served from the start of an epoch on.

    Args:
        places: The parts, and the places within parts (``image/layer3``), whose outputs are served.
        splits: Those of which they are.
        viewed: Where an epoch goes on that reads versions of samples: what was served when it began, and is not read.
    """

    def __init__(self, places: Sequence[str] = (), splits: Sequence[Split] = (), viewed: Sequence[str] = ()) -> None:
        self.places = list(places)
        self.splits = list(splits)
        has_views = bool(splits) and splits[0].view is not None
        self.viewed = list(viewed or places) if has_views else []
        """Where versions of samples are read, what was served when the epoch began."""
        self.keys: list[str] = []
        """Of what is served, in the store."""
        self.watched: WatchedTensors | None = None
        """Weights and buffers that the served features depend on."""
        self._served: dict[str, ServedDataset | ServedViews] = {}

    def start(
        self, scene: Scene, store: FeatureStore, samples: Mapping[str, str], offered: Mapping[str, Tensor]
    ) -> None:
        """Computes what is to be served, or finds it in the store; then the next iterators of the loaders take it."""
        network = scene.network
        found: dict[str, ServedDataset | ServedViews] = {}
        with gathered(network):
            for split in self.splits:
                left_out = unread_keys(network, self.viewed if split.view else self.places)
                views = []
                for view in split.views():
                    filling = Filling(scene, store, view, self.places, samples[split.name], offered, left_out)
                    views.append(filling.run())
                    self.keys += filling.keys
                found[split.name] = ServedViews(split.given, views) if split.view else views[0]
        for split in self.splits:
            split.serve(found[split.name])
        self._served = found
        self.watched = WatchedTensors(network, self.places)

    @property
    def feature_bytes(self) -> int:
        """Size of all features."""
        return sum(dataset.feature_bytes for dataset in self._served.values())

    def fits(self, batch: Mapping[str, Any]) -> bool:
        """Whether a batch has just what is served, and nothing of that trains."""
        is_frozen = self.watched is None or not self.watched.any_trains()
        # what was left out of versions of samples stays so for the epoch
        is_complete = not self.viewed or self.viewed == self.places
        return is_frozen and is_complete and batch[CACHED].keys() == set(self.places)

    def retire(self, network: HybridNetwork, trains: Collection[nn.Parameter]) -> bool:
        """Serves no more what depends on parameters that train; whether that is any of it."""
        training = set(trains)
        thawed = [place for place in self.places if not training.isdisjoint(all_tensors(network, place))]
        if not thawed:
            return False
        for dataset in self._served.values():
            dataset.retire(thawed)
        self.places = [place for place in self.places if place not in thawed]
        self._reset_validation()
        return True

    def _reset_validation(self) -> None:
        """Ends workers of validation loaders that hold the former dataset; puts back those of which nothing is left."""
        for split in self.splits:
            if not split.is_training and self.places:
                split.serve(self._served[split.name])
            elif not split.is_training:
                split.restore()

    def complete(
        self, trainer: Trainer, pl_module: LightningModule, network: HybridNetwork, batch: dict[str, Any]
    ) -> None:
        """Takes out of a batch what is served no more, and adds entries of the raw samples that it lacks now."""
        for place in [place for place in batch[CACHED] if place not in self.places]:
            del batch[CACHED][place]
        missing = live_keys(network, batch[CACHED]) - set(batch)
        if not missing:
            return
        split = self.splits[0]
        if split.view is not None:
            split = split.of_view(epoch_of(trainer) % split.copies)
        with own_random_state(trainer):
            raw = split.read(batch[CACHED_INDEX].tolist())
            moved = next(batches_on_device(trainer, pl_module, [raw]))
        for key in missing & set(moved):
            batch[key] = moved[key]

    def stop(self) -> None:
        """Puts back the datasets; still says what was served."""
        for split in self.splits:
            split.restore()
        self.splits, self.keys, self.watched, self._served = [], [], None, {}
