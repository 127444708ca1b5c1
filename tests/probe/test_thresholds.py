import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.thresholds import METRICS, best_thresholds, threshold_scores

SCORES = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "f1": f1_score,
    "macro_f1": lambda target, decided: f1_score(target, decided, average="macro"),
}


def rare(rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of a rare label that are too low, with ties."""
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(rows, generator=generator) < 0.15).double()
    logits = 1.5 * target - 2 + torch.randn(rows, generator=generator)
    return logits.sigmoid().mul(50).round() / 50, target


@pytest.mark.parametrize("metric", METRICS)
def test_no_other_threshold_has_a_better_value(metric):
    probability, target = rare()
    [found] = best_thresholds(probability[:, None], target[:, None], metric)
    value = SCORES[metric](target, probability > found)
    others = [SCORES[metric](target, probability > step / 200) for step in range(200)]
    assert value == pytest.approx(max(others))
    given = threshold_scores(probability, target > 0, torch.tensor([found], dtype=torch.float64), metric)
    assert float(given) == pytest.approx(value)


def test_labels_have_thresholds_of_their_own_and_a_rare_one_keeps_a_half():
    probability, target = rare()
    few = torch.zeros(300)
    few[:9] = 1
    probabilities = torch.stack([probability, 1 - probability, probability], 1)
    found = best_thresholds(probabilities, torch.stack([target, 1 - target, few], 1), "f1")
    assert found[0] < 0.4
    assert found[1] != found[0]
    assert found[2] == 0.5


def test_of_equal_thresholds_the_nearest_to_a_half_is_taken():
    target = torch.tensor([0.0] * 20 + [1.0] * 20)
    probability = 0.1 + 0.8 * target
    assert best_thresholds(probability[:, None], target[:, None], "accuracy") == [0.5]


def test_another_metric_is_refused():
    with pytest.raises(ConfigError, match=r"^threshold: unknown metric 'f2'"):
        best_thresholds(torch.rand(30, 1), torch.ones(30, 1), "f2")
