from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image

from hybrid_lightning.data.table import Table
from hybrid_lightning.init.columns import Column
from hybrid_lightning.init.files import describe_files, find_root


def table(cells, name="x", path="t.csv"):
    return Table(pyarrow.table({name: cells}), path)


def arrays(shapes, name="x"):
    cells = []
    for number, shape in enumerate(shapes):
        np.save(f"{number}.npy", np.zeros(shape))
        cells.append(f"{number}.npy")
    return describe_files(table(cells, name), Column(name, "array"), None)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ([(9,), (9,)], "array"),
        ([(90,), (90,)], "series"),
        ([(9,), (8,)], "series"),
        ([(90, 2), (80, 2)], "series"),
        ([(3, 20, 20)], "array"),
        ([(9, 20, 20)], "volume"),
        ([(2, 9, 20, 20)], "volume"),
    ],
)
def test_arrays_are_what_their_dimensions_say(folder, shapes, kind):
    assert arrays(shapes).kind == kind


def test_a_name_tells_that_an_array_is_no_series(folder):
    assert arrays([(90,)], "embedding").kind == "array"


def test_the_folder_of_the_files_is_found(folder):
    Path("data/photos").mkdir(parents=True)
    Image.new("L", (8, 6)).save("data/photos/a.png")
    found = table(["a.png", "b.png"], path="data/t.csv")
    assert find_root(found, [Column("x", "image")]) == "data/photos"
    assert find_root(table(["photos/a.png"], path="data/t.csv"), [Column("x", "image")]) is None
    assert find_root(table(["data/photos/a.png"], path="data/t.csv"), [Column("x", "image")]) == "."


def test_sizes_and_rates_are_those_that_the_files_state(folder):
    Image.new("L", (8, 6)).save("a.png")
    assert describe_files(table(["a.png", "gone.png"]), Column("x", "image"), None).shapes == [(1, 6, 8)]
    soundfile = pytest.importorskip("soundfile")
    soundfile.write("a.wav", np.zeros(800), 8000)
    seen = describe_files(table(["a.wav"]), Column("x", "audio"), None)
    assert (seen.shapes, seen.rates) == ([(1, 800)], [8000])


def test_files_that_cannot_be_read_are_a_problem_and_those_that_are_gone_are_not(folder):
    Path("a.png").write_bytes(b"no image")
    assert "cannot identify" in describe_files(table(["a.png"]), Column("x", "image"), None).problem
    assert describe_files(table(["gone.png"]), Column("x", "image"), None).problem == ""
