"""Why a cell of a manifest names no file, of the usual reasons."""

import re
from functools import lru_cache
from pathlib import Path

_SUFFIX = r"\.\w{2,5}"


def why_missing(folder: str, cell: str) -> str:
    """The likeliest reason, as a sentence with a blank before it; empty if none is likely."""
    likely = _of_the_text(cell) or _of_the_disk(folder, cell)
    return f" {likely}" if likely else ""


def _of_the_text(cell: str) -> str:
    """A reason that the cell alone gives away."""
    if re.match(r"[a-z][a-z0-9+.-]+://", cell, re.IGNORECASE):
        return "It is a URL; download the files, and name them by their paths."
    if cell.startswith("~"):
        return "'~' is not replaced; write the folder's full path, such as in data.root."
    if re.match(r"[A-Za-z]:[\\/]", cell):
        return "It begins with a Windows drive; write paths relative to data.root."
    if "\\" in cell:
        return "It has backslashes; write '/' between folders."
    if re.search(rf"{_SUFFIX}\s*[;|,]\s*\S+{_SUFFIX}", cell):
        return "It seems to hold several files; name what is between them, such as 'separator: \";\"', in the input."
    if len(cell) > 255 or "\n" in cell:
        return "It is a text rather than the name of a file; is this the right column?"
    return ""


def _of_the_disk(folder: str, cell: str) -> str:
    """A reason that shows where files are."""
    path = Path(folder, cell)
    try:
        if path.is_dir():
            return "It is a folder."
        if path.exists():
            return "It is a pipe, a device or a socket, which do not end like a file."
        if path.is_symlink():
            return "It is a link to a file that is gone."
        if Path(folder, cell.strip()).is_file():
            return "There is one without the blanks around its name."
        if path.parent.is_dir():
            name = _names_in(path.parent, path.parent.stat().st_mtime_ns).get(path.name.casefold())
            if name is not None:
                return f"There is {name!r}, in other letters."
        if not Path(folder).is_dir():
            return "The folder is not there; correct data.root."
        if Path(cell).is_file():
            return f"There is one from {str(Path.cwd())!r}; give that as data.root."
        if Path(folder, path.name).is_file():
            return f"There is {path.name!r} in the folder itself; correct the cells or data.root."
    except (OSError, ValueError):  # a folder that cannot be listed, a name that no file can have
        pass
    return ""


@lru_cache(maxsize=4)  # a column may name 100,000 files that are all missing
def _names_in(folder: Path, changed_at: int) -> dict[str, str]:  # noqa: ARG001  it is of the cache's key
    """Name in small letters → name, of what lies in a folder that was changed last at a time."""
    return {path.name.casefold(): path.name for path in folder.iterdir()}
