import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.transformer import SequenceTransformer


def transformer(**options):
    torch.manual_seed(0)
    return SequenceTransformer(**{"in_features": 3, "width": 8, "heads": 2, **options}).eval()


@pytest.mark.parametrize("training", [True, False])
def test_padding_changes_nothing(training):
    net, values = transformer(dropout=0.0).train(training), torch.randn(2, 5, 3)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 5:] = False
    padded = torch.cat([values, 100 * torch.randn(2, 4, 3)], dim=1)
    torch.testing.assert_close(net(padded, mask)[:, :5], net(values))


@pytest.mark.parametrize("grad", [True, False])
def test_a_sequence_of_nothing_is_finite(grad):
    net, mask = transformer(), torch.tensor([[True, True], [False, False]])
    with torch.set_grad_enabled(grad):
        assert net(torch.randn(2, 2, 3), mask).isfinite().all()


def test_the_order_of_the_steps_matters_for_any_length():
    net, values = transformer(), torch.randn(2, 700, 3)
    assert not torch.allclose(net(values).mean(1), net(values.flip(1)).mean(1), atol=1e-3)


def test_tokens_are_embedded():
    net = transformer(vocabulary=11, in_features=None)
    assert net(torch.randint(0, 11, (2, 6))).shape == (2, 6, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10, "heads": 4}, r"width: 10 is not an even multiple of heads \(4\)"),
        ({"width": 9, "heads": 3}, "width: 9"),
        ({"depth": 0}, "depth: 0"),
        ({"in_features": None}, "in_features: give"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        transformer(**options)
