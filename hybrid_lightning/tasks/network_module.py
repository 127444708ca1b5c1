"""A LightningModule around a hybrid network: builds it, groups its parameters, optimizes, saves and restores it."""

from abc import ABC
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import torch
from lightning.pytorch import Trainer
from torch.distributed.fsdp import register_fsdp_forward_method

from hybrid_lightning.data.loaders import example_batch
from hybrid_lightning.distributed.fsdp2 import shard_if_asked
from hybrid_lightning.distributed.ranks import first_of_node_before_others
from hybrid_lightning.distributed.strategies import refuse_strategy
from hybrid_lightning.errors import ConfigError, at, printable
from hybrid_lightning.gradients.step import shared_pass
from hybrid_lightning.lightning_private import BatchCheckingModule, skip_empty_hooks
from hybrid_lightning.network.batch import Batch, first_samples
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import Part
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.network.selection import serve
from hybrid_lightning.optim.factory import make_optimizer, make_scheduler
from hybrid_lightning.optim.lr_schedules import GroupLR, GroupRates
from hybrid_lightning.optim.training_groups import step_what_trains
from hybrid_lightning.resume.own_files import rebuild_paths
from hybrid_lightning.tasks.best_checkpoint import follow_main_metric, keep_followed_metric
from hybrid_lightning.tasks.building import building, example_as_given, in_given_precision
from hybrid_lightning.tasks.checkpoint import (
    calibrate,
    group_names,
    is_same_network,
    measure_average,
    network_record,
    refuse_other_model,
    serve_selection,
    task_name,
)
from hybrid_lightning.tasks.continuing import adapt_to_fit
from hybrid_lightning.tasks.default_callbacks import (
    cache_options,
    default_callbacks,
    give_options,
    merge_callbacks,
    require_callbacks,
)
from hybrid_lightning.tasks.evaluation import Evaluator
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY, CHECKPOINT_VERSION, translated
from hybrid_lightning.tasks.init_from import StartTensors
from hybrid_lightning.tasks.monitored import directions_of
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.settings import TaskSettings, check_plain, prepare_subclass
from hybrid_lightning.tasks.trials import is_trial, keep_shares
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.weights.loading import WeightSource

_FUSED_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
Groups = list[dict[str, Any]]
Saved = Mapping[str, Any]
"""What a task added to a checkpoint, or an entry of it."""


class NetworkModule(BatchCheckingModule, ABC):
    """Owns a `HybridNetwork`, its optimizer and its objective; the steps are left to `HybridTask`."""

    def __init__(
        self,
        settings: TaskSettings,
        parts: dict[str, Part],
        fusion: Part,
        objective: Objective,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.parts = parts
        self.fusion = fusion
        self.objective = objective
        self.evaluator = Evaluator(objective.metrics)
        self.network: HybridNetwork | None = None
        self.reads_weights = True
        """Whether the parts' weights are read when the Trainer builds the network; False if a checkpoint follows."""
        self.on_group_change = "error"
        """What a run does with a checkpoint of other groups or another optimizer: ``error``; ``weights_only`` takes the
        weights that match and starts at step 0; ``match`` also keeps the optimizer state that matches, and goes on."""
        self.serves_selection = True
        """Whether a checkpoint's selection is served, calibrated; False takes its joint network as it was trained."""
        self._record: NetworkRecord | None = None
        self.trust: Collection[str] | None = None
        self._own_callbacks: list[FitCallback] = []
        self.is_started = False
        """Whether the network is no longer as it was built, so that ``start: probe`` leaves it alone."""
        self._restored_settings: dict[str, Any] | None = None
        # at once, because a run whose checkpoint cannot be written is lost
        with at("model"):
            check_plain({**self.saved_settings(), **self._plain_network()})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        prepare_subclass(cls, NetworkModule)

    # Building

    def build(
        self,
        example: Batch,
        load: bool = True,
        hints: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Self:
        """Builds the network; the Trainer does it by itself when it starts.

        Args:
            example: A batch; two samples of it are used to infer sizes.
            load: Whether the parts' weights are read.
            hints: Key of the batch → arguments that parts which read it may leave out, such as the
                ``inferred_arguments`` of a DataModule.
        """
        source = self.settings.init_from
        start = None
        if source is not None and load:
            start = StartTensors.read(source, [*self.parts, "fusion"], CHECKPOINT_KEY)
        self.network = build(
            self.parts,
            self.objective.outputs,
            first_samples(example),
            load=load,
            initialized=() if start is None else start.parts,
            inferred=hints,
            fusion=self.fusion,
            trust=self.trust,
        )
        if start is not None:
            self.network.weight_reports["init_from"] = start.load_into(self.network)
            self.objective.adopt_head(start.objective_of_head(self.network))
        self._follow_network()
        return self

    def rebuild(self, record: NetworkRecord, trust: Collection[str] | None = None) -> None:
        """Builds the network of a checkpoint's record without data, for `trust` see `resolve`."""
        self.trust = trust
        self.is_started = True
        self.network = rebuild(self.parts, self.objective.outputs, record, fusion=self.fusion, trust=self.trust)
        serve(self.network, record.selection if self.serves_selection else {}, self.objective.closed_form)
        self._follow_network()

    def _follow_network(self) -> None:
        """Makes what of the objective needs imports."""
        self.objective.build(self.trust)
        self.objective.to(self.device)  # a network may be built again on the device of an earlier run

    def rebuild_as(self, saved: Saved) -> None:
        """Makes `build_for` build the network as it was in a checkpoint: other data may give other sizes.

        If the checkpoint is of other parts, nothing changes; `saved` is what a task added to it.
        """
        own = {**self._plain_network(), "outputs": self.objective.outputs}
        if is_same_network(saved, own):
            self._record = network_record(saved)

    def check_data(self, data: Any) -> None:
        """Raises `ConfigError` if a DataModule that says what its target is has one that this task cannot learn."""
        self.objective.check_data(data)

    def build_for(self, trainer: Trainer, read: Callable[[], Any], load: bool = True) -> None:
        """Builds the network of `rebuild_as`, or else along the batch that `read` returns, in a Trainer's precision."""
        with building(trainer, self.all_options.values()):
            if self._record is not None:
                self.rebuild(self._record)
            else:
                data = getattr(trainer, "datamodule", None)
                example = example_as_given(trainer, self, read)
                self.build(example, load, getattr(data, "inferred_arguments", None))

    def built(self) -> HybridNetwork:
        """The network; `ConfigError` if it has not been built yet."""
        if self.network is None:
            raise ConfigError("The network's sizes are not known yet. Call model.build(batch), or start a Trainer.")
        return self.network

    @property
    def all_options(self) -> dict[str, Part]:
        """The options of the parts and of the fusion, which is not used where one part feeds the head."""
        return {**self.parts, "fusion": self.fusion}

    def build_if_needed(self) -> None:
        """Builds the network for the Trainer, if it is not built yet."""
        self.check_data(getattr(self.trainer, "datamodule", None))
        if self.network is None:
            # those of a library, which it may have to fetch
            fetches = any(part.weights and not isinstance(part.weights, WeightSource) for part in self.parts.values())
            with first_of_node_before_others(self.trainer, fetches and self.reads_weights):
                self.build_for(self.trainer, lambda: example_batch(self.trainer), self.reads_weights)
        if self.trainer.state.fn == "fit":
            serve(self.built(), {}, None)  # a run trains the joint network, which callbacks copy in their setup
            calibrate(self, {})

    def configure_model(self) -> None:
        """Builds what is not built yet; a run may take class weights or a scale from its training data."""
        self._restored_settings = None  # of a checkpoint with which an earlier run failed
        refuse_strategy(self.trainer.strategy)
        self.build_if_needed()
        network = self.built()
        in_given_precision(self.trainer, network)
        groups = self.param_groups()  # before sharding, which replaces the parameters
        shard_if_asked(self.trainer.strategy, network, groups)
        # so that fully_shard gathers the parameters for these methods, too; without sharding nothing changes
        for method in ("forward_and_without", "features", "inputs_of", "kept_outputs"):
            register_fsdp_forward_method(network, method)
        give_options(self._own_callbacks, self.all_options, groups)
        network.compile_parts()
        if self.trainer.state.fn == "fit":
            require_callbacks(type(self), self._own_callbacks)
            self.train()  # a rebuilt model arrives in eval mode
            self.objective.prepare_fit(self.trainer)
            self.objective.to(self.device)
            follow_main_metric(self.trainer, self)
            skip_empty_hooks(self)

    def configure_callbacks(self) -> list[FitCallback]:
        """Unfreezing, gradient health, exact resume; a callback of the same type in the Trainer takes its place."""
        # Lightning calls this before `configure_model`, which gives them the options of the parts
        if not self._own_callbacks:
            cache = cache_options(type(self), self.settings.cache)
            self._own_callbacks = default_callbacks(
                self.all_options.values(), self.settings.unfreezing or {}, cache, self.settings.average
            )
        return merge_callbacks(self.trainer.callbacks, self._own_callbacks)  # type: ignore[attr-defined]

    # Optimizing

    def param_groups(self) -> Groups:
        """The named groups of today's settings, newly made: an optimizer that takes them changes them."""
        return self.built().param_groups(self.settings.lr, self.settings.weight_decay)

    def configure_optimizers(self) -> Any:
        """One optimizer over all parameters in named groups, and the schedule of their rates."""
        # not under 16-mixed, where a fused optimizer would unscale the gradients within its step
        return self.optimization(fused=self.trainer.precision in _FUSED_PRECISIONS)

    def optimization(self, fused: bool = False, groups: Groups | None = None) -> dict[str, Any]:
        """The optimizer and its scheduler, as Lightning takes them; `fused` where torch has such a form."""
        settings = self.settings
        optimizer = make_optimizer(settings.optimizer, groups or self.param_groups(), fused=fused, trust=self.trust)
        step_what_trains(optimizer)
        if settings.scheduler:
            scheduler = make_scheduler(settings.scheduler, optimizer, self.trust, settings.lr, directions_of(self))
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
        if not isinstance(scheduler, GroupLR) and is_trial(self.trainer):
            keep_shares(scheduler.optimizer)

    def _print(self, *lines: str) -> None:
        """Prints lines on the first rank alone."""
        if lines and self.trainer.is_global_zero:
            print(*map(printable, lines), sep="\n")

    # Checkpoints

    def saved_settings(self) -> dict[str, Any]:
        """The arguments with which this task can be made again, apart from its parts, as plain data."""
        return self.settings.plain(self.objective.settings())

    def _plain_network(self) -> dict[str, Any]:
        parts = {name: part.plain() for name, part in self.parts.items()}
        return {"parts": parts, "fusion": self.fusion.plain()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a rebuild needs, as plain data."""
        checkpoint[CHECKPOINT_KEY] = self.saved_task()

    def saved_task(self) -> dict[str, Any]:
        """What `on_save_checkpoint` adds."""
        return {
            "version": CHECKPOINT_VERSION,
            "task": task_name(type(self)),
            "settings": self.saved_settings(),
            **self._plain_network(),
            "outputs": self.objective.outputs,
            "network": self.built().record.plain(),
            "groups": group_names(self.built(), self.param_groups()),
            "counted": list(self.objective.counted),
            **self.objective.calibration_record(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another model, before anything is restored; a run may take what matches."""
        is_fit = self.trainer.state.fn == "fit"
        checkpoint.update(translated(checkpoint))
        serve_selection(self, checkpoint, self.serves_selection and not is_fit)  # a run trains the joint network
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        if "settings" in saved:
            self.objective.adopt(saved, is_fit)
            self.objective.to(self.device)
        self._print(*keep_followed_metric(self.trainer, self, checkpoint))
        rebuild_paths(self.trainer, checkpoint)
        state = checkpoint.get("state_dict", {})
        if not is_fit:
            refuse_other_model(self.state_dict(), state)
            checkpoint.pop("loops", None)  # counters of another command, which Lightning would count on from
            measure_average(self.trainer, checkpoint, self.serves_selection)
            return
        self._restored_settings, lines = adapt_to_fit(self, checkpoint)
        self._print(*lines)
