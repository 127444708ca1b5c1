import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.conformal import class_scores, class_sets, score_quantiles


def test_the_quantile_is_the_score_of_the_rank_that_the_promise_needs():
    scores = torch.randperm(199).double()[:, None]
    assert score_quantiles(scores, 0.9) == [179.0]  # of 0 to 198, the 180th: 0.9 * 200


def test_new_rows_are_covered_as_often_as_promised():
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(400):
        scores = torch.rand(100, 2, generator=generator)
        low, high = score_quantiles(scores, 0.9)
        covered += [low, high]  # of uniform scores the quantile is the share that it covers
    assert torch.tensor(covered).mean() == pytest.approx(91 / 101, abs=0.003)


def test_each_group_counts_once_however_many_rows_it_has():
    generator = torch.Generator().manual_seed(0)
    covered = []
    for _ in range(300):
        sizes = torch.randint(1, 9, (80,), generator=generator)
        groups = torch.repeat_interleave(torch.arange(80), sizes)
        difficulty = torch.rand(80, generator=generator)
        scores = difficulty[groups] + 1e-3 * torch.rand(len(groups), generator=generator)
        [quantile] = score_quantiles(scores[:, None], 0.9, groups)
        covered.append(min(quantile, 1.0))
    assert 0.895 < torch.tensor(covered).mean() < 0.92


def test_too_few_rows_are_refused_with_their_number():
    with pytest.raises(ConfigError, match=r"there are 99 calibration rows, .* at least 100"):
        score_quantiles(torch.rand(99, 1), 0.9)


def test_too_few_groups_are_refused_with_their_number():
    groups = torch.arange(120) // 15
    with pytest.raises(ConfigError, match=r"of 8 groups, and a coverage of 0\.9 needs at least 9"):
        score_quantiles(torch.rand(120, 1), 0.9, groups)


def test_scores_that_are_not_finite_are_refused():
    scores = torch.rand(120, 1)
    scores[3] = torch.nan
    with pytest.raises(ConfigError, match="not finite"):
        score_quantiles(scores, 0.9)


def test_a_set_holds_what_is_likely_enough_and_the_prediction():
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.45, 0.45, 0.1]])
    decided = torch.tensor([0, 0, 2])
    assert class_sets(probabilities, decided, 0.7).tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert class_sets(probabilities, decided, 0.1).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_a_class_with_exactly_the_score_of_the_quantile_is_in_the_set():
    probabilities = torch.rand(200, 4).softmax(1)
    target = torch.randint(4, (200,))
    scores = class_scores(probabilities, target)
    [quantile] = score_quantiles(scores, 0.9)
    sets = class_sets(probabilities, torch.zeros(200, dtype=torch.long), quantile)
    assert sets.gather(1, target[:, None]).sum() >= 181
