import pytest
import torch
from sklearn.metrics import average_precision_score

from hybrid_lightning.probe.ranking import average_precision, paired_ranking


def data(rows=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(rows, generator=generator) < 0.2).long()
    logits = torch.randn(rows, 2, generator=generator)
    logits[:, 1] += target
    return logits.round(decimals=1), target


def test_it_is_that_of_scikit_learn_with_ties():
    logits, target = data()
    # equal differences are ties
    first, second = (logits[:, 1] - logits[:, 0]).round(decimals=1), target.numpy()
    expected = (average_precision_score(second, first) + average_precision_score(1 - second, -first)) / 2
    found, _ = average_precision(torch.stack([-first / 2, first / 2], 1), target, "classes")
    assert found.value == pytest.approx(expected, abs=1e-9)


def test_labels_that_do_not_occur_do_not_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=generator)
    labels = (torch.rand(30, 3, generator=generator) < 0.3).float()
    labels[:, 2] = 0
    found, _ = average_precision(logits, labels, "labels")
    expected = [average_precision_score(labels[:, column].numpy(), logits[:, column].numpy()) for column in (0, 1)]
    assert found.value == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_the_error_is_the_spread_between_sets_of_as_many_rows():
    errors, values = [], []
    for seed in range(40):
        found, _ = average_precision(*data(200, seed), "classes")
        errors.append(found.error)
        values.append(found.value)
    spread = float(torch.tensor(values).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.4)


def test_a_difference_is_paired():
    logits, target = data(200)
    one = average_precision(logits, target, "classes")
    other = average_precision(
        logits + 0.01 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1)), target, "classes"
    )
    difference = paired_ranking(one, other)
    assert difference.value == pytest.approx(one.score.value - other.score.value)
    assert difference.error < one.score.error / 5
    assert paired_ranking(one, one).error == 0


def test_whole_groups_are_drawn():
    logits, target = data(30)
    repeated, groups = logits.repeat_interleave(4, 0), torch.arange(30).repeat_interleave(4)
    of_rows, _ = average_precision(logits, target, "classes")
    of_groups, _ = average_precision(repeated, target.repeat_interleave(4), "classes", groups)
    assert of_groups.value == pytest.approx(of_rows.value)
    assert of_groups.error == pytest.approx(of_rows.error)
