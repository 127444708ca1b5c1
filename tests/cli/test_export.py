"""`export`: the plain network of a checkpoint, through the command line."""

import hashlib
import io
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli import main
from hybrid_lightning.cli.export import entries_read, export_network, exported_program, plain_network
from hybrid_lightning.cli.preparation import load_checkpoint
from hybrid_lightning.errors import ConfigError
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


@pytest.mark.parametrize("module", ["ConcatFusion", "GatedFusion", "AttentionFusion", "LogitFusion"])
def test_a_program_knows_what_samples_lack(module, tmp_path):
    there = torch.tensor([True, False, True, True, False])
    batch = {
        "a": torch.randn(5, 4),
        "b": torch.randn(5, 3),
        "present/a": there,
        "present/b": ~there | (there.cumsum(0) > 1),
    }
    parts = {name: {"module": "MLP", "args": {"hidden": [5]}} for name in ("a", "b")}
    model = HybridClassifier(num_classes=3, parts=parts, fusion={"module": module}).build(batch)
    plain = plain_network(model.built())
    assert plain.keys_read == ["a", "b", "present/a", "present/b"]
    program = torch.export.load(io.BytesIO(exported_program(plain, batch))).module()
    with torch.no_grad():
        torch.testing.assert_close(program(batch), plain(batch), rtol=1e-4, atol=1e-5)
        everybody = {**batch, "present/a": torch.ones(5, dtype=torch.bool)}
        assert not torch.allclose(program(everybody), program(batch))


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def hostile(path: Path) -> None:
    """Writes a program that makes a file as soon as torch loads it."""
    file, payload = io.BytesIO(), io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), file)
    torch.save(Payload(), payload)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, payload.getvalue() if name.endswith("sample_inputs/model.pt") else old.read(name))


def test_the_hostile_program_would_run_code(folder):
    hostile(folder / "net.pt2")
    with pytest.raises((AttributeError, TypeError, ValueError)):
        torch.export.load("net.pt2")
    assert Path("executed").exists()


@pytest.mark.parametrize("verb", ["predict", "validate", "fit", "export"])
def test_an_exported_program_is_no_checkpoint_and_nothing_of_it_is_run(verb, folder, capsys):
    hostile(folder / "net.pt2")
    words = ["--output", "again.pt2"] if verb == "export" else []
    assert command(verb, "--ckpt_path", "net.pt2", *words) == 2
    assert "--ckpt_path: 'net.pt2' is an exported program" in (message := capsys.readouterr().err)
    assert "Give the .ckpt file of a run" in message
    assert not Path("executed").exists()


@pytest.mark.parametrize("by_flag", [True, False])
def test_trust_program_is_refused_with_what_to_do(by_flag, folder, capsys):
    words, config = (["--trust_program", "sha256:0"], None) if by_flag else ([], changed({"trust_program": "sha256:0"}))
    assert command("predict", "--ckpt_path", "net.pt2", *words, config=config) == 2
    assert "error: trust_program: predict reads no exported programs any more" in capsys.readouterr().err


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


def test_entries_that_a_network_reads_say_that_all_samples_have_what_has_no_mask():
    there = torch.tensor([True, False, True])
    batch = {"a": torch.zeros(3, 2), "b": {"values": torch.zeros(3, 2)}, "present/a": there, "other": 1}
    found = entries_read(batch, ["a", "b", "present/a", "present/b"])
    assert list(found) == ["a", "b", "present/a", "present/b"]
    assert torch.equal(found["present/a"], there)
    assert found["present/b"].tolist() == [True] * 3
    with pytest.raises(ConfigError, match="the network reads 'c'"):
        entries_read(batch, ["a", "c"])


def test_a_network_with_modality_dropout_is_exported_on_data_without_gaps(tmp_path):
    batch = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    fusion = {"args": {"modality_dropout": 0.2}}
    model = HybridClassifier(num_classes=2, parts={"a": "MLP", "b": "MLP"}, fusion=fusion).build(batch)
    export_network(model.built(), batch, str(tmp_path / "x.pt2"), "torch_export")
    assert (tmp_path / "x.pt2").exists()


def test_wide_parts_are_shrunk_as_in_the_file_though_its_options_are_others(tmp_path):
    batch = {"a": torch.randn(4, 100), "b": torch.randn(4, 3)}
    parts = {"a": "torch.nn.Identity", "b": "MLP"}
    old = HybridClassifier(num_classes=3, parts=parts, fusion={"args": {"shrink_above": None}}).build(batch).eval()
    checkpoint = {"state_dict": old.state_dict()}
    old.on_save_checkpoint(checkpoint)
    del checkpoint["hybrid_lightning"]["fusion"]["args"]  # as older programs wrote it
    torch.save(checkpoint, tmp_path / "old.ckpt")
    model = HybridClassifier(num_classes=3, parts=parts, untrained={"lr_scale": 2.0}).build(batch).eval()
    load_checkpoint(model, str(tmp_path / "old.ckpt"))
    with torch.no_grad():
        torch.testing.assert_close(model(batch), old(batch))
