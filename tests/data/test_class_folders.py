import os

import pytest

from hybrid_lightning.data.class_folders import kind_of_file, read_folder
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_folder_per_class_is_a_table_with_a_row_per_file(folder):
    touch(folder, "photos/cat/2.PNG", "photos/cat/sub/1.jpg", "photos/dog/1.png", "photos/cat/notes.txt")
    table = Table.read("photos")
    files = ["photos/cat/2.PNG", "photos/cat/sub/1.jpg", "photos/dog/1.png"]
    assert table.arrow.to_pydict() == {"file": files, "label": ["cat", "cat", "dog"]}
    assert all((table.path.parent / file).is_file() for file in files)


def test_folders_of_splits_are_a_column(folder):
    touch(folder, "p/train/a/1.wav", "p/valid/a/2.wav", "p/Test/b/3.wav")
    found = read_folder(folder / "p").to_pydict()
    assert sorted(found["split"]) == ["test", "train", "val"]
    assert sorted(found["label"]) == ["a", "a", "b"]
    touch(folder, "p/other/4.wav")
    assert "split" not in read_folder(folder / "p").column_names


def test_files_in_no_folder_have_no_label(folder):
    touch(folder, "new/1.png", "new/.hidden.png", "new/.cache/2.png")
    assert read_folder(folder / "new").to_pydict() == {"file": ["new/1.png"], "label": [None]}


def test_pipes_are_no_rows_that_can_be_read(folder):
    touch(folder, "p/a/1.png")
    os.mkfifo(folder / "p" / "a" / "2.png")
    assert len(Table.read("p")) == 1


def test_a_folder_without_files_to_read_is_told(folder):
    touch(folder, "p/a/notes.doc")
    with pytest.raises(
        ConfigError, match=r"data.path: there is no file to read in the folder 'p'. Possible: a folder per"
    ):
        Table.read("p")


def test_compressed_nifti_has_two_suffixes():
    assert kind_of_file("a.nii.gz") == "volume"
    assert kind_of_file("a.csv.gz") is None
