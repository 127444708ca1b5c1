"""Two real gloo ranks through several unfreezings, with clipping and accumulation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import ROOT, succeed, succeed_on


def run(kind: str, ranks: int, folder: Path) -> None:
    succeed_on(ranks, "-m", "tests.distributed.ddp_worker", kind, str(ranks), str(folder))


@pytest.mark.parametrize("kind", ["task", "foreign", "static"])
def test_two_ranks_agree_with_each_other_and_with_one_process(kind: str, tmp_path: Path) -> None:
    for ranks in (1, 2):
        run(kind, ranks, tmp_path)
    one, first, second = (load(tmp_path / f"{kind}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert first.keys() == second.keys() == one.keys()
    apart, off = (max(float((v - other[n]).abs().max()) for n, v in first.items()) for other in (second, one))
    print(f"{kind}: ranks apart by {apart}, off one process by {off:.1e}")
    assert apart == 0
    assert off <= 1e-6
    moments = [json.loads((tmp_path / f"{kind}-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")]
    assert moments[0] == moments[1] == moments[2]
    assert sorted(set(moments[0].values())) == [0, 2, 4, 6]


def test_a_metric_decides_the_same_on_all_ranks(tmp_path: Path) -> None:
    run("plateau", 2, tmp_path)
    first, second = (load(tmp_path / f"plateau-2-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moments = [json.loads((tmp_path / f"plateau-2-{rank}.json").read_text()) for rank in (0, 1)]
    assert moments[0] == moments[1]
    # 3, then 2, 2: each rank alone sees another course (3, 4, 6 and 3, 0, -2)
    assert set(moments[0].values()) == {0, 9}


def test_a_rank_that_drifts_is_told_after_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"after step 1 the ranks hold different values of 'head\.bias'"):
        run("drift", 2, tmp_path)


def test_all_ranks_skip_a_step_that_is_not_finite_on_one(tmp_path: Path) -> None:
    run("poison", 2, tmp_path)
    first, second = (load(tmp_path / f"poison-2-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) and value.isfinite().all() for name, value in first.items())


def load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def test_the_command_line_fits_and_tests_on_two_ranks(tmp_path: Path) -> None:
    command = ["-m", "hybrid_lightning", "fit", "--config", str(ROOT / "configs/deep_cnn_gradual.yaml")]
    devices = {"devices": "2", "strategy": "ddp", "accelerator": "cpu", "max_epochs": "2", "limit_train_batches": "3"}
    options = [word for key, value in devices.items() for word in (f"--trainer.{key}", value)]
    options += ["--trainer.enable_progress_bar", "false", "--data.init_args.size", "16", "--test_after_fit", "best"]
    done = succeed(*command, *options, cwd=tmp_path)
    assert done.stdout.count("results: runs/deep_cnn_gradual/version_0") == 1
    assert done.stdout.count("eval, then train") == 1
    files = {path.name for path in tmp_path.glob("runs/deep_cnn_gradual/*/**/*") if path.is_file()}
    assert files == {"config.yaml", "metrics.csv", "best.ckpt", "last.ckpt", "finished.yaml"}
