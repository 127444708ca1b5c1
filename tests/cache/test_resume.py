"""A cached run that continues from any checkpoint is bit-equal to one that never stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cache.resuming import PLATEAU, VIEWS, differences
from tests.cache.stages import SIX, top_down
from tests.processes import succeed_on

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*This process .* is multi-threaded"),
    pytest.mark.filterwarnings("ignore:.*use of fork"),
]


@pytest.mark.parametrize(
    ("loader", "unfreeze", "options"),
    [
        ("memory", "never", {}),
        ("memory", "6 steps", {}),
        ("files", "6 steps", {"val_check_interval": 2}),
        ("files", PLATEAU, {"val_check_interval": 3, "max_epochs": 4}),
        ("memory", {"start": "2 steps", "freeze": "6 steps"}, {}),
        ("workers", "6 steps", {"every": 3}),
    ],
    ids=str,
)
def test_one_process(loader: str, unfreeze: Any, options: dict[str, Any], tmp_path: Path) -> None:
    number, problems = differences(tmp_path, loader, unfreeze, **{"every": 2, **options})
    assert number >= 5
    assert not problems


@pytest.mark.parametrize("steps", [3, 4])
def test_one_process_with_a_boundary_that_moves(steps: int, tmp_path: Path) -> None:
    schedule = top_down(*SIX[:3], start=3, every=steps, unit="steps")
    number, problems = differences(tmp_path, "stages", schedule, every=3, max_epochs=5)
    assert number >= 5
    assert not problems


@pytest.mark.parametrize("unfreeze", ["never", "6 steps"])
@pytest.mark.parametrize("loader", ["noisy", pytest.param("noisy_workers", marks=pytest.mark.exhaustive)])
def test_one_process_with_views(loader: str, unfreeze: str, tmp_path: Path) -> None:
    number, problems = differences(tmp_path, loader, unfreeze, every=2, cache=VIEWS)
    assert number >= 5
    assert not problems


@pytest.mark.parametrize("loader", ["memory", "files", "stages", "sharded", "shifted"])
def test_two_ranks(loader: str, tmp_path: Path) -> None:
    # of two ranks an epoch has two steps
    unfreeze: Any = top_down(*SIX[:2], start=2, every=3, unit="steps") if loader == "stages" else "3 steps"
    cache = VIEWS if loader == "shifted" else True
    options = json.dumps({"unfreeze": unfreeze, "every": 2, "cache": cache})
    succeed_on(2, "-m", "tests.cache.resuming", str(tmp_path), loader, options, cwd=tmp_path)
    for rank in range(2):
        result = json.loads((tmp_path / f"{rank}.json").read_text())
        number, problems = result["found"]
        assert number >= 4
        assert not problems
        assert result["served"]
        assert result["gap"] < 1e-6
