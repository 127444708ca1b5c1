"""Kind 11: precision, hooks of batches and devices, as the Trainer has them, in all that runs a network beside it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from hybrid_lightning.data.in_memory import DictDataset, as_batch
from tests.hostile.harness import Box, case
from tests.small import changed, table

SGD = {"class_path": "SGD", "init_args": {"momentum": 0.5}}
PARTS = {"x": {"module": "MLP"}, "y": {"module": "RandomFourierFeatures", "args": {"features": 64}}}
Batch = dict[str, Any]


class Plain(pl.LightningDataModule):
    """Two inputs and a class of three; `shift` is added to the classes by whichever hook a subclass has."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def train_dataloader(self) -> DataLoader[Any]:
        entries = {"x": table(), "y": table(seed=2), "target": torch.arange(27) % 3}
        return DataLoader(DictDataset(entries), batch_size=9, collate_fn=as_batch)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def shifted(self, batch: Batch) -> Batch:
        return {**batch, "target": batch["target"] + self.shift}


class Before(Plain):
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.shifted(batch)


class Move(Plain):
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return {key: value.to(device) for key, value in self.shifted(batch).items()}


class After(Plain):
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return self.shifted(batch)


class Pairs(Plain):
    """Batches that become dicts in the last hook."""

    def train_dataloader(self) -> DataLoader[Any]:
        pairs: Any = torch.utils.data.TensorDataset(table(), table(seed=2), torch.arange(27) % 3 * 10)
        return DataLoader(pairs, batch_size=9)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> Batch:
        return {"x": batch[0], "y": batch[1], "target": batch[2] // 10 + self.shift}


class Scaling(Plain):
    """A hook that makes other values while training, and draws random numbers then."""

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        is_training = self.trainer is not None and self.trainer.training
        noise = torch.rand(len(batch["x"]), 1) if is_training else 0.0
        return {**batch, "x": batch["x"] * 0 + 3.0 + noise}


def written(data: type[Plain], shift: int = 0, precision: str = "32-true", **options: Any) -> None:
    """``small.yaml`` with these data, in a precision; `options` are of the model."""
    config = changed({"trainer.precision": precision, "trainer.limit_train_batches": 1.0})
    config["model"]["init_args"] |= {"parts": PARTS, "optimizer": SGD, **options}
    config["data"] = {"class_path": f"{__name__}.{data.__name__}", "init_args": {"shift": shift}}
    Path("small.yaml").write_text(yaml.safe_dump(config))


def of_file(path: str) -> Batch:
    content: Batch = torch.load(path, weights_only=True)
    return content


def last() -> str:
    return str(next(Path("runs").rglob("last.ckpt")))


def wrong_class(data: type[Plain], hook: str) -> None:
    """Registers data of which a hook makes classes that the model does not have."""

    def run(box: Box) -> None:
        written(data, shift=5)
        box.refused("fit", "--config", "small.yaml", says="data: target: labels run from 5 to 7.*allows 0 to 2")

    run.__name__ = f"wrong_class_of_{data.__name__.lower()}"
    case(11, hook, "makes classes that the model does not have")(run)


wrong_class(Before, "on_before_batch_transfer")
wrong_class(Move, "transfer_batch_to_device")
wrong_class(After, "on_after_batch_transfer")


@case(11, "on_after_batch_transfer", "makes dicts and classes of what were none")
def dicts_on_the_device(box: Box) -> None:
    written(Pairs)
    box.accepted("fit", "--config", "small.yaml")
    box.accepted("test", "--config", "small.yaml", "--ckpt_path", "last")
    box.accepted("probe", "--config", "small.yaml")


@case(11, "on_after_batch_transfer", "makes wrong classes of what were none, in a test alone")
def wrong_dicts_on_the_device(box: Box) -> None:
    written(Pairs)
    box.accepted("fit", "--config", "small.yaml")
    written(Pairs, shift=5)
    box.refused("test", "--config", "small.yaml", "--ckpt_path", "last", says="labels run from 5 to 7")


@case(11, "embed", "a hook that makes other values in training")
def embedded_as_in_an_evaluation(box: Box) -> None:
    written(Scaling, parts={"x": "torch.nn.Identity"})
    box.accepted("embed", "--config", "small.yaml", "--output", "e.npz")
    with np.load("e.npz") as file:
        assert (file["x"] == 3.0).all()


@case(11, "cache", "a hook that draws random numbers on the device")
def random_hook_with_a_cache(box: Box) -> None:
    frozen = {"x": {"module": "MLP", "unfreeze": "never"}, "y": {"module": "MLP"}}
    written(Scaling, parts=frozen, cache=True)
    told = box.accepted("fit", "--config", "small.yaml")
    assert "at random" in told.out + told.err


@case(11, "precision 64-true", "start: probe, and a resume")
def double_precision_from_a_probe(box: Box) -> None:
    written(After, start="probe", cache=True, precision="64-true")
    box.accepted("fit", "--config", "small.yaml")
    box.accepted("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "2")
    state = of_file(last())["state_dict"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} <= {torch.float64, torch.float32}
    assert any(value.dtype == torch.float64 for value in state.values())


@case(11, "precision bf16-true", "an optimizer of torch that leaves weights of 16 bits as they are")
def weights_of_16_bits_move(box: Box) -> None:
    written(Plain, precision="bf16-true", lr=0.5)
    states = []
    for epochs in ("1", "3"):
        box.accepted("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", epochs)
        states.append(of_file(last())["state_dict"]["network.parts.fusion.projections.y.1.weight"])
    assert states[0].dtype == torch.bfloat16
    assert (states[0] != states[1]).float().mean() > 0.5


@case(11, "precision 16-true", "an epsilon that float16 rounds to 0")
def epsilon_of_half_precision(box: Box) -> None:
    written(Plain, precision="16-true", optimizer="AdamW")
    box.refused("fit", "--config", "small.yaml", says="eps: 1e-08 is 0 in float16.*bf16-mixed")


@case(11, "precision bf16-true", "predictions and a test of a model that is loaded alone")
def predicted_in_16_bits(box: Box) -> None:
    written(Move, precision="bf16-true")
    box.accepted("fit", "--config", "small.yaml")
    box.accepted("test", "--config", "small.yaml", "--ckpt_path", "best")
    box.accepted("predict", "--config", "small.yaml", "--ckpt_path", "best", "--output", "p.csv")
    assert "nan" not in Path("p.csv").read_text()


@case(11, "precision of a resume", "another one than that of the checkpoint")
def resumed_in_another_precision(box: Box) -> None:
    written(Plain, precision="bf16-true")
    box.accepted("fit", "--config", "small.yaml")
    written(Plain, precision="64-true")
    box.accepted("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "2")
    assert of_file(last())["state_dict"]["network.parts.head.linear.weight"].dtype == torch.float64
