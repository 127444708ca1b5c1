"""A run that ``max_steps`` ends within an epoch goes on where it stopped."""

from pathlib import Path

import pytest
import torch

from tests.small import changed, command

STEPS_OF_AN_EPOCH = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three epochs that never stopped: its folder and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("fit", "--name", "whole", config=config()) == 0
        return folder, weights("whole")


def config():
    return changed({"trainer.max_epochs": 3, "seed_everything": 0})


def checkpoint(name):
    return next(Path("runs").glob(f"{name}/**/last.ckpt"))


def weights(name):
    return torch.load(checkpoint(name), weights_only=True)["state_dict"]


@pytest.mark.parametrize("steps", [4, 5, 6, 8])
def test_no_batch_of_the_epoch_is_lost(whole, monkeypatch, steps):
    folder, expected = whole
    monkeypatch.chdir(folder)
    assert command("fit", "--name", f"cut{steps}", "--trainer.max_steps", str(steps), config=config()) == 0
    source = str(checkpoint(f"cut{steps}"))
    assert command("fit", "--name", f"rest{steps}", "--ckpt_path", source, config=config()) == 0
    found = weights(f"rest{steps}")
    assert torch.load(checkpoint(f"rest{steps}"), weights_only=True)["global_step"] == 3 * STEPS_OF_AN_EPOCH
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_run_that_is_resumed_with_more_steps_equals_one_that_never_stopped(whole, monkeypatch):
    folder, expected = whole
    monkeypatch.chdir(folder)
    assert command("fit", "--name", "more", "--trainer.max_steps", "4", config=config()) == 0
    assert command("fit", "--name", "more", "--resume", "auto", "--trainer.max_steps", "-1", config=config()) == 0
    assert all(torch.equal(tensor, weights("more")[name]) for name, tensor in expected.items())
