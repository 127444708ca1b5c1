"""The task that all tasks share: its steps, and the checks and logs around them."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn

from hybrid_lightning.data.loaders import require_dict
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at, check_number, listing
from hybrid_lightning.lightning_private import trainer_of
from hybrid_lightning.network.batch import Batch
from hybrid_lightning.network.outputs import Outputs
from hybrid_lightning.optim.lr_schedules import GroupLR
from hybrid_lightning.tasks import changed_config
from hybrid_lightning.tasks.checkpoint import rebuilt
from hybrid_lightning.tasks.default_callbacks import schedules_of, with_parameters
from hybrid_lightning.tasks.evaluation import (
    RunningLoss,
    log_metrics,
    own_samples,
    refuse_empty_samples,
    refuse_several,
    step_by_metric,
)
from hybrid_lightning.tasks.network_module import NetworkModule
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.planning import plan_of, refuse_without_validation
from hybrid_lightning.tasks.selection import selects
from hybrid_lightning.tasks.settings import Options, TaskSettings, parse_network, taken_arguments
from hybrid_lightning.tasks.start import validate_start
from hybrid_lightning.tasks.trials import give_rates, is_trial, start_trial
from hybrid_lightning.trainer import fit_length, is_log_step, log_values
from hybrid_lightning.unfreezing.timeline import log_name


class HybridTask(NetworkModule):
    """A LightningModule around a `HybridNetwork`; its objective defines what the outputs mean.

    A subclass makes the objective in its constructor and passes it on. What its constructor is given has to be plain
    data, which a checkpoint stores.

    Logged on each log step: ``train/loss`` (mean since the last log) and ``lr/<group>``; after each validation or test:
    ``val/loss`` or ``test/loss`` and the objective's metrics; the same of each part's own head, with ``-<part>`` after
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
            ``val/<metric>-<part>`` show what it can do alone. These heads only observe: everything else trains as
            without them. ``{weight: 0.3}`` lets their losses, times 0.3, train the parts too (arXiv 1905.12681).
        cache: Whether features of frozen parts are computed once and served in every epoch, see `FrozenFeatureCache`:
            ``auto`` where that saves time and the task's steps are not your own, true wherever it can be, or false.
        start: Where training begins: ``default``, with heads at random; or ``probe``: before the first step a ridge
            regression on the features of all training samples gives each part's head, in closed form, and the fusion is
            a `BlendFusion` of them. Training goes on from there (linear probing, then fine-tuning, arXiv 2202.10054).
        selection: What ``best.ckpt`` serves where several parts meet: ``validation`` is the best on the validation
            rows, of the joint network, each part alone and their blend, see `SelectOutput`; ``none`` the joint network.
        objective: Loss, predictions and metrics; a subclass gives it.

    Raises:
        ConfigError: If an option is impossible.
    """

    explain = False
    """Whether `predict_step` also gives what each part contributes."""
    _has_trained = False

    @abstractmethod
    def __init__(
        self,
        parts: Options,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        pretrained: Options | None = None,
        untrained: Options | None = None,
        fusion: Options | None = None,
        optimizer: str | Options | None = None,
        rates: Options | None = None,
        scheduler: str | Options | None = None,
        unfreezing: Options | None = None,
        init_from: str | Options | None = None,
        part_heads: bool | dict[str, float] = True,
        cache: bool | str = "auto",
        start: str = "default",
        selection: str = "validation",
        *,
        objective: Objective,
    ) -> None:
        settings = TaskSettings.parse(
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            rates=rates,
            scheduler=scheduler,
            unfreezing=unfreezing,
            init_from=init_from,
            part_heads=part_heads if objective.reads_target else False,
            cache=cache,
            start=start,
            selection=selection,
            arguments=taken_arguments(self),
        )
        network = parse_network(parts, fusion, pretrained, untrained, start, objective.closed_form)
        super().__init__(settings, *network, objective)
        self._train_loss = RunningLoss()

    @property
    def lr(self) -> float:
        """The base rate; it may be set before a fit, also by Lightning's `Tuner` and `LearningRateFinder`."""
        return self.settings.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        check_number(lr, "model.lr", 0)
        self.settings = replace(self.settings, lr=lr)
        trainer = trainer_of(self)
        if trainer is not None and trainer.state.status == TrainerStatus.RUNNING and trainer.optimizers:
            give_rates(trainer, self.param_groups())

    # Steps

    def forward(self, batch: Batch) -> Tensor:
        """A batch → the head's outputs `(B, outputs)`."""
        require_dict(batch)
        outputs: Tensor = self.built()(batch)
        return outputs

    def loss(self, outputs: Tensor, target: Any) -> Tensor:
        """The loss of a batch, a scalar, from outputs `(B, outputs)`: that of the objective, unless overridden."""
        return self.objective.loss(outputs, target)

    def predictions(self, outputs: Tensor) -> Tensor:
        """What metrics and users see, from outputs `(B, outputs)`: those of the objective, unless overridden."""
        return self.objective.predictions(outputs)

    def _with_parts(self, batch: Batch) -> Outputs:
        """The outputs, and those of the parts' own heads."""
        if not self.parts_with_heads:
            return Outputs(self(batch), {}, {})
        return self.built().forward_parts(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a training batch, and that of the parts' own heads."""
        outputs, alone, _ = self._with_parts(batch)
        target = batch.get("target")
        loss = self.loss(outputs, target)
        self._train_loss.add(loss)
        weight = self.settings.part_weight or 1.0  # heads that only observe train themselves, at full weight
        for of_part, present in alone.values():
            of_head = self._loss_alone(of_part, present, batch["target"])
            loss = loss + (of_head if weight == 1 else weight * of_head)
        return loss

    def _loss_alone(self, outputs: Tensor, present: Tensor | None, target: Tensor) -> Tensor:
        """The loss of a part's own head over the samples that have the part."""
        if present is not None:
            outputs, target = outputs[present], target[present]
        # an empty sum is 0, and still gives every rank gradients of the same parameters
        return self.loss(outputs, target) if len(outputs) else outputs.sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: Batch, batch_idx: int, split: str, loaders: Any) -> None:
        refuse_several(loaders, split)
        outputs, alone, _ = self._with_parts(batch)
        target = batch.get("target")
        size = len(outputs)
        own = own_samples(loaders, batch_idx, size)
        self._measure(split, outputs, target, slice(own))
        for part, (of_part, present) in alone.items():
            counted: Tensor | slice = slice(own)
            if present is not None:
                counted = present & (torch.arange(size, device=present.device) < own)
            self._measure(f"{split}/{part}", of_part, target, counted)

    def _measure(self, name: str, outputs: Tensor, target: Any, counted: Tensor | slice) -> None:
        """Adds the samples that are counted; all have gone through the network, on every rank."""
        metrics = self.evaluator.metrics_of(name)
        chosen = outputs[counted]
        labels = None if target is None else target[counted]
        if len(chosen):
            weight = self.objective.loss_weight(chosen, labels)
            metrics.update(self.loss(chosen, labels), weight, self.predictions(chosen), labels)
        else:
            metrics.update_without_samples(self.predictions(outputs), target)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Predictions for a batch, see `predictions`; with `explain` a dict of them and of ``contributions``."""
        if not self.explain:
            return self.predictions(self(batch))
        outputs, _, without = self.built().forward_parts(batch, contributions=True)
        predictions = self.predictions(outputs)
        contributions = {}
        for part, other in without.items():
            contributions[part] = self.objective.contribution(predictions, self.predictions(other))
        return {"predictions": predictions, "contributions": contributions}

    # Checks and logs around the steps

    def check_batch(self, batch: Any) -> None:
        """Checks a batch of any loop while it is on the CPU, where looking at values makes no device wait."""
        require_dict(batch)
        refuse_empty_samples(self.built(), batch)
        if not self.objective.reads_target or self.trainer.predicting:
            return
        if "target" not in batch:
            raise ConfigError(f"the batch has no 'target'. It has: {listing(batch)}.", "data")
        target = batch["target"]
        with at("data: target"):
            if not isinstance(target, Tensor):
                raise ConfigError(
                    f"a {type(target).__name__} is not a tensor; let the loader collate the labels to one."
                )
            self.objective.check_target(target)

    def on_train_start(self) -> None:
        """Sets the length of the fit and prints the plan."""
        self._train_loss = RunningLoss()
        if is_trial(self.trainer):
            groups = self.trainer.optimizers[0].param_groups
            start_trial(self.trainer, schedules_of(with_parameters(self.all_options, groups)))
            return
        self._has_trained = True
        length = fit_length(self.trainer)
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, GroupLR):
            self._apply_settings(scheduler, length)
            refuse_without_validation(self.trainer, scheduler)
            scheduler.bind(length)
        self._print(self.plan(self.trainer.optimizers[0].param_groups, self.trainer, length))
        if self.settings.start == "probe" and self.trainer.ckpt_path is None:
            validate_start(self.trainer, self)

    def _apply_settings(self, scheduler: GroupLR, length: FitLength) -> None:
        """After a checkpoint was restored: today's settings hold, and what has changed is printed."""
        old, self._restored_settings = self._restored_settings, None
        if old is None:
            return
        new = changed_config.all_settings(self.saved_task())
        changed_config.apply_current_settings(self.trainer.optimizers[0], self.param_groups(), old, new)
        changed_config.set_position(scheduler, self.trainer.global_step, length)
        self._print(*changed_config.describe_changes(old, new, self.trainer.current_epoch))

    def plan(self, groups: list[dict[str, Any]], trainer: pl.Trainer, length: FitLength) -> str:
        """The reports of weights; and the table of parts and stages, their rates, and when each starts to train."""
        return plan_of(self, groups, trainer, length)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the mean training loss since the last log, and the rates of this step."""
        loss = self._train_loss.take() if is_log_step(self.trainer) else None
        if loss is not None:
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
            log_values(self.trainer, {f"lr/{log_name(group)}": group["lr"] for group in optimizer.param_groups})

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        values, undefined = log_metrics(self, "val")
        if self.trainer.state.fn == "fit":
            step_by_metric(self.trainer, values, undefined)

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        log_metrics(self, "test")

    def on_fit_end(self) -> None:
        """Reports a fit that had nothing to do, or a part whose own head beats the joint model."""
        if self._has_trained:
            # where an output is selected, a table of better evidence is printed
            message = None
            if not selects(self.trainer, self):
                message = self.evaluator.better_alone(self.trainer.callback_metrics, self.objective.main_metric)
        else:
            message = changed_config.finished(self.trainer)
        self._has_trained = False
        if message:
            self._print(message)

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
        names = (trust,) if isinstance(trust, str) else tuple(trust)
        # it is abstract, its subclasses are not
        model = rebuilt(HybridTask, cls, checkpoint_path, names, parts or {})  # type: ignore[type-abstract]
        return model.to(map_location or "cpu").eval()
