import os

import pytest

from hybrid_lightning.files import TEMPORARY, exists, is_regular_file, remove_leftovers, whole_file


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    for text in ("first", "second"):
        with whole_file(path) as temporary:
            temporary.write_text(text)
            assert path.is_file() == (text == "second")
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="broken"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_ends_is_a_regular_file(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    regular = {name: is_regular_file(tmp_path / name) for name in ("a", "link", "zero", "pipe", "gone", ".", "x" * 300)}
    assert [name for name, found in regular.items() if found] == ["a", "link"]
    there = {name: exists(tmp_path / name) for name in ("a", "pipe", "gone", "x" * 300, "a\0b")}
    assert [name for name, found in there.items() if found] == ["a", "pipe"]


def write_half(path):
    with whole_file(path) as temporary:
        temporary.write_text("ne")
        raise ValueError("broken")


def test_leftovers_are_removed_from_the_folder_alone(tmp_path):
    (tmp_path / f"shares{TEMPORARY}").mkdir()
    (tmp_path / "deep").mkdir()
    for name in ("a.csv", f"a.csv{TEMPORARY}", f"shares{TEMPORARY}/c{TEMPORARY}", f"deep/b{TEMPORARY}"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.csv", f"b{TEMPORARY}"]


def test_what_a_link_names_is_no_leftover(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"x{TEMPORARY}").symlink_to(tmp_path / "other")
    remove_leftovers(tmp_path / "run")
    assert (tmp_path / "other").is_dir()
    assert not list((tmp_path / "run").iterdir())
