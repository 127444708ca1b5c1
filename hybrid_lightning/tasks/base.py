"""The task that all tasks share: builds the network, groups its parameters, steps, measures and logs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hybrid_lightning.data.loaders import example_batch, shown_targets
from hybrid_lightning.distributed.fsdp2 import shard_if_asked
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.gradients.step import shared_pass
from hybrid_lightning.lightning_private import BatchCheckingModule
from hybrid_lightning.network.hybrid_network import HybridNetwork, first_samples
from hybrid_lightning.network.part import all_defaults, parse_part, parse_parts
from hybrid_lightning.network.registry import resolve
from hybrid_lightning.optim.factory import make_optimizer, make_scheduler, named_class
from hybrid_lightning.optim.lr_schedules import GroupLR, GroupRates
from hybrid_lightning.resume.optimizer_states import damaged, first_problem
from hybrid_lightning.resume.own_files import rebuild_paths
from hybrid_lightning.tasks.batch_checks import check_batch
from hybrid_lightning.tasks.changed_config import (
    adapt_checkpoint,
    all_settings,
    apply_current_settings,
    describe_changes,
    finished,
    set_position,
)
from hybrid_lightning.tasks.checkpoint import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    group_names,
    read_checkpoint,
    refuse_other_model,
    task_class,
    task_name,
    translated,
    with_live_modules,
)
from hybrid_lightning.tasks.default_callbacks import (
    configure_callbacks,
    default_callbacks,
    merge_callbacks,
    schedules_of,
)
from hybrid_lightning.tasks.evaluation import Evaluator, RunningLoss, own_samples, step_by_metric
from hybrid_lightning.tasks.init_from import StartTensors
from hybrid_lightning.tasks.metrics import SplitMetrics
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.settings import TaskSettings, check_plain, recorded, taken_arguments
from hybrid_lightning.trainer import fit_length, is_log_step, log_values
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing, check_moments
from hybrid_lightning.unfreezing.plan import plan_table
from hybrid_lightning.unfreezing.timeline import training_at_start

_FUSED_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")
Groups = list[dict[str, Any]]


class HybridTask(BatchCheckingModule, ABC):
    """A LightningModule around a `HybridNetwork`; its objective defines what the outputs mean.

    A subclass makes the objective in its constructor and passes it on. What its constructor is given has to be plain
    data, which a checkpoint stores.

    Logged on each log step: ``train/loss`` (mean since the last log) and ``lr/<group>``; after each validation or test:
    ``val/loss`` or ``test/loss`` and the objective's metrics; the same of each part's own head, with ``/<part>`` after
    it.

    Args:
        parts: Name → options of each part (see `Part`); ``head`` names the head, a linear one if left out.
        lr: Base learning rate, the only one; each group's own rate is a multiple of it.
        weight_decay: Weight decay of parameters with two or more dimensions.
        pretrained: Defaults of all pretrained parts: ``lr_scale`` (0.1), ``layer_decay`` (1), ``weight_decay``,
            ``decay_all`` (false), ``l2sp`` (null), ``unfreeze`` (10%), ``batch_norm`` (null).
        untrained: Defaults of all untrained parts; ``lr_scale`` is 1 and ``unfreeze`` is ``always``.
        fusion: Options of the fusion of several parts, such as ``{module: ConcatFusion, args: {width: 64}}``.
        optimizer: A class of `torch.optim`, by name or as ``{class_path: ..., init_args: {...}}``; null is AdamW.
        rates: ``{shape: ..., warm_up: ...}``: the course of the rates from each group's unfreezing on. Shapes: constant
            (default), linear, cosine, one_cycle, slanted_triangular; warm_up is a duration.
        scheduler: Instead of ``rates``, a torch scheduler as ``{class_path: ..., init_args: {...}, interval: epoch}``.
            It runs at the base rate, every group takes its share; ``warm_up`` (a duration) counts from its unfreezing.
        unfreezing: ``{restart_early_stopping: true}`` starts the patience of early stopping anew at each unfreezing;
            ``{check_ranks: epochs}`` compares the ranks after each epoch, not only after the first step of each phase.
        init_from: Checkpoint of an earlier run whose weights a new one starts from, or ``{path: ..., parts: {part here:
            part in the file}, coverage: 0.5}``. What does not fit, such as a head for other classes, starts fresh;
            less than ``coverage`` of all values is an error. A part that is found there does not read its ``weights``.
        part_heads: Whether each of several parts that meet in the fusion also gets a head of its own, whose metrics
            ``val/<metric>/<part>`` show what it can do alone. These heads only observe: everything else trains as
            without them. ``{weight: 0.3}`` lets their losses, times 0.3, train the parts too (arXiv 1905.12681).
        objective: Loss, predictions and metrics; a subclass gives it.

    Raises:
        ConfigError: If an option is impossible.
    """

    @abstractmethod
    @recorded
    def __init__(
        self,
        parts: dict[str, Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        pretrained: dict[str, Any] | None = None,
        untrained: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        optimizer: str | dict[str, Any] | None = None,
        rates: dict[str, Any] | None = None,
        scheduler: str | dict[str, Any] | None = None,
        unfreezing: dict[str, Any] | None = None,
        init_from: str | dict[str, Any] | None = None,
        part_heads: bool | dict[str, float] = True,
        *,
        objective: Objective,
    ) -> None:
        super().__init__()
        with at("model"):
            self.settings = TaskSettings.parse(
                lr=lr,
                weight_decay=weight_decay,
                optimizer=named_class(optimizer, torch.optim),
                rates=rates,
                scheduler=named_class(scheduler, torch.optim.lr_scheduler),
                unfreezing=unfreezing,
                init_from=init_from,
                part_heads=part_heads,
                arguments=taken_arguments(self),
            )
        defaults = all_defaults(pretrained, untrained)
        self.fusion = parse_part("fusion", {"module": "ConcatFusion", **(fusion or {})}, defaults)
        if "head" not in parts and _makes_outputs(self.fusion.module):
            parts = {**parts, "head": "torch.nn.Identity"}
        self.parts = parse_parts(parts, pretrained, untrained)
        self.objective = objective
        self.evaluator = Evaluator(objective.metrics)
        self.network: HybridNetwork | None = None
        self.reads_weights = True
        """Whether the parts' weights are read when the Trainer builds the network; False if a checkpoint follows."""
        self.explain = False
        """Whether `predict_step` also gives what each part contributes."""
        self.on_group_change = "error"
        """What a fit does with a checkpoint of other groups or another optimizer: ``error``; ``weights_only`` takes the
        weights that match and starts at step 0; ``match`` also keeps the optimizer state that matches, and goes on."""
        self._train_loss = RunningLoss()
        self._record: Mapping[str, Any] | None = None
        self._trust: Collection[str] | None = None
        self._own_callbacks: list[pl.Callback] = []
        self._restored_settings: dict[str, Any] | None = None
        self._has_trained = False
        with at("model"):
            check_plain({**self.saved_settings(), "parts": self._plain_parts(), "fusion": self.fusion.plain()})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
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
            hints: Key of the batch → arguments that parts which read it may leave out, such as the ``input_facts`` of a
                DataModule.
        """
        source = self.settings.init_from
        start = None
        if source is not None and load and record is None:
            start = StartTensors.read(source, [*self.parts, "fusion"])
        self.network = HybridNetwork(
            self.parts,
            self.objective.outputs,
            fusion=self.fusion,
            example=None if example is None else first_samples(example),
            record=record,
            load=load,
            trust=self._trust,
            initialized=() if start is None else start.parts,
            part_heads=self.objective.reads_target and self.settings.part_heads is not False,
            part_weight=self.settings.part_weight,
            hints=hints,
        )
        self.evaluator.set_parts(self.network.feeding if self._has_part_heads else ())
        if start is not None:
            self.network.weight_reports["init_from"] = start.load_into(self.network)
            self.objective.adopt_head(start.objective_of_head(self.network))
        self.objective.build(self._trust)
        self.objective.to(self.device)
        return self

    def rebuild_as(self, saved: Mapping[str, Any]) -> None:
        """Makes the Trainer build the network as it was in a checkpoint, and not along the data at hand.

        Other data may lack other parts, and give other sizes. If the checkpoint is of other parts, nothing changes.

        Args:
            saved: What a task added to the checkpoint.
        """
        is_same = self._plain_parts() == saved["parts"] and self.fusion.plain() == saved["fusion"]
        if is_same and saved.get("outputs") == self.objective.outputs:
            self._record = saved["network"]
            sizes = self._record["sizes"]
            if "fusion" in sizes and "part_heads" not in sizes:
                self._give_up_part_heads()

    def build_for(self, data: Any, example: Callable[[], Mapping[str, Any]], load: bool = True) -> None:
        """Builds the network as the checkpoint of `rebuild_as`, or else along an example of the data.

        Args:
            data: A DataModule; its ``input_facts``, if it has them, are arguments that parts may leave out.
            example: Gives a batch.
            load: Whether the parts' weights are read.
        """
        if self._record is not None:
            self.build(record=self._record, load=False)
        else:
            self.build(example(), load=load, hints=getattr(data, "input_facts", None))

    def built(self) -> HybridNetwork:
        """The network; `ConfigError` if it has not been built yet."""
        if self.network is None:
            raise ConfigError("The network's sizes are not known yet. Call model.build(batch), or start a Trainer.")
        return self.network

    @property
    def _has_part_heads(self) -> bool:
        return "part_heads" in self.built().parts

    def configure_model(self) -> None:
        """Builds the network from two samples of the data, unless it exists."""
        self._restored_settings = None  # of a checkpoint with which an earlier fit failed
        if self.network is None:
            data = getattr(self.trainer, "datamodule", None)
            self.build_for(data, lambda: example_batch(self.trainer), load=self.reads_weights)
        network, groups = self.built(), self.param_groups()
        shard_if_asked(self.trainer.strategy, network, groups)
        with_parameters = {group["part"] for group in groups}
        options = {name: part for name, part in network.facts.items() if name in with_parameters}
        configure_callbacks(self._own_callbacks, options)
        network.compile_parts()
        if self.trainer.state.fn == "fit":
            self.train()  # a rebuilt model arrives in eval mode
            self.objective.prepare_fit(self.trainer)
            self.objective.to(self.device)

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

    # Steps

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch → the head's outputs `(B, outputs)`."""
        outputs: Tensor = self.built()(batch)
        return outputs

    def loss(self, outputs: Tensor, target: Any) -> Tensor:
        """The loss of a batch, a scalar, from outputs `(B, outputs)`: that of the objective, unless overridden."""
        return self.objective.loss(outputs, target)

    def predictions(self, outputs: Tensor) -> Tensor:
        """What metrics and users see, from outputs `(B, outputs)`: those of the objective, unless overridden."""
        return self.objective.predictions(outputs)

    def _with_parts(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor | None]]]:
        """The outputs; and part → outputs of its own head, and which samples have the part (None: all)."""
        if not self._has_part_heads:
            return self(batch), {}
        joint, alone = self.built()(batch, "parts")
        return joint, alone

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a training batch, and that of the parts' own heads."""
        outputs, alone = self._with_parts(batch)
        target = batch.get("target")
        loss = self.loss(outputs, target)
        self._train_loss.add(loss)
        weight = self.settings.part_weight or 1.0  # heads that only observe train themselves, at full weight
        for of_part, present in alone.values():
            loss = loss + weight * self._loss_alone(of_part, present, batch["target"])
        return loss

    def _loss_alone(self, outputs: Tensor, present: Tensor | None, target: Tensor) -> Tensor:
        """The loss of a part's own head over the samples that have the part."""
        if present is not None:
            outputs, target = outputs[present], target[present]
        # an empty sum is 0, and still gives every rank gradients of the same parameters
        return self.loss(outputs, target) if len(outputs) else outputs.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, split: str, loaders: Any) -> None:
        outputs, alone = self._with_parts(batch)
        target = batch.get("target")
        size = len(outputs)
        own = own_samples(loaders, batch_idx, size)
        self._measure(self.evaluator.metrics_of(split), outputs, target, slice(own))
        for part, (of_part, present) in alone.items():
            counted: Tensor | slice = slice(own)
            if present is not None:
                counted = present & (torch.arange(size, device=present.device) < own)
            self._measure(self.evaluator.metrics_of(split, part), of_part, target, counted)

    def _measure(self, metrics: SplitMetrics, outputs: Tensor, target: Any, counted: Tensor | slice) -> None:
        """Adds the samples that are counted; all have gone through the network, on every rank."""
        chosen = outputs[counted]
        labels = None if target is None else target[counted]
        if len(chosen):
            weight = self.objective.loss_weight(chosen, labels)
            metrics.update(self.loss(chosen, labels), weight, self.predictions(chosen), labels)
        else:
            metrics.update_without_samples(self.predictions(outputs), target)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Predictions for a batch, see `predictions`; with `explain` a dict of them and of ``contributions``."""
        if not self.explain:
            return self.predictions(self(batch))
        outputs, without = self.built()(batch, "without")
        predictions = self.predictions(outputs)
        contributions = {}
        for part, other in without.items():
            contributions[part] = self.objective.contribution(predictions, self.predictions(other))
        return {"predictions": predictions, "contributions": contributions}

    # Checks and logs around the steps

    def check_batch(self, batch: Any) -> None:
        """Checks a batch of any loop while it is on the CPU, so that no step waits for the device."""
        is_target_needed = self.objective.reads_target and not self.trainer.predicting
        check_batch(batch, self.built(), self.objective, is_target_needed)

    def on_train_start(self) -> None:
        """Checks all labels that a dataset shows as ``targets``, sets the length of the fit and prints the plan."""
        self._train_loss = RunningLoss()
        self._has_trained = True
        length = fit_length(self.trainer)
        if self.objective.reads_target:
            for split, targets in shown_targets(self.trainer):
                with at(f"data: {split} targets"):
                    self.objective.check_target(targets)
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
        """The table of parts and stages, their rates, and when each starts to train.

        Args:
            groups: The optimizer's param groups.
            trainer: A `GradualUnfreezing` among its callbacks decides what unfreezes; else the parts' options do.
            length: Length of the fit.
        """
        network = self.built()
        recorded_steps, holds = None, ()
        with_parameters = {group["part"] for group in groups}
        schedules = schedules_of({name: part for name, part in network.facts.items() if name in with_parameters})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradualUnfreezing):
                schedules, recorded_steps, holds = callback.schedules, callback.recorded, callback.holds
                break
        training_at_start(groups, schedules)
        check_moments(trainer, groups, schedules, length)
        origins = {name: part.origin for name, part in network.facts.items()}
        lines = []
        for name, report in network.weight_reports.items():
            lines.append(report if name == "init_from" else f"{name}: {report}")
        return "\n".join([*lines, plan_table(groups, schedules, origins, length, recorded_steps, holds)])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the mean training loss since the last log, and the rates of this step."""
        loss = self._train_loss.take() if is_log_step(self.trainer) else None
        if loss is not None:
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
            log_values(self.trainer, {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups})

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
        gradients.complete = True

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the scheduler, unless it waits for a metric: then each validation does."""
        if not getattr(scheduler, "by_metric", False):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        values, undefined = self._log_metrics("val")
        if self.trainer.state.fn == "fit":
            step_by_metric(self.trainer, values, undefined)

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        values, undefined = self.evaluator.compute(split)
        if not self.trainer.sanity_checking:
            for name, reason in undefined.items():
                rank_zero_info(f"{split}/{name} is not logged, because it is undefined: {reason}.")
        shown = list(values)[:2]  # the loss and the first metric; more would not fit into a line
        for name, value in values.items():
            self.log(f"{split}/{name}", value, sync_dist=True, prog_bar=name in shown)
        return values, undefined

    def on_fit_end(self) -> None:
        """Reports a fit that had nothing to do, or a part whose own head beats the joint model."""
        if self._has_trained:
            message = self.evaluator.better_alone(self.trainer.callback_metrics)
        else:
            message = finished(self.trainer)
        self._has_trained = False
        if message:
            self._print(message)

    # Checkpoints

    def saved_settings(self) -> dict[str, Any]:
        """The arguments with which this task can be made again, apart from its parts, as plain data."""
        return {**self.settings.plain(), **self.objective.settings()}

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
            "counted": list(self.objective.counted),
            "parts": self._plain_parts(),
            "fusion": self.fusion.plain(),
            "outputs": self.objective.outputs,
            "network": network.record,
            "groups": group_names(network, self.param_groups()),
        }

    def follow_part_heads(self, state: Mapping[str, Any]) -> None:
        """Leaves the parts' own heads out if a checkpoint has none.

        Args:
            state: The checkpoint's ``state_dict``.
        """
        is_saved = any(name.startswith("network.parts.part_heads.") for name in state)
        if state and not is_saved and self._has_part_heads:
            self.built().leave_out_part_heads()
            self.evaluator.set_parts(())
            self._give_up_part_heads()

    def _give_up_part_heads(self) -> None:
        if self.settings.part_heads is not False:
            self.settings = replace(self.settings, part_heads=False)
            rank_zero_info("part_heads: the checkpoint has none, so there are none now.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another model, before anything is restored; a fit may take what matches."""
        checkpoint.update(translated(checkpoint))
        is_fit = self.trainer.state.fn == "fit"
        if CHECKPOINT_KEY in checkpoint:
            self.objective.adopt(checkpoint[CHECKPOINT_KEY], is_fit)
            self.objective.to(self.device)
        rebuild_paths(self.trainer, checkpoint)
        state = checkpoint.get("state_dict", {})
        if not (is_fit and self.settings.part_weight):  # of heads that train the parts, a lack is a change
            self.follow_part_heads(state)
        if not is_fit:
            refuse_other_model(self.state_dict(), state)
            return
        made = self.configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, Mapping) else made
        self._restored_settings, lines = adapt_checkpoint(
            checkpoint, self.state_dict(), self._saved(), optimizer, self.on_group_change, self.trainer
        )
        if self._restored_settings is not None and isinstance(optimizer, torch.optim.Optimizer):
            self._refuse_damaged_state(checkpoint, optimizer)
        self._print(*lines)

    def _refuse_damaged_state(self, checkpoint: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Raises `ConfigError` on all ranks if the optimizer state does not fit its parameters on one of them."""
        names = {id(parameter): name for name, parameter in self.built().named_parameters()}
        group = self.param_groups()[0]

        def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            groups = [{**group, "params": parameters}]
            return make_optimizer(self.settings.optimizer, groups, fused=False, trust=self._trust)

        problem = first_problem(checkpoint, optimizer, names, make)
        if self.trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
            raise damaged(problem or "another rank reports it.")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        *,
        trust: Collection[str] = (),
        parts: Mapping[str, nn.Module] | None = None,
    ) -> "HybridTask":
        """A trained model from a checkpoint of this program, without data, network access, or code from the file.

        Args:
            checkpoint_path: A ``.ckpt`` file.
            map_location: Device for the weights; None is the CPU.
            trust: Packages whose classes the file may name, beside the built-in names, torch.nn, timm, torchvision and
                transformers.
            parts: Part name → live module, for the parts that were live modules when the model was made.

        Returns:
            The model in eval mode.

        Raises:
            ConfigError: If the file is broken or foreign, names code that is not allowed, or lacks a live module.
        """
        saved, state = read_checkpoint(checkpoint_path)
        try:
            complete = with_live_modules(saved["parts"], parts or {})
            if "head" not in complete:  # a constructor would import the fusion's class to find out about one
                raise KeyError("there is no head")
            with at("checkpoint_path"):
                task = task_class(str(saved["task"]), HybridTask, cls)  # type: ignore[type-abstract]
            model = task(parts=complete, fusion=saved["fusion"], **saved["settings"])
            model._trust = (trust,) if isinstance(trust, str) else tuple(trust)
            model.build(record=dict(saved["network"]), load=False)
            refuse_other_model(model.state_dict(), state, "checkpoint_path")
            model.load_state_dict(state)
        except ConfigError:
            raise
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise ConfigError(
                f"the settings in {str(checkpoint_path)!r} are damaged: {error}", "checkpoint_path"
            ) from error
        return model.to(map_location or "cpu").eval()


def _makes_outputs(fusion: Any) -> bool:
    """Whether a fusion, a module or its name, makes the model's outputs itself, so that no head has to follow."""
    module = resolve(fusion, "model.fusion.module") if isinstance(fusion, str) else fusion
    return bool(getattr(module, "makes_outputs", False))
