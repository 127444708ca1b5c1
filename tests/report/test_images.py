from pathlib import Path

import numpy as np
import pytest

from hybrid_lightning.report import loggers, row_figures, timeline
from hybrid_lightning.report.loggers import named_figures
from hybrid_lightning.report.sections import sections
from tests.report.runs import evaluation, run, write_folder

images = pytest.importorskip("hybrid_lightning.report.images", reason="matplotlib is not installed")
ORANGE = (242, 142, 43)


def has_color(pixels, color):
    return bool((pixels == np.asarray(color, dtype=np.uint8)).all(-1).any())


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression", None])
def test_every_figure_becomes_an_image_that_is_not_blank(tmp_path, kind):
    found = named_figures(sections([run(write_folder(tmp_path / "a", kind))]))
    assert "report/timeline" in found
    for name, figure in found.items():
        pixels = images.image(figure)
        assert pixels.dtype == np.uint8, name
        assert pixels.shape == (figure["layout"].get("height", 420), 760, 3), name
        assert pixels.std() > 5, name


def test_bars_have_their_parts_color_and_begin_where_they_begin(tmp_path):
    figure = timeline.timeline([run(write_folder(tmp_path / "a"))])
    figure["layout"]["title"] = {"text": ""}
    figure["data"][0]["marker"]["color"] = "#f28e2b"
    pixels = images.image(figure)
    columns = np.flatnonzero((pixels == ORANGE).all(-1).any(0))
    assert columns.max() - columns.min() < 0.5 * pixels.shape[1]  # from step 20 to 40 of 40
    figure["data"][0]["base"] = [0]
    figure["data"][0]["x"] = [40]
    columns = np.flatnonzero((images.image(figure) == ORANGE).all(-1).any(0))
    assert columns.max() - columns.min() > 0.8 * pixels.shape[1]


def test_lines_that_the_page_hides_at_first_are_left_out():
    curve = {"name": "price in $ or $$", "x": [0.0, 1.0], "y": [0.0, 1.0], "value": 0.5}
    figure = row_figures.ranking([curve], "x", "y", diagonal=False)
    figure["layout"]["title"] = {"text": ""}
    figure["data"][0]["line"]["color"] = "#f28e2b"
    assert has_color(images.image(figure), ORANGE)
    figure["data"][0]["visible"] = "legendonly"
    assert not has_color(images.image(figure), ORANGE)


def test_figures_of_several_tables_are_told_apart_by_name_and_title(tmp_path):
    folder = write_folder(tmp_path / "a")
    evaluation("new.csv").write(folder, Path("new.csv"))
    found = named_figures(sections([run(folder)]))
    names = [name for name in found if name.startswith("report/confusion")]
    assert names == ["report/confusion/12_validation_rows", "report/confusion/new.csv_12_rows"]
    assert found[names[1]]["layout"]["title"]["text"] == "Confusion matrix, new.csv, 12 rows"
    assert "report/losses" in found


def test_without_plotly_there_are_no_figures_of_it(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    assert loggers._of_plotly({"report/x": {"data": [], "layout": {}}}) == {}
