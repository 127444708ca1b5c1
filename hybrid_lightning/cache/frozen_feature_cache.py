"""A cache for what frozen parts make of the samples: computed once, served in every epoch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from hybrid_lightning.cache.decision import (
    FEWEST_READS,
    Outlook,
    described,
    measure,
    outlook,
    pays,
    saving,
    training_parts,
    unfreezing_of,
)
from hybrid_lightning.cache.filling import Filling, together
from hybrid_lightning.cache.fingerprints import digest, part_tensors
from hybrid_lightning.cache.frozen_parts import boundary, fixed_parts, frozen_parts, live_keys
from hybrid_lightning.cache.served import ServedDataset
from hybrid_lightning.cache.splits import CannotCacheError, Split, cacheable, network_of, samples_hash, splits_of
from hybrid_lightning.cache.store import FeatureStore
from hybrid_lightning.drift.reference_batch import batches_on_device, own_random_state
from hybrid_lightning.errors import ConfigError, at, check_choice, check_number
from hybrid_lightning.lightning_private import data_fetcher, write_count
from hybrid_lightning.network.batch import CACHED, CACHED_INDEX
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.resume.replay import position
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.unfreezing.freezing import module_modes
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.timeline import part_of_parameters

MODES = ("auto", True, False)
_GIB = 2**30


class FrozenFeatureCache(FitCallback):
    """Computes what frozen parts make of the training and validation samples once, and serves it in every epoch.

    It works in a `HybridTask`, for each part, or chain of parts, that is frozen as a whole and reads entries which are
    the same in every epoch: no random transforms, no augmentation of batches. Their batches then hold features in place
    of what only these parts read, which is neither loaded nor decoded. Order, random numbers and exact resume are those
    of a fit without it; features agree with those of a live forward, which is verified on two batches, to 1e-5 of the
    largest in float32. When a part unfreezes, its samples are read again, from the very next batch on.

    Works with a plain `DataLoader` over any dataset that is read by index; all others, other strategies than one device
    and ``ddp``, validate, test and predict, and modules that are no `HybridTask`, stay untouched. Callbacks of your own
    that read the raw entries of training batches need ``false``.

    Nothing is logged; a line says what is served, or why nothing is.

    Args:
        mode: ``auto`` decides once, on the first rank, from counts and a first timing, whether that saves time; a
            restart follows. True caches whatever can be, False nothing.
        memory: GiB of features that each process keeps in memory; more are files in the folder of the run, which are
            removed when the fit ends.

    Raises:
        ConfigError: On a value that is none of these; at the start of a fit, if it stands before `GradualUnfreezing`.
    """

    state_form: ClassVar[dict[Any, Any]] = {"decided": {str: bool}, "serving": [str], "sizes": {str: int}}

    def __init__(self, mode: bool | str = "auto", memory: float = 2.0) -> None:
        super().__init__()
        with at("FrozenFeatureCache"):
            check_number(memory, "memory", low=0)
            self.configure(check_choice(mode, "mode", MODES))
        self.memory = memory
        self.forget()

    def configure(self, mode: bool | str) -> None:
        """Sets whether it caches; takes effect with the next epoch."""
        self.mode = mode

    def forget(self) -> None:
        """Forgets what was served and decided in an earlier fit."""
        self.serving: list[str] = []
        """The parts whose features are served now."""
        self._decided: dict[str, bool] = {}
        self._sizes: dict[str, int] = {}  # split → size of the batches in which features are computed
        self._saved: list[str] | None = None  # what was served when a checkpoint was saved
        self._splits: list[Split] = []
        self._served: dict[str, ServedDataset] = {}
        self._store: FeatureStore | None = None
        self._tensors: list[Tensor] = []  # weights and buffers that the served features depend on
        self._watched: list[Tensor] = []  # one of each of their groups
        self._written: list[tuple[int, int]] = []
        self._weights = ""  # hash of them
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
        return {"decided": self._decided, "serving": self.serving, "sizes": self._sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Follows the decisions of an earlier process."""
        self._decided = dict(state_dict["decided"])
        self._sizes = {split: max(1, size) for split, size in state_dict["sizes"].items()}
        self._saved = list(state_dict["serving"])

    # Starting

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Serves what is frozen in this epoch; the next iterators of the loaders take it."""
        network = network_of(trainer, pl_module)
        if network is None or self.mode is False:
            return
        saved, self._saved = self._saved, None
        # an epoch that goes on is served as it was before
        only = (saved or []) if position(trainer) else None
        trains = training_parts(trainer)
        if self._is_unchanged(trainer, trains) and only is None:
            return
        was_served = bool(self.serving)
        self._stop()
        self._start(trainer, pl_module, network, trains, only)
        if only is not None:
            self._seen = None  # the next epoch is served as it would have been
        if was_served or self.serving:
            self._renew_iterator(trainer)

    def _is_unchanged(self, trainer: Trainer, trains: set[str]) -> bool:
        """Whether all is as when it was decided what to serve."""
        is_same = self._seen == (trains, trainer.train_dataloader, trainer.val_dataloaders)
        if is_same and self._writes() != self._written:
            # such as by DDP, which sends buffers in every step
            is_same = digest(self._tensors) == self._weights
            self._written = self._writes()
        for split in self._splits if is_same else ():
            # a dataset may depend on the epoch
            is_same = is_same and samples_hash(trainer, split) == self._samples[split.name]
        return trainer.strategy.reduce_boolean_decision(is_same) if trainer.world_size > 1 else is_same

    def _writes(self) -> list[tuple[int, int]]:
        """Numbers that change when somebody writes to the weights or buffers, or replaces them."""
        return [(tensor.data_ptr(), write_count(tensor)) for tensor in self._tensors]

    def _start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: HybridNetwork,
        trains: set[str],
        only: list[str] | None,
    ) -> None:
        unfreezing = unfreezing_of(trainer)
        batch_norm = {} if unfreezing is None else unfreezing.batch_norm
        modes = module_modes(pl_module, part_of_parameters(self.groups(trainer)), batch_norm)
        frozen = frozen_parts(network, trains, modes)
        parts: list[str] = []
        try:
            parts = boundary(network, fixed_parts(network, frozen, ()))
            if only is not None:
                parts = [name for name in parts if name in only]
            splits = splits_of(trainer, self._sizes) if parts else []
            if splits and self._may_pay(trainer, frozen, parts, splits):
                parts, splits = together(trainer, lambda: cacheable(trainer, pl_module, network, frozen, splits))
                parts = [name for name in parts if only is None or name in only]
                self._serve(trainer, pl_module, network, frozen, parts, splits)
        except CannotCacheError as problem:
            self._report(f"{', '.join(parts)} stays live: {problem}.")
            self._decided.update(dict.fromkeys(parts, False))
            self._stop()
        self._seen = (trains, trainer.train_dataloader, trainer.val_dataloaders)
        if self._store is not None:
            self._store.keep_only(self._keys)

    def _may_pay(self, trainer: Trainer, frozen: Sequence[str], parts: Sequence[str], splits: Sequence[Split]) -> bool:
        """Whether there is something to decide or to serve."""
        if self.mode is True:
            return True
        undecided = [name for name in parts if name not in self._decided]
        if undecided:
            ahead = outlook(trainer, frozen, splits)
            rows = sum(split.rows for split in splits)
            is_short = ahead.reads < max(FEWEST_READS, 2 * rows / trainer.world_size)
            if trainer.strategy.broadcast(is_short):
                # so short a fit is not worth a line either
                self._decided.update(dict.fromkeys(undecided, False))
        return any(self._decided.get(name, True) for name in parts)

    def _serve(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: HybridNetwork,
        frozen: Sequence[str],
        parts: list[str],
        splits: list[Split],
    ) -> None:
        parts, names = trainer.strategy.broadcast((parts, [split.name for split in splits]))
        splits = [split for split in splits if split.name in names]
        ahead = outlook(trainer, frozen, splits)
        saved = self._decide(trainer, pl_module, network, parts, splits, ahead)
        parts = [name for name in parts if self._decided[name]]
        if not parts:
            return
        store = self._opened_store(trainer)
        served = {}
        for split in splits:
            self._samples[split.name] = together(trainer, partial(samples_hash, trainer, split))
            filling = Filling(trainer, pl_module, network, store, split, parts, self._samples[split.name])
            served[split.name] = filling.run()
            self._keys += filling.keys
        for split in splits:
            split.serve(served[split.name])
            self._sizes[split.name] = split.size
        self.serving, self._splits, self._served = parts, splits, served
        needed = network.wiring.needed((), parts)
        for name in sorted(needed):
            self._tensors += part_tensors(network, name).values()
        self._written, self._weights = self._writes(), digest(self._tensors)
        self._watched = [group["params"][0] for group in self.groups(trainer) if group["part"] in needed]
        size = sum(dataset.feature_bytes for dataset in served.values())
        self._report(described(parts, splits, size, ahead, saved))

    def _opened_store(self, trainer: Trainer) -> FeatureStore:
        if self._store is None:
            folder = trainer.strategy.broadcast(str(trainer.log_dir or trainer.default_root_dir))
            # each rank writes files of its own, as a machine may share no disk with the others
            own = Path(folder) / f"feature_cache_{trainer.global_rank}"
            self._store = FeatureStore(own, self.memory * _GIB)
        return self._store

    def _decide(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        network: HybridNetwork,
        parts: Sequence[str],
        splits: Sequence[Split],
        ahead: Outlook,
    ) -> float | None:
        """Decides, on the first rank, about parts of which nothing is decided yet; the seconds that it saves."""
        undecided = [name for name in parts if name not in self._decided]
        if self.mode is True:
            self._decided.update(dict.fromkeys(parts, True))
            return None
        if not undecided:
            return None
        seconds = together(trainer, lambda: measure(trainer, pl_module, network, splits[0], undecided))
        saved: float = trainer.strategy.broadcast(saving(trainer, ahead, seconds, splits))
        self._decided.update(dict.fromkeys(undecided, pays(saved)))
        if not pays(saved):
            self._report(f"{', '.join(undecided)} stays live: serving features would save {max(saved, 0):.1f} s.")
        return saved

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
        is_frozen = not any(parameter.requires_grad for parameter in self._watched)
        if is_frozen and batch[CACHED].keys() == set(self.serving):
            return
        trains = training_parts(trainer)
        thawed = [name for name in self.serving if network.wiring.needed((), [name]) & trains]
        if thawed:
            for dataset in self._served.values():
                dataset.retire(thawed)
            self.serving = [name for name in self.serving if name not in thawed]
            self._seen = None
            self._reset_validation()
        for name in [name for name in batch[CACHED] if name not in self.serving]:
            del batch[CACHED][name]
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
        self._tensors, self._watched, self._keys, self._seen = [], [], [], None

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
