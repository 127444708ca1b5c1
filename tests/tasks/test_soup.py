import pytest
import torch

from hybrid_lightning import ConfigError, HybridClassifier
from hybrid_lightning.averaging.moving_average import mean_of
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.soup import GreedySoup, serve_soup
from tests.tiny import batches, hybrid, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
SCHEDULE = {"start": "3 steps", "every": "4 steps"}


def fitted(folder, average="soup", path=None, epochs=6, schedule=SCHEDULE, **options):
    model = hybrid(schedule, average=average, selection="none", **options)
    best = BestCheckpoint(folder, "best", monitor="main", enable_version_counter=False)
    runner = trainer(callbacks=[best], enable_checkpointing=True, max_epochs=epochs, num_sanity_val_steps=0)
    runner.fit(model, batches(), batches(48), ckpt_path=path, weights_only=True if path else None)
    [soup] = [callback for callback in runner.callbacks if isinstance(callback, GreedySoup)] or [None]
    return model, runner, soup


def test_the_best_weights_are_kept_each_with_the_frozen_values_of_its_time(tmp_path):
    model, _, soup = fitted(tmp_path, {"soup": 4})
    kept = soup.state_dict()["ingredients"]
    assert list(kept) == ["0", "1", "2", "3"]
    values = [(-one["value"], one["loss"]) for one in kept.values()]
    assert values == sorted(values)
    names = set(dict(model.named_parameters()))
    for one in kept.values():
        assert names <= set(one["weights"])
    first = {one["epoch"]: one["weights"]["network.parts.old.first.0.weight"] for one in kept.values()}
    # its stage trains from step 11 on, in the third epoch
    assert all(
        torch.equal(weight, first[min(first)]) == (epoch < 2) for epoch, weight in first.items() if min(first) < 2
    )


def test_a_mixture_that_validation_prefers_is_served_and_training_goes_on_without_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(BestCheckpoint, "prefers", lambda *_: True)
    monkeypatch.setattr("hybrid_lightning.tasks.soup._rank", lambda one: (0.0, -one["epoch"]))
    monkeypatch.setattr(GreedySoup, "_measured", improving)
    model, _, soup = fitted(tmp_path, {"soup": 2})
    out = capsys.readouterr().out
    assert "soup: 2 of the 2 best validations (epochs [5, 4])" in out
    assert "best.ckpt serves it" in out
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)
    weights = mean_of([one["weights"] for one in soup.state_dict()["ingredients"].values()])
    loaded = HybridClassifier.load_from_checkpoint(tmp_path / "best.ckpt", trust=["tests"]).state_dict()
    for name, tensor in weights.items():
        assert torch.equal(saved["state_dict"][name], tensor), name
        assert torch.equal(loaded[name], tensor), name
    assert not all(torch.equal(saved["current_model_state"][name], tensor) for name, tensor in weights.items())
    # the model in memory has the weights of the last step
    last = soup.state_dict()["ingredients"]["0"]["weights"]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in last.items())


def improving(self, trainer, task, weights):
    task.load_state_dict(weights, strict=False)
    return {"val/accuracy": torch.tensor(1.0), "val/loss": torch.tensor(-100.0)}


def test_a_fit_goes_on_from_the_weights_that_trained(tmp_path, capsys):
    fitted(tmp_path, average=None, epochs=4)
    path = tmp_path / "best.ckpt"
    trained = torch.load(path, weights_only=True)["state_dict"]
    serve_soup(path, {name: tensor + 1 for name, tensor in trained.items() if tensor.is_floating_point()})
    serve_soup(path, {name: tensor + 2 for name, tensor in trained.items() if tensor.is_floating_point()})
    content = torch.load(path, weights_only=True)
    assert all(torch.equal(content["current_model_state"][name], tensor) for name, tensor in trained.items())
    torch.save({**content, "epoch": content["epoch"]}, tmp_path / "other.ckpt")
    model, _, _ = fitted(tmp_path / "again", None, tmp_path / "other.ckpt", epochs=1)
    assert "goes on from those in training" in capsys.readouterr().out
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.items())


def test_what_is_frozen_stays_as_it_is_bit_by_bit(tmp_path):
    model, _, soup = fitted(tmp_path, schedule="never")
    weights = mean_of([one["weights"] for one in soup.state_dict()["ingredients"].values()])
    for name, tensor in model.state_dict().items():
        if name.startswith("network.parts.old"):
            assert name not in weights or torch.equal(weights[name], tensor), name


def test_the_soup_is_measured_as_a_validation_measures(tmp_path):
    model, runner, soup = fitted(tmp_path)
    first = soup.state_dict()["ingredients"]["0"]
    values = soup._measured(runner, model, first["weights"])
    assert float(values["val/accuracy"]) == pytest.approx(first["value"])
    assert float(values["val/loss"]) == pytest.approx(first["loss"], rel=1e-5)


def test_a_soup_without_validation_is_refused():
    with pytest.raises(ConfigError, match="nothing is validated"):
        trainer().fit(hybrid(average="soup"), batches())


def test_without_a_best_checkpoint_nothing_is_mixed(capsys):
    trainer(max_epochs=2).fit(hybrid(average="soup"), batches(), batches(16))
    assert "soup:" not in capsys.readouterr().out


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/auroc", "max")])
def test_a_soup_is_compared_by_the_metric_of_the_best_checkpoint(tmp_path, monkeypatch, monitor, mode):
    given = []
    monkeypatch.setattr(BestCheckpoint, "prefers", lambda *arguments: given.append(arguments[2]))
    measured = {"val/accuracy": torch.tensor(1.0), "val/loss": torch.tensor(-100.0), "val/auroc": torch.tensor(0.7)}
    monkeypatch.setattr(GreedySoup, "_measured", lambda *_: measured)
    best = BestCheckpoint(tmp_path, "best", monitor=monitor, mode=mode, enable_version_counter=False)
    runner = trainer(callbacks=[best], enable_checkpointing=True, num_sanity_val_steps=0)
    runner.fit(hybrid(average="soup", selection="none"), batches(), batches(48))
    assert given == [measured[monitor]]


def test_a_best_checkpoint_by_what_a_mixture_is_not_measured_by_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(GreedySoup, "_measured", improving)
    best = BestCheckpoint(tmp_path, "best", monitor="train/loss", enable_version_counter=False)
    runner = trainer(callbacks=[best], enable_checkpointing=True, num_sanity_val_steps=0, log_every_n_steps=1)
    runner.fit(hybrid(average="soup", selection="none"), batches(), batches(48))
    assert "best.ckpt stays as it is" in capsys.readouterr().out


class OwnValidation(HybridClassifier):
    def validation_step(self, batch, batch_idx):
        self.log("val/accuracy", (self(batch).argmax(1) == batch["target"]).float().mean())


def test_a_validation_step_of_a_users_own_is_refused_before_training():
    model = OwnValidation(num_classes=2, parts={"new": "MLP"}, average="soup")
    with pytest.raises(ConfigError, match=r"^average: .*validation_step"):
        trainer().fit(model, batches(), batches(16))
