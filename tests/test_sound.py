"""Sounds of a new speaker, through configs/sound.yaml as it is."""

from pathlib import Path

import pytest

from hybrid_lightning import from_config
from tests.data.make_tones import make_tones

CONFIG = Path("configs/sound.yaml").resolve()
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def accuracy_on_new_speakers(folder: Path, rows: int, fold: str, epochs: int) -> float:
    data = {"path": str(make_tones(folder, rows)), "fold": fold, "workers": 0}
    trainer = {**QUIET, "max_epochs": epochs, "default_root_dir": str(folder), "log_every_n_steps": 1}
    built = from_config(CONFIG, data=data, trainer=trainer)
    built.trainer.fit(built.model, built.data)
    [scores] = built.trainer.test(built.model, built.data, verbose=False)
    return float(scores["test/accuracy"])


def test_vowels_of_new_speakers_are_recognized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert accuracy_on_new_speakers(tmp_path, 96, "1/2", 12) > 0.7


@pytest.mark.exhaustive
@pytest.mark.parametrize("fold", ["1/4", "2/4", "3/4", "4/4"])
def test_vowels_of_each_new_speaker_are_recognized_by_the_default(tmp_path, monkeypatch, fold):
    monkeypatch.chdir(tmp_path)
    assert accuracy_on_new_speakers(tmp_path, 320, fold, 20) > 0.9
