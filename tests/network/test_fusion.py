import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.fusion import (
    AttentionFusion,
    ConcatFusion,
    Fusion,
    GatedFusion,
    LogitFusion,
    follow_shrinking,
)
from hybrid_lightning.network.part import Part, parse_parts


def test_each_part_keeps_its_width_in_the_order_of_the_facts():
    fusion = ConcatFusion({"a": 3, "b": 7}, width=5)
    assert fusion({"b": torch.randn(2, 7), "a": torch.randn(2, 3)}).shape == (2, 10)
    assert list(fusion.projections) == ["a", "b"]


@pytest.mark.parametrize(("standardize", "dimension"), [("samples", 0), ("features", 1)])
def test_the_output_equals_projections_of_standardized_features(standardize, dimension):
    fusion = ConcatFusion({"a": 3, "b": 7}, width=5, standardize=standardize)
    features = {"a": torch.randn(4, 3), "b": torch.randn(4, 7)}
    expected = []
    for name in ("a", "b"):
        layer = fusion.projections[name][1]
        given = features[name]
        mean, variance = given.mean(dimension, keepdim=True), given.var(dimension, keepdim=True, unbiased=False)
        expected.append((((given - mean) / (variance + 1e-5).sqrt()) @ layer.weight.T + layer.bias).relu())
    torch.testing.assert_close(fusion(features), torch.cat(expected, dim=1))


def test_without_standardization_the_output_is_the_plain_projections():
    fusion = ConcatFusion({"a": 3, "b": 7}, width=5, standardize="none")
    features = {"a": torch.randn(4, 3), "b": 100 * torch.randn(4, 7)}
    layers = [projection[1] for projection in fusion.projections.values()]
    expected = [layer(given).relu() for layer, given in zip(layers, features.values(), strict=True)]
    torch.testing.assert_close(fusion(features), torch.cat(expected, dim=1))
    assert not list(fusion.buffers())


def test_no_part_dominates_by_its_scale():
    fusion = ConcatFusion({"a": 3, "b": 3}, width=16)
    a, b = torch.randn(8, 3), torch.randn(8, 3)
    torch.testing.assert_close(fusion({"a": a, "b": 1000 * b + 5}), fusion({"a": a, "b": b}), rtol=1e-3, atol=1e-3)


def test_a_batch_of_one_sample_takes_the_running_statistics():
    fusion = ConcatFusion({"a": 3}, width=4)
    fusion({"a": torch.randn(8, 3)})
    before = {name: buffer.clone() for name, buffer in fusion.named_buffers()}
    one = torch.randn(1, 3)
    trained = fusion({"a": one})
    assert all(torch.equal(before[name], buffer) for name, buffer in fusion.named_buffers())
    torch.testing.assert_close(trained, fusion.eval()({"a": one}))


def test_an_unknown_way_to_standardize_is_an_error():
    with pytest.raises(ConfigError, match=r"standardize: unknown choice 'sample'. Did you mean 'samples'"):
        ConcatFusion({"a": 3}, standardize="sample")


def test_dropout_acts_only_while_training():
    fusion = ConcatFusion({"a": 3, "b": 3}, dropout=0.5)
    features = {"a": torch.randn(8, 3), "b": torch.randn(8, 3)}
    assert (fusion(features) == 0).any()
    assert torch.equal(fusion.eval()(features), fusion(features))


@pytest.mark.parametrize("kind", [ConcatFusion, GatedFusion, AttentionFusion])
def test_features_of_a_wide_part_alone_are_shrunk(kind):
    fusion = kind({"narrow": 4, "wide": 10}, width=8, standardize="none", shrink_above=4)
    features = {"narrow": torch.randn(6, 4), "wide": torch.randn(6, 10)}
    expected = {
        "narrow": fusion.projections["narrow"][1](features["narrow"]).relu(),
        "wide": fusion.projections["wide"][1](features["wide"] * (4 / 10)).relu(),
    }
    torch.testing.assert_close(fusion.projected(features, None), expected)


def test_votes_of_a_wide_part_alone_are_shrunk():
    fusion = LogitFusion({"narrow": 4, "wide": 10}, 3, standardize="none", shrink_above=4)
    features = {"narrow": torch.randn(6, 4), "wide": torch.randn(6, 10)}
    narrow, wide = (fusion.heads.heads[name][2] for name in ("narrow", "wide"))
    expected = (narrow(features["narrow"]) + wide(features["wide"] * (4 / 10))) / 2
    torch.testing.assert_close(fusion(features), expected)


def moved_in_a_step(size, shrink_above):
    """How far a step of Adam moves what the projection of a part gives, on average."""
    torch.manual_seed(0)
    fusion = ConcatFusion({"a": size}, standardize="none", shrink_above=shrink_above)
    features = {"a": torch.randn(32, size)}
    before = fusion(features)
    before.square().sum().backward()
    torch.optim.Adam(fusion.parameters(), lr=1e-3).step()
    return float((fusion(features) - before).detach().abs().mean())


def test_the_projection_of_many_features_moves_no_faster_than_that_of_few():
    assert moved_in_a_step(4096, None) > 5 * moved_in_a_step(64, None)
    assert moved_in_a_step(4096, 64) < 2 * moved_in_a_step(64, 64)


@pytest.mark.parametrize("above", [0, True, float("nan"), "64"])
def test_an_impossible_number_to_shrink_above_is_an_error(above):
    with pytest.raises(ConfigError, match=r"^shrink_above: "):
        ConcatFusion({"a": 3}, shrink_above=above)


def a_network(**args):
    batch = {"a": torch.randn(2, 100), "b": torch.randn(2, 4)}
    parts = parse_parts({"a": "torch.nn.Identity", "b": "MLP"})
    return build(parts, 3, batch, fusion=Part("ConcatFusion", args=args, lr_scale=1.0))


def test_a_network_shrinks_wide_parts_unless_told_otherwise():
    network = a_network()
    assert network.parts["fusion"].shrink_above == network.record.parts["fusion"].sizes["shrink_above"] == 64
    assert a_network(shrink_above=None).parts["fusion"].shrink_above is None


@pytest.mark.parametrize(
    ("args", "made_with", "expected"),
    [({}, {"args": {}}, None), ({}, {"args": {"shrink_above": 8}}, 8), ({}, None, 64), ({"shrink_above": 9}, {}, 9)],
)
def test_a_network_shrinks_as_the_one_whose_weights_it_takes(args, made_with, expected):
    network = a_network(**args)
    follow_shrinking(network, made_with)
    fusion = network.parts["fusion"]
    assert isinstance(fusion, Fusion)
    assert fusion.shrink_above == expected
    assert {**network.record.parts["fusion"].sizes, **args}["shrink_above"] == expected


def test_a_file_cannot_shrink_by_an_impossible_number():
    with pytest.raises(ConfigError, match=r"^shrink_above: 'x'"):
        follow_shrinking(a_network(), {"args": {"shrink_above": "x"}})
