from pathlib import Path

import pytest
import yaml

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli import main
from hybrid_lightning.errors import ConfigError
from tests.small import write
from tests.tables import write_rows

ROWS = [{"x": row * 7 % 41, "y": "abc"[row % 3]} for row in range(42)]


def config(classes: int = 3, **model):
    write_rows("rows.csv", [{**row, "y": "abc"[index % classes]} for index, row in enumerate(ROWS)])
    data = {"path": "rows.csv", "inputs": {"x": {"numeric": ["x"]}}, "target": "y"}
    quiet = {"max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    return {
        "model": {"class_path": "HybridClassifier", "init_args": {"parts": {"x": {"module": "MLP"}}, **model}},
        "data": {"class_path": "ManifestDataModule", "init_args": data},
        "trainer": quiet,
    }


def test_a_config_may_leave_the_number_of_classes_to_its_manifest(folder, capsys):
    path = write(config())
    assert main(["fit", "--config", path]) == 0, capsys.readouterr().err
    [run] = Path("runs/small").iterdir()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["num_classes"] == 3
    assert HybridClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt").objective.num_classes == 3
    assert main(["predict", "--config", path, "--ckpt_path", "best"]) == 0
    assert main(["fit", "--config", path, "--resume", "auto", "--trainer.max_epochs", "2"]) == 0


def test_a_checkpoint_says_how_many_classes_it_has_and_not_the_data_of_today(folder, capsys):
    assert main(["fit", "--config", write(config())]) == 0
    write_rows("new.csv", [{"x": 1}])
    path = write(config(classes=2))
    words = ["--ckpt_path", "best", "--data.predict_path", "new.csv"]
    assert main(["predict", "--config", path, *words]) == 0, capsys.readouterr().err
    [table] = Path().glob("runs/small/*/predictions.csv")
    assert "probability_c" in table.read_text()


@pytest.mark.parametrize(("target", "message"), [("x", "is a quantity, and HybridClassifier"), (None, "must be given")])
def test_what_has_no_classes_is_told(folder, capsys, target, message):
    content = config()
    content["data"]["init_args"]["target"] = target
    content["data"]["init_args"]["inputs"] = {"x": {"categorical": ["y"], "one_hot": True}}
    assert main(["plan", "--config", write(content)]) == 2
    assert message in capsys.readouterr().err


def test_in_python_it_must_be_given():
    with pytest.raises(ConfigError, match=r"model.num_classes: it must be given, such as 3"):
        HybridClassifier(parts={"x": {"module": "MLP"}})
