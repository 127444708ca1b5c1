import pytest
import torch
from torch.utils.data import DataLoader, Subset

from hybrid_lightning import ConfigError, HybridRegressor, HybridTask
from hybrid_lightning.cli import main
from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule, as_batch
from hybrid_lightning.tasks.regressor import TargetScale
from tests.small import changed, loader, regressor, table, trainer, write

OUTPUT, TARGET = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1.5, 2.0, 1.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", (0.25 + 0 + 16) / 3),
        ("mae", (0.5 + 0 + 4) / 3),
        ("huber", (0.5 * 0.25 + 0 + 1 * (4 - 0.5)) / 3),
    ],
)
def test_losses_equal_hand_arithmetic(name, expected):
    assert float(regressor(loss_function=name).loss(OUTPUT, TARGET)) == pytest.approx(expected)


@pytest.mark.parametrize(("outputs", "shape"), [(1, (27,)), (2, (27, 2))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_it_trains_and_logs_the_metrics_of_all_samples(outputs, shape, dtype):
    target = (table(27, outputs, seed=2).reshape(shape) * 3).to(dtype)
    data, model, run = loader({"x": table(), "target": target}), regressor(num_outputs=outputs), trainer()
    run.fit(model, data, data)
    [logged] = run.test(model, data, verbose=False)
    with torch.no_grad():
        errors = model.predictions(model.eval()({"x": table()})) - target
    deviations = target.double().std(0, correction=0)
    expected = {"mae": errors.abs().mean(), "rmse": errors.square().mean().sqrt()}
    expected |= {"loss": (errors / deviations).square().mean()}
    for name, value in expected.items():
        assert logged[f"test/{name}"] == pytest.approx(float(value), rel=1e-4)
    assert "test/r2" in logged


@pytest.mark.parametrize(
    ("options", "match"),
    [({"num_outputs": 0}, "num_outputs: 0 is less than 1"), ({"loss_function": "mes"}, "Did you mean 'mse'")],
)
def test_an_impossible_argument_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        regressor(**options)


@pytest.mark.parametrize(
    ("outputs", "target", "match"),
    [
        (1, torch.zeros(4, 1), r"the shape is \(4, 1\); num_outputs 1 needs \(B,\)"),
        (2, torch.zeros(4), r"the shape is \(4,\); num_outputs 2 needs \(B, 2\)"),
        (1, torch.tensor([1.0, float("nan")]), "not finite"),
        (1, torch.tensor([1.0, float("inf")]), "not finite"),
    ],
)
def test_a_target_that_does_not_fit_is_told(outputs, target, match):
    with pytest.raises(ConfigError, match=match):
        regressor(num_outputs=outputs).objective.check_target(target)


# The scale of the targets


def numbers(outputs: int = 1) -> torch.Tensor:
    target = table() @ table(4, outputs, seed=3) + 0.1 * table(27, outputs, seed=4)
    return target[:, 0] if outputs == 1 else target


def fitted(target: torch.Tensor, **options) -> tuple[HybridRegressor, dict[str, float]]:
    """The model of a run, and its metrics on the same data."""
    torch.manual_seed(0)
    data, run = loader({"x": table(), "target": target}), trainer(max_epochs=3)
    model = regressor(num_outputs=1 if target.ndim == 1 else target.shape[1], lr=0.05, **options)
    run.fit(model, data, data)
    return model, {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/")}


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_fit_on_other_units_gives_the_same_metrics_in_these_units(outputs):
    target = numbers(outputs).double()
    model, plain = fitted(target)
    other, scaled = fitted(target * 1000 - 7e4)
    assert scaled["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-3)
    assert scaled["val/r2"] == pytest.approx(plain["val/r2"], rel=1e-3)
    for name in ("val/mae", "val/rmse"):
        assert scaled[name] == pytest.approx(plain[name] * 1000, rel=1e-3)
    with torch.no_grad():
        given, expected = (m.predictions(m.eval()({"x": table()})) for m in (other, model))
    torch.testing.assert_close(given, expected * 1000 - 7e4, rtol=1e-3, atol=1)


def test_the_scale_is_that_of_the_training_targets_and_a_constant_is_only_shifted():
    target = torch.stack([numbers(), torch.full((27,), 0.1)], dim=1)
    model, _ = fitted(target)
    torch.testing.assert_close(model.objective.scale.mean, target.mean(0))
    torch.testing.assert_close(model.objective.scale.std, torch.stack([numbers().std(correction=0), torch.tensor(1.0)]))


def test_without_standardizing_the_targets_are_learned_as_they_are():
    model, found = fitted(numbers() * 3, standardize=False)
    with torch.no_grad():
        errors = model.eval()({"x": table()})[:, 0] - numbers() * 3
    assert found["val/loss"] == pytest.approx(float(errors.square().mean()), rel=1e-4)
    assert found["val/rmse"] == pytest.approx(found["val/loss"] ** 0.5, rel=1e-4)


class Silent(torch.utils.data.Dataset):
    """Does not show its targets."""

    def __len__(self):
        return 27

    def __getitem__(self, index):
        return {"x": table()[index], "target": numbers()[index] * 3}


def test_data_that_show_no_targets_are_learned_as_they_are():
    model = regressor()
    trainer(limit_val_batches=0).fit(model, DataLoader(Silent(), 9))
    assert model.objective.scale.mean.tolist() == [0]
    assert model.objective.scale.std.tolist() == [1]


def test_a_subset_shows_the_targets_of_its_own_samples():
    subset = Subset(DictDataset({"x": table(), "target": numbers()}), [0, 3, 5, 7])
    model = regressor()
    trainer(limit_val_batches=0).fit(model, DataLoader(subset, 2, collate_fn=as_batch))
    assert model.objective.scale.mean.item() == pytest.approx(float(numbers()[[0, 3, 5, 7]].mean()), rel=1e-6)


def assert_equal(one: HybridTask, other: HybridTask) -> None:
    states = one.objective.scale.state_dict(), other.objective.scale.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert states[0]["known"] == 1


def test_a_model_that_was_trained_keeps_its_scale_in_files_and_in_further_fits(tmp_path):
    model, _ = fitted(numbers() * 50 + 900)
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridTask.load_from_checkpoint(tmp_path / "x.ckpt")
    with torch.no_grad():
        expected = model.predictions(model.eval()({"x": table()}))
        assert torch.equal(again.predictions(again({"x": table()})), expected)
    trainer(limit_val_batches=0).fit(again, loader({"x": table(), "target": numbers()}))
    assert_equal(again, model)


def test_the_scale_keeps_its_digits_whatever_the_precision():
    scale = TargetScale(1)
    scale.set([1234.5678], [0.001])
    scale.bfloat16()
    assert (scale.mean.dtype, scale.mean.item()) == (torch.float32, pytest.approx(1234.5678, rel=1e-7))
    assert scale.restored(torch.ones(2, 1).bfloat16()).dtype == torch.float32


class Prices(InMemoryDataModule):
    """Numbers far from 0."""

    def load(self):
        return {n: DictDataset({"x": table(), "target": numbers() * 40 + 5000}) for n in ("train", "val", "test")}


PRICES = {
    "model": {"class_path": "HybridRegressor", "init_args": {"parts": {"x": "MLP"}, "lr": 0.05}},
    "data.class_path": f"{__name__}.Prices",
    "data.init_args": {},
    "trainer.limit_train_batches": 1.0,
}


def test_the_command_line_keeps_the_scale_on_resume_and_in_predictions(folder):
    path = write(changed(PRICES))
    assert main(["fit", "--config", path]) == 0
    last = folder / "runs/small/version_0/checkpoints/last.ckpt"
    first = HybridTask.load_from_checkpoint(last)
    assert main(["fit", "--config", path, "--ckpt_path", str(last), "--trainer.max_epochs", "2"]) == 0
    second = HybridTask.load_from_checkpoint(folder / "runs/small/version_1/checkpoints/last.ckpt")
    assert_equal(second, first)
    assert first.objective.scale.mean.item() == pytest.approx(float((numbers() * 40 + 5000).mean()), rel=1e-6)
    assert main(["predict", "--config", path, "--ckpt_path", str(last)]) == 0
    with torch.no_grad():
        expected = first.predictions(first({"x": table()}))
    text = (folder / "runs/small/version_2/predictions.csv").read_text().split()
    assert text[0] == "row,prediction"
    torch.testing.assert_close(torch.tensor([float(line.split(",")[1]) for line in text[1:]]), expected)


def test_an_export_prints_the_scale_of_the_outputs(folder, capsys):
    path = write(changed(PRICES))
    assert main(["fit", "--config", path]) == 0
    assert main(["export", "--config", path, "--ckpt_path", "last", "--output", "net.pt2"]) == 0
    scale = HybridRegressor.load_from_checkpoint(next(folder.rglob("last.ckpt"))).objective.scale
    line = f"outputs are standardized: number = output × {scale.std.tolist()} + {scale.mean.tolist()}\n"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_classes_are_no_numbers(kind):
    with pytest.raises(ConfigError, match=f"it is {kind}, with '850', '900', and HybridRegressor learns numbers"):
        regressor().objective.check_kind(kind, ["850", "900"])
    with pytest.raises(ConfigError, match=r"it has 2 columns, and model.num_outputs is 1"):
        regressor().objective.check_kind("regression", ["a", "b"])
    regressor(num_outputs=2).objective.check_kind("regression", ["a", "b"])


# Logarithms of the targets


class Growing(InMemoryDataModule):
    """Growing that grow by a factor with each step of the input."""

    def __init__(self, transform: str | None = "log", low: float = 0.0) -> None:
        super().__init__(batch_size=20)
        self.target_transform, self.low = transform, low

    def load(self):
        x = table(60)
        target = (x @ torch.tensor([1.0, 0.5, -0.5, 0.0])).exp() * 1000 + self.low
        return dict.fromkeys(("train", "val", "test"), DictDataset({"x": x, "target": target}))


def test_logarithms_are_learned_and_everything_is_told_in_the_units_of_the_targets(tmp_path):
    torch.manual_seed(0)
    data, model, run = Growing(), regressor(lr=0.05), trainer(max_epochs=20)
    run.fit(model, datamodule=data)
    targets = data.splits["train"].targets
    scale = model.objective.scale
    assert float(scale.mean) == pytest.approx(float(targets.log().mean()), rel=1e-5)
    assert float(scale.std) == pytest.approx(float(targets.log().std(correction=0)), rel=1e-5)
    inputs = {"x": table(60)}
    with torch.no_grad():
        outputs = model.eval()(inputs)
        predictions = model.predictions(outputs)
    torch.testing.assert_close(predictions, (outputs[:, 0] * scale.std + scale.mean).exp())
    [measured] = run.test(model, data, verbose=False)
    assert measured["test/mae"] == pytest.approx(float((predictions - targets).abs().mean()), rel=1e-4)
    residual = ((predictions - targets) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()
    assert measured["test/r2"] == pytest.approx(1 - float(residual), rel=1e-3)

    run.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridTask.load_from_checkpoint(tmp_path / "x.ckpt")
    with torch.no_grad():
        assert torch.equal(again.predictions(again(inputs)), predictions)
    number = f"output × {scale.std.tolist()} + {scale.mean.tolist()}"
    assert again.objective.export_note() == f"outputs are standardized: number = exp({number})"

    # a run with other words goes on as the network was trained
    trainer(max_epochs=1).fit(again, datamodule=Growing(transform=None))
    assert again.objective.scale.transform == "log"


def test_the_command_line_learns_logarithms_of_a_column_and_predicts_in_its_units(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [f"{row / 30},{1000 * 2.0 ** (row / 30):.3f}" for row in range(90)]
    (tmp_path / "m.csv").write_text("\n".join(["size,price", *lines, ""]))
    target = {"column": "price", "transform": "log"}
    data = {"path": "m.csv", "inputs": {"x": {"numeric": ["size"]}}, "target": target}
    config = changed(
        {
            "model": {"class_path": "HybridRegressor"},
            "init.parts": {"x": {"module": "torch.nn.Identity"}},
            "init.lr": 0.1,
            "data": {"class_path": "ManifestDataModule", "init_args": data},
            "trainer.max_epochs": 60,
        }
    )
    path = write(config)
    assert main(["fit", "--config", path, "--test_after_fit", "best"]) == 0
    said = capsys.readouterr().out
    assert float(said.split("val/r2 ")[1].split(",")[0]) > 0.98
    assert main(["predict", "--config", path, "--ckpt_path", "best", "--output", "p.csv"]) == 0
    rows = [line.split(",") for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    errors = [abs(float(prediction) / (1000 * 2.0 ** (int(row) / 30)) - 1) for row, prediction, *_ in rows]
    assert max(errors) < 0.1
    capsys.readouterr()
    assert main(["probe", "--config", path]) == 0
    assert "r2" in capsys.readouterr().out


def test_log1p_takes_zeros_and_is_inverted():
    scale = TargetScale(1)
    scale.transform = "log1p"
    scale.set([0.5], [2.0])
    target = torch.tensor([0.0, 3.0])
    torch.testing.assert_close(scale.restored(scale.standardized(target)), target)


@pytest.mark.parametrize(("transform", "low"), [("log", 0), ("log1p", -1)])
def test_targets_without_a_logarithm_are_refused(transform, low):
    with pytest.raises(ConfigError, match=f"{transform} takes numbers above {low}, and the lowest is"):
        trainer().fit(regressor(), datamodule=Growing(transform, low=-1e6))


def test_an_unknown_transform_is_refused():
    with pytest.raises(ConfigError, match=r"data\.target\.transform: unknown value lg. Possible: null, log, log1p"):
        trainer().fit(regressor(), datamodule=Growing("lg"))


def test_a_transform_that_no_version_writes_is_a_damaged_file():
    scale = TargetScale(1)
    state = {**scale.state_dict(), "known": torch.tensor(9)}
    with pytest.raises(ConfigError, match=r"the checkpoint is damaged: scale\.known is 9"):
        scale.load_state_dict(state)


def test_a_start_at_the_probe_is_in_the_space_of_the_logarithms():
    torch.manual_seed(0)
    part = {"module": "torch.nn.Linear", "args": {"in_features": 4, "out_features": 4}}
    model, run = regressor(parts={"x": part}, start="probe"), trainer(max_epochs=1, limit_train_batches=0)
    run.fit(model, datamodule=Growing())
    [measured] = run.validate(model, Growing(), verbose=False)
    assert measured["val/r2"] > 0.99  # the logarithm is linear in the input
