import sys

import pytest
import torch

from hybrid_lightning.demo.fracast import FracastEncoder, pool_observed
from hybrid_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def encoder() -> FracastEncoder:
    encoder = FracastEncoder(context=64)
    encoder.load_pretrained()
    return encoder.eval()


def a_batch(observed: int = 64) -> dict[str, torch.Tensor]:
    mask = (torch.arange(64) >= 64 - observed).expand(2, 64)
    return {"values": torch.rand(2, 64) * mask, "mask": mask}


def test_pooling_equals_mean_deviation_and_last_of_the_observed_samples():
    encoded, mask = torch.randn(2, 6, 3), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 0]]).bool()
    for row, features in enumerate(pool_observed(encoded, mask)):
        seen = encoded[row][mask[row]]
        expected = torch.cat([seen.mean(0), (seen.var(0, unbiased=False) + 1e-6).sqrt(), seen[-1]])
        torch.testing.assert_close(features, expected)


def test_pooling_is_finite_and_has_a_gradient_where_nothing_varies():
    encoded = torch.ones(2, 6, 3, requires_grad=True)
    features = pool_observed(encoded, torch.tensor([[False] * 6, [True] * 6]))
    features.sum().backward()
    assert features.isfinite().all()
    assert encoded.grad.isfinite().all()


def test_the_encoder_gives_192_features_from_25536_parameters(encoder):
    assert encoder(**a_batch()).shape == (2, 192)
    assert sum(p.numel() for p in encoder.parameters()) == 25_536


def test_pretrained_weights_are_loaded_and_the_same_every_time(encoder):
    other = FracastEncoder(context=64).eval()
    batch = a_batch()
    assert not torch.equal(other(**batch), encoder(**batch))
    other.load_pretrained()
    assert torch.equal(other(**batch), encoder(**batch))


def test_what_was_not_observed_does_not_count(encoder):
    batch = a_batch(observed=40)
    noisy = {**batch, "values": torch.where(batch["mask"], batch["values"], 0.7)}
    torch.testing.assert_close(encoder(**noisy), encoder(**batch))


def test_a_series_of_another_length_is_refused(encoder):
    with pytest.raises(ConfigError, match=r"have 32 samples.* built for 64. Set args: \{context: 32\}"):
        encoder(torch.rand(2, 32), torch.ones(2, 32).bool())


def test_a_context_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="context: 8 is too short; give at least 16 samples"):
        FracastEncoder(context=8)


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "fracast", None)
    with pytest.raises(ConfigError, match=r"needs fracast: .* Install it with: pip install .*\[demo\]"):
        FracastEncoder()
