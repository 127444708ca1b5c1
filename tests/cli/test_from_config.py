from pathlib import Path

import pytest
import torch

import hybrid_lightning
from hybrid_lightning import ConfigError, from_config
from tests.processes import succeed
from tests.small import CONFIG, changed, command, write


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_it_trains_what_the_command_line_trains(folder):
    assert command("fit", config=CONFIG) == 0
    built = from_config("small.yaml")
    built.trainer.fit(built.model, built.data)
    by_command, by_hand = (weights(path) for path in sorted(Path("runs").rglob("last.ckpt")))
    assert by_command.keys() == by_hand.keys()
    assert all(torch.equal(tensor, by_hand[name]) for name, tensor in by_command.items())


def test_its_checkpoint_loads_in_another_process_without_arguments(folder):
    built = from_config(write(CONFIG))
    built.trainer.fit(built.model, built.data)
    (path,) = Path("runs").rglob("last.ckpt")
    code = f"from hybrid_lightning import HybridClassifier as C; print(type(C.load_from_checkpoint({str(path)!r})))"
    assert "HybridClassifier" in succeed("-c", code, cwd=folder).stdout


def test_nothing_runs_and_no_run_is_written_before_the_fit(folder):
    built = from_config(write(CONFIG))
    assert built.model.network is None
    assert [path for path in Path("runs").rglob("*") if path.is_file()] == []


def test_overrides_reach_the_arguments_beside_what_the_file_says(folder):
    write(changed({"init.parts": {"stem": {"lr_scale": 0.5, **CONFIG["model"]["init_args"]["parts"]["stem"]}}}))
    model = {"lr": 0.25, "parts": {"stem": {"layer_decay": 0.9}}}
    built = from_config("small.yaml", model=model, data={"batch_size": 5}, trainer={"max_epochs": 7})
    assert built.model.settings.lr == 0.25
    assert (built.model.parts["stem"].lr_scale, built.model.parts["stem"].layer_decay) == (0.5, 0.9)
    assert (built.data.batch_size, built.trainer.max_epochs) == (5, 7)


def test_several_files_are_merged_in_turn(folder):
    write({"trainer": {"max_epochs": 9}}, "over.yaml")
    assert from_config([write(CONFIG), "over.yaml"]).trainer.max_epochs == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": {"lr": -1}}, r"model\.lr: -1"),
        ({"trainer": {"max_epoch": 1}}, "max_epoch"),
        ({"nothing": 1}, "nothing"),
        ({"model": {"parts": {"x": torch.nn.Linear(1, 1)}}}, r"from_config: .*live objects go into"),
    ],
)
def test_what_the_command_line_refuses_is_an_error(overrides, message, folder):
    write(CONFIG)
    with pytest.raises(ConfigError, match=message):
        from_config("small.yaml", **overrides)


def test_a_missing_file_is_named(folder):
    with pytest.raises(ConfigError, match=r"there is no file 'no\.yaml'"):
        hybrid_lightning.from_config("no.yaml")
