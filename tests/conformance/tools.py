"""One adapter per tool: how its documentation says it is set up for a schedule."""

import importlib.util
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint

import hybrid_lightning
from hybrid_lightning import GradualUnfreezing, named_param_groups
from tests.conformance.model import BACKBONE_RATE, HEAD_RATE, Module, Schedule

RATIO = BACKBONE_RATE / HEAD_RATE


class Tool:
    """A way to train some parts of a model only from some epoch on."""

    name: str
    strategies: tuple[str, ...] = ("ddp", "ddp_find_unused_parameters_true")
    """Strategies to try for two ranks; the better one counts."""

    def installed(self) -> bool:
        return True

    def version(self) -> str:
        return f"lightning {pl.__version__}"

    def groups(self, module: Module, schedule: Schedule, weight_decay: float) -> Iterable[Any]:
        """What ``configure_optimizers`` gives to the optimizer."""
        raise NotImplementedError

    def callbacks(self, schedule: Schedule, folder: Path) -> list[pl.Callback]:
        raise NotImplementedError

    def checkpoint(self) -> type[ModelCheckpoint]:
        return ModelCheckpoint

    def exact_resume(self) -> list[pl.Callback]:
        """What the tool offers to resume exactly from any step; most offer nothing."""
        return []


class Ours(Tool):
    """`GradualUnfreezing`, with groups from `named_param_groups`, in a module that knows nothing else of us.

    Each module path of a schedule is a part. Resuming from any step adds `ExactResume`.
    """

    name = "hybrid_lightning"
    strategies = ("ddp",)

    def version(self) -> str:
        return f"hybrid_lightning {hybrid_lightning.__version__}"

    def groups(self, module: Module, schedule: Schedule, weight_decay: float) -> Iterable[Any]:
        parts = {part_name(path): path for path in schedule} | {"head": "head"}
        rates = {part_name(path): {"lr_scale": RATIO} for path in schedule}
        return named_param_groups(module, parts, lr=HEAD_RATE, weight_decay=weight_decay, rates=rates)

    def callbacks(self, schedule: Schedule, folder: Path) -> list[pl.Callback]:
        return [GradualUnfreezing({part_name(path): f"{epoch} epochs" for path, epoch in schedule.items()})]

    def exact_resume(self) -> list[pl.Callback]:
        return [hybrid_lightning.ExactResume()]


def part_name(path: str) -> str:
    return path.replace(".", "_")


class LightningFinetuning(Tool):
    """Lightning's own: the module has a ``backbone``, and the optimizer starts with the head's parameters alone.

    A schedule for the whole backbone is a `BackboneFinetuning`, with ``train_bn=False`` because the checks ask for a
    part that is frozen altogether, and a backbone rate that stays at its share of the head's
    (``backbone_initial_ratio_lr``, ``lambda_func`` 1). A schedule by stages is a `BaseFinetuning` written like the
    example in its documentation: ``freeze`` before training, ``unfreeze_and_add_param_group`` at the stage's epoch.
    """

    name = "Backbone/BaseFinetuning"

    def groups(self, module: Module, schedule: Schedule, weight_decay: float) -> Iterable[Any]:
        return module.head.parameters()

    def callbacks(self, schedule: Schedule, folder: Path) -> list[pl.Callback]:
        if [*schedule] != ["backbone"]:
            return [StageFinetuning(schedule)]
        options: dict[str, Any] = {"backbone_initial_ratio_lr": RATIO, "lambda_func": unchanged, "train_bn": False}
        return [BackboneFinetuning(unfreeze_backbone_at_epoch=schedule["backbone"], **options)]


def unchanged(epoch: int) -> float:
    return 1.0


class StageFinetuning(BaseFinetuning):
    """Stages at their epochs, with the functions that `BaseFinetuning` has for that."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        for path in self.schedule:
            self.freeze(pl_module.get_submodule(path), train_bn=False)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        for path, start in self.schedule.items():
            if epoch == start:
                rate = optimizer.param_groups[0]["lr"] * RATIO
                self.unfreeze_and_add_param_group(pl_module.get_submodule(path), optimizer, rate, train_bn=False)


class Scheduler(Tool):
    """finetuning-scheduler with an explicit schedule, as a dict in place of its YAML file.

    Phase 0 is the head, each further phase what starts at one epoch. ``epoch_transitions_only``, because a schedule
    here knows epochs alone; ``restore_best=False``, because going back to an earlier checkpoint at an unfreezing is
    another run; ``frozen_bn_track_running_stats=False``, its option for statistics that stand still;
    ``apply_lambdas_new_pgs``, its option for groups that follow a LambdaLR. The last phase's ``max_transition_epoch``
    is required, and small enough not to lengthen the fit. Checkpoints come from its `FTSCheckpoint`, and the optimizer
    gets the parameters that train, as its documentation shows.
    """

    name = "finetuning-scheduler"

    def installed(self) -> bool:
        return importlib.util.find_spec("finetuning_scheduler") is not None

    def version(self) -> str:
        return f"finetuning-scheduler {self.package().__version__}"

    @staticmethod
    def package() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports what torch deprecates
            return importlib.import_module("finetuning_scheduler")

    def groups(self, module: Module, schedule: Schedule, weight_decay: float) -> Iterable[Any]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def callbacks(self, schedule: Schedule, folder: Path) -> list[pl.Callback]:
        starts = sorted(set(schedule.values()))
        phases: dict[int, dict[str, Any]] = {0: {"params": ["head.*"], "max_transition_epoch": starts[0]}}
        for depth, (start, end) in enumerate(zip(starts, [*starts[1:], starts[-1] + 1], strict=True), 1):
            patterns = [f"{path}.*" for path, epoch in schedule.items() if epoch == start]
            phases[depth] = {"params": patterns, "max_transition_epoch": end, "lr": BACKBONE_RATE}
        options = {"epoch_transitions_only": True, "restore_best": False, "apply_lambdas_new_pgs": True}
        quiet = {"logging_level": logging.ERROR, "log_dir": folder}
        finetuning = self.package().FinetuningScheduler
        return [finetuning(ft_schedule=phases, frozen_bn_track_running_stats=False, **options, **quiet)]

    def checkpoint(self) -> type[ModelCheckpoint]:
        return self.package().FTSCheckpoint


class RateZero(Tool):
    """The common workaround: everything trains from the start, and the waiting parts' groups have rate 0."""

    name = "lr = 0"
    strategies = ("ddp",)

    def groups(self, module: Module, schedule: Schedule, weight_decay: float) -> Iterable[Any]:
        waiting = [
            {"params": list(module.get_submodule(path).parameters()), "lr": BACKBONE_RATE, "start": epoch}
            for path, epoch in schedule.items()
        ]
        return [{"params": list(module.head.parameters()), "lr": HEAD_RATE, "start": 0}, *waiting]

    def callbacks(self, schedule: Schedule, folder: Path) -> list[pl.Callback]:
        return [ZeroRates()]


class ZeroRates(pl.Callback):
    """Takes the rate away for the step alone, so that schedulers find it where they left it."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        rates: list[float] = []

        def take(optimizer: Any, *rest: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] *= trainer.current_epoch >= group["start"]

        def give_back(optimizer: Any, *rest: Any) -> None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

        trainer.optimizers[0].register_step_pre_hook(take)
        trainer.optimizers[0].register_step_post_hook(give_back)


TOOLS: list[Tool] = [Ours(), LightningFinetuning(), Scheduler(), RateZero()]
