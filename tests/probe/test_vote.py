import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe import ridge
from hybrid_lightning.probe import vote as votes
from hybrid_lightning.probe.vote import STRENGTHS, Vote, _folds, fit_vote
from tests.probe.brute_force import refits


def clusters(rows: int = 120, features: int = 6, classes: int = 3, noise: float = 1.0):
    target = torch.arange(rows) % classes
    centers = torch.randn(classes, features)
    return centers[target] + noise * torch.randn(rows, features), target


def test_a_linear_layer_takes_the_vote():
    x, target = clusters()
    vote = fit_vote(100 * x + 50, target, "classes", outputs=3)
    layer = nn.Linear(6, 3)
    layer.load_state_dict({"weight": vote.weight.T, "bias": vote.bias})
    torch.testing.assert_close(layer(100 * x + 50), vote(100 * x + 50), rtol=1e-4, atol=1e-4)
    assert vote.weight.dtype == torch.float32


def test_classes_are_recognized_on_rows_not_seen():
    x, target = clusters(rows=240)
    vote = fit_vote(x[:120], target[:120], "classes", outputs=3)
    assert (vote(x[120:]).argmax(1) == target[120:]).float().mean() > 0.65
    held_out = cross_entropy(vote.held_out, target[:120])
    assert abs(held_out - cross_entropy(vote(x[120:]), target[120:])) < 0.2
    assert held_out > cross_entropy(vote(x[:120]), target[:120])


def test_values_are_in_their_own_units_and_held_out_exactly():
    x = torch.randn(30, 5, dtype=torch.float64)
    target = torch.stack([1e4 + 300 * x[:, 0], 1e-3 * x[:, 1]], 1) * (1 + 0.01 * torch.randn(30, 2))
    vote = fit_vote(x, target, "values", outputs=2)
    unit = float((30 * torch.corrcoef(x.T)).trace()) / 5
    expected = refits(x, target, torch.ones(30, dtype=torch.float64), vote.strength * unit, torch.arange(30))
    torch.testing.assert_close(vote.held_out, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(vote(x).mean(0), target.mean(0))


def test_the_strength_has_the_least_held_out_error():
    x = torch.randn(30, 20, dtype=torch.float64)
    target = x[:, 0] + torch.randn(30)
    vote = fit_vote(x, target, "values", outputs=1)
    unit = float((30 * torch.corrcoef(x.T)).trace()) / 20
    errors = {}
    for strength in STRENGTHS:
        outputs = refits(x, target[:, None], torch.ones(30, dtype=torch.float64), strength * unit, torch.arange(30))
        errors[strength] = float((outputs[:, 0] - target).square().mean())
    assert vote.strength == min(errors, key=errors.get)
    assert STRENGTHS[-1] < vote.strength < STRENGTHS[0]


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_features_that_say_nothing_vote_for_the_frequencies_or_the_mean(kind):
    x = torch.randn(100, 300)
    target = {
        "classes": torch.arange(100) % 4 // 3,
        "labels": (torch.arange(100) % 4 == 0).float()[:, None],
        "values": torch.arange(100) % 7,
    }[kind]
    outputs = 2 if kind == "classes" else 1
    vote = fit_vote(x, target, kind, outputs=outputs)
    new = vote(torch.randn(50, 300))
    if kind == "classes":
        assert new.softmax(1)[:, 1].sub(0.25).abs().mean() < 0.1
    elif kind == "labels":
        assert new.sigmoid().sub(0.25).abs().mean() < 0.1
    else:
        assert new.sub(3).abs().mean() < 0.5


def test_a_group_is_held_out_as_a_whole():
    # features that name the group and nothing else; its rows have the same class
    groups = torch.arange(120) // 4
    x = nn.functional.one_hot(groups, 30).float()
    target = torch.arange(30).remainder(7).remainder(2)[groups]
    alone = fit_vote(x, target, "classes", outputs=2)
    grouped = fit_vote(x, target, "classes", outputs=2, groups=groups)
    assert (alone.held_out.argmax(1) == target).float().mean() == 1
    assert (grouped.held_out.argmax(1) == target).float().mean() < 0.7


def test_numbers_of_groups_are_only_names():
    x, target = clusters()
    groups = torch.randint(15, (120,))
    vote = fit_vote(x, target, "classes", outputs=3, groups=groups)
    renamed = fit_vote(x, target, "classes", outputs=3, groups=1000 - 7 * groups)
    assert vote.held_out.isfinite().all()
    assert renamed.held_out.shape == vote.held_out.shape


def test_groups_are_dealt_into_ten_folds_of_similar_size():
    groups = torch.cat([torch.full((20,), -5), torch.arange(80) // 2])
    folds = _folds(groups, 100)
    sizes = folds.bincount()
    assert len(sizes) == 10
    assert sizes.max() == 20
    assert sizes.min() >= 8
    for group in groups.unique():
        assert len(folds[groups == group].unique()) == 1
    assert len(_folds(torch.tensor([3, 3, 1]), 3).unique()) == 2


def test_a_weight_of_two_is_as_much_as_the_row_twice():
    x, target = clusters(rows=40)
    weights = torch.ones(40)
    weights[:10] = 2
    weighted = fit_vote(x.double(), target, "classes", outputs=3, row_weights=weights, groups=torch.arange(40) % 5)
    rows = torch.cat([torch.arange(40), torch.arange(10)])
    doubled = fit_vote(x.double()[rows], target[rows], "classes", outputs=3, groups=rows % 5)
    assert weighted.strength == doubled.strength
    # the row of Platt's that is of every class counts for one among 40, or among 50
    torch.testing.assert_close(weighted.weight, doubled.weight, rtol=0.05, atol=1e-2)


def test_class_weights_move_the_vote_to_the_rare_class():
    x = torch.randn(200, 2)
    target = torch.zeros(200, dtype=torch.long)
    target[:20] = 1
    x[:20, 0] += 1
    plain = fit_vote(x, target, "classes", outputs=2)
    balanced = fit_vote(x, target, "classes", outputs=2, row_weights=torch.where(target == 1, 10.0, 1.1))
    assert plain.held_out.argmax(1).sum() < 15
    assert 40 < balanced.held_out.argmax(1).sum() < 100


def test_an_absent_class_and_one_of_a_single_row_are_possible():
    x, target = clusters(rows=40)
    target[0] = 4
    vote = fit_vote(x, target, "classes", outputs=6)
    assert vote(x).isfinite().all()
    assert vote.held_out.isfinite().all()
    assert vote(x).softmax(1)[:, [3, 5]].max() < 0.02
    grouped = fit_vote(x, target, "classes", outputs=6, groups=torch.arange(40) // 2)
    assert grouped.held_out.isfinite().all()


def test_labels_need_not_exclude_each_other():
    x = torch.randn(200, 4)
    labels = torch.stack([x[:, 0] > 0, x[:, 0] + x[:, 1] > 1, torch.zeros(200, dtype=torch.bool)], 1)
    vote = fit_vote(x, labels, "labels", outputs=3)
    right = (vote.held_out > 0) == labels
    assert right.float().mean(0).min() > 0.85
    again = fit_vote(x, labels.float(), "labels", outputs=3)
    assert torch.equal(again.weight, vote.weight)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_two_rows_and_constant_features_are_enough(kind):
    target = {"classes": torch.tensor([0, 1]), "labels": torch.tensor([[0], [1]]), "values": torch.tensor([2.0, 4.0])}
    vote = fit_vote(torch.ones(2, 3), target[kind], kind, outputs=2 if kind == "classes" else 1)
    assert (vote.weight == 0).all()
    assert vote.bias.isfinite().all()
    assert vote.held_out.isfinite().all()


def test_a_constant_value_is_learned_exactly():
    x = torch.randn(20, 3)
    target = torch.stack([torch.full((20,), 0.1), x[:, 0]], 1)
    vote = fit_vote(x, target, "values", outputs=2)
    torch.testing.assert_close(vote(x), target, rtol=0, atol=1e-3)
    torch.testing.assert_close(vote(x)[:, 0], target[:, 0])


def test_gradients_flow_through_the_call_but_not_into_the_fit():
    x, target = clusters()
    features = x.requires_grad_()
    vote = fit_vote(features, target, "classes", outputs=3)
    assert not vote.weight.requires_grad
    vote(features).sum().backward()
    assert features.grad is not None


def test_the_same_rows_give_the_same_vote():
    x, target = clusters()
    first, second = (fit_vote(x, target, "classes", outputs=3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.held_out, second.held_out)


def test_features_of_low_precision_give_a_float32_vote():
    x, target = clusters()
    vote = fit_vote(x.bfloat16(), target, "classes", outputs=3)
    assert vote.weight.dtype == vote.held_out.dtype == torch.float32
    assert (vote.held_out.argmax(1) == target).float().mean() > 0.7


def test_a_fit_that_would_take_too_long_is_one_to_mixtures_and_says_so(monkeypatch, capsys):
    for module in (ridge, votes):
        monkeypatch.setattr(module, "MOST_DIRECTIONS", 16)
    x, target = clusters(rows=240, features=40)
    found = fit_vote(x[:120], target[:120], "classes", outputs=3)
    assert "120 rows x 40 features: the features are mixed at random into 16" in capsys.readouterr().out
    assert found.weight.shape == (40, 3)
    for outputs, goal in ((found.held_out, target[:120]), (found(x[120:]), target[120:])):
        assert (outputs.argmax(1) == goal).float().mean() > 0.9
    again = fit_vote(x[:120], target[:120], "classes", outputs=3)
    assert torch.equal(again.weight, found.weight)


def test_a_fit_tells_how_long_it_takes_only_if_that_is_long(monkeypatch, capsys):
    x, target = clusters(rows=40)
    fit_vote(x, target, "classes", outputs=3)
    assert not capsys.readouterr().out
    monkeypatch.setattr(votes, "_SECONDS", 1e12)
    fit_vote(x, target, "classes", outputs=3)
    alone = capsys.readouterr().out
    assert "closed form on 40 rows x 6 features: about " in alone
    # one more decomposition for each fold
    fit_vote(x, target, "classes", outputs=3, groups=torch.arange(40) % 4)
    grouped = capsys.readouterr().out
    assert float(grouped.split()[-5]) == pytest.approx(5 * float(alone.split()[-5]), rel=0.01)


def wrong(**changes: object) -> Vote:
    x, target = clusters(rows=12)
    arguments = {"features": x, "target": target, "kind": "classes", "outputs": 3, **changes}
    return fit_vote(arguments.pop("features"), arguments.pop("target"), arguments.pop("kind"), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "class"}, "kind: unknown value 'class'. Did you mean 'classes'"),
        ({"outputs": 2}, "target: has the classes 0 to 2, but with 2 outputs only 0 to 1"),
        ({"features": torch.zeros(11, 2)}, "features: there are 11 rows of features, but 12 of the target"),
        ({"features": torch.zeros(12)}, r"features: the shape \(12,\) is not \(rows, features\)"),
        ({"row_weights": torch.ones(3)}, r"row_weights: the shape \(3,\) is not \(12,\)"),
        ({"row_weights": -torch.ones(12)}, "row_weights: a weight is negative"),
        ({"row_weights": torch.eye(12)[0]}, "only one row has a weight"),
        ({"groups": torch.zeros(12)}, "only one group has a weight"),
        ({"groups": torch.zeros(3)}, r"groups: the shape \(3,\) is not \(12,\)"),
        ({"kind": "labels"}, r"target: the shape \(12,\) is not \(rows, 3\)"),
        ({"kind": "values", "target": torch.full((12, 3), torch.nan)}, "target: 12 of 12 rows .* not finite"),
    ],
)
def test_what_is_impossible_is_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        wrong(**changes)


def test_features_that_are_not_finite_are_named():
    x = torch.randn(12, 5)
    x[2, 3] = torch.nan
    x[7, 0] = torch.inf
    with pytest.raises(ConfigError, match=r"features: 2 of 12 rows .* in the columns '0', '3' \(counted from 0\)"):
        wrong(features=x)
