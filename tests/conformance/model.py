"""The small model, its data and its Trainer, the same for every tool and every check."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from hybrid_lightning import ConfigError

if TYPE_CHECKING:
    from tests.conformance.tools import Tool

Schedule = Mapping[str, int]
"""Module path → epoch from which it trains; what is not named trains from the start."""

WHOLE: Schedule = {"backbone": 2}
STAGES: Schedule = {"backbone.third": 1, "backbone.second": 2, "backbone.first": 3}
FEATURES, WIDTH, SAMPLES, BATCH, EPOCHS = 4, 6, 40, 8, 4
STEPS = SAMPLES // BATCH
HEAD_RATE, BACKBONE_RATE = 0.05, 0.01

MakeOptimizer = Callable[..., torch.optim.Optimizer]
sgd = partial(torch.optim.SGD, momentum=0.9)
adam = torch.optim.Adam
adamw = torch.optim.AdamW


class Violation(AssertionError):  # noqa: N818
    """A tool does not hold what a check asks for; the text is what was measured."""


class NotApplicable(Exception):  # noqa: N818
    """A tool says before the first step that it does not do what a check needs; the text is its reason."""


def block(inputs: int, norm: nn.Module, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, WIDTH), norm, nn.GELU(), nn.Dropout(dropout))


class Backbone(nn.Sequential):
    """Three stages; with `batch_norm` the second one's normalization has no parameters."""

    def __init__(self, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        for index, stage in enumerate(("first", "second", "third")):
            norm = nn.BatchNorm1d(WIDTH, affine=stage != "second") if batch_norm else nn.LayerNorm(WIDTH)
            self.add_module(stage, block(WIDTH if index else FEATURES, norm, dropout))


class Module(pl.LightningModule):
    """Somebody's LightningModule: a backbone, a head, and an optimizer as the tool's documentation asks for it."""

    def __init__(
        self,
        tool: "Tool",
        schedule: Schedule,
        batch_norm: bool = False,
        dropout: float = 0.0,
        optimizer: MakeOptimizer = adam,
        weight_decay: float = 0.0,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone(batch_norm, dropout)
        self.head = nn.Linear(WIDTH, 2)
        self.features = torch.empty(0)
        self.tool, self.schedule, self.scheduler = tool, schedule, scheduler
        self.make_optimizer, self.weight_decay = optimizer, weight_decay

    def loss(self, batch: list[Tensor]) -> Tensor:
        self.features = self.backbone(batch[0])
        return nn.functional.cross_entropy(self.head(self.features), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch[0]))

    def configure_optimizers(self) -> Any:
        groups = self.tool.groups(self, self.schedule, self.weight_decay)
        optimizer = self.make_optimizer(groups, lr=HEAD_RATE, weight_decay=self.weight_decay)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


def loader(batch_size: int = BATCH, shuffle: bool = False, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
    x = torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(1)) * 3 + 1
    return DataLoader(TensorDataset(x, (x.sum(1) > 4).long()), batch_size, shuffle=shuffle, sampler=sampler)


def trainer(
    tool: "Tool", schedule: Schedule, folder: Path, *callbacks: pl.Callback, every_step: bool = False, **options: Any
) -> pl.Trainer:
    """A Trainer with the tool, which saves ``folder/step=N.ckpt`` after each epoch or each step."""
    when = {"every_n_train_steps": 1} if every_step else {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    checkpoint = tool.checkpoint()(dirpath=folder, filename="{step}", save_top_k=-1, **when)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    own = [*tool.callbacks(schedule, folder), *callbacks, checkpoint]
    return pl.Trainer(**{**quiet, "default_root_dir": folder, "max_epochs": EPOCHS, "callbacks": own, **options})


def fit(runner: pl.Trainer, module: Module, data: Any = None, *others: Any, **options: Any) -> None:
    """Fits; an error is a `Violation`, or a refusal (`NotApplicable`) if the tool speaks up before the first step."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner.fit(module, loader() if data is None else data, *others, weights_only=False, **options)
    except (MisconfigurationException, ConfigError) as error:
        if runner.global_step == 0:
            raise NotApplicable("refused before the first step") from error
        raise Violation(f"{type(error).__name__} at step {runner.global_step}") from error
    except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise Violation(f"{type(error).__name__} at step {runner.global_step}") from error


class Recorder(pl.Callback):
    """Optimizer step → names of the parameters that it changed, measured on the parameters themselves."""

    def __init__(self) -> None:
        self.changed: dict[int, frozenset[str]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = trainer.global_step
        self.before = {name: value.detach().clone() for name, value in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        after = dict(pl_module.named_parameters())
        self.changed[self.step] = frozenset(n for n, value in self.before.items() if not torch.equal(value, after[n]))

    def first_step_of(self, prefix: str) -> int | None:
        """The first step that changed something below `prefix`."""
        return min((s for s, names in self.changed.items() if any(n.startswith(prefix) for n in names)), default=None)


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[str, float]:
    """The entry that differs most, and by how much; counters are named only if nothing else differs."""
    distances = {name: (one[name].double() - other[name].double()).abs().max().item() for name in one}
    name = max(distances, key=lambda key: (distances[key] > 0, one[key].is_floating_point(), distances[key]))
    return name, distances[name]
