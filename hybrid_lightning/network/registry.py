"""From a name to the class or factory behind it, and who may be named by a file."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn

from hybrid_lightning import importing
from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.importing import INSTALLABLE, parameters_of

REGISTRY: dict[str, str | Callable[..., nn.Module]] = {
    "ConvExtractor": "hybrid_lightning.network.modules.convolution.ConvExtractor",
    "ResidualConv1d": "hybrid_lightning.network.modules.convolution.ResidualConv1d",
    "ResidualConv2d": "hybrid_lightning.network.modules.convolution.ResidualConv2d",
    "ResidualConv3d": "hybrid_lightning.network.modules.convolution.ResidualConv3d",
    "BagOfWords": "hybrid_lightning.network.modules.bag_of_words.BagOfWords",
    "MLP": "hybrid_lightning.network.modules.mlp.MLP",
    "TabularMLP": "hybrid_lightning.network.modules.tabular_mlp.TabularMLP",
    "RandomConvolutions": "hybrid_lightning.network.modules.random_convolutions.RandomConvolutions",
    "SequenceTransformer": "hybrid_lightning.network.modules.transformer.SequenceTransformer",
    "RandomConvolutions2d": "hybrid_lightning.network.modules.random_convolutions_2d.RandomConvolutions2d",
    "RandomFourierFeatures": "hybrid_lightning.network.modules.random_fourier.RandomFourierFeatures",
    "LinearHead": "hybrid_lightning.network.modules.mlp.LinearHead",
    "ConcatFusion": "hybrid_lightning.network.fusion.ConcatFusion",
    "GatedFusion": "hybrid_lightning.network.fusion.GatedFusion",
    "AttentionFusion": "hybrid_lightning.network.fusion.AttentionFusion",
    "LogitFusion": "hybrid_lightning.network.fusion.LogitFusion",
    "BlendFusion": "hybrid_lightning.network.blend.BlendFusion",
    "ScaledHead": "hybrid_lightning.network.blend.ScaledHead",
    "EfficientNetLite0": "hybrid_lightning.demo.efficientnet_lite.EfficientNetLite0",
    "FracastEncoder": "hybrid_lightning.demo.fracast.FracastEncoder",
}
"""Names that a part's ``module`` may take without a dot."""
RANDOM_MODULES = ("RandomConvolutions", "RandomConvolutions2d", "RandomFourierFeatures")
"""Those whose features are drawn once and never trained."""

_OURS = {"transformers.AutoModel": "hybrid_lightning.network.libraries.auto_model"}
"""Paths that we resolve to our own factory, because the library's entry point does not return a module class."""

_FETCHING_ARGUMENTS = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "trust_remote_code")


def register(name: str, factory: Callable[..., nn.Module]) -> None:
    """Makes a class or function available as a bare ``module`` name.

    Args:
        name: The new name; one that exists is replaced.
        factory: Called with the part's ``args``; returns a module.
    """
    REGISTRY[name] = factory


def registered_name(path: str) -> str:
    """The registered name of one of our own classes, by its path in any version; any other path, and a name, as it is.

    Files are to hold names alone, because where a class of ours lives is free to change.
    """
    ours = __name__.partition(".")[0]
    name = path.rpartition(".")[2]
    target = REGISTRY.get(name)
    is_ours = path.startswith(f"{ours}.") and isinstance(target, str) and target.startswith(f"{ours}.")
    return name if is_ours else path


def resolve(path: str, place: str, trust: Collection[str] | None = None) -> Callable[..., Any]:
    """The class or factory behind ``MLP`` or ``package.module.name``; for `trust` see `importing.resolve`."""
    with at(place):
        return importing.resolve(path, {**REGISTRY, **_OURS}, trust)


def switch_weights(factory: Callable[..., Any], args: dict[str, Any], load: bool) -> bool:
    """Adds the argument by which timm's and torchvision's factories read pretrained weights; whether there is one."""
    names = parameters_of(factory)
    if "pretrained" in names:
        args["pretrained"] = load
    elif (getattr(factory, "__module__", None) or "").startswith("torchvision."):
        args["weights"] = "DEFAULT" if load else None
    else:
        return False
    return True


def refuse_hidden_weights(path: str, args: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if the arguments of an untrained part name pretrained weights."""
    if path.split(".")[0] not in INSTALLABLE:
        return
    for name in _FETCHING_ARGUMENTS:
        if args.get(name):
            raise ConfigError(
                f"{args[name]!r} would make a pretrained part that is treated as an untrained one. Remove it and write "
                f"'weights: pretrained' (or a path) on the part.",
                name,
            )


def forbid_fetching(factory: Callable[..., Any], path: str, args: dict[str, Any]) -> None:
    """Keeps a factory that a file names from downloading or unpickling something; torchvision's defaults turn off."""
    for name, value in args.items():
        # a URL, or such as hf-hub:someone/model
        if isinstance(value, str) and ":" in value:
            raise _would_fetch(value, name)
    _refuse_fetching(args)
    if path.split(".")[0] == "torchvision":
        # their defaults may be weights, which would be downloaded
        for name in {"weights", "weights_backbone"} & parameters_of(factory).keys():
            args[name] = None


def _refuse_fetching(value: Any) -> None:
    """Raises `ConfigError` if an argument names weights or code at any depth, such as those for a model inside."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            if name in _FETCHING_ARGUMENTS and entry:
                raise _would_fetch(entry, name)
            with at(str(name)):
                _refuse_fetching(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            _refuse_fetching(entry)


def _would_fetch(value: Any, place: str) -> ConfigError:
    return ConfigError(f"{value!r} would fetch or load something; refused in a checkpoint.", place)
