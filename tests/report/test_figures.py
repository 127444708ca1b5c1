import pytest

from hybrid_lightning.report import figures, row_figures, timeline, traces
from hybrid_lightning.report.sections import sections
from tests.report.runs import EVIL, run, write_folder


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression", None])
def test_plotly_accepts_every_figure(tmp_path, kind):
    objects = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed (extra 'report')")
    for section in sections([run(write_folder(tmp_path / "a", kind))]):
        for drawn in section.figures.values():
            objects.Figure(drawn)  # raises for an unknown key or a wrong value


def test_names_are_no_markup_of_plotly_and_short():
    assert traces.plain(EVIL) == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert traces.plain("<a href='http://x'>y</a>" * 9).endswith("…")
    assert traces.plain("a\nb\u202e") == "a b\\u202e"


def test_long_runs_have_a_bounded_number_of_points(tmp_path):
    long = run(write_folder(tmp_path / "a", rows=20_000))
    for drawn in (figures.losses([long]), figures.rates(long), figures.gradient_norms(long)):
        assert sum(len(trace["x"]) for trace in drawn["data"]) <= 8000
        for trace in drawn["data"]:
            assert len(trace["x"]) == len(trace["y"])


def test_bars_begin_where_stages_begin_to_train(tmp_path):
    drawn = timeline.timeline([run(write_folder(tmp_path / "a"))])
    assert [(bar["y"], bar["base"], bar["x"]) for bar in drawn["data"]] == [([1], [20], [20])]
    assert drawn["layout"]["yaxis"]["ticktext"] == ["head (frozen)", "tower"]


def test_without_a_record_the_log_says_what_trained(tmp_path):
    drawn = timeline.timeline([run(write_folder(tmp_path / "a", kind=None))])
    assert [(bar["y"], bar["base"]) for bar in drawn["data"]] == [([0], [0]), ([1], [20])]
    assert drawn["layout"]["yaxis"]["ticktext"] == ["head", "tower"]


def test_unfreezings_are_marked(tmp_path):
    drawn = figures.losses([run(write_folder(tmp_path / "a"))])
    [mark] = drawn["layout"]["shapes"]
    assert (mark["x0"], mark["label"]["text"]) == (20, "tower")


def test_groups_without_decay_are_shown_only_where_their_rate_differs(tmp_path):
    names = [trace["name"] for trace in figures.rates(run(write_folder(tmp_path / "a")))["data"]]
    assert names == ["tower.top", "head"]


def test_norms_after_clipping_are_dotted_and_frozen_parts_left_out(tmp_path):
    drawn = figures.gradient_norms(run(write_folder(tmp_path / "a")))["data"]
    found = {trace["name"]: (trace["line"].get("dash"), len(trace["x"])) for trace in drawn}
    dashes = {"tower": ("solid", 20), "head": ("solid", 40), "total": ("solid", 40), "total, clipped": ("dot", 40)}
    assert found == dashes


def test_classes_whose_names_are_cut_to_the_same_text_stay_apart():
    names = ["x" * 60 + "a", "x" * 60 + "b"]
    drawn = row_figures.confusion({"names": names, "counts": [[1, 2], [3, 4]]})
    assert drawn["data"][0]["text"] == [[1, 2], [3, 4]]
    assert drawn["layout"]["xaxis"]["tickvals"] == [0, 1]


def test_the_main_metric_comes_first_and_other_scales_are_hidden_at_first(tmp_path):
    found = run(write_folder(tmp_path / "a"))
    found.series["val/auroc"] = found.series["val/accuracy"]
    found.series["val/perplexity"] = found.series["train/loss"]
    found.series["val/perplexity"].values[0] = 30
    shown = {trace["name"]: trace["visible"] for trace in figures.metrics(found)["data"]}
    assert shown == {"accuracy": True, "auroc": True, "perplexity": "legendonly"}
    found.record.main = "loss"  # of a task of one's own, which measures nothing else first
    assert len(figures.metrics(found)["data"]) == 3


def test_several_runs_share_a_figure_of_their_main_metric(tmp_path):
    folders = [write_folder(tmp_path / kind, kind) for kind in ("multiclass", "regression")]
    drawn = figures.main_metrics([run(folder) for folder in folders])
    assert len(drawn["data"]) == 2
    assert drawn["layout"]["yaxis"]["title"]["text"] == "main metric"


def test_classes_that_nobody_has_named_are_no_figure():
    assert row_figures.classes({"val": [3, 4]}, [])["data"] == []
    assert len(row_figures.classes({"train": [5, 5], "val": [3]}, ["a", "b"])["data"]) == 2
