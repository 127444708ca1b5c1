from pathlib import Path

import numpy as np
import pandas
import pytest

from hybrid_lightning.data.inputs.series_text import read_text


def read(text: str, header: bool | None = None, name: str = "a.csv"):
    Path(name).write_text(text, encoding="utf-8")
    return read_text(Path(name), header)


@pytest.mark.parametrize("columns", [2, 3, 12])
def test_names_that_pandas_counts_are_a_header(folder, columns):
    values = np.random.default_rng(0).random((5, columns)) + 5
    pandas.DataFrame(values).to_csv("a.csv", index=False)
    found = read_text(Path("a.csv"))
    np.testing.assert_allclose(found.steps, values)
    assert found.header == ",".join(map(str, range(columns)))


def test_an_index_of_pandas_is_left_out_and_another_first_column_is_kept(folder):
    frame = pandas.DataFrame(np.arange(10.0).reshape(5, 2) + 0.5)
    frame.to_csv("a.csv")
    found = read_text(Path("a.csv"))
    assert found.has_index
    np.testing.assert_allclose(found.steps, frame.to_numpy())
    frame.set_index(frame.index * 7.5).to_csv("a.csv")
    found = read_text(Path("a.csv"))
    assert not found.has_index
    assert found.steps.shape == (5, 3)


@pytest.mark.parametrize("text", ["0\n5\n7\n", "0\n5.5\n7.1\n", "0,1\n1,3\n2,5\n"])
def test_a_line_that_may_be_names_or_values_is_asked_about(folder, text):
    with pytest.raises(ValueError, match="'header: true' or 'header: false'"):
        read(text)
    steps = len(text.split())
    assert len(read(text, header=False).steps) == steps
    assert len(read(text, header=True).steps) == steps - 1


@pytest.mark.parametrize(
    "text",
    ["0,1\n", "0,2\n1,3\n", "0.0\n1\n", "1\n2\n", "0,1.0\n1,3\n", "\ufeff1,2\n\n3,4\n"],
)
def test_lines_of_values_stay(folder, text):
    found = read(text)
    assert found.header == ""
    assert len(found.steps) == len(text.split())


def test_comments_above_are_left_out(folder):
    found = read("# made by us\n# in volt\n0.5 1\n1 2\n", name="a.txt")
    assert found.steps.tolist() == [[0.5, 1], [1, 2]]


def test_numbers_keep_all_of_their_digits(folder):
    assert read("1700000000001\n1700000000002\n").steps[:, 0].tolist() == [1700000000001, 1700000000002]


def test_a_field_that_is_no_number_by_its_length_is_refused(folder):
    with pytest.raises(ValueError, match=r"its line '9+'\.\.\. of 5001 letters does not hold numbers"):
        read("1\n" + "9" * 5000 + "\n")


def test_many_numbers_take_the_memory_of_numbers(folder):
    import tracemalloc

    text = "1,2,3\n" * 100_000
    tracemalloc.start()
    assert read(text).steps.shape == (100_000, 3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 12 * 300_000 + 4 * len(text)
