import itertools

import pytest
import torch

from hybrid_lightning.probe.simplex import best_mixture, least_squares


def grid(step: int) -> torch.Tensor:
    """All weights of three voters that are multiples of 1 / step."""
    found = [(a, b, step - a - b) for a, b in itertools.product(range(step + 1), repeat=2) if a + b <= step]
    return torch.tensor(found, dtype=torch.float64) / step


def test_no_weights_of_a_fine_grid_have_less_squared_error():
    for _ in range(20):
        errors = torch.randn(30, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
        gram = errors.T @ errors
        found = least_squares(gram)
        points = grid(100)
        losses = torch.einsum("pi,ij,pj->p", points, gram, points)
        assert found @ gram @ found <= losses.min() + 1e-8
        assert found.min() >= 0
        torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_no_weights_of_a_fine_grid_have_a_higher_likelihood():
    for _ in range(20):
        likelihoods = torch.rand(40, 3, dtype=torch.float64) ** 3
        weights = torch.rand(40, dtype=torch.float64)
        found = best_mixture(likelihoods, weights)
        points = (likelihoods @ grid(100).T).log()
        assert weights @ (likelihoods @ found).log() >= (weights @ points).max() - 1e-8


@pytest.mark.parametrize("voters", [1, 2, 15])
def test_a_mixture_satisfies_the_condition_of_its_optimum(voters):
    # nearly equal voters, as parts of one network often are
    likelihoods = torch.rand(200, 1, dtype=torch.float64) + 0.05 * torch.rand(200, voters, dtype=torch.float64)
    found = best_mixture(likelihoods, torch.ones(200, dtype=torch.float64))
    growth = (likelihoods / (likelihoods @ found)[:, None]).mean(0)
    assert growth.max() < 1 + 1e-8


def test_likelihoods_of_very_different_sizes_are_mixed():
    likelihoods = torch.eye(2, dtype=torch.float64).repeat(5, 1) + 1e-300
    torch.testing.assert_close(
        best_mixture(likelihoods, torch.ones(10, dtype=torch.float64)), likelihoods.new_full((2,), 0.5)
    )


def test_equal_voters_share_their_weight():
    errors = torch.randn(30, 1, dtype=torch.float64).repeat(1, 4)
    for found in (least_squares(errors.T @ errors), best_mixture(errors.exp(), errors[:, 0].exp())):
        torch.testing.assert_close(found, torch.full_like(found, 0.25), rtol=0, atol=1e-5)


def test_voters_without_any_error_share_their_weight():
    assert least_squares(torch.zeros(2, 2, dtype=torch.float64)).tolist() == [0.5, 0.5]
