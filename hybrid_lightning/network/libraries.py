"""Known libraries of models: how a model of timm, torchvision or transformers becomes a part."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, reason, unknown
from hybrid_lightning.importing import cache_hint, parameters_of
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
    return package if package in ("timm", "torchvision", "transformers") else None


def complete_arguments(path: str, factory: Callable[..., Any], args: dict[str, Any], where: str) -> None:
    """Adds the arguments by which a library leaves out what a part does not need, and checks the model's name.

    timm models come without their classifier (``num_classes=0``) and pool their features. Torchvision's GoogLeNet and
    Inception come without their auxiliary classifiers, which would return several outputs; its segmentation models take
    no weights for their backbone alone.

    Args:
        path: Dotted path of the factory.
        factory: The factory itself.
        args: Its arguments, to which defaults are added.
        where: Config path of the arguments, for errors.

    Raises:
        ConfigError: If the model's name is not known.
    """
    if path == "timm.create_model":
        _check_timm_name(args.get("model_name"), where)
        args.setdefault("num_classes", 0)
    elif path.startswith("timm.models.") and inspect.isfunction(factory):
        args.setdefault("num_classes", 0)
    elif family_of(path) == "torchvision":
        if "weights_backbone" in parameters_of(factory):
            args.setdefault("weights_backbone", None)  # left out, it downloads the backbone's
        if getattr(factory, "__name__", "") in _AUXILIARY:
            args.setdefault("aux_logits", False)
            args.setdefault("init_weights", True)  # left out, it warns


def refuse_other_ways(path: str, where: str) -> None:
    """Raises `ConfigError` for a function that makes a model of any name, because no checkpoint may call it."""
    if path in _OTHER_WAYS or (family_of(path) == "transformers" and path.endswith(".from_pretrained")):
        raise ConfigError(f"{where}: {path!r} hides which model it makes. {_OTHER_WAYS.get(path, _BY_NAME)}")


def _check_timm_name(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"{where}: 'model_name' must be given, such as {{model_name: resnet18}}.")
    if ":" in name or "/" in name:
        raise ConfigError(
            f"{where}.model_name: {name!r} is a place on a hub or a disk, whose architecture a checkpoint could not "
            f"rebuild without it. Give the name of the architecture, and its file as 'weights'."
        )
    import timm

    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise unknown(f"{where}.model_name", "model", name, timm.list_models())
    known = timm.list_models(f"{model}.*", include_tags=True)
    if tag and known and name not in known:
        raise unknown(f"{where}.model_name", "weights", name, known)


def without_classifier(path: Any, module: nn.Module) -> nn.Module:
    """A torchvision classifier without its last layer, so that it returns features; any other module as it is."""
    if family_of(path) != "torchvision":
        return module
    heads = [name for name, _ in module.named_children() if name in _TORCHVISION_HEADS]
    for head in heads:
        linear = [name for name, m in module.named_modules() if isinstance(m, nn.Linear) and _within(name, head)]
        if linear:
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

    names = [name for name, _ in module.named_parameters()]
    groups = [group for _, group in sorted(group_parameters(module, matcher(coarse=True)).items())]
    owner = {name: index for index, group in enumerate(groups) for name in group}
    if set(names) != owner.keys() or len(groups) < 2:
        return None
    stages: Stages = {}
    for index, group in enumerate(groups):
        patterns = list(dict.fromkeys(_shortest_prefix(name, index, owner) for name in group))
        stages["stem" if index == 0 else patterns[0]] = patterns
    return stages


def _shortest_prefix(name: str, index: int, owner: Mapping[str, int]) -> str:
    """The shortest dotted prefix of a name that covers no parameter of another stage."""
    words = name.split(".")
    for length in range(1, len(words)):
        prefix = ".".join(words[:length])
        if all(i == index for n, i in owner.items() if _within(n, prefix)):
            return prefix
    return name


# transformers


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise ConfigError(
            "transformers.AutoModel needs transformers. Install it: pip install 'hybrid_lightning[transformers]'"
        ) from None
    return transformers


def auto_config(name: str | None, given: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """The whole architecture of a model of transformers as plain data, so that a rebuild asks no folder and no hub.

    Args:
        name: Its folder, or its name on the hub, which is looked up in the cache first.
        given: What differs from the defaults of its ``model_type``, beside or instead of ``name``.
        where: Config path of the arguments, for errors.

    Raises:
        ConfigError: If it cannot be read, or a value is not possible.
    """
    try:
        if given:
            config = _architecture(given)
        else:  # code that was published with it is not run, and not asked about
            config = _transformers().AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # the library checks values by exceptions of its own
        place, what = ("config", "of this config") if given else ("name", f"of {name!r}")
        hint = cache_hint("transformers") if isinstance(error, OSError) else ""
        raise ConfigError(f"{where}.{place}: the architecture {what} cannot be read: {reason(error)}{hint}") from error
    plain: dict[str, Any] = plain_config(config.to_dict())
    return plain


def _architecture(config: Mapping[str, Any]) -> Any:
    """A config object of transformers; `ConfigError` if its ``model_type`` is not known."""
    facts = plain_config(config)
    kind = str(facts.pop("model_type", None))
    known = _transformers().CONFIG_MAPPING
    if kind not in known:
        raise unknown("AutoModel: config.model_type", "architecture", kind, sorted(known))
    return _transformers().AutoConfig.for_model(kind, **facts)


def plain_config(config: Any) -> Any:
    """A config of transformers without the keys that could fetch code or weights, at every depth."""
    if isinstance(config, Mapping):
        kept = {str(key): plain_config(value) for key, value in config.items() if key not in _REFUSED_CONFIG_KEYS}
        return {**kept, **({"use_pretrained_backbone": False} if "use_pretrained_backbone" in kept else {})}
    if isinstance(config, list | tuple):
        return [plain_config(value) for value in config]
    return config if isinstance(config, bool | int | float | str | None) else str(config)


def auto_model(name: str | None = None, config: Mapping[str, Any] | None = None, pretrained: bool = False) -> nn.Module:
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
        raise ConfigError("AutoModel: give 'name', or 'config' with a 'model_type', such as {model_type: bert}.")
    architecture = _architecture(config)
    if pretrained and name is None:
        raise ConfigError("AutoModel: 'weights: pretrained' needs 'name', the model whose weights are read.")
    if pretrained:
        model: Any = library.AutoModel.from_pretrained(name, config=architecture, use_safetensors=True)
    else:
        model = library.AutoModel.from_config(architecture)
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        model.pooler = None  # its parameters would get no gradient
    module: nn.Module = model
    return module


@contextmanager
def without_hub() -> Iterator[None]:
    """Keeps timm and transformers from asking the hub: what a file names is looked up in the caches alone."""
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


# Facts about the data a model was trained on


def preprocessing_of(path: Any, module: nn.Module, factory: Callable[..., Any] | None) -> dict[str, Any]:
    """What a model expects of its images, as far as it says so.

    Returns:
        Some of ``mean`` and ``std`` (per channel, for values in [0, 1]), ``size`` (`[height, width]` in pixels) and
        ``channels``.
    """
    stated = getattr(module, "preprocessing", None)
    family = family_of(path)
    if isinstance(stated, Mapping):
        return dict(stated)
    if family == "timm":
        facts = getattr(module, "pretrained_cfg", None) or {}
        return _image_facts(facts.get("mean"), facts.get("std"), (facts.get("input_size") or ())[1:])
    if family == "torchvision" and factory is not None:
        return _torchvision_facts(factory)
    if family == "transformers":
        return _transformers_facts(module)
    return {}


def _transformers_facts(module: nn.Module) -> dict[str, Any]:
    """The size from the architecture; the scale from the image processor that was published with the weights."""
    size = getattr(getattr(module, "config", None), "image_size", None)
    if size is None:
        return {}
    processor: Mapping[str, Any] = {}
    if name := getattr(module, "name_or_path", ""):
        try:
            processor, _ = _transformers().ImageProcessingMixin.get_image_processor_dict(name)
        except (OSError, ValueError):  # none was published
            processor = {}
    scale = processor if processor.get("do_normalize", True) else {}
    size = [size, size] if isinstance(size, int) else size
    return _image_facts(scale.get("image_mean"), scale.get("image_std"), size)


def _torchvision_facts(factory: Callable[..., Any]) -> dict[str, Any]:
    from torchvision.models import get_model_weights

    try:
        transforms = get_model_weights(factory).DEFAULT.transforms()
    except (ValueError, AttributeError, TypeError):
        return {}
    size = getattr(transforms, "crop_size", [None])[0]
    return _image_facts(
        getattr(transforms, "mean", None), getattr(transforms, "std", None), [size, size] if size else None
    )


def _image_facts(
    mean: Sequence[float] | None, std: Sequence[float] | None, size: Sequence[int] | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {"mean": mean, "std": std, "size": size}
    given = {key: [float(v) if key != "size" else int(v) for v in value] for key, value in facts.items() if value}
    return given | ({"channels": len(given["mean"])} if "mean" in given else {})
