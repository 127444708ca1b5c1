"""Ensembles: several checkpoints that predict together, through the command line."""

import contextlib
import csv
from pathlib import Path

import pytest
import torch

from hybrid_lightning import ConfigError, HybridTask
from hybrid_lightning.cli import main
from hybrid_lightning.cli.members import mean_and_spread, member_paths
from hybrid_lightning.cli.parser import several_values
from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from tests.small import changed, table, write

COUNT = 20


class Rows(InMemoryDataModule):
    """Samples whose classes have the names that a checkpoint's run gave them."""

    def __init__(self, names: str = "ant,bee,cat", values: bool = False):
        super().__init__(8)
        self.target_names = None if values else names.split(",")
        self.values = values

    def load(self):
        target = torch.arange(COUNT).float() if self.values else torch.arange(COUNT) % 3
        entries = {"x": table(COUNT), "target": target}
        return {split: DictDataset(entries) for split in ("train", "val", "test")}

    def use_statistics(self, path):
        if "beetles" in str(path):
            self.target_names = ["ant", "beetle", "cat"]


def config(seed=0, **changes):
    parts = {"x": {"module": "MLP", "args": {"hidden": [5]}}}
    return changed(
        {"init.parts": parts, "data": {"class_path": f"{__name__}.Rows"}, "seed_everything": seed, **changes}
    )


REGRESSION = {
    "model": {
        "class_path": "HybridRegressor",
        "init_args": {"parts": {"x": {"module": "MLP", "args": {"hidden": [5]}}}},
    },
    "data": {"class_path": f"{__name__}.Rows", "init_args": {"values": True}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs that differ by their seed."""
    where = tmp_path_factory.mktemp("members")
    with contextlib.chdir(where):
        for fold in (1, 2, 3):
            assert main(["fit", "--config", write(config(fold)), "--name", f"x_fold{fold}"]) == 0
        assert main(["fit", "--config", write(config(4)), "--name", "beetles"]) == 0
        for fold in (1, 2):
            regression = {**config(fold), **REGRESSION}
            assert main(["fit", "--config", write(regression), "--name", f"y_fold{fold}"]) == 0
        Path("runs/x_folds").mkdir()
    return where


@pytest.fixture
def folder(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def best(name):
    return f"runs/{name}/version_0/checkpoints/best.ckpt"


def predicted(*paths, settings=None):
    words = ["predict", "--config", write(settings or config()), "--ckpt_path", *paths, "--output", "table.csv"]
    assert main(words) == 0
    return list(csv.DictReader(Path("table.csv").read_text().splitlines()))


def numbers(rows, prefix):
    names = [name for name in rows[0] if name.startswith(prefix)]
    return torch.tensor([[float(row[name]) for name in names] for row in rows])


def test_the_table_has_the_mean_of_the_probabilities_and_their_spread(folder, capsys):
    rows = predicted("runs/x_fold*/")
    assert "the mean of 3 checkpoints: " in capsys.readouterr().out
    each = []
    for fold in (1, 2, 3):
        model = HybridTask.load_from_checkpoint(best(f"x_fold{fold}"))
        with torch.no_grad():
            each.append(model.predictions(model({"x": table(COUNT)})))
    stacked = torch.stack(each)
    torch.testing.assert_close(numbers(rows, "probability_"), stacked.mean(0))
    torch.testing.assert_close(numbers(rows, "std_"), stacked.std(0), atol=1e-6, rtol=1e-4)
    names = ["ant", "bee", "cat"]
    assert [row["prediction"] for row in rows] == [names[i] for i in stacked.mean(0).argmax(1)]
    assert [name for name in rows[0] if name.startswith("std_")] == [f"std_{name}" for name in names]


def test_the_sets_of_one_checkpoint_are_not_those_of_a_mean(folder, tmp_path, capsys):
    paths = []
    for fold in (1, 2):
        saved = torch.load(best(f"x_fold{fold}"), weights_only=True)
        saved["hybrid_lightning"]["calibration"] = {"temperature": 1.0, "coverage": 0.9, "quantiles": [0.8]}
        paths.append(str(tmp_path / f"{fold}.ckpt"))
        torch.save(saved, paths[-1])
    assert "set_ant" in predicted(paths[0])[0]
    capsys.readouterr()
    assert "set_ant" not in predicted(*paths)[0]
    assert "sets and intervals of the checkpoints are left out" in capsys.readouterr().out


def test_values_are_averaged_in_the_units_of_the_target(folder):
    settings = {**config(), **REGRESSION}
    rows = predicted("runs/y_fold1", "runs/y_fold2", settings=settings)
    single = [predicted(best(f"y_fold{fold}"), settings=settings) for fold in (1, 2)]
    stacked = torch.stack([numbers(of_one, "prediction") for of_one in single])
    torch.testing.assert_close(numbers(rows, "prediction"), stacked.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(numbers(rows, "std"), stacked.std(0), atol=1e-4, rtol=1e-3)
    assert list(single[0][0]) == [name for name in rows[0] if name != "std"]


def measured(*paths, settings=None):
    """Checkpoint → metric → value, from what ``test`` of several checkpoints has written."""
    assert main(["test", "--config", write(settings or config()), "--ckpt_path", *paths]) == 0
    [newest] = sorted(Path("runs/small").glob("version_*"), key=lambda path: int(path.name[8:]))[-1:]
    rows = list(csv.DictReader((newest / "test_members.csv").read_text().splitlines()))
    return {row.pop("checkpoint"): row for row in rows}, newest


def test_a_test_of_several_has_the_metrics_of_each_and_of_their_averaged_prediction(folder, capsys):
    found, run = measured("runs/x_fold*/")
    told = capsys.readouterr().out
    target, each = torch.arange(COUNT) % 3, []
    for fold in (1, 2, 3):
        model = HybridTask.load_from_checkpoint(best(f"x_fold{fold}"))
        with torch.no_grad():
            each.append(model.predictions(model({"x": table(COUNT)})))
        accuracy = (each[-1].argmax(1) == target).float().mean()
        assert float(found[best(f"x_fold{fold}")]["accuracy"]) == pytest.approx(float(accuracy))
    of_mean = float((torch.stack(each).mean(0).argmax(1) == target).float().mean())
    averaged = found["their averaged prediction"]
    assert float(averaged["accuracy"]) == pytest.approx(of_mean)
    assert averaged["loss"] == ""
    accuracies = torch.tensor([float(found[best(f"x_fold{fold}")]["accuracy"]) for fold in (1, 2, 3)])
    [line] = [line for line in told.splitlines() if line.startswith("accuracy")]
    assert line.split()[1:4] == [f"{accuracies.mean():.4g}", "±", f"{accuracies.std():.2g}"]
    assert float(line.split()[4]) == pytest.approx(of_mean, abs=1e-3)
    assert not Path("config.yaml").exists()
    assert (run / "config.yaml").exists()
    [row] = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    assert float(row["test/accuracy"]) == pytest.approx(of_mean, abs=1e-5)


def test_one_checkpoint_twice_is_as_good_as_once(folder):
    Path("copy.ckpt").write_bytes(Path(best("y_fold1")).read_bytes())
    found, _ = measured(best("y_fold1"), "copy.ckpt", settings={**config(), **REGRESSION})
    for metric in ("mae", "rmse", "r2"):
        values = [float(row[metric]) for row in found.values()]
        assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_several_checkpoints_that_do_not_go_together_are_not_tested(folder, capsys):
    assert main(["test", "--config", write(config()), "--ckpt_path", "runs/x_fold1", "runs/beetles"]) == 2
    assert "names of classes or targets of 'runs/beetles" in capsys.readouterr().err
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert main(["test", "--config", write(config()), "--ckpt_path", "runs/x_fold1", "runs/x_fold2", *two]) == 2
    assert "2 checkpoints are tested together on one device. Add --trainer.devices 1." in capsys.readouterr().err


def test_one_checkpoint_in_two_places_has_no_spread(folder):
    Path("copy.ckpt").write_bytes(Path(best("x_fold1")).read_bytes())
    rows = predicted(best("x_fold1"), "copy.ckpt")
    assert float(numbers(rows, "std_").max()) == 0
    torch.testing.assert_close(numbers(rows, "prob"), numbers(predicted("copy.ckpt"), "prob"))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["runs/x_fold1", "runs/beetles"], "names of classes or targets of 'runs/beetles"),
        (["runs/x_fold1", "runs/y_fold1"], "the task of 'runs/y_fold1"),
        (["runs/z_fold*"], "'runs/z_fold*' matches no checkpoint and no folder of a run"),
        (["runs/x_fold1", "runs/x_fold9"], "there is no file 'runs/x_fold9'"),
    ],
)
def test_members_that_do_not_go_together_are_refused(folder, capsys, paths, message):
    assert main(["predict", "--config", write(config()), "--ckpt_path", *paths, "--output", "no.csv"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("no.csv").exists()


def test_a_folder_stands_for_the_best_checkpoint_in_it_and_a_pattern_passes_over_others(folder):
    expected = [best(f"x_fold{fold}") for fold in (1, 2, 3)]
    assert member_paths("runs/x_fold*") == expected  # not runs/x_folds
    assert member_paths(["runs/x_fold1/version_0", "runs/x_fold2", expected[2]]) == expected
    assert member_paths(["runs/x_fold1", expected[0]]) == expected[:1]
    assert member_paths("runs/nothing.ckpt") == ["runs/nothing.ckpt"]
    with pytest.raises(ConfigError, match="matches no checkpoint"):
        member_paths("runs/*/nothing*")


def test_several_words_after_a_flag_are_one_list():
    words = ["--config", "a.yaml", "--ckpt_path", "a", "b", "--output", "c"]
    assert several_values(words, "--ckpt_path") == [*words[:3], '["a", "b"]', "--output", "c"]
    for other in (["--ckpt_path", "a", "--x", "b"], ["--x", "a", "b"], ["--ckpt_path"]):
        assert several_values(other, "--ckpt_path") == other


def test_the_spread_is_that_of_a_sample():
    mean, spread = mean_and_spread([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])])
    assert mean.tolist() == [2.0, 2.0]
    assert spread.tolist() == pytest.approx([2**0.5, 0.0])


def test_contributions_are_to_what_the_mean_decides(folder, tmp_path):
    parts = {name: {"module": "MLP", "input": "x", "args": {"hidden": [5]}} for name in ("a", "b")}
    settings = config(5, **{"init.parts": parts, "init.selection": "none"})
    assert main(["fit", "--config", write(settings), "--name", "several"]) == 0
    saved = torch.load(best("several"), weights_only=True)
    saved["state_dict"]["network.parts.head.linear.weight"] *= -3  # decides for other classes
    torch.save(saved, tmp_path / "other.ckpt")
    paths = [best("several"), str(tmp_path / "other.ckpt")]
    rows = predicted(*paths, settings=settings)
    probabilities, lacking = [], []
    for path in paths:
        model = HybridTask.load_from_checkpoint(path)
        with torch.no_grad():
            outputs, without = model.built().forward_and_without({"x": table(COUNT)})
        probabilities.append(outputs.softmax(1))
        lacking.append(without["a"].softmax(1))
    assert not torch.equal(probabilities[0].argmax(1), probabilities[1].argmax(1))
    change = torch.stack(probabilities).mean(0) - torch.stack(lacking).mean(0)
    chosen = torch.stack(probabilities).mean(0).argmax(1)
    expected = change.gather(1, chosen[:, None])
    torch.testing.assert_close(numbers(rows, "contribution_a"), expected, atol=1e-5, rtol=1e-4)
