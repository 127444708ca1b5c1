"""``help TOPIC``: options of parts, models, data and classes, from their signatures and docstrings."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import hybrid_lightning
from hybrid_lightning.cli.commands import COMMANDS
from hybrid_lightning.cli.help import TOPICS, Row, help_of, help_of_config, option_lines, option_paragraphs, overview
from hybrid_lightning.cli.help_options import default_words, options_of, plain
from hybrid_lightning.errors import ConfigError, unknown

_FILLED_IN = ("written",)
_CLASSES = {"data": "ManifestDataModule", "checkpoint": "BestCheckpoint", "trainer": "Trainer"}


def help_on(words: Sequence[str]) -> str:
    """What ``help WORDS`` prints; raises `ConfigError` for a topic that there is none of."""
    name, *rest = words or [""]
    if not name:
        return overview()
    if rest[1:] or (rest and name != "part"):
        raise ConfigError(f"{rest[-1]!r} is a word too many; 'help' lists the topics.", f"help {name}")
    if name in COMMANDS:
        return help_of(name)
    if name == "config":
        return help_of_config()
    if name == "part":
        return _of_part(rest[0]) if rest else _of_parts()
    if name == "model":
        return _of_models()
    if name == "recipes":
        return _of_recipes()
    if name == "modules":
        return _of_modules()
    target = _class_of(name)
    if target is None:
        raise unknown("help", "topic", name, [*TOPICS, *COMMANDS, *hybrid_lightning.__all__, *_modules()])
    return _of(name, target)


def _class_of(name: str) -> Callable[..., Any] | None:
    """The class that a topic names; None if there is none."""
    name = _CLASSES.get(name, name)
    if name == "Trainer":
        from lightning.pytorch import Trainer

        return Trainer
    if name == "BestCheckpoint":
        from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint

        return BestCheckpoint
    if name in hybrid_lightning.__all__:
        found: Callable[..., Any] = getattr(hybrid_lightning, name)
        return found
    return _modules().get(name)


def _modules() -> dict[str, Callable[..., Any]]:
    """Name → class or function of each module that a part can name without a dot, as far as its library is here."""
    from hybrid_lightning.network.registry import REGISTRY

    found: dict[str, Callable[..., Any]] = {}
    for name, target in REGISTRY.items():
        if not isinstance(target, str):
            found[name] = target
            continue
        module, _, attribute = target.rpartition(".")
        try:
            found[name] = getattr(importlib.import_module(module), attribute)
        except ImportError:  # of an extra that is not installed
            continue
    return found


def _of(name: str, target: Callable[..., Any]) -> str:
    """A heading, and the options of a class or function."""
    rows = options_of(target)
    text = inspect.getdoc(target) or ""
    about = plain(text.split("\n\n")[0]) if rows else text
    title = f"{_CLASSES[name]}: " if name in _CLASSES else f"{name}: "
    return "\n".join([title + about, "", *option_paragraphs(rows)])


def _of_parts() -> str:
    """All options of a part."""
    return "\n".join(
        [
            "Options of a part, below model.init_args.parts.NAME; pretrained: and untrained: of the model change the",
            "defaults of all parts of an origin.",
            "",
            *option_paragraphs(_part_rows()),
            "",
            f"Modules by name: {', '.join(_modules())};",
            "'help part MLP' shows the arguments of one. Any other module is named by its dotted path, such as",
            "timm.create_model or my_package.my_module.MyNet.",
        ]
    )


def _of_part(name: str) -> str:
    """One option of a part, or the arguments of a module that a part can name."""
    rows = {row[0]: row for row in _part_rows()}
    modules = _modules()
    if name in rows:
        return "\n".join(option_paragraphs([rows[name]]))
    if name in modules:
        return _of(name, modules[name])
    raise unknown("help part", "option or module", name, [*rows, *modules])


def _part_rows() -> list[Row]:
    """The options of a part, with the defaults of each origin."""
    from hybrid_lightning.network.defaults import DEFAULTS
    from hybrid_lightning.network.part import Part

    rows = []
    for name, kind, default, meaning in options_of(Part):
        if name in _FILLED_IN:
            continue
        of_origins = {origin: default_words(own[name]) for origin, own in DEFAULTS.items() if name in own}
        if len(set(of_origins.values())) > 1:
            default = ", ".join(f"{value} ({origin})" for origin, value in of_origins.items())
        elif of_origins:
            default = of_origins["untrained"]
        rows.append((name, kind, default, meaning))
    return rows


def _of_models() -> str:
    """The arguments of both models, those that they share once."""
    from hybrid_lightning.tasks import HybridClassifier, HybridRegressor

    classifier = {row[0]: row for row in options_of(HybridClassifier)}
    own = [row for row in options_of(HybridRegressor) if row[0] not in classifier or row != classifier[row[0]]]
    return "\n".join(
        [
            "Options of a model, below model.init_args. Of HybridClassifier, which learns classes or labels:",
            "",
            *option_paragraphs(classifier.values()),
            "",
            "Of HybridRegressor, which learns numbers; all others are those of HybridClassifier that it shares:",
            "",
            *option_paragraphs(own),
        ]
    )


def _of_recipes() -> str:
    """The recipes that come with the package."""
    from hybrid_lightning.cli.config_files import recipes

    lines = ["Recipes go over a config: 'fit mine.yaml head_first'.", ""]
    for name, path in recipes().items():
        lines += [f"{name}:", path.read_text(encoding="utf-8"), ""]
    return "\n".join(lines).rstrip()


def _of_modules() -> str:
    """A line per module that a part can name."""
    lines = ["Modules that a part can name; 'help part MLP' shows the arguments of one.", ""]
    for name, target in _modules().items():
        first = plain((inspect.getdoc(target) or "").split("\n\n")[0]).replace("\n", " ")
        lines += option_lines([(name, "", "", first)], 26)
    return "\n".join(lines)
