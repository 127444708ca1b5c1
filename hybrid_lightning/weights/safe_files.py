"""Reading and writing weights; no file is ever unpickled."""

import hashlib
import io
import json
import pickletools
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from hybrid_lightning.errors import ConfigError, at, listing, reason
from hybrid_lightning.files import exists, is_regular_file, whole_file
from hybrid_lightning.weights.sharded_files import REST, read_folder

_CHUNK = 2**20  # bytes
_ARCHIVE = b"PK\x03\x04"  # how a file of torch.save begins
_METADATA = "__metadata__"
_DIGEST = "hybrid_lightning_sha256"
_MOST_GROWTH = 20  # of a file when it is unpacked; torch does not compress at all
_HARMLESS = 2**28  # bytes that may be unpacked of any file
_REMEDY = "Use another file, or fetch it again from its source."
_MOST_VALUES = 10**7  # plain ones, each counted wherever it stands
_MOST_BITS = 256  # of a whole number; the state of a generator has 128


def read_file(
    path: str | Path,
    place: str = "",
    without: Collection[str] = (),
    mesh: DeviceMesh | None = None,
    mapped: bool = True,
) -> dict[str, Any]:
    """The plain content of a ``.safetensors`` file, of one written by `torch.save`, or of a sharded checkpoint."""
    # mapped: False for tensors that are kept. A file that another machine replaces on a shared file system is gone
    # under its map, which ends the process.
    with at(place):
        path = located(path)
        verify(path)
        content = _content(path, mapped, without=without, mesh=mesh)
    return {key: value for key, value in content.items() if key not in without}


def peek(path: str | Path, place: str = "") -> dict[str, Any]:
    """The content as of `read_file`, for its plain values: tensors are not read, and those of a folder are left out."""
    # checksums of tensors are not verified, because that reads all of the file
    with at(place):
        path = located(path)
        verify(path, tensors=False)
        return _content(path, mapped=True, tensors=False)


def located(path: str | Path) -> Path:
    """The path of a file or of a sharded checkpoint; `ConfigError` if it is neither."""
    path = Path(path).expanduser()
    if not is_regular_file(path) and not is_regular_file(path / REST):
        raise ConfigError(f"there is no file {str(path)[:300]!r} (looked up from {str(Path.cwd())!r}).")
    return path


def verify(path: str | Path, place: str = "", tensors: bool = True) -> None:
    """Raises `ConfigError` unless the records of a file of `torch.save` match their checksums."""
    # Torch writes the checksums, but does not compare them. The file is read once, without tensors only its plain
    # values. Of a sharded checkpoint it is the file beside the shards; files of other formats have no checksums.
    path = Path(path)
    path = path / REST if path.is_dir() else path
    _refuse_torn(path, place)
    if not _is_zip(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
            if unpacked > max(_MOST_GROWTH * path.stat().st_size, _HARMLESS):
                raise zipfile.BadZipFile(f"its {path.stat().st_size} bytes would unpack to {unpacked}")
            for record in archive.infolist():
                is_wanted = tensors or record.filename.endswith(".pkl")
                if is_wanted and record.CRC != 0:  # 0: under torch.serialization.set_crc32_options(False)
                    with archive.open(record) as file:
                        while file.read(_CHUNK):  # Python compares the checksum at the end
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"{str(path)!r} is damaged: {reason(error)} {_REMEDY}",
            place,
        ) from None


def _refuse_torn(path: Path, place: str) -> None:
    """Raises `ConfigError` for a file without content, and for an archive, as of `torch.save`, without its end."""
    start = _beginning(path, 4) if path.is_file() else b"?"
    if not start:
        raise ConfigError(f"{str(path)!r} is empty. {_REMEDY}", place)
    if start == _ARCHIVE and not zipfile.is_zipfile(path):
        size = path.stat().st_size
        raise ConfigError(f"{str(path)!r} is cut off or damaged: its {size} bytes have no end. {_REMEDY}", place)


def _content(path: Path, mapped: bool, **folder_options: Any) -> dict[str, Any]:
    """All content of a file, or what the options of `read_folder` say of a folder."""
    is_folder = (path / REST).is_file()
    try:
        if is_folder:
            folder_content = read_folder(path, **folder_options)
            refuse_endless(folder_content)
            return folder_content
        if _is_safetensors(path):
            _verify_safetensors(path)
            return dict(load_file(path))
        content = _loaded(path, mapped)
        refuse_endless(content)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        if "TorchScript" in str(error):
            raise _refused(path, "a program of TorchScript") from None
        raise ConfigError(f"{str(path)!r} cannot be read: {reason(error)} {_REMEDY}") from None
    except Exception:  # an unpickling error, whose text would advise to load the file all the same
        raise _not_plain(path) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{str(path)!r} holds a {type(content).__name__}, not named tensors.")
    return dict(content)


def refuse_endless(content: Any) -> None:
    """Raises ValueError if a walk through plain values would hardly end, or a number is beyond any that is meant."""
    try:
        count = _count(content, {})
    except RecursionError:
        raise ValueError("its values are nested too deeply.") from None
    if count > _MOST_VALUES:
        raise ValueError(f"what stands in it several times makes more than {_MOST_VALUES:,} values.")


def _count(value: Any, counts: dict[int, int]) -> int:
    """How many values a walk meets; `counts` are those of containers by identity, 0 while they are counted."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError(f"it holds a number of {value.bit_length()} bits.")  # which Python may refuse to print
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if id(value) not in counts:
        counts[id(value)] = 0
        children: Iterable[Any] = chain(value, value.values()) if isinstance(value, Mapping) else value
        counts[id(value)] = 1 + sum(_count(child, counts) for child in children)
    elif not counts[id(value)]:
        raise ValueError("something in it holds itself.")
    return counts[id(value)]


def _verify_safetensors(path: Path) -> None:
    """Raises ValueError if a name stands twice in a file, or it is one of ours and no longer as it was written."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        entries: list[tuple[str, Any]] = json.loads(header, object_pairs_hook=list)
        names = [name for name, _ in entries]
        if len(set(names)) < len(names):
            raise ValueError("a name stands in it twice.")
        wanted = dict(dict(entries).get(_METADATA) or []).get(_DIGEST)
        if wanted is None:
            return
        tensors = [(name, dict(entry)) for name, entry in entries if name != _METADATA]
        digest = _digest_of(dict(tensors))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise ValueError("its values are not those that were written.")


def _digest_of(header: Mapping[str, Any]) -> Any:
    """A digest that begins with the names, types and places of the tensors of a safetensors file."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode())


def _loaded(path: Path, mapped: bool) -> Any:
    # Our writer renames a new file over the old one, whose content a map keeps. torch.load takes a path with the name
    # of safetensors for one, and maps the bytes of compressed records as they are.
    if mapped and path.suffix != ".safetensors" and _is_uncompressed_zip(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_uncompressed_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
    except zipfile.BadZipFile:
        return False


def _not_plain(path: Path) -> ConfigError:
    """The error for a file or folder that torch does not unpickle."""
    if path.is_dir():
        return _refused(path, "what torch cannot read safely")
    found = pickled_names(path)
    if not found:  # a web page, a pointer of git-lfs, ...
        return ConfigError(
            f"{str(path)!r} is neither safetensors nor a file of torch.save; it begins with "
            f"{_beginning(path, 40)!r}. {_REMEDY}"
        )
    plain = ("torch._utils._rebuild", "torch.serialization", "collections.OrderedDict")
    names = [name for name in found if not name.startswith(plain) and not name.endswith("Storage")]
    return _refused(path, listing(names, 5) if names else "what torch cannot read safely")


def _beginning(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, the length of a JSON text and the text; what cannot be told so, by its name."""
    start = _beginning(path, 9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not _is_zip(path))


def _is_zip(path: Path) -> bool:
    # is_zipfile alone finds the mark of an archive's end anywhere in the last 64 KiB, also by chance
    return zipfile.is_zipfile(path) and _beginning(path, 4) == _ARCHIVE


def _refused(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{str(path)!r} is refused, because loading it could run code: beside tensors it holds {what}. Where "
        f"it was made, and only if you trust it, save its tensors alone: "
        f"safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
    )


def check_digest(path: str | Path, wanted: str | None, place: str = "") -> None:
    """Raises `ConfigError` unless a file has this SHA-256 digest (hexadecimal, ``sha256:`` before it or not)."""
    if wanted is None or not exists(path):
        return
    if not Path(path).is_file():
        raise ConfigError(f"{str(path)!r} is a folder, which has no digest. Give a file, or leave it out.", place)
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != str(wanted).removeprefix("sha256:").lower():
        raise ConfigError(
            f"{str(path)!r} is not the file that was meant. Its digest is {found}, and {wanted} is given. "
            f"Fetch it again from its source, or correct the digest.",
            place,
        )


def pickled_names(path: Path) -> list[str]:
    """The classes and functions that unpickling a file of torch.save would look up; nothing of it is run."""
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        else:
            pickles = [path.read_bytes()]
    except (OSError, zipfile.BadZipFile):
        return []
    names: dict[str, None] = {}  # in the order of the file, each once
    for content in pickles:
        names |= dict.fromkeys(_names_in(io.BytesIO(content)))
    return list(names)


def _names_in(stream: io.BytesIO) -> Iterator[str]:
    texts: list[str] = []
    while True:  # files of older torch versions hold several pickles
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
                    yield ".".join(texts[-2:])
                elif isinstance(argument, str):
                    texts.append(argument)
        except Exception:  # the end, or bytes that are no pickle
            return


def save_weights(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes tensors as safetensors, with a digest that `read_file` compares; it appears whole or not at all."""
    own = {}
    for name, tensor in tensors.items():
        # safetensors refuses tensors that share memory, such as tied ones
        own[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    content = save(own)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    digest = _digest_of(header)
    digest.update(memoryview(content)[start:])
    text = json.dumps({_METADATA: {"format": "pt", _DIGEST: digest.hexdigest()}, **header}).encode()
    text += b" " * (-len(text) % 8)  # the values have to be aligned
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[start:])
