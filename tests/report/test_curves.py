import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from hybrid_lightning.report import curves


def drawn(rows=400, classes=3):
    generator = np.random.default_rng(0)
    truth = generator.integers(0, classes, rows)
    scores = generator.random((rows, classes)).round(2)  # with ties
    scores[np.arange(rows), truth] += 0.3
    return truth, scores / scores.sum(1, keepdims=True)


def test_areas_are_those_of_torchmetrics():
    truth, scores = drawn()
    one_hot = np.eye(3, dtype=int)[truth]
    roc, precision_recall = curves.ranking_curves(one_hot, scores, ["a", "b", "c"])
    for index in range(3):
        given = torch.from_numpy(scores[:, index]), torch.from_numpy(one_hot[:, index])
        assert roc[index]["value"] == pytest.approx(float(binary_auroc(*given)), abs=1e-6)
        assert precision_recall[index]["value"] == pytest.approx(float(binary_average_precision(*given)), abs=1e-6)
        assert len(roc[index]["x"]) <= 120
        assert (roc[index]["x"][-1], roc[index]["y"][-1]) == (1, 1)


def test_the_mean_of_curves_is_taken_at_each_x_and_lies_over_the_mean_area():
    low = {"name": "a", "x": [0.0, 1.0], "y": [0.0, 1.0], "value": 0.5}
    high = {"name": "b", "x": [0.0, 0.0, 1.0], "y": [0.0, 1.0, 1.0], "value": 1.0}
    found = curves.mean_curve("run", [low, high])
    assert (found["name"], found["value"]) == ("run", 0.75)
    assert np.interp(0.5, found["x"], found["y"]) == pytest.approx(0.75)
    assert np.trapezoid(found["y"], found["x"]) == pytest.approx(0.75, abs=0.01)
    assert (found["x"][:2], found["y"][:2]) == ([0, 0], [0, 0.5])
    assert curves.mean_curve("run", [low]) == {**low, "name": "run"}


def test_a_class_without_rows_has_no_curve():
    roc, precision_recall = curves.ranking_curves(np.array([[1, 0], [1, 1]]), np.full((2, 2), 0.5), ["a", "b"])
    assert [curve["name"] for curve in roc + precision_recall] == ["b", "b"]


def test_confusion_counts_rows_by_their_true_class():
    found = curves.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), ["a", "b"])
    assert found == {"names": ["a", "b"], "counts": [[1, 1], [0, 1]]}


def test_of_many_classes_the_rarest_are_one():
    truth = np.repeat(np.arange(40), np.arange(1, 41))
    found = curves.confusion(truth, truth, [str(number) for number in range(40)])
    assert found["names"] == [*map(str, range(16, 40)), curves.OTHERS]
    counts = np.array(found["counts"])
    assert counts.sum() == len(truth) == np.trace(counts)
    assert counts[-1, -1] == sum(range(1, 17))


def test_reliability_has_the_mean_confidence_and_the_share_that_is_right_of_each_bin():
    found = curves.reliability(np.array([0.52, 0.58, 1.0]), np.array([True, False, True]))
    assert found["confidence"] == pytest.approx([0.55, 1.0])
    assert found["correct"] == [0.5, 1.0]
    assert found["rows"] == [2, 1]


def test_numbers_are_at_most_a_thousand_rows_of_four_columns():
    truth = np.arange(12_000.0).reshape(2000, 6)
    found = curves.numbers(truth, truth + 1, list("abcdef"))
    assert [one["name"] for one in found] == list("abcd")
    assert len(found[0]["true"]) == 1000
    assert np.array_equal(np.array(found[0]["predicted"]) - found[0]["true"], np.ones(1000))


def test_spread_keeps_both_ends():
    assert curves.spread(3, 10).tolist() == [0, 1, 2]
    assert curves.spread(1000, 5).tolist() == [0, 250, 500, 749, 999]
