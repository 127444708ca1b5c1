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
from hybrid_lightning.sharded_files import REST, read_folder


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
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if is_folder:
            return read_folder(path, **folder_options)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ConfigError(f"{where}: {str(path)!r} cannot be read: {_first_line(error)}") from None
    except (KeyError, IndexError):  # what torch's reader does with bytes that are no pickle
        raise ConfigError(f"{where}: {str(path)!r} is neither safetensors nor a file of torch.save.") from None
    except Exception:  # an unpickling error, whose text would advise to load the file all the same
        plain = ("torch._utils._rebuild", "torch.serialization", "collections.OrderedDict")
        names = [n for n in pickled_names(path) if not n.startswith(plain) and not n.endswith("Storage")]
        raise ConfigError(
            f"{where}: {str(path)!r} is refused, because loading it could run code: beside tensors it holds "
            f"{listing(names, 5)}. Where it was made, and only if you trust it, save its tensors alone: "
            f"safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {str(path)!r} holds a {type(content).__name__}, not named tensors.")
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_digest(path: str | Path, wanted: str | None, where: str) -> None:
    """Raises `ConfigError` unless a file has this SHA-256 digest (hexadecimal, ``sha256:`` before it or not)."""
    if wanted is None or not Path(path).is_file():
        return
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
