import os
from pathlib import Path

import pytest

from hybrid_lightning.data.inputs.missing_files import why_missing


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("~/a.png", "'~' is not replaced"),
        ("photos\\a.png", "backslashes"),
        ("C:\\photos\\a.png", "Windows drive"),
        ("https://x.org/a.png", "URL"),
        ("s3://x/a.png", "URL"),
        ("a.png;b.png", "several files"),
        ("a.png, b.png", "several files"),
        ("word " * 60, "text rather than the name"),
        (" a.png", "without the blanks"),
        ("A.PNG", "'a.png', in other letters"),
        ("photos", "is a folder"),
        ("pipe", "a pipe, a device"),
        ("gone", "link to a file that is gone"),
        ("elsewhere/a.png", "'a.png' in the folder itself"),
        ("below/b.png", "as data.root"),
        ("nothing.png", ""),
        ("a\0b", ""),
    ],
)
def test_a_cell_that_names_no_file_is_told_the_likeliest_reason(folder, cell, reason):
    Path("root/photos").mkdir(parents=True)
    Path("root/a.png").touch()
    Path("below").mkdir()
    Path("below/b.png").touch()
    os.mkfifo("root/pipe")
    Path("root/gone").symlink_to("nowhere")
    found = why_missing("root", cell)
    assert reason in found
    assert bool(reason) == bool(found)


def test_a_folder_that_is_not_there_is_told(folder):
    assert "correct data.root" in why_missing("nowhere", "a.png")


def test_a_folder_is_listed_once_for_all_files_that_are_missing_and_again_when_it_has_changed(folder, monkeypatch):
    listed = []
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iterdir(path))
    Path("a.png").touch()
    assert [why_missing(".", f"{number}.png") for number in range(5)] == [""] * 5
    assert len(listed) == 1
    Path("B.png").touch()
    os.utime(".", ns=(0, 0))  # as a clock may not have ticked between the two
    assert "'B.png', in other letters" in why_missing(".", "b.png")
