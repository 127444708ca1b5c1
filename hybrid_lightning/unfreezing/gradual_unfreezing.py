"""Gradual unfreezing: applies the unfreezing schedules to the optimizer's named groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.ranks import refuse_different_ranks, refuse_other_strategies, rewrap
from hybrid_lightning.distributed.sharding import reshard
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.trainer import fit_length, is_log_step, log_values, named_groups, window_is_open
from hybrid_lightning.unfreezing.freezing import BATCH_NORM_MODES, apply_modes, module_modes, set_trainable
from hybrid_lightning.unfreezing.plateau import Plateau
from hybrid_lightning.unfreezing.schedule import Span, UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import (
    ALWAYS,
    group_spans,
    idle_from,
    label,
    refuse_impossible,
    stage_name,
    trainable_shares,
    training_at_start,
    waiting_for,
)

Group = dict[str, Any]


class GradualUnfreezing(pl.Callback):
    """Trains each part from its own moment on; until then, and after it is frozen again, the part is frozen.

    Frozen means: no gradient, no update, no weight decay, normalization and dropout in eval mode. What trains is a
    function of the schedule, the step and the moments that metrics or `postpone` have decided; the latter are in the
    checkpoint. So a resumed run trains what an uninterrupted one would. Works in any LightningModule whose one
    optimizer has groups from `named_param_groups`.

    Metrics are waited for after each validation (not the sanity check), on the mean over all ranks. On several ranks
    the parameters are compared bit by bit after the first step of each phase.

    Logged on each log step: ``trainable/<part>``, the share of the part's parameters that train, 0 to 1.

    Args:
        unfreeze: Part → schedule. Parts that are not named stay as they arrive: trainable, unless you froze them.

            - ``always``, ``never``, or a duration: ``3 epochs``, ``500 steps``, ``10%`` of the fit;
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
        ConfigError: On a value that is none of these; at the start of a fit, on an unknown part, on an unfreezing after
            the end of the fit, or if nothing trains at some step.
    """

    def __init__(
        self,
        unfreeze: dict[str, Any],
        batch_norm: dict[str, str] | None = None,
        restart_early_stopping: bool = False,
        check_ranks: str = "phases",
    ) -> None:
        super().__init__()
        self.schedules = {part: UnfreezingSchedule.parse(value, f"unfreeze.{part}") for part, value in unfreeze.items()}
        self.batch_norm = batch_norm or {}
        for part, mode in self.batch_norm.items():
            if mode not in BATCH_NORM_MODES:
                raise unknown(f"batch_norm.{part}", "mode", str(mode), BATCH_NORM_MODES)
        if check_ranks not in ("phases", "epochs"):
            raise unknown("unfreezing.check_ranks", "value", str(check_ranks), ("phases", "epochs"))
        self.restart_early_stopping, self.check_ranks = restart_early_stopping, check_ranks
        self._forget()

    def _forget(self) -> None:
        self.recorded: dict[str, int] = {}
        """Part and stage → step that a plateau decided."""
        self.holds: list[list[int]] = []
        """Windows in which nothing starts, see `postpone`."""
        self.spans: dict[str, Span] = {}
        """Group → steps between which it trains."""
        self._watches: dict[str, dict[str, Any]] = {}
        self._best: dict[str, dict[str, Any]] = {}
        self._training: list[str] | None = None
        self._length: FitLength | None = None
        self._next: float = 0
        self._modes: dict[nn.Module, bool] = {}
        self._shares: dict[str, float] = {}
        self._fixed: set[str] = set()
        self._uncompared = False

    # State

    def state_dict(self) -> dict[str, Any]:
        """What metrics decided and what is needed to decide on; and the names of the groups that train."""
        return {
            "recorded": self.recorded,
            "holds": [list(hold) for hold in self.holds],
            "watches": self._watches,
            "best": self._best,
            "training": self._training or [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the decisions of an earlier run."""
        self.recorded = dict(state_dict.get("recorded", {}))
        self.holds = [list(hold) for hold in state_dict.get("holds", [])]
        self._watches = {stage: dict(watch) for stage, watch in state_dict.get("watches", {}).items()}
        self._best = dict(state_dict.get("best", {}))
        self._training = list(state_dict["training"]) if state_dict.get("training") else None

    # What trains

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one; a checkpoint is read after this."""
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes before the first batch, and before the optimizer's state is restored."""
        groups = named_groups(trainer, type(self).__name__)
        for group in groups:
            if group["part"] not in self.schedules and not any(p.requires_grad for p in group["params"]):
                group["fixed"], group["unfrozen_at"] = True, None  # frozen by somebody else, who did not name it here
        self._fixed = {group["name"] for group in groups if group["fixed"]}
        at_start = training_at_start(groups, self.schedules)
        parts = {group["part"] for group in groups}
        for part in self.batch_norm.keys() - parts:
            raise unknown("batch_norm", "part", part, parts)
        if any(schedule != ALWAYS for schedule in self.schedules.values()):
            refuse_other_strategies(trainer)
        if self._restoring(groups) and isinstance(trainer.strategy, FSDP2Strategy):
            raise ConfigError("unfreeze: restore_best keeps whole weights, which fsdp2 has not. Leave it out.")
        training = {group["name"] for group in groups} & set(self._training or ()) or at_start
        self.spans = {g["name"]: Span(0 if g["name"] in training else None) for g in groups}
        self._apply(trainer, pl_module, step=0)
        # Lightning warns of modules in eval here; each batch start puts every module into its own mode
        apply_modes(dict.fromkeys(self._modes, True))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turns durations into steps, now that the length of the fit is known and a checkpoint is restored.

        What is due is left to the first batch, because a restart may have to make a validation before it.
        """
        self._length = fit_length(trainer)
        groups = named_groups(trainer, type(self).__name__)
        for group in groups:
            group["fixed"] = group["name"] in self._fixed  # and not what it was in the checkpoint
            group["unfrozen_at"] = None if group["fixed"] else group["unfrozen_at"]
        refuse_one_rate(groups)
        self._refuse_without_validation(trainer)
        self._find_spans(trainer)
        check_moments(trainer, groups, self.schedules, self._length)
        self._uncompared = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Unfreezes and freezes what is due; restores the modes, which a validation loop may have changed."""
        if trainer.global_step >= self._next:
            self._apply(trainer, pl_module, trainer.global_step)
        apply_modes(self._modes)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Logs what trains."""
        if is_log_step(trainer):
            log_values(trainer, {f"trainable/{part}": share for part, share in self._shares.items()})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compares the ranks after the first step of a phase."""
        if self._uncompared and not window_is_open(trainer):
            self._uncompared = False
            refuse_different_ranks(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the ranks, if that is wanted after each epoch."""
        if self.check_ranks == "epochs":
            refuse_different_ranks(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Names the stages that never trained, because their metric never stopped getting better."""
        for stage, plateau in self._waiting(trainer, trainer.global_step).items():
            rank_zero_info(f"{stage} has not been unfrozen: it waited for {plateau}.")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After a fit nothing stays frozen: the flags were this fit's, and the next user of a module sets its own."""
        if stage == "fit":
            self._release(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """An interrupted fit ends like any other."""
        self._release(trainer)

    def _release(self, trainer: pl.Trainer) -> None:
        reshard(trainer.lightning_module)
        if self.spans and len(trainer.optimizers) == 1:
            for group in trainer.optimizers[0].param_groups:
                if not group.get("fixed", True) and group["part"] in self.schedules:
                    set_trainable(group["params"], True)
        self.spans, self._modes = {}, {}

    def postpone(self, trainer: pl.Trainer, until: int) -> list[str]:
        """Lets nothing that is frozen now start before the step `until`; to be called the same on all ranks.

        The window is recorded, so that what trains stays a function of the schedule, the step and what is recorded.
        Stages that follow another one keep their distance from it. A window in which nothing at all would train is not
        opened.

        Args:
            trainer: Its fit is under way.
            until: Step from which on things may start again.

        Returns:
            Labels of the parts and stages that will start later than they would have.
        """
        assert self._length is not None
        groups, since = named_groups(trainer, type(self).__name__), trainer.global_step
        last = self.holds[-1] if self.holds else [-1, -1]
        # windows that overlap are one, because nothing started within the first
        holds = [*self.holds[:-1], [last[0], max(last[1], until)]] if since < last[1] else [*self.holds, [since, until]]
        spans = group_spans(groups, self.schedules, self._length, self.recorded, holds)
        if idle_from(spans, self._length) is not None:
            rank_zero_warn("unfreeze: nothing is postponed, because then nothing would train for some steps.")
            return []
        moved = {label(g): spans[g["name"]] for g in groups if spans[g["name"]] != self.spans[g["name"]]}
        end = self._length.total_steps or float("inf")
        lost = [name for name, (start, stop) in moved.items() if (start or 0) >= (end if stop is None else stop)]
        if lost:
            rank_zero_warn(f"unfreeze: postponed beyond the end, so these will never train: {listing(lost)}.")
        self.holds, self.spans, self._next = holds, spans, 0
        return list(moved)

    def _find_spans(self, trainer: pl.Trainer) -> None:
        groups = named_groups(trainer, type(self).__name__)
        assert self._length is not None
        self.spans = group_spans(groups, self.schedules, self._length, self.recorded, self.holds)
        self._next = 0

    def _apply(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Brings flags, records and modes to what the schedule says for `step`; does nothing the second time."""
        reshard(pl_module)
        everything = named_groups(trainer, type(self).__name__)
        groups = [group for group in everything if not group["fixed"]]
        trains = {group["name"]: self.spans[group["name"]].trains(step) for group in groups}
        begun = [group for group in groups if trains[group["name"]] and group["unfrozen_at"] is None]
        if begun and step:
            self._before_unfreezing(trainer, pl_module, begun)
        self._record(groups, trains, step)
        named = [group for group in groups if group["part"] in self.schedules]  # others stay as they arrived
        changed = [g for g in named if any(p.requires_grad is not trains[g["name"]] for p in g["params"])]
        for group in changed:
            set_trainable(group["params"], trains[group["name"]])
        if changed:
            rewrap(trainer)
            self._uncompared = True
        self._training = [name for name, training in trains.items() if training]
        self._modes = module_modes(pl_module, {p: g["part"] for g in everything for p in g["params"]}, self.batch_norm)
        self._shares = trainable_shares(groups)
        moments = {moment for span in self.spans.values() for moment in span if moment is not None}
        self._next = min((moment for moment in moments if moment > step), default=float("inf"))

    def _record(self, groups: Sequence[Group], trains: Mapping[str, bool], step: int) -> None:
        """Writes into each group since when it trains; a group that is frozen again keeps it."""
        for group in groups:
            start = self.spans[group["name"]].start
            if start is None or step < start:
                group["unfrozen_at"] = None
            elif trains[group["name"]] and group["unfrozen_at"] is None:
                group["unfrozen_at"] = step

    # Metrics

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decides whether a metric has stopped getting better; the same on all ranks."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._length is None:
            return
        for metric in set().union(*(schedule.metrics for schedule in self.schedules.values())):
            if metric not in trainer.callback_metrics:
                raise unknown("unfreeze", "metric", metric, sorted(trainer.callback_metrics))
        self._keep_best(trainer, pl_module)
        # in the middle of an accumulation the next step has begun already
        step = trainer.global_step + window_is_open(trainer)
        for stage, plateau in self._waiting(trainer, trainer.global_step).items():
            value = reduced_metric(trainer, plateau.metric)
            fresh = {"metric": plateau.metric, "mode": plateau.mode, "best": plateau.worst, "validations": 0}
            watch = self._watches.setdefault(stage, fresh)
            if [watch["metric"], watch["mode"]] != [plateau.metric, plateau.mode]:  # the schedule has changed
                watch.update(fresh)
            if plateau.is_better(value, watch["best"]):
                watch.update(best=value, validations=0)
            else:
                watch["validations"] += 1
            if watch["validations"] >= plateau.patience:
                self.recorded[stage] = step
                rank_zero_info(f"{plateau} (best: {watch['best']:.6g}): {stage} trains from step {step} on.")
        self._find_spans(trainer)

    def _waiting(self, trainer: pl.Trainer, step: int) -> dict[str, Plateau]:
        groups = named_groups(trainer, type(self).__name__)
        assert self._length is not None
        return waiting_for(groups, self.schedules, self._length, self.recorded, step, self.holds)

    def _restoring(self, groups: Sequence[Group]) -> dict[str, Plateau]:
        """Group → metric whose best weights are restored before it is unfrozen."""
        own = {g["name"]: self.schedules.get(g["part"], ALWAYS).of_stage(stage_name(g)).restore_best for g in groups}
        return {name: best for name, best in own.items() if best is not None}

    def _keep_best(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        groups = named_groups(trainer, type(self).__name__)
        frozen = [g for g in groups if not g["fixed"] and g["unfrozen_at"] is None]
        wanted = {best.metric: best for best in self._restoring(frozen).values()}
        self._best = {metric: kept for metric, kept in self._best.items() if metric in wanted}
        for metric, best in wanted.items():
            value = reduced_metric(trainer, metric)
            if best.is_better(value, self._best.get(metric, {"value": best.worst})["value"]):
                state = pl_module.state_dict()
                weights = {n: t.detach().cpu().clone() for n, t in state.items() if isinstance(t, Tensor)}
                self._best[metric] = {"value": value, "weights": weights}

    def _before_unfreezing(self, trainer: pl.Trainer, pl_module: pl.LightningModule, begun: Sequence[Group]) -> None:
        for metric in {best.metric for best in self._restoring(begun).values()} & self._best.keys():
            pl_module.load_state_dict(self._best[metric]["weights"], strict=False)  # in place; extra state is not kept
            rank_zero_info(f"before {listing(dict.fromkeys(map(label, begun)))}: the weights with the best {metric}.")
        if self.restart_early_stopping:
            for callback in trainer.early_stopping_callbacks:
                if isinstance(callback, EarlyStopping):
                    callback.wait_count = 0

    def _refuse_without_validation(self, trainer: pl.Trainer) -> None:
        watched = [part for part, schedule in self.schedules.items() if schedule.metrics]
        if watched and not trainer.enable_validation:
            raise ConfigError(
                f"unfreeze: {listing(watched)} would wait for a metric, but nothing is validated. "
                f"Give validation data, or write a duration."
            )


def check_moments(
    trainer: pl.Trainer, groups: Sequence[Group], schedules: Mapping[str, UnfreezingSchedule], length: FitLength
) -> None:
    """Raises `ConfigError` if the moments do not fit into the fit; a fast development run is too short for any."""
    if not getattr(trainer, "fast_dev_run", False):
        refuse_impossible(group_spans(groups, schedules, length), length)


def refuse_one_rate(groups: Sequence[Group]) -> None:
    """Raises `ConfigError` if a scheduler has given groups with different shares one and the same rate."""
    rates = {group.get("initial_lr", group["lr"]) for group in groups}
    if len(rates) == 1 and len(groups) > 1 and len({group["lr_factor"] for group in groups}) > 1:
        raise ConfigError(
            f"configure_optimizers: the scheduler starts all groups at one rate ({rates.pop():g}), although their "
            f"shares differ. Use hybrid_lightning.GroupScheduler(optimizer, lambda one: OneCycleLR(one, max_lr=...)), "
            f"which keeps them, or give the scheduler a list of rates."
        )


def reduced_metric(trainer: pl.Trainer, name: str) -> float:
    """The last value of a logged metric: the mean over all ranks, the same number on each."""
    value = trainer.callback_metrics[name].detach().to(trainer.strategy.root_device)
    return float(trainer.strategy.broadcast(trainer.strategy.reduce(value, reduce_op="mean")))
