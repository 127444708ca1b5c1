import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.targets import encode, relative_weights, standardize


def test_classes_become_one_hot_also_the_absent_one():
    assert encode(torch.tensor([1, 0], dtype=torch.int32), "classes", 3).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_one_value_per_row_is_a_column():
    assert encode(torch.tensor([2, 5]), "values", 1).tolist() == [[2], [5]]


@pytest.mark.parametrize(
    ("target", "kind", "message"),
    [
        (torch.tensor([0.0, 1.0]), "classes", r"torch.float32 of shape \(2,\) is not a whole number per row"),
        (torch.tensor([-1, 1]), "classes", "has the classes -1 to 1"),
        (torch.tensor([[0.0, 0.5]]), "labels", "labels have to be 0 or 1"),
        (torch.tensor([[0.0, torch.nan], [1, 1]]), "labels", "1 of 2 rows have values that are not finite"),
    ],
)
def test_what_is_no_target_is_an_error(target, kind, message):
    with pytest.raises(ConfigError, match=f"target: {message}"):
        encode(target, kind, 2)


def test_weights_have_the_mean_one():
    assert relative_weights(torch.tensor([1, 3]), torch.zeros(2, 5)).tolist() == [0.5, 1.5]
    assert relative_weights(None, torch.zeros(2, 5)).tolist() == [1, 1]
    with pytest.raises(ConfigError, match="row_weights: all weights are 0"):
        relative_weights(torch.zeros(2), torch.zeros(2, 5))


def test_a_constant_target_keeps_its_unit():
    goal = torch.full((7, 1), 0.1, dtype=torch.float64)
    standard, middle, unit = standardize(goal, torch.rand(7, dtype=torch.float64))
    assert unit.tolist() == [1.0]
    assert standard.abs().max() < 1e-15
    assert middle[0] == pytest.approx(0.1)
