import shutil
from pathlib import Path

import numpy as np

from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.repeated_files import repeated_files
from tests.data.inputs.bound import table


def told(cells: list[str], split: list[int], labels: list[int] | None = None) -> list[str]:
    entry = parse_inputs({"x": {"array": "file"}})["x"]
    entry.bind(table(Path(), {"file": cells}))
    known = None if labels is None else np.array(labels)
    return repeated_files([(entry, np.arange(len(cells)))], np.array(split), known)


def test_a_file_in_several_rows_is_named_with_its_splits_and_labels(folder):
    for row in range(4):
        np.save(f"{row}.npy", np.full(2, row))
    assert told([f"{row}.npy" for row in range(4)], [0, 0, 1, 2]) == []
    [line] = told(["0.npy", "1.npy", "./0.npy", "2.npy"], [0, 0, 1, 2], [0, 1, 1, 0])
    assert line.startswith("data.inputs.x: 1 file stands in several rows, 1 of them in more than one split")
    assert line.endswith(
        "1 of them with different labels; such as './0.npy', which have equal bytes as '0.npy' "
        "(train: row 0; val: row 2)"
    )
    [line] = told(["0.npy", "0.npy"], [0, 0], [1, 1])
    assert "split" not in line
    assert "labels" not in line


def test_equal_bytes_under_two_names_are_one_file(folder):
    large = np.random.default_rng(0).standard_normal(20_000)
    np.save("a.npy", large)
    shutil.copy("a.npy", "b.npy")
    large[-1] += 1  # behind the first bytes
    np.save("c.npy", large)
    [line] = told(["a.npy", "b.npy", "c.npy"], [0, 2, 2])
    assert "1 file stands in several rows" in line
    assert "'a.npy', which have equal bytes as 'b.npy' (train: row 0; test: row 1)" in line


def test_a_file_that_stands_in_another_column_of_the_kind_is_found(folder):
    for row in range(4):
        np.save(f"{row}.npy", np.full(2, row))
    manifest = table(Path(), {"front": ["0.npy", "1.npy", "1.npy"], "back": ["2.npy", "3.npy", "0.npy"]})
    entry = parse_inputs({"x": {"array": ["front", "back"]}})["x"]
    columns = []
    for member in entry.members.values():
        member.bind(manifest)
        columns.append((member, np.arange(3)))
    of_both, of_front = repeated_files(columns, np.array([0, 0, 2]), None)
    assert of_both.startswith("data.inputs.x.front and data.inputs.x.back: 1 file stands in several rows, 1 of them in")
    assert "'0.npy' (train: row 0; test: row 2)" in of_both
    assert of_front.startswith("data.inputs.x.front: 1 file stands in several rows")
    assert repeated_files(columns[1:], np.array([0, 0, 2]), None) == []
