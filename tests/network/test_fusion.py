import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.fusion import ConcatFusion


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
