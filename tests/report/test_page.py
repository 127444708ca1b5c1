from pathlib import Path

import pytest

from hybrid_lightning.report import page
from hybrid_lightning.report.record import LARGEST
from hybrid_lightning.report.sections import sections
from tests.report.runs import EVIL, Parsed, evaluation, run, write_folder

PROGRAM = "/* plotly */"
FIRST = ["scores", "curves", "timeline"]
TRAINING = ["rates", "gradients", "updates", "drift"]
OF_KIND = {
    "multiclass": ["confusion", "ranking", "reliability", "samples", "data"],
    "multilabel": ["ranking", "reliability", "samples"],
    "regression": ["residuals", "samples"],
}


def parsed(*runs):
    return Parsed(page.page(runs, PROGRAM))


def table_of_parts(of_run):
    [found] = [section.table for section in sections([of_run]) if section.key == "parts"]
    return found


@pytest.mark.parametrize("kind", OF_KIND)
def test_each_kind_of_task_has_its_sections(tmp_path, kind):
    found = parsed(run(write_folder(tmp_path / "a", kind)))
    assert found.sections == [*FIRST, "parts", *OF_KIND[kind], *TRAINING, "machine", "config"]
    places = [attributes for _, attributes in found.tags if "data-figure" in attributes]
    assert [int(place["data-figure"]) for place in places] == list(range(len(found.figures)))
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    assert links == [f"#{key}" for key in found.sections]


def test_a_folder_alone_gives_the_curves_and_says_nothing_of_predictions(tmp_path):
    found = parsed(run(write_folder(tmp_path / "a", kind=None)))
    assert found.sections == [*FIRST, *TRAINING, "config"]


def test_a_table_has_no_empty_columns_and_no_empty_head(tmp_path):
    whole = run(write_folder(tmp_path / "a"))
    assert len(table_of_parts(whole).columns) == 8
    for part in whole.record.parts:
        part |= {"without": None, "contribution": None}
    table = table_of_parts(whole)
    assert table.columns == ["part", "origin", "values", "alone", "share of blend", "moved"]
    assert {len(row) for row in table.rows} == {6}
    text = page.page([whole], PROGRAM)
    assert "<thead>" not in text.split('<section id="machine">')[1].split("</section>")[0]
    assert "<thead>" in text.split('<section id="parts">')[1].split("</section>")[0]


def test_several_runs_share_their_curves_and_a_table_of_scores_and_of_what_differs(tmp_path):
    folders = [
        write_folder(tmp_path / "r" / name, config={"lr": rate, "name": "x"}) for name, rate in (("a", 1), ("b", 2))
    ]
    found = parsed(*map(run, folders))
    assert found.sections == ["scores", "curves", "timeline", "differences", *OF_KIND["multiclass"][:-1]]
    losses = [trace["name"] for trace in found.figures[0]["data"]]
    assert losses == [f"{name}, {split}" for name in ("r/a", "r/b") for split in ("training", "validation")]
    assert "lr" in found.text
    assert "name" not in found.text.split("What differs")[-1].split("Confusion")[0]  # which is the same in both


def test_predictions_of_several_runs_stand_side_by_side_each_under_its_title(tmp_path):
    found = parsed(*(run(write_folder(tmp_path / "r" / name)) for name in "ab"))
    titles = [f"r/{name}: 12 validation rows" for name in "ab"]
    assert [word for word in found.words if word in titles] == titles * 4
    places = [attributes for _, attributes in found.tags if "data-figure" in attributes]
    assert [int(place["data-figure"]) for place in places] == list(range(len(found.figures)))
    heatmaps = [figure for figure in found.figures if figure["data"][0]["type"] == "heatmap"]
    assert len(heatmaps) == 2
    # the sample with the largest loss is the same in both
    assert [found.words[place + 1] for place, word in enumerate(found.words) if word == "also in"] == ["r/b", "r/a"]


def test_several_runs_share_a_figure_of_the_means_of_their_curves(tmp_path):
    runs = [run(write_folder(tmp_path / "r" / name)) for name in "ab"]
    names = [f"r/{name}: 12 validation rows (0.750)" for name in "ab"]
    shared = [one for one in parsed(*runs).figures if [trace.get("name") for trace in one["data"]] == names]
    titles = [[one["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")] for one in shared]
    assert titles == [["false positive rate", "true positive rate"], ["recall", "precision"]]
    for one in runs:
        one.record.roc = one.record.roc * 2
    assert "true positive rate, mean over classes" in str(parsed(*runs).figures)
    assert "mean over classes" not in str(parsed(runs[0]).figures)


def test_an_evaluation_has_its_metrics_and_its_predictions(tmp_path):
    folder = write_folder(tmp_path / "a")
    evaluation("new.csv").write(folder, Path("new.csv"))
    found = parsed(run(folder))
    assert found.sections[:2] == ["scores", "evaluations"]
    assert "0.9 (0.8 to 0.95)" in found.text
    assert "undefined" in found.text
    assert "new.csv, 12 rows" in found.words
    assert "12 validation rows" in found.words


def test_what_a_page_has_no_room_for_is_told(tmp_path):
    runs = [run(write_folder(tmp_path / "r" / str(number))) for number in range(8)]
    found = parsed(*runs)
    assert len([figure for figure in found.figures if figure["data"][0]["type"] == "heatmap"]) == 6
    assert "Of 'r/6: 12 validation rows', 'r/7: 12 validation rows' no predictions are shown" in found.text


def test_a_damaged_evaluation_is_left_out_and_told(tmp_path):
    folder = write_folder(tmp_path / "a")
    path = evaluation("new.csv").write(folder, Path("new.csv"))
    path.write_text(path.read_text().replace('"drawn"', '"dawn"'))
    found = parsed(run(folder))
    assert "evaluations" not in found.sections
    assert f"{path.name} cannot be read" in found.text


@pytest.mark.parametrize("title", ["../../evil", "a/b.csv", "ä b.csv"])
def test_an_evaluation_stays_in_the_folder_of_its_run(tmp_path, title):
    folder = write_folder(tmp_path / "a")
    assert evaluation(title).write(folder, Path(title)).parent == folder
    assert [one.title for one in run(folder).evaluations] == [Path(title).name]


def test_nothing_is_fetched_and_nothing_of_the_data_is_markup(tmp_path):
    text = page.page([run(write_folder(tmp_path / "a"))], PROGRAM)
    found = Parsed(text)
    for tag, attributes in found.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    assert len(found.scripts) == 3  # figures, plotly, ours
    assert found.scripts[1] == PROGRAM
    assert EVIL not in text
    assert found.text.count(EVIL) >= 3  # the class, the text of a sample, the config
    labels = [name for figure in found.figures for trace in figure["data"] for name in [str(trace.get("name"))]]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (0.750)" in labels  # as plotly shows it


def test_only_the_two_scripts_of_the_page_may_run(tmp_path):
    found = parsed(run(write_folder(tmp_path / "a")))
    [policy] = [attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes]
    for script in found.scripts[1:]:
        assert f"'sha256-{page._digest(script)}'" in policy
    assert policy.startswith("default-src 'none';")


@pytest.mark.parametrize("text", ["</script>", "<!--", "<script", "]]>", "\u2028", "&lt;", "\\", '"'])
def test_json_in_a_script_stays_within_it(text):
    import json

    encoded = page.as_script([text])
    assert "<" not in encoded
    assert json.loads(encoded) == [text]


def test_a_table_with_very_many_columns_makes_no_large_page(tmp_path):
    folder = write_folder(tmp_path / "a", kind=None)
    names = [
        f"{prefix}/{'x' * 50}{number}" for prefix in ("trainable", "lr", "val", "grad_norm") for number in range(2000)
    ]
    cells = "1.7976931348623157e308," + "1e99," * (len(names) - 1)
    (folder / "metrics.csv").write_text(f"{','.join(names)},step\n" + "".join(f"{cells}{step}\n" for step in range(9)))
    assert len(page.page([run(folder)], PROGRAM)) < 500_000


def test_text_that_steers_a_terminal_or_turns_around_is_shown_as_escapes(tmp_path):
    folder = write_folder(tmp_path / "a", config={"name": "x"})
    (folder / "config.yaml").write_text("name: 'a\u202eb'\n")
    assert "\u202e" not in page.page([run(folder)], PROGRAM)


def test_a_page_of_the_largest_record_is_below_6_mb(tmp_path):
    plotly = pytest.importorskip("plotly.offline", reason="plotly is not installed (extra 'report')")
    folder = write_folder(tmp_path / "a", rows=3000)
    large = run(folder)
    picture = {"key": "photo", "picture": "A" * (LARGEST // 13), "text": "", "line": []}
    large.record.worst = [{**large.record.worst[0], "shown": [picture]} for _ in range(12)]
    page.write_page([large], tmp_path / "report.html")
    assert len(plotly.get_plotlyjs()) < (tmp_path / "report.html").stat().st_size < 6_000_000


def test_scores_of_parts_without_predictions_are_not_of_0_rows(tmp_path):
    whole = run(write_folder(tmp_path / "a"))
    whole.record.rows = 0
    assert "Accuracy or R² on validation rows." in parsed(whole).text
