"""A folder per class as a table: a row per file, with its class and, where folders say so, its split."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import is_regular_file

if TYPE_CHECKING:
    import pyarrow

KIND_OF_SUFFIX = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"), "image"),
    **dict.fromkeys((".dcm", ".dicom", ".ima"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3"), "audio"),
    **dict.fromkeys((".nii", ".nii.gz"), "volume"),
    **dict.fromkeys((".npy", ".npz"), "array"),
    **dict.fromkeys((".csv", ".tsv", ".txt"), "series"),
}
"""End of a file's name → kind of input that reads it; arrays may also be series or volumes."""
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def kind_of_file(name: str) -> str | None:
    """The kind of input by the end of a file's name; None for others."""
    lower = name.lower()
    suffix = ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]  # noqa: PTH122  ten times as fast
    return KIND_OF_SUFFIX.get(suffix)


def read_folder(folder: Path) -> "pyarrow.Table":
    """Columns ``file``, from the parent of `folder` on; ``label``, the folder below it; and ``split`` if there are any.

    Splits are folders between them that are all named train, val and test, or alike. A file that is in no folder of a
    class has no label. Of several kinds of files the most frequent one is read.
    """
    import pyarrow

    files = _files_of(folder)
    if not files:
        raise ConfigError(
            f"there is no file to read in the folder {str(folder)!r}. Possible: a folder per class with images "
            f"(.png, .jpg, ...), sounds (.wav, ...), volumes (.nii.gz), arrays (.npy) or series (.csv); a "
            f"table; or tar shards, by a pattern such as 'shards/*.tar'."
        )
    splits = [_SPLITS.get(path.parts[0].lower()) for path in files]
    has_splits = None not in splits
    labels = []
    for path in files:
        above = path.parts[has_splits:-1]
        labels.append(above[0] if above else None)
    paths = [(folder / path).relative_to(folder.parent).as_posix() for path in files]
    columns = {"file": paths, "label": pyarrow.array(labels, pyarrow.string())}
    return pyarrow.table({**columns, "split": splits} if has_splits else columns)


def _files_of(folder: Path) -> list[Path]:
    """The files of the most frequent kind, from `folder` on, sorted; hidden ones are left out."""
    found: dict[str, list[Path]] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place).relative_to(folder)
        for name in names:
            kind = kind_of_file(name)
            if kind is not None and not name.startswith(".") and is_regular_file(Path(place, name)):
                found.setdefault(kind, []).append(here / name)
    counts = Counter({kind: len(files) for kind, files in found.items()})
    return sorted(found[counts.most_common(1)[0][0]]) if counts else []
