import math

import pytest
import torch

from hybrid_lightning.network.modules.positive_pools import POOLS, pool_positives


def test_each_pool_is_what_its_name_says():
    activations = torch.tensor([[[5.0, 1.0, 3.0, 4.0, 2.0, 9.0]]])
    counted = torch.ones(1, 6, dtype=torch.bool)
    pooled = pool_positives(activations, counted, torch.tensor([[2.0, 9.0]]), POOLS, 12)
    # above 2 are 5, 3, 4 and 9, the first, third, fourth and sixth of them; the fifth reaches it
    assert pooled[:, 0, 0, 0].tolist() == pytest.approx([4 / 6, 3.25, 14 / 4 / 12, 4 / 12])
    assert pooled[:, 0, 1, 0].tolist() == pytest.approx([0.0, 0.0, 0.0, 1 / 12])


def test_positions_that_do_not_count_end_a_stretch_and_shift_the_index():
    activations = torch.tensor([[[-math.inf, 5.0, 5.0, -math.inf, 5.0]]])
    counted = torch.tensor([[False, True, True, False, True]])
    pooled = pool_positives(activations, counted, torch.zeros(1, 1), POOLS, 10)
    assert pooled.flatten().tolist() == pytest.approx([1.0, 5.0, (1 + 2 + 4) / 3 / 10, 2 / 10])


def test_a_stretch_goes_on_where_the_bias_is_only_reached_and_nothing_else_counts_that():
    activations = torch.tensor([[[0.0, 0.0, 5.0, 0.0, -1.0, 0.0]]])
    counted = torch.ones(1, 6, dtype=torch.bool)
    pools = ("stretch", "share", "index")
    pooled = pool_positives(activations, counted, torch.zeros(1, 1), pools, 1)
    assert pooled.flatten().tolist() == pytest.approx([4.0, 1 / 6, 3.0])


@pytest.mark.parametrize("positions", [1, 15, 16, 17, 100, 333])
def test_the_longest_stretch_is_right_at_any_length(positions):
    drawn = torch.rand(4, 3, positions, generator=torch.Generator().manual_seed(0))
    # runs over many words
    drawn[0, :, positions // 7 : -positions // 9] = 0.9
    counted = torch.ones(3, positions, dtype=torch.bool)
    pooled = pool_positives(drawn, counted, torch.tensor([[0.0, 0.1, 0.5]] * 4), ["stretch"], 1)
    for kernel in range(4):
        for threshold, bias in enumerate([0.0, 0.1, 0.5]):
            for sample in range(3):
                bits = "".join("1" if value >= bias else "0" for value in drawn[kernel, sample])
                assert pooled[0, kernel, threshold, sample] == max(map(len, bits.split("0")))


def test_nothing_that_counts_gives_zeros():
    activations = torch.full((2, 3, 7), -math.inf)
    counted = torch.zeros(3, 7, dtype=torch.bool)
    assert pool_positives(activations, counted, torch.randn(2, 4), POOLS, 7).count_nonzero() == 0
