import contextlib
import hashlib

import pytest
import torch
from safetensors.torch import load_file

from hybrid_lightning.cli import main
from tests.small import command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    with contextlib.chdir(folder):
        assert command("fit") == 0
    return next(folder.rglob("last.ckpt"))


def export(*words: str) -> int:
    return main(["export_part", *map(str, words)])


def test_one_part_is_written_and_its_digest_printed(checkpoint, tmp_path, capsys):
    target = tmp_path / "new" / "stem.safetensors"
    assert export("--ckpt_path", checkpoint, "--part", "stem", "--output", target) == 0
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    tensors = load_file(target)
    assert tensors.keys() == {"block0.0.weight", "block0.0.bias"}
    assert all(torch.equal(t, saved[f"network.parts.stem.{name}"]) for name, t in tensors.items())
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert capsys.readouterr().out.strip() == f"{target}  sha256:{digest}"


def test_another_model_starts_from_the_exported_part(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export("--ckpt_path", checkpoint, "--part", "stem", "--output", "stem.safetensors") == 0
    weights = ["--model.parts.stem.weights", "stem.safetensors", "--model.parts.stem.unfreeze", "never"]
    assert command("fit", *weights) == 0
    trained = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)["state_dict"]
    for name, tensor in load_file("stem.safetensors").items():
        assert torch.equal(trained[f"network.parts.stem.{name}"], tensor)


@pytest.mark.parametrize(
    ("part", "words"), [("stm", ["unknown part 'stm'", "mean 'stem'"]), ("", ["unknown part ''", "'stem'"])]
)
def test_an_unknown_part_is_told(part, words, checkpoint, tmp_path, capsys):
    assert export("--ckpt_path", checkpoint, "--part", part, "--output", tmp_path / "x.safetensors") == 2
    message = capsys.readouterr().err
    assert not [word for word in words if word not in message]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [{"a": torch.ones(1)}, {"state_dict": 3}, None])
def test_a_file_that_is_no_checkpoint_is_told(content, tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    if content is not None:
        torch.save(content, path)
    assert export("--ckpt_path", path, "--part", "stem", "--output", tmp_path / "x.safetensors") == 2
    assert "--ckpt_path" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert export("--ckpt_path", checkpoint, "--part", "stem", "--output", tmp_path / "file" / "x.safetensors") == 2
    assert "--output" in capsys.readouterr().err


def test_missing_words_are_told(capsys):
    assert export("--part", "stem") == 2
    assert "error: export_part: --ckpt_path, --output must be given." in capsys.readouterr().err
