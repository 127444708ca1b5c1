"""Gradual unfreezing: applies the unfreezing schedules to the optimizer's named groups."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from hybrid_lightning.distributed.ranks import refuse_different_ranks, refuse_other_strategies, rewrap
from hybrid_lightning.distributed.sharding import reshard
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import at, check_choice, check_keys, listing
from hybrid_lightning.optim.groups import refuse_one_rate
from hybrid_lightning.trainer import FitCallback, fit_length, is_log_step, log_values, reduced_metric, window_is_open
from hybrid_lightning.unfreezing.best_weights import BestWeights
from hybrid_lightning.unfreezing.freezing import BATCH_NORM_MODES, KeptModes, apply_modes, module_modes, set_trainable
from hybrid_lightning.unfreezing.plateau import WATCH_FORM, Plateau, PlateauWatch
from hybrid_lightning.unfreezing.promises import (
    FrozenValues,
    Promises,
    check_moments,
    never_trained,
    refuse_breaking_callbacks,
    refuse_restoring,
    refuse_unwatched,
)
from hybrid_lightning.unfreezing.schedule import Span, UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import (
    ALWAYS,
    group_spans,
    label,
    next_change,
    part_of_parameters,
    record_starts,
    refuse_moved,
    restoring,
    set_flags,
    trainable_shares,
    training_at_start,
    waiting_for,
)

Group = dict[str, Any]


class GradualUnfreezing(FitCallback):
    """Trains each part from its own moment on; until then, and after it is frozen again, the part is frozen.

    Frozen means: no gradient, no update, no weight decay, normalization and dropout in eval mode. What trains is a
    function of the schedule, the step and the steps that metrics have decided; the latter are in the checkpoint. So a
    resumed run trains what an uninterrupted one would. Works in any LightningModule whose one optimizer has groups from
    `named_param_groups`.

    Metrics are waited for after each validation (not the sanity check), on the mean over all ranks. On several ranks
    the parameters are compared bit by bit after the first step of each phase.

    Logged on each log step: ``trainable/<part>``, the share of the part's parameters that train, 0 to 1.

    Args:
        unfreeze: Part → schedule. Parts that are not named stay as they arrive: trainable, unless you froze them.

            - ``always``, ``never``, or a duration: ``3 epochs``, ``500 steps``, ``10%`` of the run;
            - ``{plateau: val/loss, patience: 2 validations}``: when the metric is no better for so long; ``mode`` (min
              or max) follows from well-known names, ``min_delta`` is 0;
            - ``{start: 10%, every: 1 epochs}``: the stages one by one from the output to the input; ``start`` and
              ``every`` may be plateaus;
            - beside these, ``freeze: 80%`` freezes again, ``freeze: {start: 50%, every: 1 epochs}`` stage by stage from
              the input to the output; ``restore_best: val/loss`` goes back to the weights with the best value so far
              before each unfreezing of the part (``true`` takes the plateau's metric);
            - ``{stages: {layer4: 10%, "*": never}}``: each stage by its name.
        batch_norm: Part → mode of its normalizations with running statistics: ``frozen`` uses the stored statistics
            also once the part trains; ``train`` uses those of the batch also while it is frozen; ``recalibrate`` makes
            no difference here, see `ReestimateStatistics`. A part that is not named uses the stored ones while it is
            frozen.
        restart_early_stopping: Whether the patience of `EarlyStopping` starts anew at each unfreezing.
        check_ranks: When ranks are compared: after the first step of each phase (``phases``), or after each epoch as
            well (``epochs``).

    Raises:
        ConfigError: On a value that is none of these. At the start of a run, on an unknown part, an impossible moment,
            or a callback that undoes the schedule. Later, if no gradient reaches a part, or what was frozen changed.
    """

    state_form: ClassVar[dict[Any, Any]] = {
        "recorded": {str: int},
        "watches": {str: WATCH_FORM},
        "best": {str: {"value": float, "weights": {str: Tensor}}},
        "training": [str],
    }

    def __init__(
        self,
        unfreeze: dict[str, Any],
        batch_norm: dict[str, str] | None = None,
        restart_early_stopping: bool = False,
        check_ranks: str = "phases",
    ) -> None:
        super().__init__()
        with at("unfreeze"):
            schedules = {part: UnfreezingSchedule.parse(value, part) for part, value in unfreeze.items()}
        self.configure(schedules, batch_norm or {})
        self.restart_early_stopping = restart_early_stopping
        self.check_ranks = check_choice(check_ranks, "unfreezing.check_ranks", ("phases", "epochs"))
        self.forget()

    def configure(self, schedules: Mapping[str, UnfreezingSchedule], batch_norm: Mapping[str, str]) -> None:
        """Sets when each part trains, and how its normalizations run; takes effect at the start of a run."""
        for part, mode in batch_norm.items():
            check_choice(mode, f"batch_norm.{part}", BATCH_NORM_MODES, "mode")
        self.schedules, self.batch_norm = dict(schedules), dict(batch_norm)

    def forget(self) -> None:
        """Forgets the decisions of an earlier fit."""
        self.decided_steps: dict[str, int] = {}  # part and stage → step that a plateau decided
        self.spans: dict[str, Span] = {}  # group → steps between which it trains
        self._watches: dict[str, PlateauWatch] = {}
        self._best = BestWeights()
        self._training: list[str] = []
        self._length: FitLength | None = None
        self._next: float = 0
        self._kept = KeptModes({})
        self._shares: dict[str, float] = {}
        self._fixed: set[str] = set()
        self._uncompared = False
        self.promises = Promises()

    # State: an older checkpoint may have further keys, such as "holds", windows of an option that is gone

    def state_dict(self) -> dict[str, Any]:
        """What metrics decided and what is needed to decide on; and the names of the groups that train."""
        return {
            "recorded": self.decided_steps,
            "watches": {stage: asdict(watch) for stage, watch in self._watches.items()},
            "best": self._best.kept,
            "training": self._training,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from the decisions of an earlier process."""
        self.decided_steps = dict(state_dict.get("recorded", {}))
        self._watches = {stage: PlateauWatch(**watch) for stage, watch in state_dict.get("watches", {}).items()}
        self._best = BestWeights(state_dict.get("best"))
        self._training = list(state_dict.get("training", []))

    # What trains

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses callbacks that would undo the schedule."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            refuse_breaking_callbacks(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freezes before the first batch, and before the optimizer's state is restored."""
        self.freeze(trainer, pl_module)
        # Lightning warns of modules in eval; each batch start sets the modes
        apply_modes(dict.fromkeys(self._kept.modes, True))

    def freeze(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Brings flags and modes to the start of the run; the second time it changes nothing."""
        groups = self.groups(trainer)
        for group in groups:
            is_frozen = not any(parameter.requires_grad for parameter in group["params"])
            if is_frozen and group["part"] not in self.schedules:  # by the user, who did not name the part here
                group["fixed"], group["unfrozen_at"] = True, None
        self._fixed = {group["name"] for group in groups if group["fixed"]}
        at_start = training_at_start(groups, self.schedules)
        check_keys(self.batch_norm, {group["part"] for group in groups}, "batch_norm", "part")
        if any(schedule != ALWAYS for schedule in self.schedules.values()):
            refuse_other_strategies(trainer)
        if restoring(groups, self.schedules, groups):
            refuse_restoring(trainer)
        # a restart begins with the phase of the checkpoint, whose optimizer state is restored next
        names = [group["name"] for group in groups]
        training = set(names).intersection(self._training) or at_start
        self.spans = {name: Span(0 if name in training else None) for name in names}
        self._apply(trainer, pl_module, step=0)
        self.promises.begin_phase(groups, self._training)
        self._kept.apply()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turns durations into steps, now that the length of the run is known and a checkpoint is restored.

        What is due is left to the first batch, because a restart may have to make a validation before it.
        """
        self._length = fit_length(trainer)
        groups = self.groups(trainer)
        for group in groups:
            group["fixed"] = group["name"] in self._fixed  # and not what it was in the checkpoint
            if group["fixed"]:
                group["unfrozen_at"] = None
        refuse_one_rate(groups)  # a scheduler has set its rates by now
        refuse_unwatched(trainer, self.schedules)
        self._find_spans(groups, self._length)
        check_moments(trainer, groups, self.schedules, self._length)
        self._uncompared = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises `ConfigError` if this epoch has another length, so that moments would not be where they were said."""
        length, groups = fit_length(trainer), self.groups(trainer)
        if length != self._length:
            spans = group_spans(groups, self.schedules, length, self.decided_steps)
            refuse_moved(self.spans, spans, length, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Unfreezes and freezes what is due; restores the modes, which a validation loop may have changed."""
        if trainer.global_step >= self._next:
            self._apply(trainer, pl_module, trainer.global_step)
        self._kept.apply()
        if self.promises.frozen is None:
            self.promises.frozen = FrozenValues(trainer, self.groups(trainer), self._kept.modes)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the first steps of a phase: raises `ConfigError` if no gradient reaches a part that trains."""
        self.promises.after_backward(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Logs what trains."""
        if is_log_step(trainer):
            log_values(trainer, {f"trainable/{part}": share for part, share in self._shares.items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Compares the ranks after the first step of a phase."""
        if self._uncompared and not window_is_open(trainer):
            self._uncompared = False
            refuse_different_ranks(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the ranks, if that is wanted; after the first epoch, whether what is frozen has not changed."""
        if self.check_ranks == "epochs":
            refuse_different_ranks(trainer, pl_module)
        self.promises.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Names what never trained although it was to; raises `ConfigError` if something frozen has changed."""
        self.promises.end_fit(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # too short for any moment
        starts = {name: span.start for name, span in self.spans.items()}
        for line in never_trained(self.groups(trainer), starts, trainer.global_step):
            rank_zero_info(line)
        for stage, plateau in self.waiting(trainer).items():
            rank_zero_info(f"{stage} has not been unfrozen: it waited for {plateau}.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After a run nothing stays frozen: the flags were this run's, and the next user of a module sets its own."""
        if stage == "fit":
            self._release(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted fit ends like any other."""
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        reshard(trainer.lightning_module)
        if self.spans and len(trainer.optimizers) == 1:
            for group in trainer.optimizers[0].param_groups:
                if not group.get("fixed", True) and group["part"] in self.schedules:
                    set_trainable(group["params"], True)
        self.spans, self._kept = {}, KeptModes({})

    def _find_spans(self, groups: Sequence[Group], length: FitLength) -> None:
        self.spans = group_spans(groups, self.schedules, length, self.decided_steps)
        self._next = 0  # the next batch applies them

    def _apply(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Brings flags, records and modes to what the schedule says for `step`; does nothing the second time."""
        reshard(pl_module)  # a flag set on gathered parameters would be lost
        groups = self.groups(trainer)
        free = [group for group in groups if not group["fixed"]]
        self._training = [group["name"] for group in free if self.spans[group["name"]].trains(step)]
        begun = [group for group in free if group["name"] in self._training and group["unfrozen_at"] is None]
        if begun and step:  # at step 0 no weights are better than those that are there
            self._before_unfreezing(trainer, pl_module, begun)
        record_starts(free, self.spans, self._training, step)
        if set_flags(free, self.schedules, self._training):
            rewrap(trainer)  # DDP reduces what had a gradient when it was made
            self._uncompared = True
            self.promises.begin_phase(groups, self._training)
        self._kept = KeptModes(module_modes(pl_module, part_of_parameters(groups), self.batch_norm))
        if self.promises.frozen is not None:
            self.promises.frozen.leave_out(groups, self._kept.modes)
        self._shares = trainable_shares(free)
        self._next = next_change(self.spans, step)

    # Metrics

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether a metric has stopped getting better; the same on all ranks."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._length is None:
            return
        for schedule in self.schedules.values():
            check_keys(sorted(schedule.metrics), sorted(trainer.callback_metrics), "unfreeze", "metric")
        groups = self.groups(trainer)
        self._keep_best(trainer, pl_module, groups)
        # in the middle of an accumulation window the next step has begun already
        step = trainer.global_step + window_is_open(trainer)
        for stage, plateau in self.waiting(trainer).items():
            watch = self._watches.get(stage)
            # the schedule may have changed since a checkpoint, whose best value is then of another metric
            if watch is None or (watch.metric, watch.mode) != (plateau.metric, plateau.mode):
                watch = self._watches[stage] = PlateauWatch(plateau.metric, plateau.mode, plateau.worst)
            if watch.observe(plateau, reduced_metric(trainer, plateau.metric)):
                self.decided_steps[stage] = step
                rank_zero_info(f"{plateau} (best: {watch.best:.6g}): {stage} trains from step {step} on.")
        spans, moment = self.spans, self._next
        self._find_spans(groups, self._length)
        if self.spans == spans:
            self._next = moment  # nothing was decided

    def waiting(self, trainer: Trainer) -> dict[str, Plateau]:
        """Part and stage → the plateau that it waits for now."""
        assert self._length is not None
        groups = self.groups(trainer)
        return waiting_for(groups, self.schedules, self._length, self.decided_steps, trainer.global_step)

    def _keep_best(self, trainer: Trainer, pl_module: LightningModule, groups: Sequence[Group]) -> None:
        frozen = [group for group in groups if not group["fixed"] and group["unfrozen_at"] is None]
        wanted = restoring(frozen, self.schedules, groups)
        for metric in self._best.kept.keys() - wanted.keys():
            del self._best.kept[metric]  # a copy of all weights that nothing waits for any more
        for metric, plateau in wanted.items():
            self._best.observe(plateau, reduced_metric(trainer, metric), pl_module)

    def _before_unfreezing(self, trainer: Trainer, pl_module: LightningModule, begun: Sequence[Group]) -> None:
        stages = dict.fromkeys(label(group) for group in begun)
        for metric in restoring(begun, self.schedules, self.groups(trainer)):
            if self._best.restore(metric, pl_module):
                rank_zero_info(f"before {listing(stages)}: the weights with the best {metric}.")
        if self.restart_early_stopping:
            for callback in trainer.early_stopping_callbacks:
                callback.wait_count = 0
