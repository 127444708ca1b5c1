import re

import pytest
import torch

from hybrid_lightning.tasks import progress
from tests.small import changed, command

BARS = ["TQDMProgressBar", "RichProgressBar"]


def config(bar=None, **changes):
    later = {"init.parts": {**changed()["model"]["init_args"]["parts"]}}
    later["init.parts"]["stem"] = {**later["init.parts"]["stem"], "unfreeze": "2 epochs"}
    shown = {"trainer.enable_progress_bar": True, "trainer.max_epochs": 3, "trainer.limit_val_batches": 1}
    own = {"trainer.callbacks": [{"class_path": bar}]} if bar else {}
    return changed({**later, **shown, **own, **changes})


@pytest.fixture
def watched(monkeypatch):
    """As on a wide terminal, on which each text is shown."""
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.mark.parametrize("bar", BARS)
def test_each_bar_shows_the_loss_what_unfreezes_next_and_the_time_left(folder, capsys, watched, bar):
    pytest.importorskip("rich" if bar.startswith("Rich") else "tqdm")
    assert command("fit", config=config(bar)) == 0
    shown = capsys.readouterr().out
    assert re.search(r"train/loss[=:] ?\d", shown)
    assert re.search(r"left[=:] ?0:00:\d\d", shown)
    assert "phase" in shown
    assert "all parts train" in shown
    assert "v_num" not in shown
    if bar.startswith("TQDM"):  # rich draws its last state alone where no terminal is
        assert "stem unfreezes in 2 epochs" in shown
        assert "stem unfreezes in 1 step" in shown


def test_no_moments_are_written_to_a_file(folder, capsys):
    assert command("fit", config=config("TQDMProgressBar")) == 0
    shown = capsys.readouterr().out
    assert "train/loss" in shown
    assert "unfreezes in" not in shown
    assert "left" not in shown


def test_without_a_bar_nothing_is_shown(folder, capsys, watched):
    assert command("fit", config=config(**{"trainer.enable_progress_bar": False})) == 0
    both = capsys.readouterr()
    assert "unfreezes in" not in both.out + both.err


def test_a_bar_reads_the_loss_in_log_steps_alone(folder, capsys, watched, monkeypatch):
    steps = []
    convert = torch.Tensor.__float__

    def counted(self):
        steps.append(1)
        return convert(self)

    def reads(**changes):
        steps.clear()
        monkeypatch.setattr(torch.Tensor, "__float__", counted)
        assert command("fit", config=config("TQDMProgressBar", **changes)) == 0
        monkeypatch.setattr(torch.Tensor, "__float__", convert)
        return len(steps)

    quiet = {"trainer.log_every_n_steps": 9, "trainer.limit_train_batches": 9}
    without = reads(**quiet, **{"trainer.enable_progress_bar": False, "trainer.callbacks": []})
    assert reads(**quiet) == without + 3  # of 27 steps
