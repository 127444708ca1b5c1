import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.distributed.launchers import forking_python
from tests.processes import LIMIT, succeed

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_cells_of_a_notebook_run_with_small_values(path: Path, tmp_path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = "\n\n".join(cell.source for cell in cells if cell.cell_type == "code")
    # forks of a process that has imported Lightning, those that a cell starts too; the exhaustive run has kernels
    succeed("-c", code, cwd=tmp_path, HYBRID_LIGHTNING_SMALL="1", MPLBACKEND="agg", **forking_python(tmp_path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_with_small_values(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_LIGHTNING_SMALL", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
