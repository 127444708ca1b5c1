import pytest
import torch

from hybrid_lightning.probe import ridge
from hybrid_lightning.probe.ridge import coefficients, leave_folds_out, leave_one_out, principal_scores
from tests.probe.brute_force import refit, refits

SHAPES = [(30, 4), (12, 40), (15, 15)]  # rows, features: primal, dual, and as many


def problem(rows: int, features: int, weighted: bool) -> tuple[torch.Tensor, ...]:
    x = torch.randn(rows, features, dtype=torch.float64) * 3 + 5
    goal = torch.randn(rows, 2, dtype=torch.float64)
    weights = torch.rand(rows, dtype=torch.float64) + 0.1 if weighted else torch.ones(rows, dtype=torch.float64)
    return x, goal, weights / weights.mean()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [1e-3, 2.0, 1e4])
def test_leaving_one_row_out_equals_a_refit_without_it(shape, weighted, penalty):
    x, goal, weights = problem(*shape, weighted)
    found = leave_one_out(principal_scores(x, weights), goal)(penalty)
    expected = refits(x, goal, weights, penalty, torch.arange(len(x)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [1e-3, 2.0, 1e4])
def test_leaving_a_fold_out_equals_a_refit_without_it(shape, weighted, penalty):
    x, goal, weights = problem(*shape, weighted)
    folds = torch.randint(4, (len(x),))
    found = leave_folds_out(principal_scores(x, weights), goal, folds)(penalty)
    torch.testing.assert_close(found, refits(x, goal, weights, penalty, folds), rtol=1e-6, atol=1e-8)


def test_folds_of_one_row_equal_leaving_one_out():
    x, goal, weights = problem(12, 40, weighted=True)
    spectrum = principal_scores(x, weights)
    by_folds = leave_folds_out(spectrum, goal, torch.arange(12))(0.5)
    torch.testing.assert_close(by_folds, leave_one_out(spectrum, goal)(0.5))


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_are_for_features_as_given(shape):
    x, goal, weights = problem(*shape, weighted=True)
    spectrum = principal_scores(x, weights)
    weight, bias = coefficients(spectrum, goal, 0.7)
    expected = refit(x, goal, weights, 0.7, spectrum.scale)
    torch.testing.assert_close(weight, expected[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(bias, expected[1], rtol=1e-6, atol=1e-8)


def test_dual_equals_primal():
    x, goal, weights = problem(12, 11, weighted=True)
    # the same features, but so many constant ones beside them that the dual form is used
    wide = torch.cat([x, torch.full((12, 20), 3.0, dtype=torch.float64)], 1)
    primal, dual = principal_scores(x, weights), principal_scores(wide, weights)
    torch.testing.assert_close(dual.variances, primal.variances)
    torch.testing.assert_close(leave_one_out(dual, goal)(0.1), leave_one_out(primal, goal)(0.1))
    weight, bias = coefficients(dual, goal, 0.1)
    torch.testing.assert_close(weight[:11], coefficients(primal, goal, 0.1)[0])
    assert (weight[11:] == 0).all()
    torch.testing.assert_close(bias, coefficients(primal, goal, 0.1)[1])


@pytest.mark.parametrize("features", [3, 30])
def test_a_row_without_weight_is_as_if_it_were_not_there(features):
    x, goal, weights = problem(10, features, weighted=True)
    weights[4] = 0
    others = torch.arange(10) != 4
    spectrum, without = principal_scores(x, weights), principal_scores(x[others], weights[others])
    torch.testing.assert_close(coefficients(spectrum, goal, 1.0), coefficients(without, goal[others], 1.0))
    held_out = leave_one_out(spectrum, goal)(1.0)
    torch.testing.assert_close(held_out[others], leave_one_out(without, goal[others])(1.0))
    weight, bias = coefficients(spectrum, goal, 1.0)
    torch.testing.assert_close(held_out[4], x[4] @ weight + bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("features", [3, 30])
def test_constant_features_drop_out(features, dtype):
    x = torch.randn(10, features, dtype=dtype)
    x[:, 1] = 0.1 + torch.finfo(dtype).eps * torch.rand(10, dtype=dtype)  # constant but for rounding
    goal = torch.randn(10, 2, dtype=torch.float64)
    weights = torch.ones(10, dtype=torch.float64)
    weight, _ = coefficients(principal_scores(x, weights), goal, 1e-6)
    assert (weight[1] == 0).all()
    assert (weight[0] != 0).all()


def test_no_feature_that_varies_leaves_the_mean_of_the_others():
    weights = torch.ones(4, dtype=torch.float64)
    goal = torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=torch.float64)
    spectrum = principal_scores(torch.ones(4, 3), weights)
    expected = (goal.sum() - goal) / 3
    torch.testing.assert_close(leave_one_out(spectrum, goal)(spectrum.unit), expected)
    folds = torch.tensor([0, 0, 1, 1])
    by_folds = leave_folds_out(spectrum, goal, folds)(spectrum.unit)
    assert by_folds.flatten().tolist() == [4.5, 4.5, 1.5, 1.5]


def test_features_are_not_changed():
    x = torch.randn(10, 3, dtype=torch.float64)
    before = x.clone()
    principal_scores(x, torch.ones(10, dtype=torch.float64))
    assert torch.equal(x, before)


def test_what_is_held_out_of_mixed_features_equals_a_refit_on_the_mixtures(monkeypatch):
    monkeypatch.setattr(ridge, "MOST_DIRECTIONS", 8)
    x, goal, weights = problem(30, 20, weighted=True)
    spectrum = principal_scores(x, weights)
    assert spectrum.scores.shape == (30, 8)
    standardized = (x - spectrum.mean) / spectrum.scale
    torch.testing.assert_close(standardized @ spectrum.directions, spectrum.scores)
    found = leave_one_out(spectrum, goal)(0.7)
    for row in range(3):
        others = torch.arange(30) != row
        own = (spectrum.scores[others], goal[others], weights[others])
        weight, bias = refit(*own, 0.7, torch.ones(8, dtype=torch.float64))
        torch.testing.assert_close(found[row], spectrum.scores[row] @ weight + bias)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_features_are_mixed_only_if_rows_and_features_are_too_many(shape, monkeypatch):
    x, _, weights = problem(*shape, weighted=True)
    expected = principal_scores(x, weights).directions
    monkeypatch.setattr(ridge, "MOST_DIRECTIONS", 8)
    assert torch.equal(principal_scores(x, weights).directions, expected)


def test_each_mixture_has_as_many_features_as_another(monkeypatch):
    monkeypatch.setattr(ridge, "MOST_DIRECTIONS", 8)
    mixture, sign = ridge._mixtures(20)
    assert sorted(mixture.bincount().tolist()) == [2, 2, 2, 2, 3, 3, 3, 3]
    assert set(sign.tolist()) == {-1.0, 1.0}
