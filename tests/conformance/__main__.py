"""Prints the table of README: ``python -m tests.conformance``.

Words given on the command line choose the checks whose titles contain one of them.
"""

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from tests.conformance.checks import CHECKS, cell
from tests.conformance.tools import TOOLS


def main(words: list[str]) -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tools = [tool for tool in TOOLS if tool.installed()]
    for tool in TOOLS:
        if tool not in tools:
            print(f"{tool.name} is left out; it comes with the extra 'conformance'\n", file=sys.stderr)
    print("|", *(f"| {tool.name}" for tool in tools), "|")
    print("|---" * (len(tools) + 1) + "|")
    for title in (title for title in CHECKS if not words or any(word in title for word in words)):
        cells = []
        for tool in tools:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                cells.append(cell(title, tool, Path(folder)))
        print(f"| {title} |", " | ".join(cells), "|", flush=True)
    print(f"\nMeasured with torch {torch.__version__},", ", ".join(dict.fromkeys(t.version() for t in tools)))


if __name__ == "__main__":
    main(sys.argv[1:])
