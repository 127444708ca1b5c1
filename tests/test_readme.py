"""What README, and the pages that its sections moved to, show works as it stands there."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from hybrid_lightning.cli import main
from tests.data.make_files import make_manifest

ROOT = Path(__file__).parents[1]


def blocks(language: str, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class Base(pl.LightningModule):
    """The part of a module that README leaves to the reader."""

    def __init__(self) -> None:
        super().__init__()
        layers = {name: nn.Linear(4, 4) for name in ("stem", "layer1", "layer2")}
        self.backbone, self.head = nn.Sequential(), nn.Linear(4, 2)
        for name, layer in layers.items():
            self.backbone.add_module(name, layer)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.head(self.backbone(batch)).square().mean()


def test_the_yaml_plans_alone_and_with_what_watches_the_gradients(tmp_path, capsys):
    configs: list[str] = []
    for number, yaml in enumerate([*blocks("yaml"), *blocks("yaml", "docs/gradients.md")]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml)
        configs += ["--config", str(path)]
        assert main(["plan", *configs]) == 0
        assert "encoder  pretrained" in capsys.readouterr().out
    assert len(configs) == 4


def test_the_yaml_of_ones_own_table_fits_and_predicts_the_manifest_that_it_names(folder, capsys):
    (yaml,) = blocks("yaml", "docs/tutorials/own_csv.md")
    make_manifest("made", rows=40)
    Path("mine.yaml").write_text(yaml)
    quick = [
        "--trainer.max_epochs",
        "1",
        "--trainer.log_every_n_steps",
        "1",
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
    ]
    assert main(["fit", "--config", "mine.yaml", *quick, "--data.workers", "0"]) == 0
    capsys.readouterr()
    assert main(["predict", "--config", "mine.yaml", "--ckpt_path", "best", "--output", "p.csv", *quick[4:]]) == 0
    header = Path("p.csv").read_text().splitlines()[0].split(",")
    assert header[:6] == ["id", "target", "prediction", "probability_high", "probability_low", "probability_middle"]
    assert header[6:] == [f"contribution_{part}" for part in ("photo", "scan", "curve", "sound", "report", "table")]


def test_the_callbacks_work_in_a_module_that_knows_nothing_of_us():
    trainers: list[Any] = []

    def trainer(**options: Any) -> pl.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "max_epochs": 4}
        trainers.append(pl.Trainer(**quiet, **options))
        return trainers[0]

    (code,) = blocks("python")
    loader = torch.utils.data.DataLoader(torch.randn(20, 4), batch_size=2)
    exec(code, {"torch": torch, "pl": SimpleNamespace(LightningModule=Base, Trainer=trainer), "loader": loader})
    groups = trainers[0].optimizers[0].param_groups
    assert {g["name"]: g["unfrozen_at"] for g in groups if "no_decay" not in g["name"]} == {
        "backbone.stem": 24,
        "backbone.layer1": 14,
        "backbone.layer2": 4,
        "head": 0,
    }


def test_readme_is_short_and_shows_two_pictures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(re.findall(r"!\[[^]]{20,}]\(docs/\w+\.png\)", text)) == 2


def test_ci_runs_the_second_command_as_it_stands_here():
    first, second = (command.strip() for command in blocks("bash")[:2])
    assert first.endswith("python -m hybrid_lightning fit --config configs/quickstart.yaml")
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
