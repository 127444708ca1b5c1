"""Two real gloo ranks, one of which has batches without a part."""

from pathlib import Path

import pytest
import torch

from tests.processes import succeed_on


def load(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_ranks_that_lack_a_part_do_not_hang_and_equal_one_process(kind: str, tmp_path: Path) -> None:
    for ranks in (1, 2):
        succeed_on(ranks, "-m", "tests.network.missing_worker", kind, str(ranks), str(tmp_path))
    one, first, second = (load(tmp_path / f"{kind}-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    off = max(float((value - one[name]).abs().max()) for name, value in first.items())
    print(f"{kind}: off one process by {off:.1e}")
    assert off <= 1e-6
