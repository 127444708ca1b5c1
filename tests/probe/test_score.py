import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.score import Score, paired_difference, score


def r2(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 1 - (outputs - target).square().sum() / (target - target.mean()).square().sum()


def test_accuracy_has_the_error_of_a_mean():
    outputs = torch.eye(2)[torch.tensor([0, 0, 0, 1] * 10)]
    found = score(outputs, torch.zeros(40, dtype=torch.long), "classes")
    assert found == Score("accuracy", 0.75, pytest.approx((0.75 * 0.25 / 39) ** 0.5))


def test_accuracy_of_labels_is_the_mean_over_labels():
    outputs = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    target = torch.tensor([[1, 0], [0, 1]])
    assert score(outputs, target, "labels") == Score("accuracy", 0.75, pytest.approx(0.25))


def test_r2_has_the_error_of_the_jackknife():
    target = torch.randn(200, dtype=torch.float64)
    outputs = target + torch.randn(200)
    found = score(outputs[:, None], target, "values")
    assert found.value == pytest.approx(float(r2(outputs, target)))
    left_out = []
    for row in range(200):
        others = torch.arange(200) != row
        left_out.append(r2(outputs[others], target[others]))
    deviations = torch.stack(left_out)
    jackknife = float((199 / 200 * (deviations - deviations.mean()).square().sum()).sqrt())
    assert found.error == pytest.approx(jackknife, rel=0.1)


def test_r2_is_the_mean_over_outputs_that_vary():
    target = torch.stack([torch.arange(10.0), torch.full((10,), 0.1), torch.arange(10.0) % 3], 1)
    outputs = target.clone()
    outputs[:, 2] = 1
    expected = (1 + r2(outputs[:, 2], target[:, 2])) / 2
    assert score(outputs, target, "values").value == pytest.approx(float(expected))


def test_weights_count_as_repetitions():
    outputs, target = torch.randn(10, 1), torch.randn(10)
    weights = torch.arange(1, 11)
    rows = torch.arange(10).repeat_interleave(weights)
    weighted = score(outputs, target, "values", weights)
    assert weighted.value == pytest.approx(score(outputs[rows], target[rows], "values").value)
    assert weighted.error > score(outputs[rows], target[rows], "values").error


def test_rows_of_a_group_are_one_draw():
    groups = torch.arange(20)
    outputs = torch.randn(20, 3)
    target = torch.randint(3, (20,))
    once = score(outputs, target, "classes")
    repeated = score(outputs.repeat(5, 1), target.repeat(5), "classes", groups=groups.repeat(5))
    assert repeated.value == pytest.approx(once.value)
    assert repeated.error == pytest.approx(once.error)


def test_a_difference_is_paired_over_rows():
    target = torch.arange(100) % 2
    outputs = torch.randn(100, 2)
    better = outputs.clone()
    wrong = (outputs.argmax(1) != target).nonzero()[:5, 0]
    better[wrong] = -better[wrong]
    found = paired_difference(better, outputs, target, "classes")
    assert found.value == pytest.approx(0.05)
    assert found.error == pytest.approx((0.05 * 0.95 / 99) ** 0.5)
    assert found.error < score(outputs, target, "classes").error
    same = paired_difference(outputs, outputs, target, "classes")
    assert (same.value, same.error) == (0, 0)


def test_the_error_covers_what_new_samples_differ_by():
    values = []
    errors = []
    for _ in range(300):
        target = torch.randn(80)
        first, second = target + torch.randn(80), target + 1.2 * torch.randn(80)
        found = paired_difference(first[:, None], second[:, None], target, "values")
        values.append(found.value)
        errors.append(found.error)
    spread = float(torch.tensor(values).std())
    assert 0.8 < float(torch.tensor(errors).mean()) / spread < 1.2


def test_one_row_has_no_error():
    assert torch.tensor(score(torch.eye(2)[:1], torch.tensor([0]), "classes").error).isnan()


def test_what_is_impossible_is_an_error():
    with pytest.raises(ConfigError, match="outputs: 1 of 2 rows are not finite"):
        score(torch.tensor([[torch.nan], [0.0]]), torch.zeros(2), "values")
    with pytest.raises(ConfigError, match="target: all values of the target are the same"):
        score(torch.zeros(2, 1), torch.zeros(2), "values")
