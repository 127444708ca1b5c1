"""`export`: the plain network of a checkpoint, through the command line."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli import main
from tests.small import PARTS, changed, command, write

TOWERS = {
    **PARTS,
    "late": {"module": "ConvExtractor", "args": {"channels": [3], "norm": True}, "input": "image", "unfreeze": "never"},
}
LORA = {**PARTS, "body": {**PARTS["body"], "adapter": {"kind": "lora", "r": 2}}}
SERIES = {
    "encoder": {"module": "FracastEncoder", "args": {"context": 64}, "weights": "pretrained", "input": "trace"},
    "wave": "ResidualConv1d",
    "stats": "MLP",
}


def fitted(folder: Path, parts: object) -> tuple[Path, str]:
    path = write(changed({"init.parts": parts}))
    assert main(["fit", "--config", path]) == 0
    return next(folder.rglob("last.ckpt")), path


def images(count: int) -> dict[str, torch.Tensor]:
    return {"image": torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))}


@pytest.mark.slow
@pytest.mark.parametrize("parts", [TOWERS, LORA], ids=["towers", "adapter"])
def test_the_program_answers_as_the_model_for_any_number_of_samples(parts, folder, capsys):
    checkpoint, config = fitted(folder, parts)
    capsys.readouterr()
    assert main(["export", "--config", config, "--ckpt_path", "last", "--output", "new/net.pt2"]) == 0
    out = capsys.readouterr().out
    assert "inputs: image (samples, 3, 16, 16) float32" in out
    assert f"sha256:{hashlib.sha256(Path('new/net.pt2').read_bytes()).hexdigest()}" in out
    program = torch.export.load("new/net.pt2").module()
    model = HybridClassifier.load_from_checkpoint(checkpoint)
    for count in (1, 2, 7, 100):
        with torch.no_grad():
            torch.testing.assert_close(program(images(count)), model(images(count)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_series_with_a_mask_in_a_dict_are_exported(folder, capsys):
    config = changed({"init.parts": SERIES, "init.num_classes": 11, "trainer.limit_val_batches": 1})
    config["data"] = {"class_path": "PlaidDataModule", "init_args": {"context": 64, "wave_length": 32}}
    assert main(["fit", "--config", write(config)]) == 0
    words = ["--config", "small.yaml", "--ckpt_path", "last", "--output", "net.pt2"]
    assert main(["export", *words]) == 0
    assert "trace.values (samples, 64) float32, trace.mask (samples, 64) bool" in capsys.readouterr().out


def test_tensors_are_those_of_the_network_without_adapters(folder):
    checkpoint, config = fitted(folder, LORA)
    words = ["--config", config, "--ckpt_path", str(checkpoint), "--format", "safetensors"]
    assert main(["export", *words, "--output", "net.safetensors"]) == 0
    tensors = load_file("net.safetensors")
    plain = HybridClassifier(num_classes=3, parts=PARTS).build(images(2))
    plain.network.load_state_dict(tensors)
    model = HybridClassifier.load_from_checkpoint(checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images(5)), model(images(5)), rtol=1e-4, atol=1e-5)


def test_a_new_run_starts_from_exported_tensors(folder, capsys):
    _, config = fitted(folder, PARTS)
    words = ["--config", config, "--ckpt_path", "last", "--format", "safetensors", "--output", "net.safetensors"]
    assert main(["export", *words]) == 0
    assert command("fit", config=changed({"init.init_from": "net.safetensors"})) == 0
    assert re.search(r"init_from .*net\.safetensors: 100\.0% of the values", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "net.onnx"], "output: 'net.onnx' does not end in .pt2"),
        (["--output", "net.pt2", "--format", "safetensors"], "'net.pt2' does not end in .safetensors"),
        (["--output", "net.pt2", "--format", "onnx"], "format"),
        ([], "output"),
    ],
)
def test_what_cannot_be_exported_is_an_error(words, message, fitted_here, capsys):
    assert main(["export", "--config", "small.yaml", "--ckpt_path", "last", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_a_checkpoint_nothing_is_exported(fitted_here, capsys):
    assert main(["export", "--config", "small.yaml", "--output", "net.pt2"]) == 2
    assert "without a checkpoint the weights would be random" in capsys.readouterr().err


@pytest.fixture
def fitted_here(folder):
    fitted(folder, PARTS)
    return folder
