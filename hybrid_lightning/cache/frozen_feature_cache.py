"""A cache for what frozen parts make of the samples: computed once, served in every epoch."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hybrid_lightning.cache.boundaries import about_to_train
from hybrid_lightning.cache.choices import Choices, stay_live, within
from hybrid_lightning.cache.decision import described, outlook, training_parameters, unfreezing_of
from hybrid_lightning.cache.filling import together
from hybrid_lightning.cache.fingerprints import part_fingerprint, tensors_of
from hybrid_lightning.cache.frozen_parts import (
    boundary,
    fixed_parts,
    frozen_parts,
    partly_frozen,
    startable_parts,
)
from hybrid_lightning.cache.options import CacheOptions
from hybrid_lightning.cache.ranks import gathered, opened_store, run_folder
from hybrid_lightning.cache.serving import Serving
from hybrid_lightning.cache.splits import CannotCacheError, Scene, View, network_of, samples_hashes, splits_of
from hybrid_lightning.cache.store import FeatureStore
from hybrid_lightning.cache.variation import cacheable, seed_of
from hybrid_lightning.drift.reference_batch import own_random_state
from hybrid_lightning.errors import ConfigError, at, check_number
from hybrid_lightning.lightning_private import data_fetcher
from hybrid_lightning.network.batch import CACHED
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.short_circuit import is_inside, parts_of
from hybrid_lightning.resume.replay import position
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.unfreezing.freezing import module_modes
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.timeline import part_of_parameters

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

    With `views`, training samples that are read with random transforms are kept in so many versions: version v of a
    sample is drawn from the run's seed, v and the sample's index, and while something is served, epoch e reads the
    versions e modulo `views` of all samples, with their other entries. They cannot repeat what changes whole batches on
    the device, a dataset that reads whole batches, or one that draws from a generator of its own.

    Works with a plain `DataLoader` over any dataset that is read by index, on one device, under ``ddp``, and, for parts
    that are frozen as a whole, under ``fsdp2``; all else, validate, test and predict, and modules that are no
    `HybridTask`, stay untouched. Callbacks of your own that read the raw entries of training batches need ``false``.

    Nothing is logged; a line says what is served, or why nothing is.

    Args:
        mode: ``auto`` decides once, on the first rank, from counts and a first timing, whether that saves time; a
            restart follows. True caches whatever can be, False nothing.
        memory: GiB of features that each process keeps in memory; more are files in the folder of the run, shared by
            the processes of a machine and removed when the run ends.
        views: Versions of each training sample that are kept where reading it draws random numbers, 1 to 64; None
            keeps nothing there. ``auto`` needs more epochs than views.

    Raises:
        ConfigError: On a value that is none of these; at the start of a run, if it stands before `GradualUnfreezing`.
    """

    state_form: ClassVar[dict[Any, Any]] = {
        "decided": {str: bool},
        "boundaries": ({str: str}, type(None)),
        "serving": [str],
        "sizes": {str: int},
        # not in checkpoints of an earlier version
        "views": (int, type(None)),
        "viewed": ([str], type(None)),
    }

    def __init__(self, mode: bool | str = "auto", memory: float = 2.0, views: int | None = None) -> None:
        super().__init__()
        with at("FrozenFeatureCache"):
            check_number(memory, "memory", low=0)
            CacheOptions(mode, views).check()
        self.mode = mode
        self.memory = memory
        self.views = views
        self.forget()

    def configure(self, mode: bool | str) -> None:
        """Sets whether it caches; takes effect with the next epoch."""
        self.mode = self._choices.mode = mode

    def forget(self) -> None:
        """Forgets what was served and decided in an earlier fit."""
        self._serving = Serving()
        self._choices = Choices(self.mode, self.memory * _GIB, self._report, self.views)
        self._sizes: dict[str, int] = {}  # split → size of the batches in which features are computed
        self._saved: list[str] | None = None  # what was served when a checkpoint was saved
        self._saved_viewed: list[str] = []
        self._store: FeatureStore | None = None
        self._seen: Any = None
        self._samples: dict[str, str] = {}
        self._reported: set[str] = set()

    @property
    def serving(self) -> list[str]:
        """The parts, and the places within parts (``image/layer3``), whose outputs are served now."""
        return self._serving.places

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
        return {
            "decided": made.decided,
            "boundaries": made.boundaries,
            "serving": self.serving,
            "sizes": self._sizes,
            "views": self.views,
            "viewed": self._serving.viewed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Follows the decisions of an earlier process, unless they were about another number of views."""
        self._saved = []
        if state_dict.get("views") != self.views:
            return
        self._choices.decided = dict(state_dict["decided"])
        # not in checkpoints of an earlier version
        self._choices.boundaries = dict(state_dict.get("boundaries") or {})
        self._sizes = {split: max(1, size) for split, size in state_dict["sizes"].items()}
        self._saved = list(state_dict["serving"])
        self._saved_viewed = list(state_dict.get("viewed") or [])

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
        was_served = self._is_serving()
        self._stop()
        self._start(trainer, pl_module, network, trains, only)
        if only is not None:
            self._seen = None  # the next epoch is served as it would have been
        if was_served or self._is_serving():
            self._renew_iterator(trainer)

    def _is_serving(self) -> bool:
        return bool(self._serving.places or self._serving.viewed)

    def _is_unchanged(self, trainer: Trainer, trains: set[nn.Parameter]) -> bool:
        """Whether all is as when it was decided what to serve."""
        is_same = self._seen == (trains, trainer.train_dataloader, trainer.val_dataloaders)
        watched, splits = self._serving.watched, self._serving.splits
        is_same = is_same and (watched is None or watched.have_same_values())
        if is_same and splits:
            # a dataset may depend on the epoch
            is_same = samples_hashes(trainer, splits) == self._samples
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
            self._store.keep_only(self._serving.keys)

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
        viewed = [] if only is None else self._saved_viewed
        if only is not None:
            started = within(started, parts_of(only))
        places = [*parts, *started]
        try:
            splits = splits_of(trainer, self._sizes) if places or viewed else []
            if not splits:
                return []
            scene = Scene(trainer, pl_module, network, splits, run_folder(trainer))
            may_pay = self._choices.may_pay(scene, parts)
            started = [name for name in started if self._choices.may_start(scene, name)]
            if may_pay or started:
                look = partial(cacheable, trainer, pl_module, network, frozen, started, splits, self.views)
                found = trainer.strategy.broadcast(together(trainer, look))
                scene = scene._replace(splits=found.chosen(splits))
                places = self._choices.inside(scene, found.fixed, found.started, modes, only)
                with gathered(network):
                    places += self._choices.whole(scene, found.fixed, places, only)
                self._serve(scene, places, viewed)
            elif viewed:
                # all of it trains by now, but the epoch goes on with the versions with which it began
                splits[0].view = View(seed_of(trainer), 0, self.views or 1)
                self._serve(scene._replace(splits=splits[:1]), [], viewed)
        except CannotCacheError as problem:
            return self._fall_back(places or viewed, problem)
        return []

    def _fall_back(self, places: list[str], problem: CannotCacheError) -> list[str]:
        """Leaves places live, those within parts alone if there are any; returns them."""
        failed = [place for place in places if is_inside(place)] or places
        self._report(f"{stay_live(failed)}: {problem}.")
        self._choices.give_up(failed)
        self._stop()
        return failed

    def _serve(self, scene: Scene, places: list[str], viewed: list[str]) -> None:
        """Serves these; `viewed` are those with which an epoch began that goes on with versions of samples."""
        trainer = scene.trainer
        if not places and not viewed:
            return
        self._samples = together(trainer, partial(samples_hashes, trainer, scene.splits))
        if self._store is None:
            self._store = opened_store(trainer, scene.folder, self.memory * _GIB, self._samples)
        serving = Serving(places, scene.splits, viewed)
        serving.start(scene, self._store, self._samples, self._choices.offered)
        self._serving = serving
        for split in scene.splits:
            self._sizes[split.name] = split.size
        if places:
            ahead = outlook(trainer, tensors_of(scene.network, places), scene.splits)
            self._report(described(places, scene.splits, serving.feature_bytes, ahead, self._choices.saved))

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
        if self._serving.fits(batch):
            return
        if self._serving.retire(network, training_parameters(trainer)):
            self._seen = None
        self._serving.complete(trainer, pl_module, network, batch)

    # Ending

    def _stop(self) -> None:
        """Puts back the datasets."""
        self._serving.stop()
        self._serving = Serving()
        self._seen = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts back the datasets, and removes the files of features."""
        # a checkpoint that is written from now on still says what was served
        self._serving.stop()
        if self._store is not None:
            self._store.keep_only(())

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts back the datasets; a restart finds the files."""
        self._serving.stop()
