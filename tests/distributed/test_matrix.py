"""The matrix of `python -m tests.distributed`: one cell as it is run by hand, and all of them as tests."""

from pathlib import Path

import pytest

from tests.distributed.__main__ import CELLS, QUICK, Cell, main


def test_a_cell_of_the_matrix_is_equal_bit_by_bit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", *QUICK[0]]) == 0
    out = capsys.readouterr().out
    assert "ddp, torchrun, 3 → 3, uneven: equal, " in out
    assert "| strategy | launcher | 3 → 3, uneven |\n|---|---|---|\n| ddp | torchrun | equal |\n" in out


def test_the_others_follow_after_a_cell_that_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(cell: Cell, folder: Path) -> float:
        assert cell.strategy == "fsdp2", "off by 1"
        return 4e-8

    monkeypatch.setattr(Cell, "run", run)
    assert main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "ddp, torchrun, 3 → 3, uneven: failed: AssertionError: off by 1" in out
    assert out.index("failed") < out.index("fsdp2, srun, 2 → 3: 4e-08, ")
    assert "| ddp | torchrun | failed | – |\n| fsdp2 | srun | – | 4e-08 |" in out


def test_words_that_no_title_has_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "4 → 2"])
    assert "titles are such as 'ddp, plain, 2 → 2'" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.title)
def test_every_cell_goes_on_as_the_run_that_was_never_stopped(cell: Cell, tmp_path: Path) -> None:
    cell.run(tmp_path)
