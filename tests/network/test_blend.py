"""The fusion that begins at a closed-form solution."""

import pytest
import torch
from torch import Tensor

from hybrid_lightning.network.blend import BlendFusion, FeatureScale, ScaledHead
from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.probe.blend import blended

SIZES = {"a": 3, "b": 2}


def vote(size: int, outputs: int = 2) -> LinearVote:
    return LinearVote(torch.randn(size, outputs), torch.randn(outputs))


def of(vote: LinearVote, features: Tensor) -> Tensor:
    return features @ vote.weight + vote.bias


@pytest.fixture
def features() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a": 5 + 3 * torch.randn(20, 3), "b": torch.randn(20, 2) / 10}


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
@pytest.mark.parametrize("weights", [[0.5, 0.2, 0.3], [0.0, 1.0, 0.0]])
def test_it_begins_at_the_blend_of_the_votes(features, kind, weights):
    fusion = BlendFusion(SIZES, 2, kind)
    votes, joint = {"a": vote(3), "b": vote(2)}, vote(5)
    fusion.start_at(features, {}, votes, joint, weights)
    outputs = {name: of(votes[name], features[name]) for name in SIZES}
    outputs["joint"] = of(joint, torch.cat([features["a"], features["b"]], 1))
    expected = blended(outputs, dict(zip(outputs, weights, strict=True)), kind)
    assert torch.allclose(fusion(features), expected, atol=1e-4)


def test_a_voter_without_weight_stays_out_and_gets_no_gradient(features):
    fusion = BlendFusion(SIZES, 2)
    fusion.start_at(features, {}, {"a": vote(3), "b": vote(2)}, vote(5), [0.0, 0.6, 0.4])
    with torch.no_grad():
        fusion.heads["a"].weight.fill_(torch.nan)
    loss = fusion(features).logsumexp(1).sum()
    loss.backward()
    assert loss.isfinite()
    assert not fusion.heads["a"].bias.grad.any()
    assert fusion.scores.grad.isfinite().all()
    assert fusion.log_weights().exp().tolist() == pytest.approx([0, 0.6, 0.4])


def test_a_part_that_a_sample_lacks_votes_as_for_its_mean(features):
    fusion = BlendFusion(SIZES, 2)
    there = torch.arange(20) % 3 > 0
    features["a"][~there] = 0.0
    fusion.start_at(features, {"a": there}, {"a": vote(3), "b": vote(2)}, vote(5), [0.5, 0.2, 0.3])
    with_mean = dict(features)
    with_mean["a"] = torch.where(there[:, None], features["a"], features["a"][there].mean(0))
    assert torch.allclose(fusion(features, {"a": there}), fusion(with_mean), atol=1e-5)


def test_a_constant_feature_keeps_its_scale():
    scale = FeatureScale(2)
    scale.set(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert torch.equal(scale(torch.tensor([[2.0, 7.0]])), torch.zeros(1, 2))


def test_a_single_head_begins_at_its_vote(features):
    head, own = ScaledHead(3, 2), vote(3)
    head.start_at(features["a"], own)
    assert torch.allclose(head(features["a"]), of(own, features["a"]), atol=1e-4)
