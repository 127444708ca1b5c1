"""The task that all tasks share: its steps, and the checks and logs around them."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hybrid_lightning.data.loaders import shown_targets
from hybrid_lightning.errors import at
from hybrid_lightning.network.hybrid_network import Outputs
from hybrid_lightning.network.part import Part, all_defaults, parse_part, parse_parts
from hybrid_lightning.network.registry import resolve
from hybrid_lightning.optim.factory import named_class
from hybrid_lightning.tasks.batch_checks import check_batch
from hybrid_lightning.tasks.changed_config import (
    finished,
)
from hybrid_lightning.tasks.checkpoint import (
    CHECKPOINT_KEY,
    rebuilt,
    translated,
)
from hybrid_lightning.tasks.evaluation import Evaluator, RunningLoss, own_samples, step_by_metric
from hybrid_lightning.tasks.init_from import StartTensors
from hybrid_lightning.tasks.metrics import SplitMetrics
from hybrid_lightning.tasks.network_module import NetworkModule
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.settings import TaskSettings, check_plain, taken_arguments
from hybrid_lightning.trainer import is_log_step, log_values


class HybridTask(NetworkModule, ABC):
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
        with at("model"):
            settings = TaskSettings.parse(
                lr=lr,
                weight_decay=weight_decay,
                optimizer=named_class(optimizer, torch.optim),
                rates=rates,
                scheduler=named_class(scheduler, torch.optim.lr_scheduler),
                unfreezing=unfreezing,
                init_from=init_from,
                part_heads=part_heads if objective.reads_target else False,
                arguments=taken_arguments(self),
            )
        parsed, parsed_fusion = _parse_network(parts, fusion, pretrained, untrained)
        super().__init__(settings, parsed, parsed_fusion, objective.outputs)
        self.objective = objective
        self.evaluator = Evaluator(objective.metrics)
        self.explain = False
        """Whether `predict_step` also gives what each part contributes."""
        self._train_loss = RunningLoss()
        self._has_trained = False
        # at once, because a fit whose checkpoint cannot be written is lost
        with at("model"):
            check_plain({**self.saved_settings(), "parts": self._plain_parts(), "fusion": self.fusion.plain()})

    def on_built(self, start: StartTensors | None) -> None:
        """Makes the metrics of the parts' heads, and what of the objective needs the network or imports."""
        self.evaluator.set_parts(self.parts_with_heads)
        if start is not None:
            self.objective.adopt_head(start.objective_of_head(self.built()))
        self.objective.build(self._trust)
        self.objective.to(self.device)  # a network may be built again on the device of an earlier fit

    def configure_model(self) -> None:
        """Builds what is not built yet; a fit may take class weights or a scale from its training data."""
        super().configure_model()
        if self.trainer.state.fn == "fit":
            self.objective.prepare_fit(self.trainer)
            self.objective.to(self.device)

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

    def _with_parts(self, batch: Mapping[str, Any]) -> Outputs:
        """The outputs, and those of the parts' own heads."""
        if not self.parts_with_heads:
            return Outputs(self(batch), {}, {})
        return self.built().forward_parts(batch)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a training batch, and that of the parts' own heads."""
        outputs, alone, _ = self._with_parts(batch)
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
        outputs, alone, _ = self._with_parts(batch)
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
        outputs, _, without = self.built().forward_parts(batch, contributions=True)
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
        if self.objective.reads_target:
            for split, targets in shown_targets(self.trainer):
                with at(f"data: {split} targets"):
                    self.objective.check_target(targets)
        super().on_train_start()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the mean training loss since the last log, and the rates of this step."""
        loss = self._train_loss.take() if is_log_step(self.trainer) else None
        if loss is not None:
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
            log_values(self.trainer, {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups})

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
        return {**super().saved_settings(), **self.objective.settings()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a rebuild needs, as plain data."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["counted"] = list(self.objective.counted)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes what an earlier fit has decided; refuses the checkpoint of another model."""
        checkpoint.update(translated(checkpoint))
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        if "settings" in saved:
            self.objective.adopt(saved, self.trainer.state.fn == "fit")
            self.objective.to(self.device)
        super().on_load_checkpoint(checkpoint)

    def follow_part_heads(self, state: Mapping[str, Any]) -> None:
        """Leaves the parts' own heads out if a checkpoint has none.

        Args:
            state: The checkpoint's ``state_dict``.
        """
        super().follow_part_heads(state)
        if not self.parts_with_heads:
            self.evaluator.set_parts(())

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


def _parse_network(
    parts: dict[str, Any],
    fusion: dict[str, Any] | None,
    pretrained: dict[str, Any] | None,
    untrained: dict[str, Any] | None,
) -> tuple[dict[str, Part], Part]:
    """The parts with a head, and the fusion."""
    parsed = parse_parts(parts, pretrained, untrained)
    options = {"module": "ConcatFusion", **(fusion or {})}
    parsed_fusion = parse_part("fusion", options, all_defaults(pretrained, untrained))
    module = parsed_fusion.module
    if "head" not in parts:  # a checkpoint has one, so that none of its names is imported here
        module = resolve(module, "model.fusion.module") if isinstance(module, str) else module
        if getattr(module, "makes_outputs", False):
            parsed = parse_parts({**parts, "head": "torch.nn.Identity"}, pretrained, untrained)
    return parsed, parsed_fusion
