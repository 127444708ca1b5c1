"""Precisions other than 32, and hooks of batches: all that runs the network sees what a step of the run sees."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import ConfigError, HybridClassifier
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from tests import small

DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}}
"""Adam's epsilon is 0 in float16."""
PARTS = {"x": {"module": "MLP", "args": {"hidden": [5]}}, "y": {"module": "RandomFourierFeatures"}}


def entries() -> dict[str, Tensor]:
    x, y = small.table(), small.table(seed=2)
    return {"x": x, "y": y, "target": y.argmax(1) % 3}


@pytest.mark.parametrize("start", ["default", "probe"])
@pytest.mark.parametrize("precision", DTYPES)
def test_weights_and_batches_have_the_precision_of_the_trainer(precision, start, tmp_path):
    loaders = small.loader(entries()), small.loader(entries())
    options = {"parts": PARTS, "optimizer": SGD, "lr": 0.01, "start": start, "cache": start == "probe"}
    model = small.classifier(**options)
    first = small.trainer(precision=precision, max_epochs=1)
    first.fit(model, *loaders)
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[precision]}
    first.save_checkpoint(tmp_path / "a.ckpt")
    whole, continued = small.classifier(**options), small.classifier(**options)
    pl.seed_everything(0)
    small.trainer(precision=precision, max_epochs=2).fit(whole, *loaders)
    longer = small.trainer(precision=precision, max_epochs=2)
    pl.seed_everything(0)
    short = small.classifier(**options)
    half = small.trainer(precision=precision, max_epochs=1)
    half.fit(short, *loaders)
    half.save_checkpoint(tmp_path / "half.ckpt")
    longer.fit(continued, *loaders, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    states = whole.state_dict(), continued.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    loaded = HybridClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    measured = small.trainer(precision=precision).validate(loaded, loaders[1], verbose=False)
    assert measured[0]["val/loss"] == pytest.approx(float(first.callback_metrics["val/loss"]), rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_sgd_moves_weights_of_16_bits_as_those_of_32(precision):
    # a step as wide as the weights is not lost in rounding
    moves = []
    for chosen in ("32-true", precision):
        torch.manual_seed(0)
        model = small.classifier(lr=1.0, optimizer=SGD)
        model.build({"x": small.table()})
        before = [parameter.detach().clone() for parameter in model.parameters()]
        small.trainer(precision=chosen, max_epochs=2).fit(model, small.loader({"x": small.table(), **targets()}))
        moves.append([now.float() - then for now, then in zip(model.parameters(), before, strict=True)])
    for full, rounded in zip(*moves, strict=True):
        assert (full - rounded).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("precision", DTYPES)
def test_commands_work_in_it(precision, folder):
    config = small.changed({"init.optimizer": SGD, "init.cache": True, "trainer.precision": precision})
    config["model"]["init_args"]["parts"]["body"]["unfreeze"] = "never"
    config["model"]["init_args"]["parts"]["stem"]["unfreeze"] = "never"
    for words in (
        ["plan"],
        ["fit"],
        ["fit", "--resume", "auto", "--trainer.max_epochs", "2"],
        ["probe"],
        ["embed", "--output", "e.npz", "--ckpt_path", "best"],
        ["test", "--ckpt_path", "best"],
        ["predict", "--ckpt_path", "best", "--output", "p.csv"],
    ):
        assert small.command(*words, config=config) == 0, words
    (path,) = Path("runs").rglob("last.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state["network.parts.head.linear.weight"].dtype == DTYPES[precision]


def test_a_live_module_of_another_precision_works_in_that_of_the_trainer():
    own = nn.Linear(4, 4).bfloat16()
    model = small.classifier(parts={"x": own, "y": nn.Linear(4, 4)})
    small.trainer(precision="bf16-true").fit(model, small.loader(entries()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("dtype", "values", "words"),
    [
        (torch.float64, torch.float32, "float64, its inputs float32"),
        (torch.float32, torch.float64, "float32, its inputs"),
    ],
)
def test_weights_of_another_precision_than_the_data_are_told_as_such(dtype, values, words):
    model = small.classifier(parts={"x": nn.Linear(4, 4).to(dtype)})
    with pytest.raises(ConfigError, match=rf"^model\.parts\.x: the weights of Linear are {words}.* trainer\.precision"):
        small.trainer().fit(model, small.loader({"x": small.table().to(values), **targets()}))


def test_16_bits_hold_the_weights_that_32_would_have_rounded():
    weights = []
    for precision in ("32-true", "bf16-true"):
        torch.manual_seed(0)
        model = small.classifier(lr=1e-30, optimizer="SGD")
        small.trainer(precision=precision, max_steps=1).fit(model, small.loader({"x": small.table(), **targets()}))
        weights.append([parameter.detach() for parameter in model.parameters()])
    for full, rounded in zip(*weights, strict=True):
        assert torch.equal(full.bfloat16(), rounded)


def targets() -> dict[str, Tensor]:
    return {"target": torch.arange(27) % 3}


class Bytes(pl.LightningDataModule):
    """Values in bytes, which hooks make numbers of, under a Trainer that they ask."""

    def train_dataloader(self) -> DataLoader[Any]:
        values = (small.table() * 40 + 128).byte()
        return DataLoader(DictDataset({"raw": values, **targets()}), 9, collate_fn=as_batch)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": batch["raw"], "target": batch["target"]}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        noise = 1.0 if self.trainer.training else 0.0
        return {**batch, "x": batch["x"].float() / 255 + noise}


def test_the_network_is_built_along_a_batch_after_all_hooks():
    model = small.classifier()
    small.trainer().fit(model, datamodule=Bytes())
    assert model.network.record.parts["x"].sizes["in_features"] == 4


def test_probe_and_embed_read_batches_after_all_hooks(folder, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    parts = {"x": "torch.nn.Identity"}
    config = small.changed({"init.parts": parts, "data": {"class_path": "tests.tasks.test_precision.Bytes"}})
    assert small.command("probe", config=config) == 0
    assert small.command("embed", "--output", "e.npz", config=config) == 0
    with np.load("e.npz") as file:
        assert 0 < file["x"].max() <= 1


def test_the_network_is_built_on_the_cpu_wherever_the_trainer_makes_tensors():
    model = small.classifier()
    run = small.trainer()
    run.strategy.tensor_init_context = lambda *_: torch.device("meta")
    run.fit(model, small.loader({"x": small.table(), **targets()}))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


class Filter(nn.Module):
    """A filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factors", torch.randn(4, dtype=torch.complex64))
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.fft.ifft(torch.fft.fft(x) * self.factors).real)  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", [Filter, Filter()])
def test_complex_buffers_stay_complex(module):
    model = HybridClassifier(num_classes=3, parts={"x": {"module": module}})
    small.trainer(precision="64-true").fit(model, small.loader({"x": small.table(), **targets()}))
    assert model.network.parts["x"].factors.is_complex()


def test_a_hook_that_needs_the_network_does_not_keep_it_from_being_built():
    class Own(HybridClassifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.append(len(self.network.parts))
            return batch

    seen = []
    data = {"x": small.table(), "target": small.table().argmax(1) % 2}
    small.trainer().fit(Own(2, parts={"x": {"module": "MLP"}}), small.loader(data))
    assert set(seen) == {2}


class Coded(pl.LightningDataModule):
    """Classes that a hook makes of codes which the dataset shows, plus `shift`."""

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def train_dataloader(self) -> DataLoader[Any]:
        return small.loader({"x": small.table(), "target": 10 * (torch.arange(27) % 3)})

    val_dataloader = test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "target": batch["target"] // 10 + self.shift}


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_targets_are_checked_as_the_last_hook_gives_them(verb):
    for shift, outcome in ((0, nullcontext()), (5, pytest.raises(ConfigError, match="labels run from 5 to 7"))):
        model = small.classifier()
        model.build({"x": small.table()})
        with outcome:
            getattr(small.trainer(), verb)(model, datamodule=Coded(shift))
