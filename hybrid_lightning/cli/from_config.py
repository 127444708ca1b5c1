"""What the command line builds from a config, for notebooks and programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import LightningDataModule, Trainer

from hybrid_lightning.cli.building import build
from hybrid_lightning.cli.config_files import mapping_at, merge
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.warning_filters import without_known_warnings
from hybrid_lightning.data.frames import frame_name, is_frame
from hybrid_lightning.errors import ConfigError, check_keys
from hybrid_lightning.init.suggest import Suggestion
from hybrid_lightning.tasks import HybridTask


class Built(NamedTuple):
    """A model, its data and a Trainer: ``built.trainer.fit(built.model, built.data)``."""

    model: HybridTask
    data: LightningDataModule
    trainer: Trainer


def from_config(path: str | Path | Mapping[str, Any] | Sequence[str | Path], **overrides: Any) -> Built:
    """The model, data and Trainer that ``fit --config`` would run, with the same checks, seed and run folder.

    Args:
        path: A YAML file, or several, of which each is merged over those before it; or a config as a dict, such as
            `suggest` returns it. With that of a DataFrame, the data are this DataFrame unless another is given.
        **overrides: What changes, by the sections of a config: ``trainer={"max_epochs": 3}``, ``model={"lr": 1e-4}``,
            ``data={"batch_size": 8}``, ``seed_everything=1``. In ``model`` and ``data`` they are arguments. The
            ``path`` and ``predict_path`` of a `ManifestDataModule` may be DataFrames.

    Raises:
        ConfigError: If the command line would refuse it.
    """
    overlay = _overlay_of(overrides)
    if isinstance(path, Suggestion) and path.frame is not None and "class_path" not in overlay.get("data", {}):
        overlay.setdefault("data", {}).setdefault("init_args", {}).setdefault("path", path.frame)
    frames = _frames_in(overlay)
    if isinstance(path, Mapping):
        overlay = merge(path, overlay)
        path = ()
    _check_plain(overlay)
    words = ["fit"]
    for one in [path] if isinstance(path, str | Path) else path:
        words += ["--config", str(one)]
    with without_known_warnings():
        setup = build(parse(words, overlay))
    if frames:
        setup.data.hold(**frames)  # type: ignore[attr-defined]
    return Built(setup.model, setup.data, setup.trainer)


def _overlay_of(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What changes, as a config."""
    overlay = {}
    for section, value in overrides.items():
        # in a config the arguments of a class stand under init_args
        is_arguments = isinstance(value, Mapping) and not {"class_path", "init_args"} & value.keys()
        overlay[section] = {"init_args": dict(value)} if section in ("model", "data") and is_arguments else value
    return overlay


def _frames_in(overlay: dict[str, Any]) -> dict[str, Any]:
    """The tables in memory among the data's arguments, whose names take their place."""
    arguments = mapping_at(overlay, "data", "init_args")
    frames = {key: value for key, value in arguments.items() if is_frame(value)}
    check_keys(frames, ("path", "predict_path"), "data", "argument that may be a DataFrame")
    for key, frame in frames.items():
        arguments[key] = frame_name(frame, key)
    return frames


def _check_plain(config: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for what no YAML can hold."""
    try:
        yaml.safe_dump(dict(config))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"from_config: {error} Overrides are numbers, text, lists and dicts, as in a config; live objects go into "
            f"HybridClassifier(...) itself."
        ) from None
