"""The built-in untrained extractors as parts: sizes, training, checkpoint, export."""

import lightning.pytorch as pl
import pytest
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli.export import exported_program, plain_network
from tests.small import loader

GAPS = torch.where(torch.rand(24, 3, generator=torch.Generator().manual_seed(0)) < 0.3, float("nan"), 1.0)
MASK = torch.arange(9) < torch.arange(24).remainder(9).unsqueeze(1)
CASES = {
    "image": ({"module": "ResidualConv2d", "args": {"channels": [4, 8]}}, torch.randn(24, 3, 16, 16)),
    "volume": ({"module": "ResidualConv3d", "args": {"channels": [4, 8]}}, torch.randn(24, 1, 8, 8, 8)),
    "series": ({"module": "ResidualConv1d", "args": {"channels": [4, 8]}}, torch.randn(24, 2, 32)),
    "table": (
        {"module": "TabularMLP", "args": {"categories": [4]}},
        {"numeric": torch.randn(24, 3) * GAPS, "categorical": torch.randint(-1, 4, (24, 1))},
    ),
    "numbers": ({"module": "TabularMLP"}, torch.randn(24, 3) * GAPS),
    "steps": ({"module": "SequenceTransformer"}, {"values": torch.randn(24, 9, 3), "mask": MASK}),
    "tokens": ({"module": "SequenceTransformer", "args": {"vocabulary": 7}}, torch.randint(0, 7, (24, 9))),
}


@pytest.fixture(params=CASES)
def trained(request, tmp_path):
    part, entry = CASES[request.param]
    torch.manual_seed(0)
    data = loader({"tower": entry, "target": torch.arange(24) % 3})
    model = HybridClassifier(num_classes=3, parts={"tower": part})
    trainer = pl.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    return model, data, tmp_path / "x.ckpt"


def test_an_untrained_extractor_needs_no_size_trains_and_is_rebuilt(trained):
    model, data, path = trained
    batch = next(iter(data))
    rebuilt = HybridClassifier.load_from_checkpoint(path)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch), rebuilt(batch))
    model.train()
    torch.nn.functional.cross_entropy(model(batch), batch["target"]).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_an_untrained_extractor_is_exported_for_any_number_of_samples(trained):
    model, data, _ = trained
    batch = next(iter(data))
    exported_program(plain_network(model.built()), {"tower": batch["tower"]})
