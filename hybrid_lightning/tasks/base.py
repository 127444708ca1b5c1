"""The task that all tasks share: builds the network, groups its parameters, steps, measures and logs."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from hybrid_lightning.data.loaders import example_batch, require_dict, shown_targets
from hybrid_lightning.distributed.fsdp2 import shard_if_asked
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at, check_number, listing, unknown
from hybrid_lightning.gradients.step import shared_pass
from hybrid_lightning.network.batch import first_samples
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import Part, all_defaults, parse_part, parse_parts
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.optim.factory import make_optimizer, make_scheduler, named_class
from hybrid_lightning.optim.lr_schedules import GroupLR, GroupRates
from hybrid_lightning.resume.optimizer_states import damaged, first_problem
from hybrid_lightning.resume.own_files import rebuild_paths
from hybrid_lightning.tasks.changed_config import all_facts, describe_changes, finished, restate, set_position, take_up
from hybrid_lightning.tasks.checkpoint import (
    CHECKPOINT_KEY,
    CHECKPOINT_VERSION,
    concrete_subclasses,
    group_names,
    read_checkpoint,
    refuse_other_model,
    require_all_facts,
    require_plain,
    task_name,
    translated,
    with_live_modules,
)
from hybrid_lightning.tasks.default_callbacks import default_callbacks, follow_facts, schedules_of, take_places
from hybrid_lightning.tasks.evaluation import Evaluation
from hybrid_lightning.tasks.init_from import initialize, parse_init_from, read_parts
from hybrid_lightning.tasks.part_heads import better_alone, makes_outputs, part_weight, refuse_empty_samples
from hybrid_lightning.trainer import fit_length, is_log_step, log_values
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing, check_moments
from hybrid_lightning.unfreezing.plan import plan_table
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import training_at_start

# says that on_before_batch_transfer below is used beside a DataModule, which is what it is for
warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in `LightningModule`")
_FUSED_PRECISIONS = ("32-true", "64-true", "bf16-true", "bf16-mixed")


class HybridTask(Evaluation, ABC):
    """A LightningModule around a `HybridNetwork`; a subclass says what its outputs mean.

    A subclass with arguments of its own adds them to ``self.facts`` after ``super().__init__``, for checkpoints to
    rebuild it.

    Logged on each log step: ``train/loss`` (mean since the last log) and ``lr/<group>``; after each validation or test:
    ``val/loss`` or ``test/loss`` and the subclass's metrics.

    Args:
        parts: Name → facts of each part (see `Part`); ``head`` names the head, a linear one if left out.
        lr: Base learning rate, the only one; each group's own rate is a multiple of it.
        weight_decay: Weight decay of parameters with two or more dimensions.
        pretrained: Defaults of all pretrained parts: ``lr_scale`` (0.1), ``layer_decay`` (1), ``weight_decay``,
            ``decay_all`` (false), ``l2sp`` (null), ``unfreeze`` (10%), ``batch_norm`` (null).
        untrained: Defaults of all untrained parts; ``lr_scale`` is 1 and ``unfreeze`` is ``always``.
        fusion: Facts of the fusion of several parts, such as ``{module: ConcatFusion, args: {width: 64}}``.
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
            ``val/<metric>/<part>`` show what it knows alone. These heads look on: everything else trains as without
            them. ``{weight: 0.3}`` lets their losses, times 0.3, train the parts too (arXiv 1905.12681).

    Raises:
        ConfigError: If a fact is impossible.
    """

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
    ) -> None:
        super().__init__()
        if rates and scheduler:
            raise ConfigError("model.scheduler: give either 'rates' or 'scheduler', not both.")
        for key in rates or {}:
            if key not in ("shape", "warm_up"):
                raise unknown("model.rates", "key", str(key), ("shape", "warm_up"))
        check_number(lr, "model.lr", low=0, above_low=True)
        check_number(weight_decay, "model.weight_decay", low=0)
        self.parts = parse_parts(parts, pretrained, untrained)
        self.fusion = parse_part(
            "fusion", {"module": "ConcatFusion", **(fusion or {})}, all_defaults(pretrained, untrained)
        )
        if "head" not in parts and makes_outputs(self.fusion.module):
            self.parts |= parse_parts({**parts, "head": "torch.nn.Identity"}, pretrained, untrained)
        optimizer = named_class(optimizer, torch.optim)
        scheduler = named_class(scheduler, torch.optim.lr_scheduler)
        self.base_lr, self.weight_decay = lr, weight_decay
        self.optimizer_facts, self.rates, self.scheduler_facts = optimizer, rates or {}, scheduler
        self.unfreezing = unfreezing or {}
        for key in self.unfreezing:
            if key not in ("restart_early_stopping", "check_ranks"):
                raise unknown("model.unfreezing", "key", str(key), ("restart_early_stopping", "check_ranks"))
        self.network: HybridNetwork | None = None
        self.reads_weights = True
        """Whether the parts' weights are read when the Trainer builds the network; False if a checkpoint follows."""
        self.facts: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "optimizer": optimizer}
        self.facts |= {"rates": rates, "scheduler": scheduler, "unfreezing": unfreezing, "init_from": init_from}
        self.facts |= {"part_heads": part_heads}
        self._part_weight = part_weight(part_heads)
        if init_from is not None:
            parse_init_from(init_from)
        for name, part in {**self.parts, "fusion": self.fusion}.items():
            require_plain(part.plain(), f"model.parts.{name}")
        require_plain(self.facts, "model")
        self.prepare_metrics()
        self._loss_sum: Tensor | None = None
        self._loss_count = 0
        self.on_group_change = "error"
        """What a fit does with a checkpoint of other groups or another optimizer: ``error``; ``weights_only`` takes the
        weights that match and starts at step 0; ``match`` also keeps the optimizer state that matches, and goes on."""
        self._saved_facts: dict[str, Any] | None = None
        self._trained = False
        self._record: Mapping[str, Any] | None = None
        self._trust: Collection[str] | None = None
        self._own_callbacks: list[pl.Callback] = []

    @abstractmethod
    def check_target(self, target: Tensor, where: str) -> None:
        """Raises `ConfigError` if targets have a wrong shape or range."""

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
        given = self.facts["init_from"] if load and record is None else None
        start = {} if given is None else read_parts(given, {**self.parts, "fusion": self.fusion})
        common: dict[str, Any] = {"fusion": self.fusion, "trust": self._trust, "part_weight": self._part_weight}
        common["part_heads"] = self.facts["part_heads"] is not False
        if record is not None:
            with at("checkpoint.network"):
                parsed = NetworkRecord.parse(record)
            self.network = rebuild(self.parts, self.outputs, parsed, **common)
        else:
            assert example is not None, "a new network needs an example batch"
            two = first_samples(example)
            self.network = build(self.parts, self.outputs, two, load=load, initialized=start, inferred=hints, **common)
        self.measure_parts(self.network.feeding if "part_heads" in self.network.parts else ())
        if given is not None:
            start = {name: tensors for name, tensors in start.items() if name in self.network.parts}
            self.network.weight_reports["init_from"] = initialize(self.network, given, start)
        self.on_built(None if given is None else parse_init_from(given))
        return self

    def on_built(self, start: Mapping[str, Any] | None) -> None:
        """For subclasses: the network is there.

        Args:
            start: ``init_from`` in its long form, if weights have just been taken from there.
        """

    def rebuild_as(self, saved: Mapping[str, Any]) -> None:
        """Lets the Trainer build the network as it was in a checkpoint, and not along the data at hand.

        Other data may lack other parts, and give other sizes. If the checkpoint is of other parts, nothing changes.

        Args:
            saved: What a task added to the checkpoint.
        """
        own = {name: part.plain() for name, part in self.parts.items()}
        same = own == saved["parts"] and self.fusion.plain() == saved["fusion"]
        if same and saved.get("outputs") == self.outputs:
            self._record = saved["network"]
            sizes = self._record["sizes"]
            if "fusion" in sizes and "part_heads" not in sizes:
                self._give_up_part_heads()

    def build_for(self, data: Any, example: Callable[[], Mapping[str, Any]], load: bool = True) -> None:
        """Builds the network as `rebuild_as` has said, or else along an example of the data.

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
        """The network.

        Raises:
            ConfigError: If it has not been built yet.
        """
        if self.network is None:
            raise ConfigError("The network's sizes are not known yet. Call model.build(batch), or start a Trainer.")
        return self.network

    def schedules(self) -> dict[str, UnfreezingSchedule]:
        """Part → when it unfreezes, for the parts that have parameters and do not train from the start."""
        return schedules_of(self._facts_with_groups())

    def _facts_with_groups(self) -> dict[str, Part]:
        """Facts of the parts that have parameters."""
        network = self.built()
        grouped = {group["part"] for group in network.param_groups(self.base_lr, self.weight_decay)}
        return {name: part for name, part in network.options.items() if name in grouped}

    def configure_model(self) -> None:
        """Builds the network from two samples of the data, unless it exists."""
        self._saved_facts = None  # of a checkpoint with which an earlier fit failed
        if self.network is None:
            data = getattr(self.trainer, "datamodule", None)
            self.build_for(data, lambda: example_batch(self.trainer), load=self.reads_weights)
        network = self.built()
        shard_if_asked(self.trainer.strategy, network, network.param_groups(self.base_lr, self.weight_decay))
        register_fsdp_forward_method(network, "forward_parts")  # without sharding it does nothing
        follow_facts(self._own_callbacks, self._facts_with_groups())
        network.compile_parts()
        if self.trainer.state.fn == "fit":
            self.train()  # a rebuilt model arrives in eval mode

    def configure_callbacks(self) -> list[pl.Callback]:
        """Unfreezing, gradient health, exact resume; a callback of the same type in the Trainer takes its place."""
        facts = [*self.parts.values(), self.fusion]
        self._own_callbacks = self._own_callbacks or default_callbacks(facts, self.unfreezing)
        return take_places(self.trainer.callbacks, self._own_callbacks)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> Any:
        """One optimizer over all parameters in named groups, and the course of their rates."""
        precision = self.trainer.precision
        return self.optimization(fused=precision in _FUSED_PRECISIONS, scaled=precision == "16-mixed")

    def optimization(self, fused: bool = False, scaled: bool = False) -> dict[str, Any]:
        """The optimizer and its scheduler, as Lightning takes them; for the arguments see `make_optimizer`."""
        groups = self.built().param_groups(self.base_lr, self.weight_decay)
        optimizer = make_optimizer(self.optimizer_facts, groups, fused=fused, scaled=scaled, trust=self._trust)
        if self.scheduler_facts:
            scheduler = make_scheduler(self.scheduler_facts, optimizer, self._trust, self.base_lr)
        else:
            scheduler = {"scheduler": GroupRates(optimizer, **self.rates), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    # Steps

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """A batch → the head's outputs `(B, outputs)`."""
        outputs: Tensor = self.built()(batch)
        return outputs

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a training batch, and that of the parts' own heads."""
        outputs, alone, _ = self._with_parts(batch)
        loss = self.loss(outputs, batch["target"])
        self._loss_sum = loss.detach() if self._loss_sum is None else self._loss_sum + loss.detach()
        self._loss_count += 1
        for own, present in alone.values():
            loss = loss + (self._part_weight or 1.0) * self._loss_alone(own, present, batch["target"])
        return loss

    def _loss_alone(self, outputs: Tensor, present: Tensor | None, target: Tensor) -> Tensor:
        """The loss of a part's own head over the samples that have the part; 0 if there are none."""
        if present is not None:
            outputs, target = outputs[present], target[present]
        return self.loss(outputs, target) if len(outputs) else outputs.sum()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps the scheduler, unless it waits for a metric: then each validation does."""
        if not getattr(scheduler, "by_metric", False):
            super().lr_scheduler_step(scheduler, metric)

    # Checks and logs around the steps

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Checks the targets while they are still on the CPU, so that the device is not waited for."""
        require_dict(batch)
        refuse_empty_samples(self.built(), batch)
        if not self.trainer.predicting:
            if "target" not in batch:
                raise ConfigError(f"data: the batch has no 'target'. It has: {listing(batch)}.")
            if not isinstance(batch["target"], Tensor):
                kind = type(batch["target"]).__name__
                raise ConfigError(f"data: target: a {kind} is not a tensor; let the loader collate the labels to one.")
            self.check_target(batch["target"], "data: target")
        return batch

    def on_train_start(self) -> None:
        """Checks all labels that a dataset shows as ``targets``, sets the length of the fit and prints the plan."""
        self._loss_sum, self._loss_count, self._trained = None, 0, True
        length = fit_length(self.trainer)
        for split, targets in shown_targets(self.trainer):
            self.check_target(targets, f"data: {split} targets")
        if (self.trainer.gradient_clip_val or 0) < 0:
            raise ConfigError(
                f"trainer.gradient_clip_val: {self.trainer.gradient_clip_val} is negative; 0 clips nothing."
            )
        schedulers = self.lr_schedulers()
        if isinstance(schedulers, GroupLR):
            self._restate(schedulers, length)
            if getattr(schedulers, "by_metric", False) and not self.trainer.enable_validation:
                raise ConfigError("model.scheduler: ReduceLROnPlateau needs a validation split, and there is none.")
            schedulers.bind(length)
        plan = self.plan(self.trainer.optimizers[0].param_groups, self.trainer, length)
        if self.trainer.is_global_zero:
            print(plan)

    def _restate(self, scheduler: GroupLR, length: FitLength) -> None:
        """After a checkpoint was restored: what the facts say now holds, and what has changed is printed."""
        old, self._saved_facts = self._saved_facts, None
        if old is None:
            return
        facts = all_facts(self._saved())
        wanted = self.built().param_groups(self.base_lr, self.weight_decay)
        restate(self.trainer.optimizers[0], wanted, old, facts)
        set_position(scheduler, self.trainer.global_step, length)
        lines = describe_changes(old, facts, self.trainer.current_epoch)
        if lines and self.trainer.is_global_zero:
            print(*lines, sep="\n")

    def on_fit_end(self) -> None:
        """Says so if there was nothing left to do, or if a part alone was better than all of them together."""
        trained, self._trained = self._trained, False
        metrics = self.metrics_of("val").metrics
        message = better_alone(self.trainer.callback_metrics, metrics) if trained else finished(self.trainer)
        if message and self.trainer.is_global_zero:
            print(message)

    def plan(self, groups: list[dict[str, Any]], trainer: pl.Trainer, length: FitLength) -> str:
        """The table of parts and stages, their rates, and when each starts to train.

        Args:
            groups: The optimizer's param groups.
            trainer: A `GradualUnfreezing` among its callbacks decides what unfreezes; else the parts' facts do.
            length: Length of the fit.
        """
        callbacks = [c for c in trainer.callbacks if isinstance(c, GradualUnfreezing)]  # type: ignore[attr-defined]
        schedules = callbacks[0].schedules if callbacks else self.schedules()
        decided = callbacks[0].decided_steps if callbacks else None
        training_at_start(groups, schedules)
        check_moments(trainer, groups, schedules, length)
        origins = {name: part.origin for name, part in self.built().options.items()}
        loaded = [
            report if name == "init_from" else f"{name}: {report}"
            for name, report in self.built().weight_reports.items()
        ]
        return "\n".join([*loaded, plan_table(groups, schedules, origins, length, decided)])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Logs the mean training loss since the last log, and the rates of this step."""
        if not is_log_step(self.trainer) or self._loss_sum is None:
            return
        self.log("train/loss", self._loss_sum / self._loss_count, prog_bar=True, sync_dist=True)
        log_values(self.trainer, {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups})
        self._loss_sum, self._loss_count = None, 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the Trainer's ``gradient_clip_val`` says, with the pass that measures."""
        if not gradient_clip_val:
            return
        gradients = shared_pass(self.trainer, "trainer.gradient_clip_val")
        if gradient_clip_algorithm == "value":
            gradients.clip_value(gradient_clip_val)
        else:
            gradients.clip_norm(gradient_clip_val)
        gradients.complete = True

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a rebuild needs, as plain data."""
        require_all_facts(type(self), HybridTask, self.facts)
        checkpoint[CHECKPOINT_KEY] = self._saved()

    def _saved(self) -> dict[str, Any]:
        network = self.built()
        return {
            "version": CHECKPOINT_VERSION,
            "task": task_name(type(self)),
            "facts": self.facts,
            "parts": {name: part.plain() for name, part in self.parts.items()},
            "fusion": self.fusion.plain(),
            "outputs": self.outputs,
            "network": network.record.plain(),
            "groups": group_names(network, network.param_groups(self.base_lr, self.weight_decay)),
        }

    def follow_part_heads(self, state: Mapping[str, Any]) -> None:
        """Leaves the parts' own heads out if a checkpoint has none.

        Args:
            state: The checkpoint's ``state_dict``.
        """
        network = self.built()
        saved = [name for name in state if name.startswith("network.parts.part_heads.")]
        if state and not saved and "part_heads" in network.parts:
            network.leave_out_part_heads()
            self.measure_parts(())
            self._give_up_part_heads()

    def _give_up_part_heads(self) -> None:
        if self.facts["part_heads"] is not False:
            self.facts["part_heads"] = False
            rank_zero_info("part_heads: the checkpoint has none, so there are none now.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another model, before anything is restored; a fit may take what matches."""
        if CHECKPOINT_KEY in checkpoint:
            checkpoint[CHECKPOINT_KEY] = translated(checkpoint[CHECKPOINT_KEY])
        rebuild_paths(self.trainer, checkpoint)
        fits = self.trainer.state.fn == "fit"
        if not (fits and self._part_weight):  # heads that train the parts were asked for; their lack is a change
            self.follow_part_heads(checkpoint.get("state_dict", {}))
        if not fits:
            refuse_other_model(self.state_dict(), checkpoint.get("state_dict", {}))
            return
        self._saved_facts, lines = take_up(
            checkpoint,
            self.state_dict(),
            self._saved(),
            lambda: self.configure_optimizers()["optimizer"],
            self.on_group_change,
            self.trainer,
        )
        if self._saved_facts is not None:
            self._refuse_damaged_optimizer(checkpoint)
        if lines and self.trainer.is_global_zero:
            print(*lines, sep="\n")

    def _refuse_damaged_optimizer(self, checkpoint: Mapping[str, Any]) -> None:
        """Raises `ConfigError` on all ranks if the optimizer state does not fit its parameters on one of them."""
        made = self.configure_optimizers()
        optimizer = made["optimizer"] if isinstance(made, Mapping) else made
        if not isinstance(optimizer, torch.optim.Optimizer):  # several of a subclass, which go on as it says
            return
        names = {id(parameter): name for name, parameter in self.built().named_parameters()}
        group = self.built().param_groups(self.base_lr, self.weight_decay)[0]

        def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            groups = [{**group, "params": parameters}]
            return make_optimizer(self.optimizer_facts, groups, fused=False, trust=self._trust)

        problem = first_problem(checkpoint, optimizer, names, make)
        if self.trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
            raise damaged(problem or "another rank tells how.")

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
            if "head" not in complete:  # a constructor would ask the fusion's class, of whatever package, for one
                raise KeyError("there is no head")
            task = cls._class_of(str(saved["task"]))
            model = task(parts=complete, fusion=saved["fusion"], **saved["facts"])
            model._trust = (trust,) if isinstance(trust, str) else tuple(trust)
            model.build(record=dict(saved["network"]), load=False)
            refuse_other_model(model.state_dict(), state, "checkpoint_path")
            model.load_state_dict(state)
        except ConfigError:
            raise
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise ConfigError(f"checkpoint_path: the facts in {str(checkpoint_path)!r} are damaged: {error}") from error
        return model.to(map_location or "cpu").eval()

    @classmethod
    def _class_of(cls, name: str) -> "type[HybridTask]":
        """The subclass that wrote a checkpoint; `ConfigError` if it is not there, or is no subclass."""
        tasks = concrete_subclasses(HybridTask)  # type: ignore[type-abstract]  # it is abstract, its subclasses are not
        known = {task_name(task): task for task in tasks}
        if name not in known:
            raise ConfigError(
                f"checkpoint_path: the file was written by {name!r}, which is not among the classes imported here: "
                f"{listing(known)}. Import it first."
            )
        if not issubclass(known[name], cls):
            raise ConfigError(
                f"checkpoint_path: the file was written by {name!r}, which is no {cls.__name__}. Call "
                f"load_from_checkpoint of that class, or of HybridTask."
            )
        return known[name]
