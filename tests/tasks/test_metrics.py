import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from hybrid_lightning.tasks.metrics import SplitMetrics, classification_metrics, regression_metrics

SIZES = (7, 7, 7, 2)  # the last batch is smaller


def filled(metrics: SplitMetrics, predictions, target, losses=None) -> SplitMetrics:
    """Metrics that were shown the samples in uneven batches."""
    parts = zip(predictions.split(SIZES), target.split(SIZES), losses or [0.0] * len(SIZES), strict=True)
    for of_batch, of_target, loss in parts:
        metrics.update(torch.tensor(loss), len(of_target), of_batch, of_target)
    return metrics


def values(metrics: SplitMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute()[0].items()}


def calibration_error(probabilities: np.ndarray, target: np.ndarray, bins: int = 15) -> float:
    """Guo et al., arXiv 1706.04599, equation 3, bin by bin."""
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == target
    error = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_multiclass_metrics_are_those_of_scikit_learn(classes):
    torch.manual_seed(classes)
    probabilities, target = torch.randn(23, classes).softmax(1), torch.randint(classes, (23,))
    found = values(filled(classification_metrics(classes, multilabel=False), probabilities, target))
    p, t = probabilities.numpy(), target.numpy()
    one_vs_rest = [reference.roc_auc_score(t == index, p[:, index]) for index in range(classes)]
    expected = {
        "loss": 0.0,
        "accuracy": reference.accuracy_score(t, p.argmax(1)),
        "macro_f1": reference.f1_score(t, p.argmax(1), average="macro"),
        "auroc": float(np.mean(one_vs_rest)),
        "calibration_error": calibration_error(p, t),
    }
    if classes == 2:
        of_each = [reference.average_precision_score(t == index, p[:, index]) for index in range(2)]
        expected["average_precision"] = float(np.mean(of_each))
    assert found == pytest.approx(expected, abs=1e-6)


def test_multilabel_metrics_are_those_of_scikit_learn():
    torch.manual_seed(3)
    probabilities, target = torch.rand(23, 4), torch.randint(2, (23, 4))
    found = values(filled(classification_metrics(4, multilabel=True), probabilities, target))
    p, t = probabilities.numpy(), target.numpy()
    expected = {
        "loss": 0.0,
        "accuracy": float(((p > 0.5) == t).mean()),
        "macro_f1": reference.f1_score(t, p > 0.5, average="macro"),
        "auroc": reference.roc_auc_score(t, p, average="macro"),
        "average_precision": reference.average_precision_score(t, p, average="macro"),
    }
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_metrics_are_those_of_scikit_learn(outputs):
    torch.manual_seed(4)
    shape = (23,) if outputs == 1 else (23, outputs)
    target = torch.randn(shape)
    predictions = target + 0.5 * torch.randn(shape)
    found = values(filled(regression_metrics(), predictions, target))
    p, t = predictions.numpy(), target.numpy()
    expected = {
        "loss": 0.0,
        "mae": reference.mean_absolute_error(t, p),
        "rmse": float(np.sqrt(((p - t) ** 2).mean())),
        "r2": reference.r2_score(t, p),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_loss_is_the_mean_over_samples_not_over_batches():
    metrics = filled(regression_metrics(), torch.zeros(23), torch.zeros(23), losses=[1.0, 2.0, 3.0, 10.0])
    assert values(metrics)["loss"] == pytest.approx((7 * 1 + 7 * 2 + 7 * 3 + 2 * 10) / 23)


def test_metrics_start_anew_after_each_computation():
    metrics = classification_metrics(3, multilabel=False)
    target = torch.arange(23) % 3
    good = torch.nn.functional.one_hot(target, 3).float()
    assert values(filled(metrics, good, target))["accuracy"] == 1
    assert values(filled(metrics, 1 - good, target))["accuracy"] == 0


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (torch.tensor([0] * 12 + [2] * 11), "class 1 has no samples"),
        (torch.tensor([1] * 23), "class 0, 1, 2 has no samples, or all of them"),
    ],
)
def test_an_undefined_metric_is_left_out_and_named(target, named):
    metrics = filled(classification_metrics(3, multilabel=False), torch.rand(23, 3).softmax(1), target)
    found, undefined = metrics.compute()
    assert set(found) == {"loss", "accuracy", "macro_f1", "calibration_error"}
    assert undefined.keys() == {"auroc"}
    assert named in undefined["auroc"].replace("'", "")


def test_a_label_that_all_samples_have_leaves_auroc_undefined():
    target = torch.randint(2, (23, 3))
    target[:, 1] = 1
    _, undefined = filled(classification_metrics(3, multilabel=True), torch.rand(23, 3), target).compute()
    assert "1" in undefined["auroc"]


def test_average_precision_is_the_mean_over_the_labels_that_occur_and_knows_ties():
    torch.manual_seed(5)
    probabilities, target = (torch.rand(23, 3) * 4).round() / 4, torch.randint(2, (23, 3))
    target[:, 1] = 0
    found = values(filled(classification_metrics(3, multilabel=True), probabilities, target))
    of_each = [reference.average_precision_score(target[:, label], probabilities[:, label]) for label in (0, 2)]
    assert found["average_precision"] == pytest.approx(np.mean(of_each), abs=1e-6)


def test_without_any_label_there_is_no_average_precision():
    metrics = filled(classification_metrics(3, multilabel=True), torch.rand(23, 3), torch.zeros(23, 3).long())
    assert metrics.compute()[1]["average_precision"] == "no sample has any of the labels"


def test_the_names_of_many_absent_classes_are_cut():
    metrics = filled(classification_metrics(300, False), torch.rand(23, 300).softmax(1), torch.zeros(23).long())
    assert metrics.compute()[1]["auroc"].count(",") < 20


def test_a_single_sample_leaves_r2_undefined():
    metrics = regression_metrics()
    metrics.update(torch.tensor(0.0), 1, torch.ones(1), torch.ones(1))
    found, undefined = metrics.compute()
    assert "r2" not in found
    assert undefined == {"r2": "it needs at least two samples"}
