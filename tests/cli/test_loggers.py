"""Loggers of a config, through a run and its continuation; each is skipped where its package is not installed."""

import json
import math
import os
import shutil
import struct
from collections import defaultdict
from importlib.util import find_spec
from typing import ClassVar

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from hybrid_lightning.cli import main
from hybrid_lightning.cli import report as report_command
from hybrid_lightning.cli.metrics_table import read_rows
from hybrid_lightning.report import page
from tests.small import changed, command

NAMES = ("train/loss", "val/accuracy", "val/loss", "lr/head-no_decay", "grad_norm/total", "trainable/stem")
FIGURES = [
    *("report/classes", "report/confusion", "report/gradient_norms", "report/losses", "report/metrics"),
    *("report/precision_recall", "report/rates", "report/reliability", "report/roc", "report/timeline"),
    "report/updates",
]
BLOCK = 32768  # bytes of a block of W&B's file


class TensorBoard:
    given: ClassVar = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs", "name": "mine"}}

    def __init__(self, folder):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        [place] = (folder / "logs" / "mine").iterdir()  # one run, also after a continuation
        self.found = EventAccumulator(str(place)).Reload()
        content = self.found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        values = HParamsPluginData.FromString(content).session_start_info.hparams
        self.settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}

    def series(self, name):
        return [(event.step, event.value) for event in self.found.Scalars(name)]

    def has_report(self):
        texts = self.found.Tags()["tensors"]
        return "report/scores/text_summary" in texts and "hp_metric" in self.found.Tags()["scalars"]

    def figures(self):
        return self.found.Tags()["images"]


class MLflow:
    given: ClassVar = {"class_path": "MLFlowLogger", "init_args": {"save_dir": "logs", "experiment_name": "mine"}}

    def __init__(self, folder):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient("file:logs")
        experiment = self.client.get_experiment_by_name("mine")
        [self.run] = self.client.search_runs([experiment.experiment_id])
        self.settings = {name: yaml.safe_load(value) for name, value in self.run.data.params.items()}

    def series(self, name):
        history = self.client.get_metric_history(self.run.info.run_id, name)
        return [(metric.step, metric.value) for metric in history]

    def has_report(self):
        return "report.html" in [file.path for file in self.client.list_artifacts(self.run.info.run_id)]

    def figures(self):
        files = self.client.list_artifacts(self.run.info.run_id, "report")
        return [file.path.removesuffix(".html") for file in files]


class WandB:
    given: ClassVar = {
        "class_path": "WandbLogger",
        "init_args": {"save_dir": "logs", "project": "mine", "offline": True},
    }

    def __init__(self, folder):
        from wandb.proto.wandb_internal_pb2 import Record

        self.rows, self.settings, runs = [], {}, set()
        for file in sorted(folder.glob("logs/wandb/offline-run-*/*.wandb")):
            for text in records(file.read_bytes()):
                record = Record.FromString(text)
                runs |= {record.run.run_id} - {""}
                for item in record.run.config.update:
                    self.settings[item.key] = json.loads(item.value_json)
                for item in record.config.update:
                    self.settings[item.key] = json.loads(item.value_json)
                if record.history.item:
                    pairs = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                    self.rows.append({name: json.loads(value) for name, value in pairs.items()})
        assert len(runs) == 1

    def series(self, name):
        return [(row["trainer/global_step"], row[name]) for row in self.rows if name in row]

    def has_report(self):
        return any(str(row.get("report._type", row.get("report", ""))).count("html-file") for row in self.rows)

    def figures(self):
        last = [row for row in self.rows if any(name.startswith("report/") for name in row)][-1:]
        return [name.removesuffix("._type") for row in last for name in row if name.endswith("._type") and "/" in name]


def records(content):
    """The records of W&B's file, a log of LevelDB behind seven bytes: blocks of records in one or several pieces."""
    place, pieces = 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # what is left of a block holds no head of a record
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        pieces += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last piece
            yield pieces
            pieces = b""


def table(folder):
    """Metric → step and value of each row of the run's own table."""
    [path] = folder.glob("runs/*/version_0/metrics.csv")
    found = defaultdict(list)
    for row in read_rows(path):
        for name, cell in row.items():
            if cell and name != "step":
                found[name].append((int(row["step"]), float(cell)))
    return found


@pytest.fixture
def with_plotly(monkeypatch):
    """A stand-in, so that these tests need none."""
    monkeypatch.setattr(report_command, "require_plotly", lambda: "/* plotly */")
    monkeypatch.setattr(page, "require_plotly", lambda: "/* plotly */")
    monkeypatch.setattr(report_command, "find_spec", lambda name: object())


@pytest.fixture
def environment(monkeypatch):
    """What the libraries read and Lightning sets; as it was afterwards."""
    for name in (
        "WANDB_MODE",
        "MLFLOW_ALLOW_FILE_STORE",
        "MLFLOW_DISABLE_TELEMETRY",
        "WANDB_ERROR_REPORTING",
        "WANDB_QUIET",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.mark.filterwarnings("default")  # of libraries that are not ours
@pytest.mark.parametrize(
    ("package", "kind", "drawn_with"),
    [("tensorboard", TensorBoard, "matplotlib"), ("mlflow", MLflow, "plotly"), ("wandb", WandB, "plotly")],
)
def test_a_logger_gets_settings_metrics_and_report_and_goes_on_with_the_run(
    folder, with_plotly, environment, package, kind, drawn_with, capsys
):
    pytest.importorskip(package, reason=f"pip install 'hybrid_lightning[{package}]'")
    config = changed({"trainer.logger": kind.given, "trainer.max_epochs": 2})
    assert command("fit", "--test_after_fit", "best", config=config) == 0
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "3", config=config) == 0
    assert "has not taken the report" not in capsys.readouterr().out
    logged, expected = kind(folder), table(folder)
    for name in NAMES:
        assert len(expected[name]) == (3 if name.startswith("val") else 9)
        series = logged.series(name)
        assert [step for step, _ in series] == [step for step, _ in expected[name]]
        for (_, value), (_, wanted) in zip(series, expected[name], strict=True):
            assert math.isclose(value, wanted, rel_tol=1e-6)
    settings = logged.settings
    assert (settings["lr"], settings["parts.stem.module"]) == (0.001, "ConvExtractor")
    assert (settings["data.init_args.size"], settings["seed_everything"]) == (16, 0)
    assert "trainer.logger" not in " ".join(settings)
    assert logged.has_report()
    assert sorted(logged.figures()) == (FIGURES if find_spec(drawn_with) else [])
    [saved] = folder.glob("runs/*/version_0/config.yaml")
    again = yaml.safe_load(saved.read_text())["trainer"]["logger"]["init_args"]
    assert [again.get(key) for key in ("version", "id", "run_id")] == [None] * 3  # another run of it is another run


def test_tensorboard_shows_no_steps_twice_that_a_killed_process_took_after_its_last_checkpoint(folder):
    pytest.importorskip("tensorboard", reason="pip install 'hybrid_lightning[tensorboard]'")
    config = changed({"trainer.logger": TensorBoard.given})
    assert command("fit", config=config) == 0
    run = folder / "runs" / "small" / "version_0"
    shutil.copytree(run / "checkpoints", folder / "old")
    resumed = ("--resume", "auto", "--trainer.max_epochs", "2")
    assert command("fit", *resumed, config=config) == 0
    (run / "finished.yaml").unlink()
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(folder / "old", run / "checkpoints")
    assert command("fit", *resumed, config=config) == 0
    assert [step for step, _ in TensorBoard(folder).series("train/loss")] == [*range(6)]


def test_the_runs_own_table_has_each_metric_at_its_step_and_goes_on(folder):
    config = changed({"trainer.max_epochs": 2})
    assert command("fit", config=config) == 0
    first = table(folder)
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "3", config=config) == 0
    found = table(folder)
    assert [step for step, _ in found["train/loss"]] == [*range(9)]
    for name, rows in first.items():
        assert found[name][: len(rows)] == rows


def test_predict_makes_no_run_of_a_logger(folder):
    given: ClassVar = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    config = changed({"trainer.logger": given})
    assert command("fit", config=config) == 0
    before = sorted((folder / "logs").rglob("*"))
    assert command("predict", "--ckpt_path", "best", config=config) == 0
    assert sorted((folder / "logs").rglob("*")) == before


@pytest.mark.parametrize("package", ["tensorboard", "mlflow", "wandb"])
def test_a_logger_without_its_package_names_the_extra_and_predict_does_without(fitted, folder, capsys, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    given = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}[package].given
    config = changed({"trainer.logger": given})
    assert command("fit", config=config) == 2
    assert f"pip install 'hybrid_lightning[{package}]'" in capsys.readouterr().err
    assert not (folder / "runs").exists()
    [best] = fitted.glob("runs/*/version_0/checkpoints/best.ckpt")
    assert command("predict", "--ckpt_path", str(best), config=config) == 0


def test_of_two_loggers_of_one_kind_each_goes_on_in_its_own_run(folder):
    pytest.importorskip("tensorboard", reason="pip install 'hybrid_lightning[tensorboard]'")
    given = [TensorBoard.given, {**TensorBoard.given, "init_args": {"save_dir": "logs", "name": "other"}}]
    (folder / "logs" / "other" / "version_0").mkdir(parents=True)
    config = changed({"trainer.logger": given})
    assert command("fit", config=config) == 0
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "2", config=config) == 0
    assert [path.name for path in (folder / "logs" / "mine").iterdir()] == ["version_0"]
    assert [step for step, _ in TensorBoard(folder).series("train/loss")] == [*range(6)]
    assert sorted(path.name for path in (folder / "logs" / "other").iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize(
    "text", ['{"TensorBoardLogger": "x"}', '{"TensorBoardLogger": ["../../elsewhere"]}', "[1]", "no JSON"]
)
def test_a_file_that_is_damaged_or_a_strangers_makes_a_new_run_of_the_logger(folder, text):
    pytest.importorskip("tensorboard", reason="pip install 'hybrid_lightning[tensorboard]'")
    config = changed({"trainer.logger": TensorBoard.given})
    assert command("fit", config=config) == 0
    [noted] = folder.glob("runs/*/version_0/loggers.json")
    noted.write_text(text)
    assert command("fit", "--resume", "auto", "--trainer.max_epochs", "2", config=config) == 0
    assert not (folder / "elsewhere").exists()
    assert len([*(folder / "logs" / "mine").iterdir()]) == 2


@pytest.mark.parametrize("method", ["experiment", "log_metrics"])
def test_a_logger_that_fails_is_named_with_what_to_do(folder, capsys, monkeypatch, method):
    class Server(CSVLogger):
        pass

    def fails(self, *args, **kwargs):
        raise ConnectionError("the server does not answer")

    monkeypatch.setattr(Server, method, property(fails) if method == "experiment" else fails)
    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger", Server)
    given = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    assert command("fit", config=changed({"trainer.logger": given})) == 2
    found = capsys.readouterr().err
    assert "trainer.logger: Server has failed: the server does not answer" in found
    assert "--resume auto, or leave the logger out" in found


def test_nobody_is_called_who_was_not_asked(folder, environment):
    given: ClassVar = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    assert main(["fit"]) == 2  # without a config
    assert command("fit", config=changed({"trainer.logger": given})) == 0
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
