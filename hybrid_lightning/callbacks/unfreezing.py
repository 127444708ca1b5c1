"""Gradual unfreezing: applies the unfreezing schedules to the optimizer's named groups."""

import gc
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hybrid_lightning.callbacks.logging import fit_length, is_log_step, named_groups
from hybrid_lightning.durations import FitLength
from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.freezing import apply_modes, module_modes, set_trainable
from hybrid_lightning.schedules import UnfreezingSchedule
from hybrid_lightning.sharding import reshard
from hybrid_lightning.strategies import FSDP2Strategy

Group = dict[str, Any]


class GradualUnfreezing(pl.Callback):
    """Trains each part from its own moment on; until then the part is frozen.

    Frozen means: no gradient, no update, no weight decay, normalisation and dropout in eval mode. What trains is a
    function of the schedule and the step alone, so a resumed run trains what an uninterrupted one would. Works in any
    LightningModule whose one optimizer has groups from `named_param_groups`.

    Logged on each log step: ``trainable/<part>``, the share of the part's parameters that train, 0 to 1.

    Args:
        unfreeze: Part → ``always``, ``never``, a duration (``3 epochs``, ``500 steps``, ``10%`` of the fit), or
            ``{start: 10%, every: 1 epochs}``, which unfreezes the stages one by one from the output to the input. Parts
            that are not named stay as they arrive: trainable, unless you froze them.

    Raises:
        ConfigError: On a value that is none of these; at the start of a fit, on an unknown part, on an unfreezing after
            the end of the fit, or if nothing trains at step 0.
    """

    def __init__(self, unfreeze: dict[str, Any]) -> None:
        super().__init__()
        self.schedules = {part: UnfreezingSchedule.parse(value, f"unfreeze.{part}") for part, value in unfreeze.items()}
        self.moments: dict[str, int | None] = {}
        self._next: float = 0
        self._modes: dict[nn.Module, bool] = {}
        self._shares: dict[str, float] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freezes before the first batch, and before the optimizer's state is restored."""
        groups = named_groups(trainer, type(self).__name__)
        for group in groups:
            if group["part"] not in self.schedules and not any(p.requires_grad for p in group["params"]):
                group["fixed"], group["unfrozen_at"] = True, None  # frozen by somebody else, who did not name it here
        at_start = starting_groups(groups, self.schedules)
        if any(not trains for trains in at_start.values()):
            refuse_other_strategies(trainer)
        self.moments = {name: 0 if trains else None for name, trains in at_start.items()}
        self._apply(trainer, pl_module, step=0)
        # Lightning warns of modules in eval here; each batch start puts every module into its own mode
        apply_modes(dict.fromkeys(self._modes, True))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turns durations into steps, now that the length of the fit is known and a checkpoint is restored."""
        groups = named_groups(trainer, type(self).__name__)
        length = fit_length(trainer)
        self.moments = unfreezing_steps(groups, self.schedules, length)
        if not getattr(trainer, "fast_dev_run", False):
            refuse_late(self.moments, length)
        self._apply(trainer, pl_module, trainer.global_step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Unfreezes what is due; restores the modes, which a validation loop may have changed."""
        if trainer.global_step >= self._next:
            self._apply(trainer, pl_module, trainer.global_step)
        apply_modes(self._modes)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Logs what trains."""
        if is_log_step(trainer):
            pl_module.log_dict({f"trainable/{part}": share for part, share in self._shares.items()})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After a fit nothing stays frozen: the flags were this fit's, and the next user of a module sets its own."""
        if stage == "fit":
            self._release(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """An interrupted fit ends like any other."""
        self._release(trainer)

    def _release(self, trainer: pl.Trainer) -> None:
        reshard(trainer.lightning_module)
        if self.moments and len(trainer.optimizers) == 1:
            for group in trainer.optimizers[0].param_groups:
                if not group.get("fixed", True):
                    set_trainable(group["params"], True)
        self.moments, self._modes = {}, {}

    def _apply(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Brings flags, records and modes to what the schedule says for `step`; does nothing the second time."""
        reshard(pl_module)
        groups = [group for group in named_groups(trainer, type(self).__name__) if not group["fixed"]]
        changed = False
        for group in groups:
            moment = self.moments[group["name"]]
            trains = moment is not None and step >= moment
            if not trains:
                group["unfrozen_at"] = None
            elif group["unfrozen_at"] is None:
                group["unfrozen_at"] = step
            if any(parameter.requires_grad is not trains for parameter in group["params"]):
                set_trainable(group["params"], trains)
                changed = True
        if changed:
            rewrap(trainer)
        self._next = min((m for m in self.moments.values() if m is not None and m > step), default=float("inf"))
        self._modes = module_modes(pl_module, {p for group in groups for p in group["params"]})
        self._shares = trainable_shares(groups)


def stages_above(groups: list[Group]) -> dict[str, int]:
    """Group name → number of stages of its part between it and the output."""
    last: dict[str, int] = {}
    for group in groups:
        last[group["part"]] = max(last.get(group["part"], 0), group["stage"])
    return {group["name"]: last[group["part"]] - group["stage"] for group in groups}


ALWAYS = UnfreezingSchedule.parse("always")


def starting_groups(groups: list[Group], schedules: Mapping[str, UnfreezingSchedule]) -> dict[str, bool]:
    """Group name → whether it trains from step 0, for the groups that ever may.

    Raises:
        ConfigError: If a schedule names an unknown part, or nothing trains.
    """
    parts = list(dict.fromkeys(group["part"] for group in groups))
    for part in schedules:
        if part not in parts:
            raise unknown("unfreeze", "part", part, parts)
    above = stages_above(groups)
    free = [group for group in groups if not group["fixed"]]
    at_start = {g["name"]: schedules.get(g["part"], ALWAYS).trains_at_start(above[g["name"]]) for g in free}
    if not any(at_start.values()):
        raise ConfigError(
            f"unfreeze: everything is frozen at step 0, so nothing can be learned. "
            f"Set 'unfreeze: always' for at least one of: {listing(parts)}."
        )
    return at_start


def unfreezing_steps(
    groups: list[Group], schedules: Mapping[str, UnfreezingSchedule], length: FitLength
) -> dict[str, int | None]:
    """Group name → step from which it trains (None: never), a function of its arguments alone."""
    above = stages_above(groups)
    return {
        group["name"]: None
        if group["fixed"]
        else schedules.get(group["part"], ALWAYS).step(above[group["name"]], length, f"unfreeze.{group['part']}")
        for group in groups
    }


def trainable_shares(groups: list[Group]) -> dict[str, float]:
    """Part → share of its parameters that train."""
    totals: dict[str, list[int]] = {}
    for group in groups:
        counts = totals.setdefault(group["part"], [0, 0])
        for parameter in group["params"]:
            counts[0] += parameter.numel() * parameter.requires_grad
            counts[1] += parameter.numel()
    return {part: trains / total for part, (trains, total) in totals.items()}


def rewrap(trainer: pl.Trainer) -> None:
    """Rebuilds DistributedDataParallel, whose reducer knows only what was trainable when it was made."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        gc.collect()  # the old wrapper's hooks have to be gone before the new ones are set
        strategy.configure_ddp()


def refuse_other_strategies(trainer: pl.Trainer) -> None:
    """Raises `ConfigError` under a strategy for which unfreezing is not known to be exact."""
    exact = (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy)
    if type(trainer.strategy) not in exact:  # not DeepSpeed, which derives from DDP
        raise ConfigError(
            f"trainer.strategy: unfreezing under {type(trainer.strategy).__name__} would not be exact and is refused. "
            f"Use 'auto' or 'ddp', 'fsdp2' for a sharded model, or set 'unfreeze: always' for every part."
        )


def refuse_late(moments: Mapping[str, int | None], length: FitLength) -> None:
    """Raises `ConfigError` if a group would start to train after the end of the fit."""
    total = length.total_steps
    if total is None:
        return
    late = [f"{name} at step {step}" for name, step in moments.items() if step is not None and step >= total]
    if late:
        raise ConfigError(
            f"unfreeze: the fit ends after {total} steps, before these would train: {listing(late, 6)}. "
            f"Unfreeze earlier, train longer, or write 'never'."
        )
