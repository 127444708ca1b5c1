import pytest
import torch
from torch.nn import functional

from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.network.selection import Selection


def selection(kind, shares):
    generator = torch.Generator().manual_seed(0)
    made = Selection({"a": 4, "b": 3}, 2, kind)
    features = {"a": torch.randn(9, 4, generator=generator) * 3 + 1, "b": torch.randn(9, 3, generator=generator)}
    votes = {}
    for name, tensor in features.items():
        votes[name] = LinearVote(torch.randn(tensor.shape[1], 2, generator=generator), torch.ones(2))
    made.set(features, {}, votes, shares)
    outputs = [torch.randn(9, 2, generator=generator)]
    outputs += [features[name] @ votes[name].weight + votes[name].bias for name in features]
    return made, features, torch.stack(outputs)


def test_values_are_the_mean_of_joint_outputs_and_votes():
    made, features, outputs = selection("values", [0.5, 0.3, 0.2])
    found = made(outputs[0], features, {})
    torch.testing.assert_close(found, 0.5 * outputs[0] + 0.3 * outputs[1] + 0.2 * outputs[2])


def test_classes_are_the_logarithm_of_the_mixture_of_probabilities():
    made, features, outputs = selection("classes", [0.5, 0.5, 0.0])
    found = made(outputs[0], features, {})
    torch.testing.assert_close(found.exp(), (outputs[0].softmax(1) + outputs[1].softmax(1)) / 2)


def test_labels_are_the_logit_of_the_mixture():
    made, features, outputs = selection("labels", [0.0, 0.5, 0.5])
    found = made(outputs[0], features, {})
    torch.testing.assert_close(functional.sigmoid(found), (outputs[1].sigmoid() + outputs[2].sigmoid()) / 2)


def test_a_part_that_a_sample_lacks_votes_as_for_its_mean_features():
    made, features, outputs = selection("values", [0.0, 0.0, 1.0])
    there = torch.tensor([True] * 8 + [False])
    found = made(outputs[0], features, {"b": there})
    torch.testing.assert_close(found[:8], outputs[2][:8])
    torch.testing.assert_close(found[8], outputs[2].mean(0))


def test_what_has_no_share_may_be_nan():
    made, features, outputs = selection("classes", [0.0, 1.0, 0.0])
    found = made(outputs[0] * torch.nan, features | {"b": features["b"] * torch.nan}, {})
    torch.testing.assert_close(found, outputs[1].log_softmax(1))


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_nothing_of_it_trains(kind):
    made, _, _ = selection(kind, [0.2, 0.4, 0.4])
    assert not list(made.parameters())
    assert {name for name, _ in made.named_buffers()} >= {"shares", "votes.a.weight", "votes.b.scale.mean"}
