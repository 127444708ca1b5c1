"""Backbones of four families, with random weights: from YAML to a checkpoint that loads anywhere."""

import re
from pathlib import Path

import pytest
import torch

from hybrid_lightning.cli import main
from hybrid_lightning.tasks import HybridClassifier
from tests.backbones.data import ImagesAndTexts
from tests.backbones.models import BACKBONES
from tests.processes import succeed
from tests.small import write

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*", "ignore::FutureWarning:transformers.*"
)


def config(name: str, **facts: object) -> dict[str, object]:
    key, part, _ = BACKBONES[name]
    tower = {**part, "input": key, "unfreeze": {"start": "1 steps", "every": "1 steps"}, "layer_decay": 0.5, **facts}
    return {
        "model": {
            "class_path": "HybridClassifier",
            "init_args": {"num_classes": 3, "parts": {"tower": tower}, "optimizer": "SGD"},
        },
        "data": {"class_path": "tests.backbones.data.ImagesAndTexts", "init_args": {"batch_size": 4}},
        "trainer": {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu", "limit_val_batches": 1},
    }


def batch() -> dict[str, object]:
    data = ImagesAndTexts(4)
    data.setup()
    return next(iter(data.test_dataloader()))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def fits(runs: Path) -> dict[str, Path]:
    """The last checkpoint of a short run of each backbone, through the command line."""
    found = {}
    for name in BACKBONES:
        path = write(config(name), runs / f"{name}.yaml")
        assert main(["fit", "--config", path, "--trainer.default_root_dir", str(runs)]) == 0, name
        (found[name],) = (runs / "runs" / name).rglob("last.ckpt")
    return found


@pytest.fixture(scope="session")
def rebuilt(fits: dict[str, Path], runs: Path) -> dict[str, torch.Tensor]:
    """What each model answers in another process, where no network can be reached."""
    torch.save(batch(), runs / "batch.pt")
    succeed("-m", "tests.backbones.rebuild", str(runs / "batch.pt"), *map(str, fits.values()), fresh=True)
    return {name: torch.load(f"{path}.outputs", weights_only=True) for name, path in fits.items()}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_plan_names_the_stages_from_input_to_output(name, tmp_path, capsys):
    assert main(["plan", "--config", write(config(name), tmp_path / "c.yaml")]) == 0
    rows = re.findall(r"^tower +\w+ +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert list(dict.fromkeys(rows)) == BACKBONES[name][2]


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_unfreeze_from_the_head_down_and_then_all_of_them_have_trained(name, fits):
    (state,) = torch.load(fits[name], weights_only=True)["optimizer_states"]
    groups = [g for g in state["param_groups"] if g["part"] == "tower" and not g["fixed"]]
    last = max(g["stage"] for g in groups)
    assert {g["stage"]: g["unfrozen_at"] for g in groups} == {stage: 1 + last - stage for stage in range(last + 1)}
    trained = HybridClassifier.load_from_checkpoint(fits[name])
    assert all(torch.isfinite(p).all() for p in trained.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_checkpoint_loads_elsewhere_without_arguments_and_network(name, fits, rebuilt):
    model = HybridClassifier.load_from_checkpoint(fits[name])
    with torch.no_grad():
        assert torch.equal(model(batch()), rebuilt[name])
