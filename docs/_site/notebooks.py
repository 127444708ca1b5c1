"""Runs the notebooks and writes them with their outputs as pages of docs/notebooks.

pip install -e '.[data,demo,docs,notebook]' -c constraints.txt && python docs/_site/notebooks.py [NAME ...]
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from nbconvert.writers import FilesWriter

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/notebooks"


def write(path: Path) -> None:
    """Runs a notebook, and writes its page and its pictures."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # on stderr are notes of Lightning on the machine at hand
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
    resources = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    PAGES.mkdir(exist_ok=True)
    FilesWriter(build_directory=str(PAGES)).write(tidied(text, path.stem), resources, notebook_name=path.stem)


def tidied(text: str, name: str) -> str:
    """A page with single blank lines around its code, and without the names of temporary folders."""
    pieces = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    pieces[::2] = [re.sub(r"\n(\s*\n)+", "\n\n", piece) for piece in pieces[::2]]
    text = "".join(pieces).strip().replace("![png]", f"![Output of {name}]")
    return re.sub(rf"{tempfile.gettempdir()}/tmp\w+/", "", text) + "\n"


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not wanted or path.stem in wanted:
            write(path)
