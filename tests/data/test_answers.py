from pathlib import Path
from typing import Any

import pandas
import pytest

from hybrid_lightning.data.manifest import ManifestDataModule

ROWS = range(40)
COLUMNS = {
    "label": ["ab"[row % 2] for row in ROWS],
    "price": [3.5 * row - 2 for row in ROWS],
    "renamed": [["no", "yes"][row % 2] for row in ROWS],
    "number": [row % 2 for row in ROWS],
    "cents": [100 * (3.5 * row - 2) for row in ROWS],
    "nearly": [["no", "yes"][row % 2 if row else 1] for row in ROWS],
    "finer": [row % 4 for row in ROWS],
    "group": ["abc"[row % 3] for row in ROWS],
    "id": [f"p{row}" for row in ROWS],
    "near": [3.5 * row - 2 + row % 3 for row in ROWS],
}


def told(inputs: dict[str, Any], target: str, folder: Path) -> str:
    pandas.DataFrame(COLUMNS).to_csv(folder / "m.csv", index=False)
    data = ManifestDataModule(str(folder / "m.csv"), {"x": inputs}, target, workers=0)
    data.check()
    return ""


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        ({"numeric": ["price"], "categorical": ["renamed"]}, "label"),
        ({"numeric": ["number"]}, "label"),
        ({"text": "renamed"}, "label"),
        ({"numeric": ["cents"]}, "price"),
    ],
)
def test_a_column_that_is_a_copy_of_the_target_is_named(inputs, target, tmp_path, capsys):
    told(inputs, target, tmp_path)
    assert capsys.readouterr().out.count("tells the target of each row") == 1


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        ({"numeric": ["finer", "price"], "categorical": ["nearly", "group", "id"]}, "label"),
        ({"numeric": ["near", "number"], "categorical": ["id"]}, "price"),
    ],
)
def test_what_only_agrees_with_it_mostly_or_tells_more_is_not(inputs, target, tmp_path, capsys):
    told(inputs, target, tmp_path)
    assert "tells the target" not in capsys.readouterr().out
