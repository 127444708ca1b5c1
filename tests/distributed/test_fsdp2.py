"""The strategy fsdp2 on two real gloo ranks: unfreezing, clipping, accumulation, checkpoints and resume."""

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import StrategyRegistry

from hybrid_lightning import ConfigError, FSDP2Strategy, HybridClassifier
from hybrid_lightning.distributed.strategies import refuse_strategy
from hybrid_lightning.weights.safe_files import peek, read_file
from tests.processes import python, succeed_on
from tests.small import changed, trainer, write

FOLDERS = '{"class_path": "hybrid_lightning.FSDP2Strategy", "init_args": {"save_distributed_checkpoint": true}}'
SMALL = {"init.parts.stem.unfreeze": "2 steps", "trainer.max_epochs": 2, "trainer.gradient_clip_val": 0.5}


def fits(name: str, folder: Path, **facts: Any) -> None:
    words = ["-m", "tests.distributed.fsdp2_worker", name, json.dumps({"folder": str(folder), **facts})]
    succeed_on(facts["ranks"], *words)


def load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    assert any(name.startswith("optimizer/") for name in first)
    return max(float((value.double() - second[name].double()).abs().max()) for name, value in first.items())


def assert_resumed_exactly(folder: Path, steps: list[int]) -> None:
    for step in steps:
        for rank in (0, 1):
            whole, resumed = load(folder / f"two-{rank}.pt"), load(folder / f"two-from{step}-{rank}.pt")
            assert len(resumed["logged"]) < len(whole["logged"])
            assert distance(whole["tensors"], resumed["tensors"]) == 0, step
            assert whole["unfrozen_at"] == resumed["unfrozen_at"]
            assert whole["logged"][-1] == resumed["logged"][-1]


@pytest.mark.parametrize("steps", [[3, 4], pytest.param([*range(1, 12)], marks=pytest.mark.exhaustive)], ids=str)
@pytest.mark.parametrize(("kind", "sharded_files"), [("task", False), ("foreign", True)])
def test_two_sharded_ranks_equal_one_process_and_resume_exactly(
    kind: str, sharded_files: bool, steps: list[int], tmp_path: Path
) -> None:
    """From the end of an epoch, 3, 6 or 9, and from within one, some of them just before or after an unfreezing."""
    fits("one", tmp_path, kind=kind, ranks=1)
    fits("two", tmp_path, kind=kind, ranks=2, sharded_files=sharded_files, resume=steps)
    one, first, second = (load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    assert (tmp_path / "step3.ckpt").is_dir() is sharded_files
    assert distance(first["tensors"], second["tensors"]) == 0
    assert distance(one["tensors"], first["tensors"]) <= 1e-6
    assert one["unfrozen_at"] == first["unfrozen_at"] == second["unfrozen_at"]
    assert sorted(set(one["unfrozen_at"].values())) == [0, 2, 4, 6]
    limited = {key for row in one["logged"] for key, rate in row.items() if key.startswith("clip_rate/") and rate}
    assert "clip_rate/old" in limited if kind == "task" else "clip_rate/head" in limited
    for alone, sharded in zip(one["logged"], first["logged"], strict=True):
        assert sharded == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert_resumed_exactly(tmp_path, steps)


@pytest.mark.parametrize("steps", [[5], pytest.param([*range(1, 12)], marks=pytest.mark.exhaustive)], ids=str)
def test_batch_statistics_resume_exactly_on_each_rank(steps: list[int], tmp_path: Path) -> None:
    fits("two", tmp_path, kind="batch statistics", ranks=2, resume=steps)
    assert_resumed_exactly(tmp_path, steps)


def command(folder: Path, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "hybrid_lightning", verb, "--config", "small.yaml", *words, cwd=folder)


def on_two_ranks(folder: Path, verb: str, *words: str) -> str:
    """What both have printed."""
    return "".join(succeed_on(2, "-m", "hybrid_lightning", verb, "--config", "small.yaml", *words, cwd=folder))


def metrics(folder: Path, name: str) -> list[dict[str, float]]:
    with (folder / f"runs/{name}/version_0/metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_the_command_line_trains_sharded_as_with_ddp(tmp_path: Path) -> None:
    write(changed(SMALL), tmp_path / "small.yaml")
    two = ("--trainer.devices", "2", "--test_after_fit", "best")
    for strategy in ("ddp", "fsdp2"):
        out = on_two_ranks(tmp_path, "fit", "--trainer.strategy", strategy, "--name", strategy, *two)
        assert out.count("eval, then train") == 1
    reference, sharded = metrics(tmp_path, "ddp"), metrics(tmp_path, "fsdp2")
    assert any("test/loss" in row for row in reference)
    assert any("grad_norm_clipped/stem" in row for row in reference)
    for row, wanted in zip(sharded, reference, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    whole = tmp_path / "runs/fsdp2/version_0/checkpoints/last.ckpt"
    assert whole.is_file()
    HybridClassifier.load_from_checkpoint(whole)
    done = command(tmp_path, "fit", "--name", "fsdp2", "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert done.returncode == 0, done.stderr[-4000:]  # on one device, from where two had come


def test_a_folder_of_shards_is_tested_continued_and_rebuilt(tmp_path: Path) -> None:
    write(changed(SMALL), tmp_path / "small.yaml")
    fold = ("--name", "fold", "--trainer.strategy", FOLDERS)
    on_two_ranks(tmp_path, "fit", *fold, "--trainer.devices", "2", "--test_after_fit", "best")
    folder = tmp_path / "runs/fold/version_0/checkpoints/last.ckpt"
    assert {path.name for path in folder.iterdir()} == {".metadata", "meta.pt", "__0_0.distcp", "__1_0.distcp"}
    rebuilt = HybridClassifier.load_from_checkpoint(folder)
    saved = read_file(folder)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in rebuilt.state_dict().items())
    refused = command(tmp_path, "test", "--name", "fold", "--ckpt_path", "last")
    assert refused.returncode == 2
    assert "Add --trainer.strategy fsdp2" in refused.stderr
    done = command(tmp_path, "fit", *fold, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert done.returncode == 0, done.stderr[-4000:]  # on one rank, from the shards of two


def test_a_folder_that_was_being_replaced_is_continued_and_gets_its_name_back(tmp_path: Path) -> None:
    write(changed(SMALL), tmp_path / "small.yaml")
    words = ("--resume", "auto", "--trainer.strategy", FOLDERS)
    done = command(tmp_path, "fit", *words)
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "runs/small/version_0/checkpoints"
    (folder / "last.ckpt").rename(folder / "last.ckpt.old")
    shutil.rmtree(folder / "best.ckpt")
    done = command(tmp_path, "fit", *words, "--trainer.max_epochs", "3")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "continues from last.ckpt.old, step 6" in done.stdout
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "best.ckpt"}
    assert peek(folder / "last.ckpt")["global_step"] == 9


def test_the_weights_of_other_groups_start_a_new_sharded_fit(tmp_path: Path) -> None:
    write(changed(SMALL), tmp_path / "small.yaml")
    words = ("--trainer.strategy", "fsdp2", "--trainer.max_epochs", "1")
    assert command(tmp_path, "fit", *words).returncode == 0
    other = ("--ckpt_path", "last", "--on_group_change", "weights_only", "--model.parts.stem.decay_all", "true")
    done = command(tmp_path, "fit", *words, *other)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "The run starts at step 0" in done.stdout
    assert load(tmp_path / "runs/small/version_1/checkpoints/last.ckpt")["global_step"] == 3


def test_lightnings_own_strategy_is_refused_with_the_alternative(tmp_path: Path) -> None:
    write(changed(SMALL), tmp_path / "small.yaml")
    strategy = json.dumps({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"})
    done = command(tmp_path, "fit", "--trainer.strategy", strategy)
    assert done.returncode == 2
    assert "trainer.strategy: under ModelParallelStrategy" in done.stderr
    assert "Use 'fsdp2'" in done.stderr


def test_scaled_gradients_are_refused() -> None:
    strategy = FSDP2Strategy()
    strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    for refuse in (lambda: refuse_strategy(strategy), lambda: strategy.setup(trainer())):
        with pytest.raises(ConfigError, match=r"trainer\.precision: .*bf16-mixed"):
            refuse()


def test_the_strategy_is_known_by_its_name() -> None:
    assert isinstance(StrategyRegistry.get("fsdp2"), FSDP2Strategy)
