import os
from pathlib import Path

from hybrid_lightning.report.evaluations import Evaluation, read_evaluations, title_of
from hybrid_lightning.report.record import Record


def evaluation(title):
    return Evaluation(title, "", [], Record(split="table"))


def test_of_many_evaluations_the_newest_are_shown_by_name(tmp_path):
    for second, letter in enumerate("jihgfedcba"):
        path = evaluation(f"{letter}.csv").write(tmp_path, Path(f"{letter}.csv"))
        os.utime(path, (second, second))
    found, notes = read_evaluations(tmp_path)
    assert [one.title for one in found] == [f"{letter}.csv" for letter in "abcdefgh"]
    assert notes == ["Of 10 evaluations the newest 8 are shown."]


def test_a_table_may_have_any_name_that_a_file_can_have(tmp_path):
    title = "写" * 83 + ".csv"  # 253 bytes
    evaluation(title).write(tmp_path, Path(title))
    [found], notes = read_evaluations(tmp_path)
    assert (found.title, notes) == (title, [])


def test_tables_of_one_name_in_different_folders_are_kept_and_told_apart(tmp_path):
    for table in ("a/new.csv", "b/new.csv", "b/new.csv", "c/../b/new.csv"):
        path = Path(table)
        evaluation(title_of(path)).write(tmp_path, path)
    found, notes = read_evaluations(tmp_path)
    assert (sorted(one.title for one in found), notes) == (["a/new.csv", "b/new.csv"], [])
    evaluation(title_of(Path("other.csv"))).write(tmp_path, Path("other.csv"))
    assert len({one.title for one in read_evaluations(tmp_path)[0]}) == 3


def test_a_table_whose_name_no_other_has_is_called_by_it(tmp_path):
    for name in ("a/old.csv", "b/new.csv"):
        evaluation(title_of(Path(name))).write(tmp_path, Path(name))
    assert sorted(one.title for one in read_evaluations(tmp_path)[0]) == ["new.csv", "old.csv"]
