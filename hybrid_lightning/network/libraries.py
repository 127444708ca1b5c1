"""Known libraries of models: how a model of timm, torchvision or transformers becomes a part."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, listing, reason, unknown
from hybrid_lightning.files import exists, holds_files_alone
from hybrid_lightning.importing import INSTALLABLE, cache_hint, import_extra, parameters_of
from hybrid_lightning.network.stages import Stages

_TORCHVISION_HEADS = ("fc", "classifier", "head", "heads")
_AUXILIARY = ("googlenet", "inception_v3")
_BY_NAME = "Write module: transformers.AutoModel, args: {name: ...}, and 'weights: pretrained' for its weights."
_OTHER_WAYS = {
    "torchvision.models.get_model": "Write the model itself, such as module: torchvision.models.resnet18.",
    "torch.hub.load": "Write the path of its class or function, and its file as 'weights'.",
}
"""Path → what to write instead, see `refuse_other_ways`."""
_REFUSED_CONFIG_KEYS = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation")


def family_of(path: Any) -> str | None:
    """``timm``, ``torchvision`` or ``transformers`` if a part's ``module`` is a path into one of them."""
    package = path.split(".")[0] if isinstance(path, str) else None
    return package if package in INSTALLABLE else None


def complete_arguments(path: str, factory: Callable[..., Any], args: dict[str, Any]) -> None:
    """Adds the arguments by which a library leaves out what a part does not need, and checks the model's name.

    timm models come without their classifier (``num_classes=0``) and pool their features. Torchvision's GoogLeNet and
    Inception come without their auxiliary classifiers, which would return several outputs; its segmentation models take
    no weights for their backbone alone.
    """
    if path == "timm.create_model":
        _check_timm_name(args.get("model_name"))
        args.setdefault("num_classes", 0)
    elif path.startswith("timm.models.") and inspect.isfunction(factory):
        args.setdefault("num_classes", 0)
    elif family_of(path) == "torchvision":
        if "weights_backbone" in parameters_of(factory):
            # left out, it downloads the backbone's
            args.setdefault("weights_backbone", None)
        if getattr(factory, "__name__", "") in _AUXILIARY:
            args.setdefault("aux_logits", False)
            # left out, it warns
            args.setdefault("init_weights", True)


def refuse_other_ways(path: str) -> None:
    """Raises `ConfigError` for a function that makes a model of any name, because no checkpoint may call it."""
    if path in _OTHER_WAYS or (family_of(path) == "transformers" and path.endswith(".from_pretrained")):
        raise ConfigError(f"{path!r} hides which model it makes. {_OTHER_WAYS.get(path, _BY_NAME)}", "module")


def _check_timm_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ConfigError("'model_name' must be given, such as {model_name: resnet18}.")
    if ":" in name or "/" in name:
        raise ConfigError(
            f"{name!r} is a place on a hub or a disk, whose architecture a checkpoint could not rebuild without it. "
            f"Give the name of the architecture, and its file as 'weights'.",
            "model_name",
        )
    import timm

    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise unknown("model_name", "model", name, timm.list_models())
    known = timm.list_models(f"{model}.*", include_tags=True)
    if tag and known and name not in known:
        raise unknown("model_name", "weights", name, known)


def without_classifier(path: Any, module: nn.Module) -> nn.Module:
    """A torchvision classifier without its last layer, so that it returns features; any other module as it is."""
    if family_of(path) != "torchvision":
        return module
    heads = [name for name, _ in module.named_children() if name in _TORCHVISION_HEADS]
    for head in heads:
        linear = [name for name, m in module.named_modules() if isinstance(m, nn.Linear) and _within(name, head)]
        if linear:
            # some heads are a Sequential whose earlier layers make features
            module.set_submodule(linear[-1], nn.Identity())
        elif isinstance(module.get_submodule(head), nn.Sequential):  # SqueezeNet classifies by a convolution
            setattr(module, head, nn.AdaptiveAvgPool2d(1))
    return module


def _within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def timm_stages(module: nn.Module) -> Stages | None:
    """The stages that a timm model states in its ``group_matcher``: the stem, then its blocks; None if it has none.

    A stage is named by its first block (``layer1``, ``blocks.0``), the first one ``stem``.
    """
    matcher: Any = getattr(module, "group_matcher", None)
    if not callable(matcher):
        return None
    from timm.models import group_parameters

    # number of the stage → its parameters
    groups: dict[int, list[str]] = group_parameters(module, matcher(coarse=True))
    owner = {name: number for number, names in groups.items() for name in names}
    if {name for name, _ in module.named_parameters()} != owner.keys() or len(groups) < 2:
        return None
    stages: Stages = {}
    for number, names in sorted(groups.items()):
        prefixes = [_shortest_prefix(name, number, owner) for name in names]
        patterns = list(dict.fromkeys(prefixes))
        stages[patterns[0] if stages else "stem"] = patterns
    return stages


def _shortest_prefix(name: str, number: int, owner: Mapping[str, int]) -> str:
    """The shortest dotted prefix of a name that covers no parameter of another stage."""
    words = name.split(".")
    for length in range(1, len(words)):
        prefix = ".".join(words[:length])
        stages = {owner[other] for other in owner if _within(other, prefix)}
        if stages == {number}:
            return prefix
    return name


def _transformers() -> Any:
    return import_extra("transformers", "transformers", "transformers.AutoModel")


def _refuse_odd_folder(name: str | None) -> None:
    """Raises `ConfigError` for a published model with an adapter, which may name modules to import, or with a pipe."""
    if name is None:
        return
    _transformers()
    from transformers.utils.peft_utils import find_adapter_config_file

    if exists(name) and not (Path(name).is_dir() and holds_files_alone(name)):
        raise ConfigError(f"{name!r} is not a folder of files alone.", "name")
    with contextlib.suppress(OSError):  # which is told when its config is read
        if find_adapter_config_file(name) is not None:
            raise ConfigError(
                f"{name!r} brings an adapter. Merge it into the weights where it was made, with merge_and_unload() of "
                f"peft, and give the folder of the whole model.",
                "name",
            )


def auto_config(name: str | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The whole architecture of `auto_model` as plain data, so that a rebuild reads neither a folder nor the hub."""
    try:
        if given:
            config = _architecture(given)
        else:  # code that was published with it is not run
            _refuse_odd_folder(name)
            config = _transformers().AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # the library checks values by exceptions of its own
        what = "of this config" if given else f"of {name!r}"
        hint = cache_hint("transformers") if isinstance(error, OSError) else ""
        place = "config" if given else "name"
        raise ConfigError(f"the architecture {what} cannot be read: {reason(error)}{hint}", place) from error
    plain: dict[str, Any] = plain_config(config.to_dict())
    return plain


def _architecture(config: Mapping[str, Any]) -> Any:
    """A config object of transformers; `ConfigError` if its ``model_type`` is not known."""
    options = plain_config(config)
    kind = str(options.pop("model_type", None))
    known = _transformers().CONFIG_MAPPING
    if kind not in known:
        raise unknown("config.model_type", "architecture", kind, sorted(known))
    default = known[kind]()
    own = {*default.to_dict(), *default.attribute_map}
    # what the architecture does not know may steer how the library loads a model
    kept = {key: value for key, value in options.items() if key in own}
    return _transformers().AutoConfig.for_model(kind, **kept)


def plain_config(config: Any) -> Any:
    """A config of transformers without the keys that could fetch code or weights, at every depth."""
    if isinstance(config, Mapping):
        kept = {str(key): plain_config(value) for key, value in config.items() if key not in _REFUSED_CONFIG_KEYS}
        if "use_pretrained_backbone" in kept:
            kept["use_pretrained_backbone"] = False
        return kept
    if isinstance(config, list | tuple):
        return [plain_config(value) for value in config]
    return config if isinstance(config, bool | int | float | str | None) else str(config)


def auto_model(
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A model of transformers without its pooler, whose last hidden states are the features.

    Args:
        name: Name on the hub, or a folder with ``config.json``; null if ``config`` is given.
        config: The architecture: ``model_type`` and what differs from that type's defaults. Filled in from ``name``.
        pretrained: Whether the weights of ``name`` are read (from safetensors only); set by ``weights: pretrained``.

    Raises:
        ConfigError: If neither is given, or the architecture is not known.
    """
    library = _transformers()
    if not config:
        raise ConfigError("give 'name', or 'config' with a 'model_type', such as {model_type: bert}.")
    architecture = _architecture(config)
    if pretrained and name is None:
        raise ConfigError("'weights: pretrained' needs 'name', the model whose weights are read.")
    if pretrained:
        _refuse_odd_folder(name)
        model: Any = _read_model(library, name, architecture)
    else:
        model = library.AutoModel.from_config(architecture)
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        # its parameters would get no gradient
        model.pooler = None
    module: nn.Module = model
    return module


def _read_model(library: Any, name: str | None, architecture: Any) -> nn.Module:
    """A model of transformers with its weights; `ConfigError` if some are missing, which the library would draw."""
    logging = library.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of names, from the file, steers terminals
    try:
        model, about = library.AutoModel.from_pretrained(
            name, config=architecture, use_safetensors=True, output_loading_info=True
        )
    finally:
        logging.set_verbosity(before)
    missing = [key for key in sorted(about["missing_keys"]) if not key.startswith("pooler.")]
    if missing:
        raise ConfigError(f"the weights of {name!r} lack {listing(missing, 4)}. They are of another model.", "name")
    found: nn.Module = model
    return found


@contextmanager
def without_hub() -> Iterator[None]:
    """Keeps timm and transformers offline: what a file names is looked up in the caches alone."""
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def published_scale(path: Any, module: nn.Module, factory: Callable[..., Any] | None) -> Mapping[str, Any]:
    """``mean`` and ``std`` per channel, for values in [0, 1], as far as a model states them."""
    stated = getattr(module, "preprocessing", None)
    family = family_of(path)
    if isinstance(stated, Mapping):
        return stated
    if family == "timm":
        return getattr(module, "pretrained_cfg", None) or {}
    if family == "torchvision" and factory is not None:
        return _scale_of_torchvision(factory)
    if family == "transformers":
        return _scale_of_transformers(module)
    return {}


def _scale_of_transformers(module: nn.Module) -> dict[str, Any]:
    """From the image processor that was published with the weights."""
    name = getattr(module, "name_or_path", "")
    if not name:
        return {}
    try:
        processor, _ = _transformers().ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError):  # none was published
        return {}
    if not processor.get("do_normalize", True):
        return {}
    return {"mean": processor.get("image_mean"), "std": processor.get("image_std")}


def _scale_of_torchvision(factory: Callable[..., Any]) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    try:
        transforms = get_model_weights(factory).DEFAULT.transforms()
    except (ValueError, AttributeError, TypeError):  # not a model with published weights
        return {}
    return {"mean": getattr(transforms, "mean", None), "std": getattr(transforms, "std", None)}
