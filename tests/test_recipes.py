"""Each recipe goes over a config whose parts it does not name, and leads to the schedule that its note promises."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hybrid_lightning import ConfigError, HybridClassifier
from hybrid_lightning.cli import main
from hybrid_lightning.cli.config_files import overlaid, read_config, recipes
from hybrid_lightning.network.modules.convolution import ConvExtractor
from tests.small import changed, write

NAMES = list(recipes())
PARTS = {
    # a recipe counts for all pretrained parts, whatever this one said before
    "tower": {
        "module": "ConvExtractor",
        "args": {"channels": [4, 4, 4]},
        "weights": "tower.safetensors",
        "input": "image",
        "unfreeze": "30%",
        "lr_scale": 0.5,
    },
    "fresh": {"module": "ConvExtractor", "args": {"channels": [4, 4]}, "input": "image"},
}
CHANGES = {"init.parts": PARTS, "init.lr": 1e-3, "trainer.max_epochs": 20}
NEVER = ("0.001", "never")
STARTS = {
    "full": [("0.001", "start")] * 3,
    "linear_probe": [("0.0005", "never")] * 3,
    "head_first": [("0.0001", "50% (step 30)")] * 3,
    "gradual": [
        ("0.000148", "10% + 2 × 5% (step 12)"),
        ("0.000385", "10% + 1 × 5% (step 9)"),
        ("0.001", "10% (step 6)"),
    ],
    "layer_decay": [("0.000563", "start"), ("0.00075", "start"), ("0.001", "start")],
    "discriminative": [("0.0001", "start")] * 3,
    "shifted_inputs": [("0.001", "start"), NEVER, NEVER],
    "surgical": [NEVER, ("0.001", "start"), NEVER],
    "shifted_labels": [NEVER, NEVER, ("0.001", "start")],
    "l2sp": [("0.001", "start")] * 3,
    "freeze_embed": [NEVER, ("0.001", "start"), ("0.001", "start")],
    "lora": [("0.001", "start")] * 3,
    "random_features": [("0.0005", "30% (step 18)")] * 3,
}
"""Recipe → rate and start of each stage of the pretrained part, from input to output."""


@pytest.fixture
def config(folder):
    save_file(ConvExtractor(in_channels=3, channels=(4, 4, 4)).state_dict(), "tower.safetensors")
    return write(changed(CHANGES))


def planned(out: str, part: str) -> list[tuple[str, str]]:
    """The rate and the start of each stage of a part, in a printed plan."""
    header, *lines = [re.split(r"  +", line.strip()) for line in out.splitlines() if "  " in line]
    rows = [dict(zip(header, line, strict=False)) for line in lines]
    return [(row["lr"], row["unfreezes at"]) for row in rows if row["part"] == part]


def test_every_recipe_has_a_promise_here():
    assert sorted(STARTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_leads_to_what_its_note_promises(name, config, capsys):
    assert main(["plan", "--config", config, "--config", name]) == 0
    out = capsys.readouterr().out
    assert planned(out, "tower") == STARTS[name]
    assert planned(out, "head") == [("0.001", "start")]
    # what is random is in no group
    fresh = [] if name == "random_features" else [("0.001", "start")] * 2
    assert [row for row in planned(out, "fresh") if row[1] != "never"] == fresh


FEW = ("gradual", "l2sp", "random_features", "shifted_labels")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES]
)
def test_a_config_trains_by_a_recipe_and_what_it_freezes_stays(name, config):
    words = ["--config", config, "--config", name, "--trainer.max_epochs", "1", "--model.selection", "none"]
    assert main(["fit", *words, "--trainer.limit_train_batches", "12"]) == 0
    path = "runs/small/version_0/checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    model = HybridClassifier.load_from_checkpoint(path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    before = load_file("tower.safetensors")
    if name == "lora":
        assert any("lora_A" in key for key in state)
        return
    stages = ("block0", "block1", "block2")
    started = [start != "never" for _, start in STARTS[name]]
    for stage, trains in zip(stages, started, strict=True):
        of_stage = [key for key in before if key.startswith(stage)]
        same = [torch.equal(state[f"network.parts.tower.{key}"], before[key]) for key in of_stage]
        assert any(same) is not trains


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_no_part_and_tells_what_when_and_how(name):
    arguments = read_config(name)["model"]["init_args"]
    assert arguments.keys() <= {"pretrained", "untrained", "rates", "scheduler"}
    note = recipes()[name].read_text(encoding="utf-8")
    assert f"fit --config yours.yaml --config {name}\n" in note
    assert "# When: " in note
    assert max(map(len, note.splitlines())) <= 120


def test_a_recipe_comes_with_the_package_and_a_file_of_its_name_comes_first(folder):
    assert all(path.is_relative_to(Path(main.__code__.co_filename).parents[1]) for path in recipes().values())
    write({"model": {"init_args": {"lr": 1.0}}}, "full")
    assert read_config("full") == {"model": {"init_args": {"lr": 1.0}}}
    with pytest.raises(ConfigError, match=r"no file 'ful'\. Recipes: 'discriminative'"):
        read_config("ful")


def test_what_is_said_of_an_origin_beats_what_an_earlier_file_says_of_a_part():
    arguments = {
        "parts": {
            "a": {"module": "MLP", "weights": "a.pt", "unfreeze": "5%", "lr_scale": 0.3},
            "b": {"module": "MLP", "unfreeze": "5%"},
            "c": "MLP",
            "d": {"module": "RandomFourierFeatures"},
        },
        "fusion": {"lr_scale": 0.1},
    }
    base = {"model": {"init_args": arguments}}
    before = yaml.safe_dump(base)
    stated = {"pretrained": {"unfreeze": "never"}, "untrained": {"lr_scale": 2.0}, "parts": {"a": {"lr_scale": 0.4}}}
    found = overlaid(base, {"model": {"init_args": stated}})["model"]["init_args"]
    assert found["parts"]["a"] == {"module": "MLP", "weights": "a.pt", "lr_scale": 0.4}
    assert found["parts"]["b"] == arguments["parts"]["b"]
    assert found["fusion"] == {}
    assert yaml.safe_dump(base) == before


def test_the_origin_of_a_part_is_that_which_the_later_file_gives_it():
    base = {"model": {"init_args": {"parts": {"a": {"module": "MLP", "unfreeze": "never"}}}}}
    stated = {"pretrained": {"unfreeze": "always"}, "parts": {"a": {"weights": "a.pt"}}}
    found = overlaid(base, {"model": {"init_args": stated}})["model"]["init_args"]
    assert found["parts"]["a"] == {"module": "MLP", "weights": "a.pt"}


@pytest.mark.parametrize("recipe", ["shifted_inputs", "shifted_labels", "surgical", "freeze_embed"])
def test_a_recipe_for_stages_replaces_those_of_an_earlier_file(recipe):
    base = {"model": {"init_args": {"pretrained": {"unfreeze": {"stages": {"layer4": "10%", "*": "never"}}}}}}
    overlay = read_config(recipe)
    found = overlaid(base, overlay)["model"]["init_args"]["pretrained"]["unfreeze"]
    assert [*found["stages"].items()] == [*overlay["model"]["init_args"]["pretrained"]["unfreeze"]["stages"].items()]
