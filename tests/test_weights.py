import os
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.weights import load_weights, read_file, save_weights


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, marker) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(2, 3)


def with_pickle(content, path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, with_pickle])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"weight": p}], ids=["bare", "inside"])
def test_a_file_with_code_is_refused_and_nothing_runs(write, wrap, tmp_path, layer):
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    write(wrap(Payload(marker)), file)
    for read in (lambda: read_file(file, "here"), lambda: load_weights(layer, str(file), "here")):
        with pytest.raises(ConfigError, match=r"^here: '.*evil\.pt' is refused, because loading it could run code"):
            read()
    assert not marker.exists()
    torch.load(file, weights_only=False) if write is torch.save else pickle.loads(file.read_bytes())
    assert marker.exists(), "the payload works, so its refusal means something"


def test_a_whole_pickled_module_is_refused(tmp_path, layer):
    torch.save(layer, tmp_path / "module.pt")
    with pytest.raises(ConfigError, match=r"is refused, because loading it could run code.*Save the tensors alone"):
        read_file(tmp_path / "module.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_come_back_bit_equal(name, tmp_path, layer):
    (save_weights if name.endswith("s") else torch.save)(layer.state_dict(), tmp_path / name)
    other = nn.Linear(2, 3)
    load_weights(other, str(tmp_path / name))
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other.bias, layer.bias)


def test_a_missing_file_is_named_with_the_folder_it_was_looked_up_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^here: there is no file 'no.pt' \\(looked up from '{tmp_path}'\\)"):
        read_file("no.pt", "here")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"just text"], ids=["empty", "cut", "text"])
def test_a_broken_file_is_a_config_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^here: '.*{name}' (cannot be read|is refused|is neither)"):
        read_file(tmp_path / name, "here")


def test_a_file_that_holds_no_names_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="holds a list, not named tensors"):
        read_file(tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(3, 2)}, r"does not fit Linear. Missing in the file: 'bias'. Not in the part: none"),
        (
            {"weight": torch.ones(3, 2), "bias": torch.ones(3), "extra": torch.ones(1), 7: torch.ones(1)},
            r"Missing in the file: none. Not in the part: '7', 'extra'",
        ),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
            r"'weight' has shape \(2, 3\) in '.*'; the part has \(3, 2\)",
        ),
        ({"weight": "text", "bias": torch.ones(3)}, r"'weight' has shape \(\)"),
        ({"state_dict": {}}, r"Missing in the file: 'bias', 'weight'. Not in the part: 'state_dict'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(tensors, message, tmp_path, layer):
    torch.save(tensors, tmp_path / "w.pt")
    before = layer.weight.clone()
    with pytest.raises(ConfigError, match=message):
        load_weights(layer, str(tmp_path / "w.pt"))
    assert torch.equal(layer.weight, before)


def test_pretrained_asks_the_module_for_its_own_weights(layer):
    layer.load_pretrained = lambda: nn.init.ones_(layer.weight)
    load_weights(layer, "pretrained")
    assert layer.weight.eq(1).all()


def test_a_module_without_weights_of_its_own_says_what_to_give(layer):
    with pytest.raises(ConfigError, match=r"^here: Linear brings no pretrained weights of its own. Give the path"):
        load_weights(layer, "pretrained", "here")


def test_tied_and_strided_tensors_are_written_as_they_are(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": table, "tied": table, "transposed": table.T, "column": table[:, 1]}
    save_weights(tensors, tmp_path / "new" / "w.safetensors")
    written = load_file(tmp_path / "new" / "w.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["w.safetensors"]
