"""`compare`: the runs of most tests are commands in this process."""

import contextlib
import copy
import csv
import io
import json
import statistics
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy.stats import t as student

from hybrid_lightning import ConfigError
from hybrid_lightning.cli import compare, main
from hybrid_lightning.cli.comparison_rows import rows_of
from hybrid_lightning.cli.comparison_run import Result, read_result
from hybrid_lightning.cli.comparison_table import Mean, chosen, mean_of, readings, summary, t_quantile
from hybrid_lightning.network.modules.convolution import ConvExtractor
from hybrid_lightning.probe.vote import fit_vote
from tests.processes import Ended, succeed
from tests.small import changed, write

PARTS = {
    "tower": {
        "module": "ConvExtractor",
        "args": {"channels": [4, 4]},
        "weights": "tower.safetensors",
        "input": "image",
        "unfreeze": "never",
    },
    "fresh": {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image", "pool": "flatten"},
}
ROWS = ["full", "linear_probe", "part_fresh", "part_tower", "random_weights", "ridge"]
HOME = Path("runs/small_compare")
RESULT = json.dumps(
    {"validation": {"a": 1}, "test": {}, "main": "a", "is_better_high": True, "seconds": 2.5, "drift": {}}
)


class Here(Ended):
    """In place of a new interpreter; a run that `killed` names dies before it begins."""

    given: ClassVar[list[list[str]]] = []
    killed: ClassVar[set[str]] = set()

    def __init__(self, words, stdout, **options):
        row, seed = words[words.index("--run") + 1 :][:2]
        self.given.append([row, seed])
        if f"{row}_seed{seed}" in self.killed:
            self.status = -9
            return
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            self.status = main(words[3:])


@pytest.fixture
def commands(monkeypatch):
    monkeypatch.setattr(compare.subprocess, "Popen", Here)
    monkeypatch.setattr(Here, "given", [])
    monkeypatch.setattr(Here, "killed", set())
    return Here


def prepare(**changes) -> str:
    save_file(ConvExtractor(in_channels=3, channels=(4, 4)).state_dict(), "tower.safetensors")
    return write(changed({"init.parts": PARTS, **changes}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison with its baselines, and what it printed; not to be changed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as text:
        patch.setattr(compare.subprocess, "Popen", Here)
        patch.chdir(tmp_path_factory.mktemp("compared"))
        words = ["--config", prepare(), "--recipes", "full", "linear_probe", "--seeds", "2"]
        assert main(["compare", *words]) == 0
        return Path.cwd(), words, text.getvalue()


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))


def test_a_table_has_a_line_per_recipe_and_baseline_with_means_over_seeds(whole):
    folder = whole[0] / HOME
    lines = table(folder)
    names = ["full", "linear_probe", "fresh alone", "tower alone", "pretrained parts from random weights"]
    assert [line["recipe"] for line in lines] == [*names, "ridge on all features"]
    assert [line["baseline"] for line in lines] == ["False", "False", *["True"] * 4]
    for row, line in zip(ROWS, lines, strict=True):
        results = [read_result(folder / f"results/{row}_seed{seed}.json") for seed in (0, 1)]
        first = [read_result(folder / f"results/full_seed{seed}.json") for seed in (0, 1)]
        scores = [result.test["accuracy"] for result in results]
        assert float(line["test"]) == pytest.approx(statistics.fmean(scores))
        if row != "full":
            differences = [score - one.test["accuracy"] for score, one in zip(scores, first, strict=True)]
            assert float(line["test_difference"]) == pytest.approx(statistics.fmean(differences))
    assert lines[0]["test_difference"] == ""
    assert float(lines[1]["drift"]) == 0 < float(lines[0]["drift"])
    assert lines[4]["drift"] == ""


def test_the_files_and_the_terminal_have_the_same_table(whole):
    folder = whole[0] / HOME
    page = (folder / "compare.md").read_text()
    assert page.count("\n| ") == 7
    assert "Best recipe on validation: " in page
    data = json.loads((folder / "compare.json").read_text())
    assert [row["recipe"] for row in data["rows"]] == [line["recipe"] for line in table(folder)]
    assert len(data["runs"]) == 12
    out = whole[2]
    assert "[12/12] ridge_seed1: val/accuracy" in out
    assert "min left" in out
    assert "ridge on all features" in out.split("[12/12]")[1]


def test_scores_are_those_that_validate_and_test_give(whole, monkeypatch):
    monkeypatch.chdir(whole[0])
    result = read_result(HOME / "results/full_seed1.json")
    words = ["--config", str(HOME / "configs/full.yaml"), "--name", "again"]
    best = str((HOME / "runs/full_seed1/version_0/checkpoints/best.ckpt").resolve())
    for command, values in (("validate", result.validation), ("test", result.test)):
        assert main([command, *words, "--ckpt_path", best]) == 0
        [logged] = csv.DictReader(max(Path("runs/again").glob("*/metrics.csv")).read_text().splitlines())
        prefix = "val" if command == "validate" else "test"
        assert {name: float(logged[f"{prefix}/{name}"]) for name in values} == pytest.approx(values)


def test_the_ridge_is_the_closed_form_on_the_features_of_all_parts(whole, monkeypatch):
    monkeypatch.chdir(whole[0])
    words = ["--config", str(HOME / "configs/ridge.yaml"), "--seed_everything", "1", "--output", "features.npz"]
    assert main(["embed", *words]) == 0
    found = np.load("features.npz")
    features = torch.from_numpy(np.concatenate([found["tower"], found["fresh"]], axis=1))
    target = torch.from_numpy(found["target"])
    rows = {split: torch.from_numpy(found["split"] == split) for split in ("train", "val", "test")}
    vote = fit_vote(features[rows["train"]], target[rows["train"]], "classes", outputs=3)
    result = read_result(HOME / "results/ridge_seed1.json")
    for split, values in (("val", result.validation), ("test", result.test)):
        right = vote(features[rows[split]]).argmax(1) == target[rows[split]]
        assert values["accuracy"] == pytest.approx(right.double().mean().item())


def test_finished_runs_are_read_and_one_whose_files_are_gone_is_made_anew(whole, commands, monkeypatch, capsys):
    monkeypatch.chdir(whole[0])
    before = table(HOME)
    assert main(["compare", *whole[1]]) == 0
    assert commands.given == []
    assert "full_seed1: finished before, val/accuracy" in capsys.readouterr().out
    (HOME / "results/full_seed1.json").unlink()
    (HOME / "runs/full_seed1/version_0/checkpoints/best.ckpt").unlink()
    assert main(["compare", *whole[1]]) == 0
    assert commands.given == [["full", "1"]]
    times = ("seconds",)
    for old, new in zip(before, table(HOME), strict=True):
        assert {k: v for k, v in old.items() if k not in times} == {k: v for k, v in new.items() if k not in times}


def test_another_config_does_not_mix_with_the_results_of_a_folder(whole, commands, monkeypatch, capsys):
    monkeypatch.chdir(whole[0])
    for other in (["--model.lr", "0.5"], ["--test_after_fit", "last"]):
        assert main(["compare", *whole[1], *other]) == 2
        assert "holds results of 'full' with another config. Give another --folder" in capsys.readouterr().err
    assert commands.given == []


def test_a_run_that_is_cut_off_goes_on_and_one_that_fails_ends_no_other(folder, commands, capsys):
    write({"model": {"init_args": {"lr": "high"}}}, "wrong.yaml")
    words = ["--config", prepare(), "--baselines", "false", "--seeds", "2"]
    commands.killed.add("as_is_seed1")
    assert main(["compare", *words, "--recipes", "as_is", "wrong.yaml"]) == 0
    assert commands.given == [["as_is", "0"], ["wrong", "0"], ["as_is", "1"]]
    out = capsys.readouterr().out
    assert "failed: as_is_seed1: status -9" in out
    assert "failed: wrong_seed0: model.init_args.lr" in out.replace("model.lr", "model.init_args.lr")
    assert "No further seed is tried. (all of it: " in out
    assert "wrong_seed1" not in out
    assert [line["seeds"] for line in table(HOME)] == ["1"]
    # as a process leaves it that is killed between the end of its epochs and its test
    (HOME / "results/as_is_seed0.json").unlink()
    (HOME / "runs/as_is_seed0/version_0/finished.yaml").unlink()
    commands.killed.clear()
    assert main(["compare", *words, "--recipes", "as_is"]) == 0
    assert "resume: " in (HOME / "logs/as_is_seed0.log").read_text()
    assert [line["seeds"] for line in table(HOME)] == ["2"]
    assert read_result(HOME / "results/as_is_seed0.json").seconds is None
    assert read_result(HOME / "results/as_is_seed1.json").seconds > 0


def test_an_interrupt_says_how_to_go_on(folder, commands, capsys, monkeypatch):
    words = ["compare", "--config", prepare(), "--baselines", "false", "--seeds", "1", "--recipes", "as_is"]

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "wait", interrupted)
    assert main(words) == 130
    assert "cut off; the same command goes on" in capsys.readouterr().out


def test_a_run_that_was_cut_off_does_not_go_on_with_other_settings(folder, commands):
    words = ["compare", "--config", prepare(), "--baselines", "false", "--seeds", "1", "--recipes", "as_is"]
    assert main(words) == 0
    (HOME / "results/as_is_seed0.json").unlink()
    assert main([*words, "--model.lr", "0.01"]) == 0
    assert read_result(HOME / "results/as_is_seed0.json").seconds > 0
    assert "lr: 0.01" in (HOME / "runs/as_is_seed0/version_0/config.yaml").read_text()


@pytest.mark.parametrize("place", ["runs", "logs/as_is_seed0.log", "results"])
def test_links_of_a_folder_to_other_places_are_refused(place, folder, commands, capsys):
    Path("mine").mkdir()
    Path("mine/kept").write_text("kept")
    Path("given", place).parent.mkdir(parents=True)
    Path("given", place).symlink_to(folder / ("mine/kept" if place.endswith("log") else "mine"))
    words = ["--baselines", "false", "--seeds", "1", "--recipes", "as_is", "--folder", "given"]
    assert main(["compare", "--config", prepare(), *words]) == 2
    assert "is a link to" in capsys.readouterr().err
    assert Path("mine/kept").read_text() == "kept"
    assert [path.name for path in Path("mine").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--resume", "auto"], "compare: --resume differs between the runs"),
        (["--trainer.logger", "false"], "trainer.logger: compare reads what it would write"),
        (["--trainer.fast_dev_run", "1"], "trainer.fast_dev_run: compare needs whole fits"),
        (["--seeds", "0"], "--seeds: 0 is"),
        (["--recipes", "ful"], "error: --recipes: there is no file 'ful'. Recipes: 'discriminative'"),
        (["--recipes", "full", "full"], "--recipes: two rows would have the name 'full'"),
        (["--search", "lrr=1e-4..1e-2"], "unknown key 'lrr'. Did you mean 'lr'?"),
        (["--search", "lr=1e-4..1e-2", "lr=1e-3..1e-1"], "--search: 'lr' and 'lr' name one setting"),
        (
            ["--search", "pretrained.lr_scale=0..1", "pretrained=1..2"],
            "--search: 'pretrained.lr_scale' and 'pretrained' name one setting",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_fit(words, says, folder, commands, capsys):
    assert main(["compare", "--config", prepare(), *words]) == 2
    assert says in capsys.readouterr().err
    assert commands.given == []


@pytest.mark.exhaustive
def test_several_interpreters_at_a_time_give_the_same_table(whole, folder):
    words = ["compare", *whole[1], "--recipes", "full", "--baselines", "false", "--jobs", "2"]
    prepare()
    (folder / "tower.safetensors").write_bytes((whole[0] / "tower.safetensors").read_bytes())
    succeed("-m", "hybrid_lightning", *words, cwd=folder)
    assert table(HOME)[0]["test"] == table(whole[0] / HOME)[0]["test"]


# Rows

BASE = {
    "model": {
        "init_args": {
            "pretrained": {"lr_scale": 0.5},
            "fusion": {"lr_scale": 0.1},
            "parts": {
                "stem": {"module": "MLP", "weights": "a.pt", "unfreeze": "5%", "batch_norm": "frozen"},
                "body": {"module": "MLP", "input": "stem"},
                "table": "MLP",
                "twin": {"share": "table", "input": "other"},
                "head": {"module": "LinearHead"},
            },
        }
    },
    "trainer": {"callbacks": None},
}


def parts(name: str) -> dict:
    before = yaml.safe_dump(BASE)
    [row] = [row for row in rows_of(BASE, ["as_is"], True) if row.name == name]
    assert yaml.safe_dump(BASE) == before
    return row.config["model"]["init_args"]


def test_a_part_alone_keeps_what_it_reads_and_the_head():
    found = parts("part_body")
    assert list(found["parts"]) == ["stem", "body", "head"]
    assert found["fusion"] is None
    assert found["pretrained"] == {"lr_scale": 0.5}
    alone = parts("part_twin")
    assert alone["parts"]["twin"] == {"module": "MLP", "input": "other"}
    assert alone["pretrained"] is None


def test_pretrained_parts_from_random_weights_train_like_new_ones():
    found = parts("random_weights")
    assert found["parts"]["stem"] == {"module": "MLP"}
    assert found["pretrained"] is None


def test_a_baseline_takes_of_an_earlier_checkpoint_what_it_has_and_random_weights_nothing():
    config = copy.deepcopy(BASE)
    source = {"path": "x.ckpt", "parts": {"stem": "old_stem", "twin": "old_twin"}}
    config["model"]["init_args"]["init_from"] = source
    found = {row.name: row.config["model"]["init_args"]["init_from"] for row in rows_of(config, ["as_is"], True)}
    assert found["as_is"] == source
    assert found["part_body"] == {"path": "x.ckpt", "parts": {"stem": "old_stem"}}
    assert found["random_weights"] is None


def test_drift_is_logged_where_something_is_pretrained():
    rows = {row.name: row.config["trainer"]["callbacks"] for row in rows_of(BASE, ["as_is"], True)}
    assert [name for name, callbacks in rows.items() if callbacks] == ["as_is", "part_body", "ridge"]


# Statistics


def test_quantiles_are_those_of_students_t():
    for freedom in range(1, 60):
        assert t_quantile(freedom) == pytest.approx(student.ppf(0.975, freedom), abs=1e-3)


def test_a_mean_has_an_interval_from_two_seeds_on():
    assert mean_of([]) is None
    assert mean_of([0.5]) == Mean(0.5, None)
    mean = mean_of([0.5, 0.7, 0.9])
    assert mean.value == pytest.approx(0.7)
    assert mean.half == pytest.approx(student.ppf(0.975, 2) * 0.2 / 3**0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("mean", "text"),
    [
        (Mean(0.92013, 0.0283), "0.920 ± 0.028"),
        (Mean(0.5, 0.2), "0.50 ± 0.20"),
        (Mean(2e-8, 0.0394), "0.000 ± 0.039"),
        (Mean(12345.6, 131.0), "12346 ± 131"),
        (Mean(0.5, 1e-12), "0.500000 ± 0.000000"),
        (Mean(0.66667, 0.0), "0.6667 ± 0"),
        (Mean(0.66667, None), "0.6667"),
    ],
)
def test_a_mean_is_written_as_exactly_as_its_interval_is_known(mean, text):
    assert str(mean) == text


def result(value: float, seconds: float | None = 1.0) -> Result:
    return Result({"accuracy": value}, {"accuracy": value / 2}, "accuracy", True, seconds, {})


def test_differences_are_over_the_seeds_that_both_rows_have():
    rows = rows_of(BASE, ["as_is", "full"], False)
    results = {"as_is": {0: result(0.5), 1: result(0.9)}, "full": {1: result(0.8, None), 2: result(0.1)}}
    first, second = summary(rows, results, "accuracy")
    assert first["validation_difference"] is None
    assert second["validation_difference"].value == pytest.approx(-0.1)
    assert second["test_difference"].value == pytest.approx(-0.05)
    assert second["seconds"] == 1.0
    assert chosen(rows, results, "accuracy", is_better_high=True).name == "as_is"
    assert chosen(rows, results, "accuracy", is_better_high=False).name == "full"


def test_a_recipe_that_changes_nothing_is_told_and_so_is_one_that_is_as_good():
    rows = rows_of(BASE, ["as_is", "full", "l2sp", "gradual"], False)
    scores = {"as_is": (0.5, 0.6), "full": (0.5, 0.6), "l2sp": (0.7, 0.9), "gradual": (0.8, 0.7)}
    results = {name: {seed: result(value) for seed, value in enumerate(values)} for name, values in scores.items()}
    best, near, same = readings(rows, results, "accuracy", True)
    assert best == "Best recipe on validation: l2sp."
    assert near == "By these seeds not told apart from it: as_is, full, gradual."
    assert same == "full trains this config as as_is does: every score is the same."
    results["full"][1].validation["loss"] = 0.1
    assert len(readings(rows, results, "accuracy", True)) == 2
    assert readings(rows[:1], {"as_is": {0: result(float("nan"))}}, "accuracy", True) == [
        "No recipe has a score on validation."
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"seconds": []}', '{"validation": {"a": "b"}}'),
        pytest.param("[" * 100_000, id="nested"),
        pytest.param(RESULT.replace("2.5", "1" + 400 * "0"), id="beyond a float"),
        pytest.param(RESULT + " " * 2**20, id="large"),
    ],
)
def test_a_damaged_result_is_none(text, folder):
    Path("x.json").write_text(RESULT)
    assert read_result(Path("x.json")) is not None
    Path("x.json").write_text(text)
    assert read_result(Path("x.json")) is None
    with pytest.raises(ConfigError):
        rows_of(BASE, ["x.json", "absent"], False)
