from pathlib import Path

import pytest
import torch

from hybrid_lightning import HybridClassifier, HybridRegressor
from hybrid_lightning.tasks.checkpoints import CHECKPOINT_VERSION
from tests.small import loader, regressor, trainer

HERE = Path(__file__).parent


@pytest.mark.parametrize("version", range(1, CHECKPOINT_VERSION + 1))
def test_a_checkpoint_of_every_format_is_read(version):
    batch = torch.load(HERE / f"version_{version}_batch.pt", weights_only=True)
    path = HERE / f"version_{version}.ckpt"
    assert torch.load(path, weights_only=True)["hybrid_lightning"]["version"] == version
    model = HybridClassifier.load_from_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), batch["outputs"])


def test_a_regression_from_before_targets_were_standardised_predicts_and_goes_on_as_it_was(tmp_path, capsys):
    saved = torch.load(HERE / "version_2_regressor_batch.pt", weights_only=True)
    path, batch = HERE / "version_2_regressor.ckpt", {"x": saved["x"]}
    model = HybridRegressor.load_from_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(model.predictions(model(batch)), saved["outputs"])
    data = loader({**batch, "target": saved["x"][:, :2] * 30 + 100})
    resumed = regressor(num_outputs=2)
    run = trainer(max_epochs=2)
    run.fit(resumed, data, ckpt_path=path)
    assert run.global_step == 6
    assert resumed.facts["standardise"] is False
    assert "applied from epoch" not in capsys.readouterr().out
    [tested] = run.test(regressor(num_outputs=2), data, ckpt_path=path, verbose=False)
    expected = (saved["outputs"] - data.dataset.targets).square().mean()
    assert tested["test/loss"] == pytest.approx(float(expected), rel=1e-5)
    for name, values in {"mean": [0, 0], "std": [1, 1], "known": 1}.items():
        assert getattr(resumed.scale, name).tolist() == values
