"""Strategy × precision × compile × activation checkpointing: each runs through unfreezings and continues bit-equal."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.combinations_worker import COMBINATIONS, outcomes
from tests.processes import succeed_on

QUICK = ("fsdp2", "bf16-mixed", "full")


def rows() -> list[Any]:
    found = []
    for strategy in ("one", "ddp", "fsdp2"):
        for precision in ("32-true", "bf16-mixed", "bf16-true"):
            for gaps in ("full", "gaps"):
                row = (strategy, precision, gaps)
                found.append(pytest.param(*row, marks=[] if row == QUICK else pytest.mark.exhaustive))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("strategy", "precision", "gaps"), rows())
def test_it_trains_through_unfreezings_and_continues_bit_equal(
    strategy: str, precision: str, gaps: str, tmp_path: Path
) -> None:
    """With clipping, dropout and batch statistics; where there are gaps, half of the samples lack the part."""
    names = list(COMBINATIONS)
    if strategy == "one":
        ranks = [outcomes(strategy, precision, names, gaps == "gaps", tmp_path)]
    else:
        words = ("-m", "tests.distributed.combinations_worker", strategy, precision, ",".join(names), gaps)
        succeed_on(2, *words, str(tmp_path))
        ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for found in ranks:
        for name, outcome in found.items():
            assert outcome["continued"] >= 3, name
            assert outcome["differences"] == {}, name
        assert found["recomputed"]["against plain"] is None
        # three unfreezings, each with graphs of training and of validation: it has not fallen back to eager
        assert found["compiled"]["graphs"] >= 6
