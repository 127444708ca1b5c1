"""Closed-form fits on the features of parts, and their blend."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.tasks.classifier import ClassificationObjective
from hybrid_lightning.tasks.features import SplitFeatures
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.probing import TOGETHER, probe_features
from hybrid_lightning.tasks.regressor import RegressionObjective


def objective_of(classes: int, class_weights: Any = None) -> ClassificationObjective:
    return ClassificationObjective(classes, "multiclass", class_weights, label_smoothing=0.0, loss_function=None)


def features(**changes: Any) -> SplitFeatures:
    torch.manual_seed(0)
    good, noise = torch.randn(60, 3), torch.randn(60, 5)
    return SplitFeatures({"good": good, "noise": noise}, {}, good.argmax(1), None)._replace(**changes)


class Contrast(Objective):
    """Learns without targets."""

    reads_target = False

    def loss(self, outputs: Tensor, target: Any) -> Tensor:
        return outputs.sum()

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs


def test_the_blend_leaves_out_what_only_harms():
    found = probe_features(objective_of(3), features())
    assert found.voters["good"].score.value > 0.8 > 0.65 > found.voters["noise"].score.value
    assert found.weights["noise"] < 0.1
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.blend.value >= found.voters["good"].score.value - found.blend.error


def test_logarithms_are_fitted_and_scored_in_the_units_of_the_target():
    objective = RegressionObjective(1)
    objective.scale.transform = "log"
    given = features()
    prices = (given.parts["good"] @ torch.tensor([1.0, 2.0, -1.0]) + given.parts["noise"][:, 0]).exp()
    voter = probe_features(objective, given._replace(target=prices)).voters["good"]
    predicted = voter.held_out.exp()[:, 0]
    residual = (predicted - prices).square().sum() / (prices - prices.mean()).square().sum()
    assert voter.score.value == pytest.approx(1 - float(residual), rel=1e-4)
    assert voter.score.value < 0.9


def test_one_part_is_its_own_blend():
    own = features()
    found = probe_features(objective_of(3), own._replace(parts={"good": own.parts["good"]}))
    assert found.weights == {"good": 1.0}
    assert TOGETHER not in found.voters


def test_rows_that_lack_a_part_get_the_same_outputs_from_it():
    there = torch.arange(60) % 4 > 0
    found = probe_features(objective_of(3), features(present={"good": there}))
    held_out = found.voters["good"].held_out
    assert len(held_out[~there].unique(dim=0)) == 1
    assert torch.equal(held_out[there], found.voters["good"].vote.held_out)


def test_rows_of_a_group_are_held_out_together():
    # each row stands there twice: left out alone, its twin would tell its class
    own = features()
    torch.manual_seed(0)
    twins = torch.randn(30, 200).repeat(2, 1)
    target = torch.randint(3, (30,)).repeat(2)
    twice = own._replace(parts={"noise": twins}, target=target)
    alone = probe_features(objective_of(3), twice)
    grouped = probe_features(objective_of(3), twice, torch.arange(30).repeat(2))
    assert alone.blend.value > 0.9 > 0.6 > grouped.blend.value


def test_class_weights_are_weights_of_rows():
    objective = objective_of(3, [1.0, 2.0, 3.0])
    assert torch.equal(objective.row_weights(torch.tensor([2, 0, 1])), torch.tensor([3.0, 1.0, 2.0]))
    balanced = objective_of(2, "balanced")
    assert balanced.row_weights(torch.tensor([0, 0, 0, 1])).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


def test_balanced_class_weights_reach_the_fits_and_the_blend():
    generator = torch.Generator().manual_seed(0)
    rare = (torch.arange(60) % 6 == 0).long()
    parts = {name: rare[:, None] + torch.randn(60, 3, generator=generator) for name in ("one", "two")}
    own = features(parts=parts, target=rare)
    plain, balanced, listed = (
        probe_features(objective_of(2, weights), own) for weights in (None, "balanced", [60 / 50 / 2, 60 / 10 / 2])
    )
    for name, voter in balanced.voters.items():
        torch.testing.assert_close(voter.held_out, listed.voters[name].held_out)
        assert voter.held_out.argmax(1).sum() > plain.voters[name].held_out.argmax(1).sum()
    assert balanced.weights == pytest.approx(listed.weights, abs=1e-3)


def test_without_a_closed_form_or_a_target_there_is_no_fit():
    with pytest.raises(ConfigError, match="Contrast has no closed form"):
        probe_features(Contrast(3), features())
    with pytest.raises(ConfigError, match="the batches have no 'target'"):
        probe_features(objective_of(3), features(target=None))
