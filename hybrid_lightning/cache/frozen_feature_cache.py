"""A cache for what frozen parts make of the samples: computed once, served in every epoch."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hybrid_lightning.cache.boundaries import about_to_train
from hybrid_lightning.cache.choices import Choices, Scene, within
from hybrid_lightning.cache.decision import described, outlook, training_parameters, unfreezing_of
from hybrid_lightning.cache.filling import Filling, together
from hybrid_lightning.cache.fingerprints import WatchedTensors, all_tensors, part_fingerprint
from hybrid_lightning.cache.frozen_parts import (
    boundary,
    fixed_parts,
    frozen_parts,
    live_keys,
    partly_frozen,
    startable_parts,
)
from hybrid_lightning.cache.ranks import gathered, opened_store, run_folder
from hybrid_lightning.cache.served import ServedDataset
from hybrid_lightning.cache.splits import CannotCacheError, Split, cacheable, network_of, samples_hashes, splits_of
from hybrid_lightning.cache.store import FeatureStore
from hybrid_lightning.drift.reference_batch import batches_on_device, own_random_state
from hybrid_lightning.errors import ConfigError, at, check_choice, check_number
from hybrid_lightning.lightning_private import data_fetcher
from hybrid_lightning.network.batch import CACHED, CACHED_INDEX
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.short_circuit import is_inside, parts_of
from hybrid_lightning.resume.replay import position
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.unfreezing.freezing import module_modes
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.timeline import part_of_parameters

MODES = ("auto", True, False)
_GIB = 2**30


class FrozenFeatureCache(FitCallback):
    """Computes what frozen parts make of the training and validation samples once, and serves it in every epoch.

    It works in a `HybridTask`, for each part, or chain of parts, that is frozen and reads entries which are the same in
    every epoch: no random transforms, no augmentation of batches. Their batches then hold features in place of what
    only these parts read, which is neither loaded nor decoded. Order, random numbers and exact resume are those of a
    fit without it; features agree with those of a live forward, which is verified on two batches, to 1e-5 of the
    largest in float32. When a part unfreezes, its samples are read again, from the very next batch on.

    A part of which the upper stages train is run from its deepest frozen stage on: from the epoch after an unfreezing
    on, what this stage returns is served, and nothing before it is run. A part stays live if something else of what
    comes before is read later (a skip connection, the mask of the input), if it is compiled, or if its features would
    neither fit into memory nor into a quarter of the free disk; then an earlier stage is taken whose output is smaller.

    Works with a plain `DataLoader` over any dataset that is read by index, on one device, under ``ddp``, and, for parts
    that are frozen as a whole, under ``fsdp2``; all else, validate, test and predict, and modules that are no
    `HybridTask`, stay untouched. Callbacks of your own that read the raw entries of training batches need ``false``.

    Nothing is logged; a line says what is served, or why nothing is.

    Args:
        mode: ``auto`` decides once, on the first rank, from counts and a first timing, whether that saves time; a
            restart follows. True caches whatever can be, False nothing.
        memory: GiB of features that each process keeps in memory; more are files in the folder of the run, shared by
            the processes of a machine and removed when the fit ends.

    Raises:
        ConfigError: On a value that is none of these; at the start of a fit, if it stands before `GradualUnfreezing`.
    """

    state_form: ClassVar[dict[Any, Any]] = {
        "decided": {str: bool},
        "boundaries": ({str: str}, type(None)),
        "serving": [str],
        "sizes": {str: int},
    }

    def __init__(self, mode: bool | str = "auto", memory: float = 2.0) -> None:
        super().__init__()
        with at("FrozenFeatureCache"):
            check_number(memory, "memory", low=0)
            self.mode = check_choice(mode, "mode", MODES)
        self.memory = memory
        self.forget()

    def configure(self, mode: bool | str) -> None:
        """Sets whether it caches; takes effect with the next epoch."""
        self.mode = self._choices.mode = mode

    def forget(self) -> None:
        """Forgets what was served and decided in an earlier fit."""
        self.serving: list[str] = []
        """The parts, and the places within parts (``image/layer3``), whose outputs are served now."""
        self._choices = Choices(self.mode, self.memory * _GIB, self._report)
        self._sizes: dict[str, int] = {}  # split → size of the batches in which features are computed
        self._saved: list[str] | None = None  # what was served when a checkpoint was saved
        self._splits: list[Split] = []
        self._served: dict[str, ServedDataset] = {}
        self._store: FeatureStore | None = None
        self._watched: WatchedTensors | None = None  # weights and buffers that the served features depend on
        self._keys: list[str] = []  # of what is served, in the store
        self._seen: Any = None
        self._samples: dict[str, str] = {}
        self._reported: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the order of the callbacks."""
        super().setup(trainer, pl_module, stage)
        callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
        later = callbacks[callbacks.index(self) :]
        if any(isinstance(callback, GradualUnfreezing) for callback in later):
            raise ConfigError(
                "FrozenFeatureCache stands before GradualUnfreezing and would not see what it unfreezes. List "
                "GradualUnfreezing first.",
                "trainer.callbacks",
            )

    def state_dict(self) -> dict[str, Any]:
        """What has been decided, what is served, and in which batches it was computed."""
        made = self._choices
        return {"decided": made.decided, "boundaries": made.boundaries, "serving": self.serving, "sizes": self._sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Follows the decisions of an earlier process."""
        self._choices.decided = dict(state_dict["decided"])
        # not in checkpoints of an earlier version
        self._choices.boundaries = dict(state_dict.get("boundaries") or {})
        self._sizes = {split: max(1, size) for split, size in state_dict["sizes"].items()}
        self._saved = list(state_dict["serving"])

    # Starting

    def offer(self, network: HybridNetwork, features: Mapping[str, Tensor]) -> None:
        """Takes features that were computed before the first epoch: part → `(N, ...)` of all training samples."""
        for name, tensor in features.items():
            fingerprint = part_fingerprint(network, name)
            self._choices.offered[fingerprint] = tensor

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serves what is frozen in this epoch; the next iterators of the loaders take it."""
        network = network_of(trainer, pl_module)
        if network is None or self.mode is False:
            self._choices.offered.clear()
            return
        saved, self._saved = self._saved, None
        # an epoch that goes on is served as it was before
        only = (saved or []) if position(trainer) else None
        trains = training_parameters(trainer)
        if self._is_unchanged(trainer, trains) and only is None:
            return
        was_served = bool(self.serving)
        self._stop()
        self._start(trainer, pl_module, network, trains, only)
        if only is not None:
            self._seen = None  # the next epoch is served as it would have been
        if was_served or self.serving:
            self._renew_iterator(trainer)

    def _is_unchanged(self, trainer: Trainer, trains: set[nn.Parameter]) -> bool:
        """Whether all is as when it was decided what to serve."""
        is_same = self._seen == (trains, trainer.train_dataloader, trainer.val_dataloaders)
        is_same = is_same and (self._watched is None or self._watched.have_same_values())
        if is_same and self._splits:
            # a dataset may depend on the epoch
            is_same = samples_hashes(trainer, self._splits) == self._samples
        return trainer.strategy.reduce_boolean_decision(is_same) if trainer.world_size > 1 else is_same

    def _start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: HybridNetwork,
        trains: set[nn.Parameter],
        only: list[str] | None,
    ) -> None:
        unfreezing = unfreezing_of(trainer)
        batch_norm = {} if unfreezing is None else unfreezing.batch_norm
        with about_to_train(trains):
            modes = module_modes(pl_module, part_of_parameters(self.groups(trainer)), batch_norm)
            frozen = frozen_parts(network, trains, modes)
            partly = partly_frozen(network, trains)
            attempt = partial(self._attempt, trainer, pl_module, network, frozen, modes, only)
            failed = attempt(partly)
            if any(is_inside(place) for place in failed):
                # the parts that are frozen as a whole may still be served
                attempt([])
        self._seen = (trains, trainer.train_dataloader, trainer.val_dataloaders)
        self._choices.offered.clear()
        if self._store is not None:
            self._store.keep_only(self._keys)

    def _attempt(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: HybridNetwork,
        frozen: Sequence[str],
        modes: Mapping[nn.Module, bool],
        only: Collection[str] | None,
        partly: Sequence[str],
    ) -> list[str]:
        """Serves what can be and pays; what could not be, after all."""
        fixed = fixed_parts(network, frozen, ())
        parts = within(boundary(network, fixed), only)
        started = startable_parts(network, partly, fixed, ())
        if only is not None:
            started = within(started, parts_of(only))
        places = [*parts, *started]
        try:
            splits = splits_of(trainer, self._sizes) if places else []
            if not splits:
                return []
            scene = Scene(trainer, pl_module, network, splits, run_folder(trainer))
            may_pay = self._choices.may_pay(scene, parts)
            started = [name for name in started if self._choices.may_start(scene, name)]
            if may_pay or started:
                look = partial(cacheable, trainer, pl_module, network, frozen, started, splits)
                fixed, started, names = trainer.strategy.broadcast(together(trainer, look))
                scene = scene._replace(splits=[split for split in splits if split.name in names])
                places = self._choices.inside(scene, fixed, started, modes, only)
                with gathered(network):
                    places += self._choices.whole(scene, fixed, places, only)
                self._serve(scene, places)
        except CannotCacheError as problem:
            return self._fall_back(places, problem)
        return []

    def _fall_back(self, places: list[str], problem: CannotCacheError) -> list[str]:
        """Leaves places live, those within parts alone if there are any; returns them."""
        failed = [place for place in places if is_inside(place)] or places
        self._report(f"{', '.join(failed)} stays live: {problem}.")
        self._choices.give_up(failed)
        self._stop()
        return failed

    def _serve(self, scene: Scene, places: list[str]) -> None:
        trainer, pl_module, network, splits, folder = scene
        if not places:
            return
        self._samples = together(trainer, partial(samples_hashes, trainer, splits))
        if self._store is None:
            self._store = opened_store(trainer, folder, self.memory * _GIB, self._samples)
        served = {}
        with gathered(network):
            for split in splits:
                samples, offered = self._samples[split.name], self._choices.offered
                filling = Filling(trainer, pl_module, network, self._store, split, places, samples, offered)
                served[split.name] = filling.run()
                self._keys += filling.keys
        for split in splits:
            split.serve(served[split.name])
            self._sizes[split.name] = split.size
        self.serving, self._splits, self._served = places, list(splits), served
        self._watched = WatchedTensors(network, places)
        size = sum(dataset.feature_bytes for dataset in served.values())
        ahead = outlook(trainer, self._watched.tensors, splits)
        self._report(described(places, splits, size, ahead, self._choices.saved))

    def _report(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            rank_zero_info(f"cache: {line}")

    def _renew_iterator(self, trainer: Trainer) -> None:
        """Lets the iterator that was made before this epoch started take the dataset of now."""
        fetcher = data_fetcher(trainer)
        is_done = fetcher.done
        with own_random_state(trainer):
            fetcher.combined_loader.reset()
            iter(fetcher)
        fetcher.done = is_done

    # While it serves

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Takes features of parts that train by now out of the batch, and reads what they read."""
        network = getattr(pl_module, "network", None)
        if not isinstance(network, HybridNetwork) or not isinstance(batch, dict) or CACHED not in batch:
            return
        # most batches end here
        is_frozen = self._watched is None or not self._watched.any_trains()
        if is_frozen and batch[CACHED].keys() == set(self.serving):
            return
        trains = training_parameters(trainer)
        thawed = [place for place in self.serving if not trains.isdisjoint(all_tensors(network, place))]
        if thawed:
            for dataset in self._served.values():
                dataset.retire(thawed)
            self.serving = [place for place in self.serving if place not in thawed]
            self._seen = None
            self._reset_validation()
        for place in [place for place in batch[CACHED] if place not in self.serving]:
            del batch[CACHED][place]
        missing = live_keys(network, batch[CACHED]) - set(batch)
        if missing:
            self._add_raw(trainer, pl_module, batch, missing)

    def _reset_validation(self) -> None:
        """Ends workers of validation loaders that hold the former dataset; puts back those of which nothing is left."""
        for split in self._splits:
            if not split.is_training and self.serving:
                split.serve(self._served[split.name])
            elif not split.is_training:
                split.restore()

    def _add_raw(self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], keys: set[str]) -> None:
        """Adds entries of the raw samples to a batch that was made before they were needed."""
        split = self._splits[0]
        with own_random_state(trainer):
            raw = split.read(batch[CACHED_INDEX].tolist())
            moved = next(batches_on_device(trainer, pl_module, [raw]))
        for key in keys & set(moved):
            batch[key] = moved[key]

    # Ending

    def _stop(self) -> None:
        """Puts back the datasets."""
        for split in self._splits:
            split.restore()
        self.serving, self._splits, self._served = [], [], {}
        self._watched, self._keys, self._seen = None, [], None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts back the datasets, and removes the files of features."""
        self._end()
        if self._store is not None:
            self._store.keep_only(())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts back the datasets; a restart finds the files."""
        self._end()

    def _end(self) -> None:
        # a checkpoint that is written from now on still says what was served
        serving = self.serving
        self._stop()
        self.serving = serving
