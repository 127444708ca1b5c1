"""How many classes a config leaves out, because its data know it."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.importing import import_path

_KEY = "num_classes"


def fill_num_classes(config: Namespace, saved: Mapping[str, Any] | None) -> None:
    """Writes ``num_classes`` into a config that leaves it out: that of a checkpoint, or of the target of the data."""
    arguments = config.model.init_args
    if _KEY not in arguments or arguments[_KEY] is not None:
        return
    known = (saved or {}).get("settings", {}).get(_KEY)
    arguments[_KEY] = known if isinstance(known, int) else _counted(config.data)


def _counted(section: Namespace) -> int:
    """How many classes or labels the target of the data has."""
    data = import_path(section.class_path)(**section.init_args.as_dict())
    find = getattr(data, "find_classes", None)
    names = find() if callable(find) else None
    if names is None:
        raise ConfigError(
            f"it must be given, because {type(data).__name__} does not say how many classes there are. Write such as "
            f"num_classes: 3.",
            f"model.{_KEY}",
        )
    return max(len(names), 2)  # one number has one name, and is refused for what it is
