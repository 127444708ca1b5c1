"""From a dotted path to the object behind it, and the arguments that it takes."""

import importlib
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from torch import nn

from hybrid_lightning.errors import ConfigError, check_keys, listing, unknown

INSTALLABLE = {"timm", "torchvision", "transformers"}


@dataclass(frozen=True)
class ClassSpec:
    """A class or function and its arguments, as configs write them."""

    class_path: str  # A name, or the dotted path of a class or function
    init_args: dict[str, Any] = field(default_factory=dict)  # its keyword arguments

    @classmethod
    def parse(cls, given: object, example: str) -> Self:
        """Reads ``Adam``, a class, or ``{class_path: ..., init_args: {...}}``."""
        if isinstance(given, str | type):
            given = {"class_path": given}
        if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str | type):
            raise ConfigError(f"write {{class_path: {example}, init_args: {{...}}}} or a class name, not {given!r}.")
        check_keys(given, ("class_path", "init_args"))
        path, args = given["class_path"], given.get("init_args") or {}
        if isinstance(path, type):
            path = f"{path.__module__}.{path.__qualname__}"
        if not isinstance(args, Mapping):
            raise ConfigError(f"{args!r} are not names and values.", "init_args")
        return cls(path, dict(args))

    def plain(self) -> dict[str, Any]:
        """The long form, for checkpoints and configs."""
        return {"class_path": self.class_path, "init_args": dict(self.init_args)}


def trusted(path: str, trust: Collection[str]) -> bool:
    """Whether a path begins with one of the trusted package names."""
    return any(path == name or path.startswith(name + ".") for name in trust)


def resolve(
    path: str, names: Mapping[str, Any], trust: Collection[str] | None = None, kind: str = "module"
) -> Callable[..., Any]:
    """The class or function behind a name or a dotted path."""
    # trust None allows every path, as in a config that the user wrote. A path found in a file is one of `names`, a
    # layer of torch.nn, a model of timm, torchvision or transformers, or begins with one of these package names.
    target = names.get(path, path)
    if not isinstance(target, str):
        return target  # type: ignore[no-any-return]
    if "." not in target or not all(name.isidentifier() for name in target.split(".")):
        raise unknown("", kind, path, names or ["package.module.name"])
    is_free = path in names or trust is None
    importable = path.startswith("torch.nn.") or path.split(".")[0] in INSTALLABLE
    if not (is_free or importable or trusted(path, trust or ())):
        raise _refused(path)
    found = import_path(target)
    if not is_free and not _may_be_called(path, found, trust or ()):
        raise _refused(path)
    if not callable(found):
        raise ConfigError(f"{path!r} is a {type(found).__name__}, not a class or function.")
    return found  # type: ignore[no-any-return]


def _refused(path: str) -> ConfigError:
    package = path.split(".")[0]
    return ConfigError(
        f"the file names {path!r}, which is outside the allowed places (the built-in names, layers of torch.nn, models "
        f"of timm, torchvision and transformers). A path in a file is code chosen by whoever wrote it. If you trust "
        f"it, load with trust=[{package!r}]."
    )


def _may_be_called(path: str, found: object, trust: Collection[str]) -> bool:
    """A layer or model class that lives where its path says, or a function of timm or torchvision that makes one."""
    if trusted(path, trust):
        return True
    package = path.split(".")[0]
    home = getattr(found, "__module__", "") or ""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return home.startswith("torch.nn." if package == "torch" else package + ".")
    if path == "timm.create_model" or not inspect.isfunction(found):
        return path == "timm.create_model"
    if home.startswith("timm.models."):
        from timm import is_model

        return bool(is_model(found.__name__)) and path.endswith(f".{found.__name__}")
    return home.startswith("torchvision.models.") and not home.endswith("._api")


def import_path(path: str) -> Any:
    """Imports the longest prefix that is a module, then follows attributes."""
    names = path.split(".")
    for length in range(len(names) - 1, 0, -1):
        module = ".".join(names[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
                continue
            raise
        for name in names[length:]:
            if not hasattr(found, name):
                public = [n for n in dir(found) if not n.startswith("_")]
                raise ConfigError(str(unknown(repr(path), "name", name, public)))
            found = getattr(found, name)
        return found
    package = names[0]
    if package in INSTALLABLE:
        raise ConfigError(f"{path!r} needs {package}. Install it: pip install 'hybrid_lightning[{package}]'")
    raise ConfigError(f"{path!r} cannot be imported: there is no module {package!r} on the Python path.")


def check_arguments(factory: Callable[..., Any], args: Mapping[str, Any], place: str = "") -> None:
    """Compares argument names with a factory's signature."""
    parameters = parameters_of(factory)
    names = check_names(factory, args, place)
    missing = [name for name in names if parameters[name].default is inspect.Parameter.empty and name not in args]
    if missing:
        raise ConfigError(f"{listing(missing)} must be given. Arguments: {listing(names)}.", place)


def check_names(factory: Callable[..., Any], args: Iterable[str], place: str = "") -> list[str]:
    """The names that a factory's arguments may have; `ConfigError` if one of `args` is none of them."""
    parameters = parameters_of(factory)
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        check_keys(args, names, place, "argument")
    return names


def parameters_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The signature's parameters; empty where Python cannot tell."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}


def import_extra(module: str, extra: str, user: str) -> Any:
    """A module of an optional package; if it is missing, an error that names its `user` and the `extra` to install."""
    try:
        return importlib.import_module(module)
    except (ModuleNotFoundError, OSError) as error:  # OSError: a C library that it needs is missing
        raise _needs(user, f"{module.partition('.')[0]}: {error}", extra) from None


def package_folder(package: str, extra: str, user: str) -> Path:
    """Where an optional package is installed, for its files; it is not imported, so that what it needs may lack."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _needs(user, f"the package {package}", extra)
    return Path(spec.submodule_search_locations[0])


def _needs(user: str, what: str, extra: str) -> ConfigError:
    return ConfigError(f"{user} needs {what}. Install it with: pip install 'hybrid_lightning[{extra}]'")


def cache_hint(path: Any) -> str:
    """Where the weights of a library's model are kept, and how to get them there; empty for any other module."""
    package = path.partition(".")[0] if isinstance(path, str) else None
    if package not in INSTALLABLE:
        return ""
    home = Path.home() / ".cache"
    torch_home = os.environ.get("TORCH_HOME") or str(home / "torch")
    hub_home = os.environ.get("HF_HUB_CACHE") or str(Path(os.environ.get("HF_HOME") or home / "huggingface") / "hub")
    folder = torch_home if package == "torchvision" else hub_home
    return (
        f" If the network is not reachable from here, run 'python -m hybrid_lightning prefetch --config ...' where it "
        f"is; weights are kept in {folder!r}."
    )
