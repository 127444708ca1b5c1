"""Two parts with the same weights, from YAML to predictions, by the command line and on two ranks."""

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_lightning import ConfigError, HybridClassifier, PretrainedDrift
from tests.processes import succeed_on
from tests.resume.resuming import differences
from tests.small import changed, command, write
from tests.tables import write_rows
from tests.tiny import Tower, batches, trainer

ENCODER = {"module": "ResidualConv2d", "args": {"channels": [4], "norm": "batch"}, "unfreeze": "7 steps"}
PARTS = {"front": ENCODER, "back": {"share": "front"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``m.csv``: two arrays of an image per row, and a label that one of them shows."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = []
    for row in range(48):
        sides = random.random((2, 3, 6, 6)).astype(np.float32)
        sides[row % 2, row % 3] += 1
        for name, side in zip(("front", "back"), sides, strict=True):
            np.save(f"{name}{row}.npy", side)
        rows.append({"front": f"front{row}.npy", "back": f"back{row}.npy" if row % 9 else "", "label": "abc"[row % 3]})
    write_rows("m.csv", rows)
    return tmp_path


def config(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    inputs = {"front": {"array": "front"}, "back": {"array": "back"}}
    data = {"path": "m.csv", "inputs": inputs, "target": "label", "batch_size": 8, "workers": 0}
    run = {"max_epochs": 4, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    whole = {"data": {"class_path": "ManifestDataModule", "init_args": data}, "trainer": run, **(changes or {})}
    return changed({"init.parts": PARTS, **whole})


def last(name: str) -> Path:
    return next(Path("runs").glob(f"{name}/**/last.ckpt"))


def metrics(name: str) -> list[dict[str, str]]:
    [path] = Path("runs").glob(f"{name}/**/metrics.csv")
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_command_knows_one_set_of_weights(folder, capsys):
    options = {"init.parts.front.l2sp": 0.01, "init.parts.front.clip": {"norm": 1.0}}
    trained = config(options)
    assert command("fit", "--name", "run", config=trained) == 0
    table = capsys.readouterr().out
    assert "front" in table
    assert not re.search(r"\nback +untrained", table), "the plan has its groups once"
    assert re.search(r"\nback +- .* 0 .* with front, whose module it has", table)
    logged = metrics("run")[0]
    assert "grad_norm/front" in logged
    assert "grad_norm/back" not in logged
    ckpt = ["--ckpt_path", str(last("run"))]
    saved = torch.load(last("run"), weights_only=True)["state_dict"]
    assert not [name for name in saved if ".parts.back." in name]
    assert command("predict", *ckpt, "--output", "p.csv", config=trained) == 0
    assert command("embed", *ckpt, "--output", "e.npz", config=trained) == 0
    assert command("probe", config=trained) == 0
    assert command("export", *ckpt, "--output", "n.pt2", config=trained) == 0
    assert command("export", *ckpt, "--output", "n.safetensors", "--format", "safetensors", config=trained) == 0
    model = HybridClassifier.load_from_checkpoint(last("run"))
    assert model.network.parts["back"] is model.network.parts["front"]


def test_a_file_gives_the_weights_to_the_part_that_has_them(folder, capsys):
    assert command("fit", "--name", "run", config=config()) == 0
    source = str(last("run"))
    assert command("fit", "--name", "on", config=config({"init.init_from": source})) == 0
    printed = capsys.readouterr().out
    assert "init_from" in printed
    wrong = config({"init.init_from": {"path": source, "parts": {"back": "front"}}})
    assert command("fit", "--name", "no", config=wrong) == 2
    assert "init_from.parts.back: it has the module of 'front'" in capsys.readouterr().err


def test_both_parts_are_cached_while_their_module_is_frozen(folder):
    losses = []
    for cache in (False, True):
        options = {"init.parts.front.unfreeze": "never", "init.cache": cache}
        assert command("fit", "--name", f"run{cache}", config=config(options)) == 0
        losses.append(float(metrics(f"run{cache}")[-1]["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def shared(**options: Any) -> HybridClassifier:
    torch.manual_seed(0)
    parts = {"old": {"module": Tower, "args": {"in_features": 4}, **options}, "new": {"share": "old"}}
    return HybridClassifier(2, parts=parts, lr=0.01)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize(
    "options",
    [
        {"unfreeze": {"start": "3 steps", "every": "2 steps"}},
        {"origin": "pretrained", "unfreeze": "3 steps", "l2sp": 0.1, "clip": {"norm": 1.0}},
        {"unfreeze": "3 steps", "adapter": "lora"},
    ],
    ids=str,
)
def test_a_fit_continues_exactly_from_any_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    number, found = differences(partial(shared, **options), "samples", tmp_path, every=9)
    assert number >= 2
    assert not found


def test_adapters_and_frozen_features_are_those_of_both_parts(tmp_path: Path) -> None:
    for options in ({"adapter": "lora", "unfreeze": "3 steps"}, {"origin": "random"}):
        model = shared(**options)
        model.build(next(iter(batches())))
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        runner = trainer(max_epochs=2)
        runner.fit(model, batches(), batches(samples=12))
        runner.save_checkpoint(tmp_path / "x.ckpt")
        again = HybridClassifier.load_from_checkpoint(tmp_path / "x.ckpt", trust=["tests"])
        batch = next(iter(batches()))
        assert torch.equal(again(batch), model.eval()(batch))
        moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
        assert any("parts.old" in name for name in moved) == ("adapter" in options)


def test_the_drift_of_a_shared_module_is_that_of_the_part_that_has_it() -> None:
    def drifted(*parts: str) -> dict[str, float]:
        model = shared(origin="pretrained", unfreeze="always")
        runner = trainer(max_epochs=2, callbacks=[PretrainedDrift(list(parts) or None)], log_every_n_steps=1)
        runner.fit(model, batches(), batches(samples=12))
        return {key: float(value) for key, value in runner.callback_metrics.items() if key.startswith("drift/")}

    found = drifted()
    assert found == drifted("old")
    assert found["drift/old"] > 0
    with pytest.raises(ConfigError, match=r"unknown part 'new'"):
        drifted("new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_one_set_of_weights(strategy, folder):
    write(config({"init.start": "probe"}))
    words = ["--trainer.devices", "2", "--trainer.strategy", strategy]
    succeed_on(2, "-m", "hybrid_lightning", "fit", "--config", "small.yaml", *words, cwd=folder)
