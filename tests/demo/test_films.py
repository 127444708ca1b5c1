import csv
from collections import Counter
from importlib.util import find_spec

import pytest

from hybrid_lightning.demo.films import write_films
from hybrid_lightning.errors import ConfigError

pytestmark = pytest.mark.skipif(
    find_spec("bokeh_sampledata") is None, reason="bokeh-sampledata is not installed (extra sets)"
)


def test_the_manifest_has_a_row_per_film_with_what_the_docstring_says(tmp_path):
    path = write_films(tmp_path / "new")
    with path.open(encoding="utf-8", newline="") as file:
        films = list(csv.DictReader(file))
    assert len({film["film"] for film in films}) == len(films) == 6144
    assert Counter(film["verdict"] for film in films) == {"fresh": 3694, "rotten": 2450}
    assert {film["year"] for film in films} <= set(map(str, range(1940, 2015)))
    assert all(film["text"] and "," not in film["country"] + film["genre"] for film in films)


def test_the_same_file_is_written_again(tmp_path):
    first = write_films(tmp_path).read_bytes()
    assert write_films(tmp_path).read_bytes() == first


def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.importing.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"films needs the package bokeh_sampledata.*\[sets\]"):
        write_films(tmp_path)
