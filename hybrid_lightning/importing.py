"""From a dotted path to the object behind it, and the arguments that it takes."""

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from hybrid_lightning.errors import ConfigError, check_keys, listing, unknown

INSTALLABLE = {"timm", "torchvision", "transformers"}


@dataclass(frozen=True)
class ClassSpec:
    """A class or function and its arguments, as configs write them.

    Args:
        class_path: A name, or the dotted path of a class or function.
        init_args: Its keyword arguments.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: object, example: str) -> Self:
        """Reads ``Adam``, a class, or ``{class_path: ..., init_args: {...}}``.

        Args:
            given: What the config says.
            example: A name that would be right here, for the error.

        Raises:
            ConfigError: If it is none of these.
        """
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


def import_path(path: str, where: str) -> Any:
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
                raise unknown(f"{where}: {path!r}", "name", name, [n for n in dir(found) if not n.startswith("_")])
            found = getattr(found, name)
        return found
    package = names[0]
    if package in INSTALLABLE:
        raise ConfigError(f"{where}: {path!r} needs {package}. Install it: pip install 'hybrid_lightning[{package}]'")
    raise ConfigError(f"{where}: {path!r} cannot be imported: there is no module {package!r} on the Python path.")


def check_arguments(factory: Callable[..., Any], args: Mapping[str, Any], where: str) -> None:
    """Compares argument names with a factory's signature.

    Args:
        factory: The class or function.
        args: The keyword arguments it is to be called with.
        where: Config path named in errors.

    Raises:
        ConfigError: If a name is unknown (with the closest one) or a required one is missing.
    """
    parameters = parameters_of(factory)
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        for given in args:
            if given not in names:
                raise unknown(where, "argument", str(given), names)
    missing = [name for name in names if parameters[name].default is inspect.Parameter.empty and name not in args]
    if missing:
        raise ConfigError(f"{where}: {listing(missing)} must be given. Arguments: {listing(names)}.")


def parameters_of(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The signature's parameters; empty where Python cannot tell."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
