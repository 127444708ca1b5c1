import os

import pytest
import torch

from hybrid_lightning import AtomicCheckpointIO
from hybrid_lightning.errors import ConfigError
from tests.tiny import batches, hybrid, trainer


class Unwritable:
    """Cannot be pickled; looks around when torch tries."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def __reduce__(self):
        self.seen = sorted(path.name for path in self.folder.iterdir())
        raise ValueError("broken")


def test_a_checkpoint_is_written_beside_the_old_one_which_stays_until_it_is_whole(tmp_path):
    path, plugin, content = tmp_path / "last.ckpt", AtomicCheckpointIO(), Unwritable(tmp_path)
    plugin.save_checkpoint({"step": 1}, path)
    with pytest.raises(ValueError, match="broken"):
        plugin.save_checkpoint({"step": content}, path)
    assert content.seen == ["last.ckpt", f"last.ckpt.{os.getpid()}.part"]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert plugin.load_checkpoint(path, weights_only=True) == {"step": 1}


def test_a_checkpoint_with_a_flipped_bit_is_not_restored(tmp_path):
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"weights": torch.ones(10_000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^--ckpt_path: '.*last\.ckpt' is damaged: Bad CRC-32"):
        plugin.load_checkpoint(path, weights_only=True)


def test_a_trainer_writes_the_same_checkpoint_with_it(tmp_path):
    states = []
    for index, plugins in enumerate(([], [AtomicCheckpointIO()])):
        runner = trainer(plugins=plugins, max_epochs=1)
        torch.manual_seed(0)
        runner.fit(hybrid(), batches())
        runner.save_checkpoint(tmp_path / f"{index}.ckpt")
        states.append(torch.load(tmp_path / f"{index}.ckpt", weights_only=True))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1]["state_dict"][name]) for name, value in states[0]["state_dict"].items())
