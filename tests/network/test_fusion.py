import torch

from hybrid_lightning.network.fusion import ConcatFusion


def test_each_part_keeps_its_width_in_the_order_of_the_facts():
    fusion = ConcatFusion({"a": 3, "b": 7}, width=5)
    assert fusion({"b": torch.randn(2, 7), "a": torch.randn(2, 3)}).shape == (2, 10)
    assert list(fusion.projections) == ["a", "b"]


def test_the_output_equals_standardised_projections():
    fusion = ConcatFusion({"a": 3, "b": 7}, width=5)
    features = {"a": torch.randn(4, 3), "b": torch.randn(4, 7)}
    expected = []
    for name in ("a", "b"):
        layer = fusion.projections[name]
        projected = features[name] @ layer.weight.T + layer.bias
        mean, variance = projected.mean(1, keepdim=True), projected.var(1, keepdim=True, unbiased=False)
        expected.append((projected - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(fusion(features), torch.cat(expected, dim=1))


def test_no_part_dominates_by_its_scale():
    fusion = ConcatFusion({"a": 3, "b": 3}, width=16)
    small, large = fusion({"a": torch.randn(8, 3), "b": 1000 * torch.randn(8, 3)}).split(16, dim=1)
    torch.testing.assert_close(small.norm(), large.norm(), rtol=0.01, atol=0)


def test_dropout_acts_only_while_training():
    fusion = ConcatFusion({"a": 3, "b": 3}, dropout=0.5)
    features = {"a": torch.randn(8, 3), "b": torch.randn(8, 3)}
    assert (fusion(features) == 0).any()
    assert torch.equal(fusion.eval()(features), fusion(features))
