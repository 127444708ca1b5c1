from itertools import permutations

import numpy as np
import pytest
import torch

from hybrid_lightning.drift.similarity import linear_cka


def hsic_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """The U-statistic itself: a mean over all ordered quadruples of different samples."""
    k, m = one @ one.T, other @ other.T
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q] for i, j, q, r in permutations(range(len(k)), 4)
    ]
    return float(np.mean(terms))


def hsic_of_song(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 5 of Song et al. (2012)."""
    n = len(one)
    k, m = one @ one.T, other @ other.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    total = (
        np.trace(k @ m)
        + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * ones @ k @ m @ ones
    )
    return float(total / (n * (n - 3)))


def cka(hsic, one, other):
    return hsic(one, other) / (hsic(one, one) * hsic(other, other)) ** 0.5


def features(samples: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, channels, generator=torch.Generator().manual_seed(seed)) * 3 + 5


@pytest.mark.parametrize(("hsic", "samples"), [(hsic_by_hand, 7), (hsic_of_song, 4), (hsic_of_song, 64)])
def test_it_equals_the_definition(hsic, samples):
    one = features(samples, 5)
    other = one[:, :3] @ features(3, 8, seed=1) + features(samples, 8, seed=2) * 0.5
    expected = cka(hsic, one.double().numpy(), other.double().numpy())
    assert linear_cka(one, other) == pytest.approx(expected, rel=1e-9)
    assert abs(expected) < 0.999


def test_the_same_features_are_exactly_alike_and_a_rotation_a_scale_or_a_shift_change_nothing():
    one = features(32, 6)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert linear_cka(one, one.clone()) == 1
    assert linear_cka(one.bfloat16(), one.bfloat16()) == 1
    assert linear_cka(one, one.double() @ rotation * 1e-3 + 7) == pytest.approx(1, abs=1e-9)
    assert linear_cka(one * 1e-30, one * 1e30) == pytest.approx(1, abs=1e-5)
    assert linear_cka(one, one * torch.linspace(0, 1, 6)) < 0.99


def test_unrelated_features_are_about_0_even_if_they_are_many():
    similarities = [linear_cka(features(64, 512, seed=2 * n), features(64, 512, seed=2 * n + 1)) for n in range(20)]
    assert max(map(abs, similarities)) < 0.1
    assert min(similarities) < 0, "the estimate has no bias towards similarity"

    def plain(one, other):
        one, other = one - one.mean(0), other - other.mean(0)
        return ((one.T @ other).norm() ** 2 / ((one.T @ one).norm() * (other.T @ other).norm())).item()

    assert plain(features(64, 512, seed=0), features(64, 512, seed=1)) > 0.8, "what the plain estimate says"


def test_features_that_are_the_same_for_all_samples_are_like_nothing():
    constant = torch.full((8, 3), 0.1)
    assert linear_cka(constant, features(8, 3)) == linear_cka(constant, constant) == 0


def test_what_is_not_finite_is_not_hidden():
    bad = features(8, 3)
    bad[2, 1] = float("nan")
    assert np.isnan(linear_cka(bad, features(8, 3)))
