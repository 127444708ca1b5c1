import pytest
import torch

from hybrid_lightning.cache.verification import relative_difference, tolerance


def test_differences_are_relative_to_the_largest_value():
    live = torch.tensor([[2.0, -4.0]])
    assert relative_difference(live, live) == 0
    assert relative_difference(live + 0.04, live) == pytest.approx(0.01)
    assert relative_difference(live * float("nan"), live) == float("inf")
    assert relative_difference(live * float("nan"), live * float("nan")) == 0
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0
    assert tolerance(torch.float32) == 1e-5
    assert tolerance(torch.bfloat16) > 1e-3
