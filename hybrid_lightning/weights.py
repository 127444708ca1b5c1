"""Reading and writing weights; no file is ever unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

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
        raise ConfigError(
            f"{where}: {str(path)!r} is refused, because loading it could run code: it holds more than plain tensors. "
            f"Save the tensors alone, as safetensors, where the file was made."
        ) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {str(path)!r} holds a {type(content).__name__}, not named tensors.")
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def load_weights(module: nn.Module, source: str, where: str = "weights") -> None:
    """Loads a module's weights, all of them.

    Args:
        module: A module of matching architecture.
        source: ``pretrained`` (the module's own ``load_pretrained()``) or the path of a file for `read_file`.
        where: Config path named in errors.

    Raises:
        ConfigError: If the module brings no weights, or names or shapes differ.
    """
    if source == "pretrained":
        load_pretrained = getattr(module, "load_pretrained", None)
        if load_pretrained is None:
            raise ConfigError(
                f"{where}: {type(module).__name__} brings no pretrained weights of its own. Give the path of a "
                f".safetensors or .pt file, or null for an untrained part."
            )
        load_pretrained()
        return
    tensors = read_file(source, where)
    expected = module.state_dict()
    for name, tensor in expected.items():
        if name in tensors and getattr(tensors[name], "shape", None) != tensor.shape:
            given = tuple(getattr(tensors[name], "shape", ()))
            raise ConfigError(f"{where}: {name!r} has shape {given} in {source!r}; the part has {tuple(tensor.shape)}.")
    missing, surplus = expected.keys() - tensors.keys(), {str(name) for name in tensors.keys() - expected.keys()}
    if missing or surplus:
        raise ConfigError(
            f"{where}: {source!r} does not fit {type(module).__name__}. "
            f"Missing in the file: {listing(sorted(missing), 5)}. Not in the part: {listing(sorted(surplus), 5)}."
        )
    module.load_state_dict(tensors)


def save_weights(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes tensors as safetensors; the file appears whole or not at all."""
    # safetensors refuses tensors that share memory, such as tied ones
    own = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    with whole_file(path) as temporary:
        temporary.write_bytes(save(own))
