import os

from hybrid_lightning.report.evaluations import Evaluation, read_evaluations
from hybrid_lightning.report.record import Record


def evaluation(title):
    return Evaluation(title, "", [], Record(split="table"))


def test_of_many_evaluations_the_newest_are_shown_by_name(tmp_path):
    for second, letter in enumerate("jihgfedcba"):
        path = evaluation(f"{letter}.csv").write(tmp_path)
        os.utime(path, (second, second))
    found, notes = read_evaluations(tmp_path)
    assert [one.title for one in found] == [f"{letter}.csv" for letter in "abcdefgh"]
    assert notes == ["Of 10 evaluations the newest 8 are shown."]


def test_a_table_may_have_any_name_that_a_file_can_have(tmp_path):
    title = "写" * 83 + ".csv"  # 253 bytes
    evaluation(title).write(tmp_path)
    [found], notes = read_evaluations(tmp_path)
    assert (found.title, notes) == (title, [])
