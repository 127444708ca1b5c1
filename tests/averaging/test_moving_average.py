import pytest
import torch

from hybrid_lightning.averaging.moving_average import MovingAverage, mean_of


def test_the_weight_of_a_value_halves_in_the_half_life_and_the_weights_sum_to_one():
    average, values = MovingAverage(3), torch.randn(8, 5, dtype=torch.float64)
    for value in values:
        average.update({"a": value})
    weights = 2.0 ** (-torch.arange(7, -1, -1, dtype=torch.float64) / 3)
    torch.testing.assert_close(average.values["a"], (weights / weights.sum()) @ values)


def test_each_tensor_begins_at_its_own_first_update():
    average, tensor = MovingAverage(100), torch.randn(4)
    average.update({"a": torch.ones(4)})
    average.update({"a": torch.ones(4), "b": tensor})
    assert torch.equal(average.values["b"], tensor)
    assert average.values["b"] is not tensor
    assert average.counts == {"a": 2, "b": 1}


def test_the_average_of_what_is_not_given_ends():
    average = MovingAverage(1)
    average.update({"a": torch.ones(1), "b": torch.ones(1)})
    average.update({"b": torch.ones(1)})
    assert list(average.values) == list(average.counts) == ["b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_changes_of_short_numbers_are_not_lost(dtype):
    average = MovingAverage(1000)
    for step in range(400):
        average.update({"a": torch.full((1,), 1.0 + (step % 2) * 2**-7, dtype=dtype)})
    assert average.values["a"].dtype == torch.float32
    assert float(average.values["a"]) == pytest.approx(1 + 2**-8, abs=2**-13)


def test_a_mean_leaves_what_is_equal_as_it_is():
    same = torch.tensor([0.1, 0.2, 0.3])
    states = [{"a": same, "b": torch.tensor([float(i)]), "n": torch.tensor(i)} for i in range(3)]
    mean = mean_of(states)
    assert torch.equal(mean["a"], same)
    assert float(mean["b"]) == 1
    assert int(mean["n"]) == 0
