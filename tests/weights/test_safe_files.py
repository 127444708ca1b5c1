import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.weights.safe_files import check_digest, peek, pickled_names, read_file, save_weights, verify


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
def test_a_file_with_code_is_refused_and_nothing_runs(write, wrap, tmp_path):
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    write(wrap(Payload(marker)), file)
    with pytest.raises(ConfigError, match=r"^here: '.*evil\.pt' is refused, .* it holds '(os|posix)\.mkdir'"):
        read_file(file, "here")
    assert not marker.exists()
    torch.load(file, weights_only=False) if write is torch.save else pickle.loads(file.read_bytes())
    assert marker.exists(), "the payload works, so its refusal means something"


def test_a_whole_pickled_module_is_refused(tmp_path, layer):
    torch.save(layer, tmp_path / "module.pt")
    with pytest.raises(
        ConfigError,
        match=r"is refused, because loading it .* 'torch\.nn\.modules\.linear\.Linear'.*save_file\(model\.state_dict",
    ):
        read_file(tmp_path / "module.pt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_a_file_would_unpickle_is_read_without_running_it(zipped, tmp_path):
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({"weight": torch.ones(2), "x": Payload(marker)}, file, _use_new_zipfile_serialization=zipped)
    assert f"{os.mkdir.__module__}.mkdir" in pickled_names(file)
    with pytest.raises(ConfigError, match=r"it holds '(os|posix)\.mkdir'\. Where it was made"):
        read_file(file)
    assert not marker.exists()


@pytest.fixture
def large(tmp_path) -> Path:
    """A file of 16 MB."""
    torch.save({"step": 3, "weights": torch.randn(2, 2048, 1024)}, tmp_path / "large.pt")
    return tmp_path / "large.pt"


def bytes_read() -> int:
    """What this process has read from files so far, without what is mapped."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what a process reads")
def test_a_look_at_a_file_reads_no_tensor(large):
    before = bytes_read()
    assert peek(large)["step"] == 3
    assert bytes_read() - before < 2**16
    read_file(large)
    assert bytes_read() - before > 2**24


def test_a_tensor_of_a_mapped_file_can_be_changed_and_the_file_stays(large, tmp_path):
    content, other = read_file(large), read_file(large, mapped=False)
    assert torch.equal(content["weights"], other["weights"])
    content["weights"].zero_()
    assert torch.equal(read_file(large)["weights"], other["weights"])
    mapped = read_file(large)["weights"]
    torch.save({"weights": torch.zeros(1)}, tmp_path / "new.pt")
    (tmp_path / "new.pt").replace(large)  # as our writer does
    assert torch.equal(mapped, other["weights"])


def test_keys_are_left_out_of_any_file(large, tmp_path):
    assert read_file(large, without=["weights"]) == {"step": 3}
    save_weights({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.safetensors")
    assert read_file(tmp_path / "w.safetensors", without=["b"]).keys() == {"a"}


def test_a_flipped_bit_is_found_by_its_checksum(large):
    damaged = bytearray(large.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    large.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"^here: '.*large\.pt' is damaged: Bad CRC-32 for file 'large/data/0'\. Use"):
        read_file(large, "here")
    with pytest.raises(ConfigError, match=r"^here: '.*large\.pt' is damaged"):
        verify(large, "here")
    assert peek(large)["step"] == 3
    damaged[damaged.index(b"step") + 1] ^= 1
    large.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"^here: '.*large\.pt' is damaged: Bad CRC-32 for file 'large/data\.pkl'"):
        peek(large, "here")


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weights": torch.ones(2)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_file(tmp_path / "w.pt")["weights"].equal(torch.ones(2))


def test_a_file_that_was_compressed_later_is_read(large, tmp_path):
    with zipfile.ZipFile(large) as old, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name.replace("large", "x"), old.read(name))
    assert torch.equal(read_file(tmp_path / "x.pt")["weights"], read_file(large)["weights"])


def test_a_file_that_unpacks_to_many_times_its_size_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.weights.safe_files._HARMLESS", 1000)
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    for read in (read_file, peek, verify):
        with pytest.raises(ConfigError, match=r"is damaged: its \d+ bytes would unpack to 1000000"):
            read(path)


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    for name in ("pipe.ckpt", "x" * 300, "a\0b", "."):
        for read in (read_file, peek):
            with pytest.raises(ConfigError, match="there is no file"):
                read(tmp_path / name)
    check_digest("x" * 300, "sha256:00")


def test_a_truncated_file_is_refused(tmp_path):
    torch.save({"weight": torch.ones(100)}, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "w.pt").write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"w\.pt' is cut off or damaged"):
            read_file(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><title>Not found", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_file_of_weights_is_told_by_its_beginning(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    beginning = re.escape(repr(content[:20])[:-1])
    with pytest.raises(ConfigError, match=rf"w\.pth' is neither safetensors nor .*; it begins with {beginning}"):
        read_file(tmp_path / "w.pth")


def test_the_content_decides_what_a_file_is_and_not_its_name(tmp_path, layer):
    save_weights(layer.state_dict(), tmp_path / "w.pth")
    torch.save(layer.state_dict(), tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert torch.equal(read_file(tmp_path / name)["weight"], layer.weight)


def test_a_pickle_that_torch_cannot_read_safely_is_refused(tmp_path, layer):
    torch.save(layer.state_dict(), tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(ConfigError, match=r"is refused, because .* it holds what torch cannot read safely\. Where"):
        read_file(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript archive:UserWarning")
def test_a_torchscript_program_is_refused_with_the_way_out(tmp_path, layer):
    torch.jit.script(layer).save(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"is refused, .* it holds a program of TorchScript\. Where .*save_file"):
        read_file(tmp_path / "w.pt")


def test_a_digest_tells_files_apart(tmp_path):
    (tmp_path / "w").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    for given in (digest, f"sha256:{digest}", f"sha256:{digest.upper()}", None):
        check_digest(tmp_path / "w", given, "here")
    (tmp_path / "w").write_bytes(b"abd")
    with pytest.raises(ConfigError, match=rf"^here: .*w' is not the file that was meant.*{digest} is given"):
        check_digest(tmp_path / "w", digest, "here")
    with pytest.raises(ConfigError, match=r"is a folder, which has no digest"):
        check_digest(tmp_path, digest, "here")


def test_a_missing_file_is_named_with_the_folder_it_was_looked_up_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^here: there is no file 'no.pt' \\(looked up from '{tmp_path}'\\)"):
        read_file("no.pt", "here")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"just text"], ids=["empty", "cut", "text"])
def test_a_broken_file_is_a_config_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^here: '.*{name}' .*or fetch it again") as caught:
        read_file(tmp_path / name, "here")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    assert "PytorchStreamReader" not in str(caught.value)


@pytest.mark.parametrize("read", [read_file, peek])
def test_an_archive_without_its_end_is_told_in_our_words(read, tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        ConfigError, match=r"cut\.ckpt' is cut off or damaged: its 3000 bytes have no end\. Use another"
    ):
        read(path)


def test_a_file_that_holds_no_names_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="holds a list, not named tensors"):
        read_file(tmp_path / "list.pt")


def test_tied_and_strided_tensors_are_written_as_they_are(tmp_path):
    table = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": table, "tied": table, "transposed": table.T, "column": table[:, 1]}
    save_weights(tensors, tmp_path / "new" / "w.safetensors")
    written = load_file(tmp_path / "new" / "w.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_what_is_written_has_a_digest_that_is_compared(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights({"weight": torch.arange(4.0), "b": torch.ones(3, dtype=torch.int64)}, path)
    assert load_file(path)["weight"].equal(torch.arange(4.0))
    whole = path.read_bytes()
    names = whole.replace(b'"weight"', b'"weighs"')
    value = bytearray(whole)
    value[-1] ^= 1
    for damaged in (names, bytes(value)):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"w\.safetensors' cannot be read: its values are not those that were"):
            read_file(path)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    entry = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = ("{" + f"{entry},{entry}" + "}").encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ConfigError, match="a name stands in it twice"):
        read_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize("nest", [lambda value: [value, value], lambda value: {"a": value, "b": value}])
def test_what_stands_in_a_file_many_times_is_counted_each_time(nest, tmp_path):
    value = ["x"]
    for _ in range(60):
        value = nest(value)
    torch.save({"a": value}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="makes more than 10,000,000 values"):
        peek(tmp_path / "a.pt")
    within = []
    within.append(within)
    torch.save({"a": within, "b": 2**255}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="something in it holds itself"):
        peek(tmp_path / "a.pt")


def test_a_number_that_no_float_can_hold_is_refused(tmp_path):
    torch.save({"a": [2**255]}, tmp_path / "a.pt")
    assert peek(tmp_path / "a.pt") == {"a": [2**255]}
    torch.save({"a": [-(2**256)]}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="a number of 257 bits"):
        peek(tmp_path / "a.pt")
