"""A LightningModule around a hybrid network: builds it, groups its parameters, optimizes, saves and restores it."""

from abc import ABC
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from hybrid_lightning.data.loaders import example_batch
from hybrid_lightning.distributed.fsdp2 import shard_if_asked
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.gradients.step import shared_pass
from hybrid_lightning.lightning_private import BatchCheckingModule
from hybrid_lightning.network.batch import first_samples
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import Part
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.optim.factory import make_optimizer, make_scheduler
from hybrid_lightning.optim.lr_schedules import GroupLR, GroupRates
from hybrid_lightning.resume.own_files import rebuild_paths
from hybrid_lightning.tasks.changed_config import (
    adapt_checkpoint,
    all_settings,
    apply_current_settings,
    describe_changes,
    refuse_damaged_state,
    set_position,
)
from hybrid_lightning.tasks.checkpoint import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    group_names,
    refuse_other_model,
    task_name,
)
from hybrid_lightning.tasks.default_callbacks import (
    configure_callbacks,
    default_callbacks,
    merge_callbacks,
)
from hybrid_lightning.tasks.init_from import StartTensors
from hybrid_lightning.tasks.plan import training_plan
from hybrid_lightning.tasks.settings import TaskSettings, recorded
from hybrid_lightning.trainer import fit_length

_FUSED_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
_OF_OBJECTIVES = ("make_metrics", "check_target", "loss_weight", "prediction_columns", "contribution")
"""Methods that tasks had before there were objectives, where ``make_metrics`` is called ``metrics``."""
Groups = list[dict[str, Any]]


class NetworkModule(BatchCheckingModule, ABC):
    """Owns a `HybridNetwork` and its optimizer; what the outputs mean, and the steps, are left to `HybridTask`.

    Args:
        settings: How it trains.
        parts: Name → options; with a head.
        fusion: Options of the fusion.
        outputs: Number of outputs of the head.
    """

    def __init__(self, settings: TaskSettings, parts: dict[str, Part], fusion: Part, outputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.parts = parts
        self.fusion = fusion
        self.outputs = outputs
        self.network: HybridNetwork | None = None
        self.reads_weights = True
        """Whether the parts' weights are read when the Trainer builds the network; False if a checkpoint follows."""
        self.on_group_change = "error"
        """What a fit does with a checkpoint of other groups or another optimizer: ``error``; ``weights_only`` takes the
        weights that match and starts at step 0; ``match`` also keeps the optimizer state that matches, and goes on."""
        self._record: Mapping[str, Any] | None = None
        self._trust: Collection[str] | None = None
        self._own_callbacks: list[pl.Callback] = []
        self._restored_settings: dict[str, Any] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        moved = [name for name in _OF_OBJECTIVES if name in vars(cls)]
        if moved:  # they would never be called
            raise TypeError(f"{cls.__name__}: {listing(moved)} belong to the task's Objective, see docs/own_task.md.")
        if "__init__" in vars(cls):
            # the arguments of a user's own task reach the checkpoint without being named there
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    # Building

    def build(
        self,
        example: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        load: bool = True,
        hints: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """Builds the network; the Trainer does it by itself when it starts.

        Args:
            example: A batch; two samples of it are used to infer sizes.
            record: Sizes and stages of an earlier network instead of an example.
            load: Whether the parts' weights are read.
            hints: Key of the batch → arguments that parts which read it may leave out, such as the
                ``inferred_arguments`` of a DataModule.
        """
        source = self.settings.init_from
        start = None
        if source is not None and load and record is None:
            start = StartTensors.read(source, [*self.parts, "fusion"])
        common: dict[str, Any] = {
            "fusion": self.fusion,
            "trust": self._trust,
            "part_heads": self.settings.part_heads is not False,
            "part_weight": self.settings.part_weight,
        }
        if record is not None:
            with at("checkpoint.network"):
                parsed = NetworkRecord.parse(record)
            self.network = rebuild(self.parts, self.outputs, parsed, **common)
        else:
            assert example is not None, "a new network needs an example batch"
            two = first_samples(example)
            known = () if start is None else start.parts
            self.network = build(self.parts, self.outputs, two, load=load, initialized=known, inferred=hints, **common)
        if start is not None:
            self.network.weight_reports["init_from"] = start.load_into(self.network)
        self.on_built(start)
        return self

    def on_built(self, start: StartTensors | None) -> None:
        """For subclasses: the network is there, with the weights of `start`, if that is given."""

    def rebuild(self, record: Mapping[str, Any], trust: Collection[str]) -> None:
        """Builds the network of a checkpoint without data.

        Args:
            record: What the checkpoint has of the network.
            trust: Packages that the file may name, see `resolve`; also for the optimizer of a later fit.
        """
        self._trust = trust
        self.build(record=dict(record), load=False)

    def rebuild_as(self, saved: Mapping[str, Any]) -> None:
        """Makes the Trainer build the network as it was in a checkpoint, and not along the data at hand.

        Other data may lack other parts, and give other sizes. If the checkpoint is of other parts, nothing changes.

        Args:
            saved: What a task added to the checkpoint.
        """
        is_same = self._plain_parts() == saved["parts"] and self.fusion.plain() == saved["fusion"]
        if is_same and saved.get("outputs") == self.outputs:
            self._record = saved["network"]
            sizes = self._record["sizes"]
            if "fusion" in sizes and "part_heads" not in sizes:
                self._give_up_part_heads()

    def build_for(self, data: Any, example: Callable[[], Mapping[str, Any]], load: bool = True) -> None:
        """Builds the network as the checkpoint of `rebuild_as`, or else along an example of the data.

        Args:
            data: A DataModule; its ``inferred_arguments``, if it has them, are arguments that parts may leave out.
            example: Gives a batch.
            load: Whether the parts' weights are read.
        """
        if self._record is not None:
            self.build(record=self._record, load=False)
        else:
            self.build(example(), load=load, hints=getattr(data, "inferred_arguments", None))

    def built(self) -> HybridNetwork:
        """The network; `ConfigError` if it has not been built yet."""
        if self.network is None:
            raise ConfigError("The network's sizes are not known yet. Call model.build(batch), or start a Trainer.")
        return self.network

    @property
    def parts_with_heads(self) -> list[str]:
        """The parts that have a head of their own."""
        network = self.built()
        return list(network.feeding) if "part_heads" in network.parts else []

    def configure_model(self) -> None:
        """Builds the network from two samples of the data, unless it exists."""
        self._restored_settings = None  # of a checkpoint with which an earlier fit failed
        if self.network is None:
            data = getattr(self.trainer, "datamodule", None)
            self.build_for(data, lambda: example_batch(self.trainer), load=self.reads_weights)
        network = self.built()
        groups = self.param_groups()  # before sharding, which replaces the parameters
        shard_if_asked(self.trainer.strategy, network, groups)
        # so that fully_shard gathers the parameters for this method, too; without sharding nothing changes
        register_fsdp_forward_method(network, "forward_parts")
        with_parameters = {group["part"] for group in groups}
        options = {name: part for name, part in network.options.items() if name in with_parameters}
        configure_callbacks(self._own_callbacks, options)
        network.compile_parts()
        if self.trainer.state.fn == "fit":
            self.train()  # a rebuilt model arrives in eval mode

    def configure_callbacks(self) -> list[pl.Callback]:
        """Unfreezing, gradient health, exact resume; a callback of the same type in the Trainer takes its place."""
        if not self._own_callbacks:
            options = [*self.parts.values(), self.fusion]
            self._own_callbacks = default_callbacks(options, self.settings.unfreezing or {})
        return merge_callbacks(self.trainer.callbacks, self._own_callbacks)  # type: ignore[attr-defined]

    def param_groups(self) -> Groups:
        """The named groups of today's settings, newly made: an optimizer that takes them changes them."""
        return self.built().param_groups(self.settings.lr, self.settings.weight_decay)

    def configure_optimizers(self) -> Any:
        """One optimizer over all parameters in named groups, and the course of their rates."""
        precision = self.trainer.precision
        return self.optimization(fused=precision in _FUSED_PRECISIONS, scaled=precision == "16-mixed")

    def optimization(self, fused: bool = False, scaled: bool = False) -> dict[str, Any]:
        """The optimizer and its scheduler, as Lightning takes them; for the arguments see `make_optimizer`."""
        settings = self.settings
        optimizer = make_optimizer(
            settings.optimizer, self.param_groups(), fused=fused, scaled=scaled, trust=self._trust
        )
        if settings.scheduler:
            scheduler = make_scheduler(settings.scheduler, optimizer, self._trust, settings.lr)
        else:
            scheduler = {"scheduler": GroupRates(optimizer, **(settings.rates or {})), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the Trainer's ``gradient_clip_val``, with the pass that measures."""
        if not gradient_clip_val:
            return
        gradients = shared_pass(self.trainer, "trainer.gradient_clip_val")
        if gradient_clip_algorithm == "value":
            gradients.clip_value(gradient_clip_val)
        else:
            gradients.clip_norm(gradient_clip_val)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the scheduler, unless it waits for a metric: then each validation does."""
        if not getattr(scheduler, "by_metric", False):
            super().lr_scheduler_step(scheduler, metric)

    # The start of a fit

    def on_train_start(self) -> None:
        """Sets the length of the fit and prints the plan."""
        length = fit_length(self.trainer)
        limit = self.trainer.gradient_clip_val or 0
        if limit < 0:
            raise ConfigError(f"{limit} is negative; 0 clips nothing.", "trainer.gradient_clip_val")
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, GroupLR):
            self._apply_settings(scheduler, length)
            if getattr(scheduler, "by_metric", False) and not self.trainer.enable_validation:
                raise ConfigError("ReduceLROnPlateau needs a validation split, and there is none.", "model.scheduler")
            scheduler.bind(length)
        plan = self.plan(self.trainer.optimizers[0].param_groups, self.trainer, length)
        self._print(plan)

    def _apply_settings(self, scheduler: GroupLR, length: FitLength) -> None:
        """After a checkpoint was restored: today's settings hold, and what has changed is printed."""
        old, self._restored_settings = self._restored_settings, None
        if old is None:
            return
        new = all_settings(self._saved())
        apply_current_settings(self.trainer.optimizers[0], self.param_groups(), old, new)
        set_position(scheduler, self.trainer.global_step, length)
        self._print(*describe_changes(old, new, self.trainer.current_epoch))

    def _print(self, *lines: str) -> None:
        """Prints lines on the first rank alone."""
        if lines and self.trainer.is_global_zero:
            print(*lines, sep="\n")

    def plan(self, groups: Groups, trainer: pl.Trainer, length: FitLength) -> str:
        """The table of parts and stages, their rates, and when each starts to train; see `training_plan`."""
        return training_plan(self.built(), groups, trainer, length)

    # Checkpoints

    def saved_settings(self) -> dict[str, Any]:
        """The arguments with which this module can be made again, apart from its parts, as plain data."""
        return self.settings.plain()

    def _plain_parts(self) -> dict[str, dict[str, Any]]:
        return {name: part.plain() for name, part in self.parts.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a rebuild needs, as plain data."""
        checkpoint[CHECKPOINT_KEY] = self._saved()

    def _saved(self) -> dict[str, Any]:
        network = self.built()
        return {
            "version": CHECKPOINT_VERSION,
            "task": task_name(type(self)),
            "settings": self.saved_settings(),
            "parts": self._plain_parts(),
            "fusion": self.fusion.plain(),
            "outputs": self.outputs,
            "network": network.record.plain(),
            "groups": group_names(network, self.param_groups()),
        }

    def follow_part_heads(self, state: Mapping[str, Any]) -> None:
        """Leaves the parts' own heads out if a checkpoint has none.

        Args:
            state: The checkpoint's ``state_dict``.
        """
        is_saved = any(name.startswith("network.parts.part_heads.") for name in state)
        if state and not is_saved and self.parts_with_heads:
            self.built().leave_out_part_heads()
            self._give_up_part_heads()

    def _give_up_part_heads(self) -> None:
        if self.settings.part_heads is not False:
            self.settings = replace(self.settings, part_heads=False)
            rank_zero_info("part_heads: the checkpoint has none, so there are none now.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another model, before anything is restored; a fit may take what matches."""
        is_fit = self.trainer.state.fn == "fit"
        rebuild_paths(self.trainer, checkpoint)
        state = checkpoint.get("state_dict", {})
        if not (is_fit and self.settings.part_weight):  # of heads that train the parts, a lack is a change
            self.follow_part_heads(state)
        if not is_fit:
            refuse_other_model(self.state_dict(), state)
            return
        made = self.configure_optimizers()  # of a subclass perhaps several
        optimizer = made["optimizer"] if isinstance(made, Mapping) else made
        self._restored_settings, lines = adapt_checkpoint(
            checkpoint, self.state_dict(), self._saved(), optimizer, self.on_group_change, self.trainer
        )
        if self._restored_settings is not None and isinstance(optimizer, torch.optim.Optimizer):
            refuse_damaged_state(checkpoint, optimizer, self.built(), self._optimizer_over, self.trainer)
        self._print(*lines)

    def _optimizer_over(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer of today's kind over other parameters, on any device."""
        group = {**self.param_groups()[0], "params": parameters}
        return make_optimizer(self.settings.optimizer, [group], fused=False, trust=self._trust)
