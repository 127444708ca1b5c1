"""Reading and writing weights; no file is ever unpickled."""

import hashlib
import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.files import whole_file
from hybrid_lightning.weights.sharded_files import REST, read_folder


def read_file(path: str | Path, where: str = "weights", **folder_options: Any) -> dict[str, Any]:
    """The plain content of a ``.safetensors`` file, of one written by `torch.save`, or of a sharded checkpoint.

    Args:
        path: The file; of a sharded checkpoint, the folder.
        where: Config path named in errors.
        **folder_options: For a folder, see `read_folder`.

    Raises:
        ConfigError: If the file is missing, broken, or holds anything that only pickle could load.
    """
    path = Path(path)
    is_folder = (path / REST).is_file()
    if not path.is_file() and not is_folder:
        raise ConfigError(f"{where}: there is no file {str(path)!r} (looked up from {str(Path.cwd())!r}).")
    try:
        if is_folder:
            return read_folder(path, **folder_options)
        if _is_safetensors(path):
            return dict(load_file(path))
        with path.open("rb") as file:  # of a path, torch.load would look at the name
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        if "TorchScript" in str(error):
            raise _refused(path, where, "a program of TorchScript") from None
        raise ConfigError(f"{where}: {str(path)!r} cannot be read: {_first_line(error)}") from None
    except Exception:  # an unpickling error, whose text would advise to load the file all the same
        found = [] if is_folder else pickled_names(path)
        if not found and not is_folder:  # a web page, a pointer of git-lfs, ...
            raise ConfigError(
                f"{where}: {str(path)!r} is neither safetensors nor a file of torch.save; it begins with "
                f"{_beginning(path, 40)!r}. Fetch it again from its source."
            ) from None
        plain = ("torch._utils._rebuild", "torch.serialization", "collections.OrderedDict")
        names = [n for n in found if not n.startswith(plain) and not n.endswith("Storage")]
        raise _refused(path, where, listing(names, 5) if names else "what torch cannot read safely") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {str(path)!r} holds a {type(content).__name__}, not named tensors.")
    return dict(content)


def _beginning(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, the length of a JSON text and the text; what cannot be told so, by its name."""
    start = _beginning(path, 9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not zipfile.is_zipfile(path))


def _refused(path: Path, where: str, what: str) -> ConfigError:
    return ConfigError(
        f"{where}: {str(path)!r} is refused, because loading it could run code: beside tensors it holds {what}. Where "
        f"it was made, and only if you trust it, save its tensors alone: "
        f"safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_digest(path: str | Path, wanted: str | None, where: str) -> None:
    """Raises `ConfigError` unless a file has this SHA-256 digest (hexadecimal, ``sha256:`` before it or not)."""
    if wanted is None or not Path(path).exists():
        return
    if not Path(path).is_file():
        raise ConfigError(f"{where}: {str(path)!r} is a folder, which has no digest. Give a file, or leave it out.")
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != str(wanted).removeprefix("sha256:").lower():
        raise ConfigError(
            f"{where}: {str(path)!r} is not the file that was meant. Its digest is {found}, and {wanted} is given. "
            f"Fetch it again from its source, or correct the digest."
        )


def pickled_names(path: Path) -> list[str]:
    """The classes and functions that unpickling a file of torch.save would look up; nothing of it is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        else:
            pickles = [path.read_bytes()]
        return list(dict.fromkeys(name for content in pickles for name in _names_in(io.BytesIO(content))))
    except (OSError, zipfile.BadZipFile):
        return []


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
    """Writes tensors as safetensors; the file appears whole or not at all."""
    # safetensors refuses tensors that share memory, such as tied ones
    own = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    with whole_file(path) as temporary:
        temporary.write_bytes(save(own))
