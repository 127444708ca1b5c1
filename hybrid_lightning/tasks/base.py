"""The task that all tasks share: its steps, and the checks and logs around them."""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
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
from hybrid_lightning.optim.lr_schedules import GroupLR
from hybrid_lightning.tasks import changed_config
from hybrid_lightning.tasks.calibration import check_options
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
from hybrid_lightning.tasks.planning import log_settings, plan_of, refuse_without_validation
from hybrid_lightning.tasks.sample_predictions import predict_samples
from hybrid_lightning.tasks.settings import Options, TaskSettings, has_own_steps, parse_network, taken_arguments
from hybrid_lightning.tasks.start import validate_start
from hybrid_lightning.tasks.trials import give_rates, is_trial, start_trial
from hybrid_lightning.trainer import fit_length, is_log_step, log_values
from hybrid_lightning.unfreezing.timeline import log_name


class HybridTask(NetworkModule):
    """A LightningModule around a `HybridNetwork`; its objective defines what the outputs mean.

    A subclass makes the objective in its constructor and passes it on. What its constructor is given has to be plain
    data, which a checkpoint stores.

    Logged on each log step: ``train/loss`` (mean since the last log) and ``lr/<group>``; after each validation or test:
    ``val/loss`` or ``test/loss`` and the objective's metrics.

    Args:
        parts: Name → options of each part (see `Part`); ``head`` names the head, a linear one if left out.
        lr: Base learning rate, the only one; each group's own rate is a multiple of it.
        weight_decay: Weight decay of parameters with two or more dimensions.
        pretrained: Defaults of all pretrained parts: ``lr_scale`` (0.1), ``layer_decay`` (1), ``weight_decay``,
            ``decay_all`` (false), ``l2sp`` (null), ``unfreeze`` (10%), ``batch_norm``, ``clip``, ``adapter``,
            ``checkpoint_activations`` (null).
        untrained: Defaults of all untrained parts; ``lr_scale`` is 1 and ``unfreeze`` is ``always``. ``origin: random``
            leaves them as they were drawn, all but the fusion and the head.
        fusion: Options of the fusion of several parts, such as ``{module: ConcatFusion, args: {width: 64}}``.
        optimizer: A class of `torch.optim`, by name or as ``{class_path: ..., init_args: {...}}``; null is AdamW.
        rates: ``{shape: ..., warm_up: ...}``: the learning-rate schedule from each group's unfreezing on. Shapes:
            constant (default), linear, cosine, one_cycle, slanted_triangular; warm_up is a duration.
        scheduler: Instead of ``rates``, a torch scheduler as ``{class_path: ..., init_args: {...}, interval: epoch}``.
            It runs at the base rate, every group takes its share; ``warm_up`` (a duration) counts from its unfreezing.
        unfreezing: ``{restart_early_stopping: true}`` starts the patience of early stopping anew at each unfreezing;
            ``{check_ranks: epochs}`` compares the ranks after each epoch, not only after the first step of each phase.
        init_from: Checkpoint of an earlier run whose weights a new one starts from, or ``{path: ..., parts: {part here:
            part in the file}, coverage: 0.5}``. What does not fit, such as a head for other classes, starts fresh;
            less than ``coverage`` of all values is an error. A part that is found there does not read its ``weights``.
        cache: Whether features of frozen parts are computed once and served in every epoch, see `FrozenFeatureCache`:
            ``auto`` where that saves time and the task's steps are not your own, true wherever it can be, or false.
            ``{views: 4}`` also caches behind random transforms of single samples, in 4 versions of each training sample
            that epochs serve in turn; with ``mode: true`` beside it wherever it can be.
        start: Where training begins: ``default``, with heads at random; or ``probe``: before the first step a ridge
            regression on the features of all training samples gives each part's head, in closed form, and the fusion is
            a `BlendFusion` of them. Training goes on from there (linear probing, then fine-tuning, arXiv 2202.10054).
        selection: What ``best.ckpt`` serves where several parts meet: ``validation`` a blend of the joint network and
            of each part alone, or what is better on the validation rows, see `SelectOutput`; ``none`` the network.
        average: What takes the place of the weights in validations and checkpoints, while training goes on without it:
            ``ema``, or ``{ema: 200 steps}``, is the exponential average with this half-life (``1 epochs``), see
            `AverageWeights`; ``soup``, or ``{soup: 8}``, the mean of the best of the 5 or 8 best validations, at the
            end, see `GreedySoup`; null is none.
        calibrate: What ``best.ckpt`` says of its certainty, from held-out rows: ``{temperature: true}`` divides logits
            by a number, from validation rows (by default where it helps, see `fit_temperature`); ``threshold: f1``
            takes for decisions the threshold, of two classes, or of each label, that is best on validation rows, for
            one of ``accuracy``, ``balanced_accuracy``, ``f1`` and ``macro_f1``; ``coverage: 0.9`` gives sets of
            classes, or intervals of numbers, that hold the truth in 90 % of all cases, from at least 100 calibration
            rows of the data. See `CalibrateOutput`.
        objective: Loss, predictions and metrics; a subclass gives it.

    Raises:
        ConfigError: If an option is impossible.
    """

    explain: bool | str = False
    """Whether `predict_step` also gives what each part contributes; ``without``: the predictions without the part."""
    data_state: Mapping[str, Any] | None = None
    """What the checkpoint that it was rebuilt from keeps of a manifest's data, unchecked."""
    run_settings: Mapping[str, Any] = MappingProxyType({})
    """Settings of the data and the Trainer, which loggers get beside its own."""
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
        cache: bool | str | Options = "auto",
        start: str = "default",
        selection: str = "validation",
        average: str | dict[str, Any] | None = None,
        calibrate: Options | None = None,
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
            cache=cache,
            start=start,
            selection=selection,
            average=average,
            calibrate=check_options(calibrate, objective, has_own_steps(type(self))),
            arguments=taken_arguments(self),
        )
        network = parse_network(parts, fusion, pretrained, untrained, start, objective.closed_form)
        super().__init__(settings, *network, objective)
        self._train_loss = RunningLoss()

    @property
    def lr(self) -> float:
        """The base rate; it may be set before a run, also by Lightning's `Tuner` and `LearningRateFinder`."""
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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        loss = self.loss(self(batch), batch.get("target"))
        self._train_loss.add(loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: Batch, batch_idx: int, split: str, loaders: Any) -> None:
        refuse_several(loaders, split)
        outputs = self(batch)
        own = own_samples(loaders, batch_idx, len(outputs))
        self._measure(split, outputs, batch.get("target"), own)

    def _measure(self, split: str, outputs: Tensor, target: Any, own: int) -> None:
        """Adds the first `own` samples; all have gone through the network, on every rank."""
        metrics = self.evaluator.metrics_of(split)
        if not own:
            metrics.update_without_samples(self.predictions(outputs), target)
            return
        chosen = outputs[:own]
        labels = None if target is None else target[:own]
        weight = self.objective.loss_weight(chosen, labels)
        metrics.update(self.loss(chosen, labels), weight, self.predictions(chosen), labels)

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Predictions for a batch, see `predictions`; with `explain` a dict of them and of ``contributions``."""
        if not self.explain:
            return self.predictions(self(batch))
        outputs, without = self.built().forward_and_without(batch)
        predictions = self.predictions(outputs)
        contributions = {part: self.predictions(other) for part, other in without.items()}
        if self.explain != "without":
            for part, other in contributions.items():
                contributions[part] = self.objective.contribution(predictions, other)
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
        """Sets the length of the run and prints the plan."""
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
        log_settings(self)
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
            self.log("train/loss", loss, sync_dist=True)  # `FitProgress` shows it
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
        """Reports a run that had nothing to do."""
        message = None if self._has_trained else changed_config.finished(self.trainer)
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

    def predict(self, samples: Any, inputs: Mapping[str, Any] | None = None) -> Any:
        """What the model predicts for raw samples, read as those of a manifest are, with the training's statistics.

        Args:
            samples: A sample, or a list of them: column of the manifest, or key of an input that reads one column → its
                value. That is a path, an array, a tensor or an image of Pillow where the input reads files; else text
                or a number. None is an empty cell.
            inputs: ``data.inputs`` of the config, for a checkpoint that does not hold them; None takes the file's.

        Returns:
            Of each sample the row of the table that the command predict writes: ``prediction``, the class or number,
            and of classes ``probability_<class>``.

        Raises:
            ConfigError: If a value is missing or cannot be read, or nothing is known of the data of the training.
        """
        return predict_samples(self, samples, inputs)
