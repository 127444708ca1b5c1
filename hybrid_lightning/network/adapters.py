"""Adapters: a few new weights beside the frozen ones of a part, by peft (extra ``peft``)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from hybrid_lightning.errors import ConfigError, check_keys, reason
from hybrid_lightning.importing import import_extra

_CONFIGS = {"lora": "LoraConfig", "dora": "LoraConfig", "loha": "LoHaConfig", "lokr": "LoKrConfig", "ia3": "IA3Config"}
KINDS = tuple(_CONFIGS)
"""LoRA (arXiv 2106.09685), DoRA (2402.09353), LoHa (2108.06098), LoKr (2212.10650) and (IA)³ (2205.05638)."""
_ARGUMENTS = (
    *("r", "alpha", "lora_alpha", "lora_dropout", "rank_dropout", "module_dropout", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save", "layers_to_transform"),
    *("layers_pattern", "fan_in_fan_out", "bias", "lora_bias", "use_rslora", "use_dora", "use_effective_conv2d"),
    *("init_lora_weights", "init_ia3_weights", "init_weights", "decompose_both", "decompose_factor"),
    "rank_dropout_scale",
)
"""Arguments of peft's configs that are numbers, and names of layers."""
_READ_WEIGHTS_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapters a part gets."""

    kind: str
    args: dict[str, Any] = field(default_factory=dict)  # of peft's config

    @classmethod
    def parse(cls, given: object) -> Self:
        """Reads ``lora`` (or another of `KINDS`), or ``{kind: lora, r: 8, target_modules: [...], ...}``."""
        options = {"kind": given} if isinstance(given, str) else given
        if not isinstance(options, Mapping) or "kind" not in options:
            raise ConfigError(f"{given!r} is neither a kind ({', '.join(KINDS)}) nor {{kind: lora, r: 8}}.")
        check_keys([options["kind"]], KINDS, kind="kind")
        args = dict(options)
        chosen = args.pop("kind")
        # others name modules to import and models to fetch, also from a checkpoint
        check_keys(args, _ARGUMENTS, kind="argument")
        return cls(chosen, args)


def add_adapter(module: nn.Module, adapter: AdapterSpec) -> None:
    """Puts adapters into a module; its own weights are fixed from then on, and only the adapters train.

    Without ``target_modules`` all linear layers are adapted, or all convolutions if there are none. The names of
    adapted layers gain ``base_layer``.
    """
    if any(map(_is_adapted, module.modules())):
        # a live module of which a network was built before
        return
    peft = import_extra("peft", "peft", adapter.kind)
    args = dict(adapter.args)
    args.setdefault("target_modules", _targets(module))
    if adapter.kind == "dora":
        args["use_dora"] = True
    # peft demands the layers whose inputs (IA)³ scales; here it scales outputs alone
    if adapter.kind == "ia3":
        args.setdefault("feedforward_modules", [])
    try:
        config = getattr(peft, _CONFIGS[adapter.kind])(**args)
        peft.inject_adapter_in_model(config, module)
    except Exception as error:  # peft makes layers of the module's own classes, which may raise any exception
        raise ConfigError(f"peft refuses {adapter.kind}: {reason(error)} Its arguments are {args!r:.200}.") from error


def _is_adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "get_base_layer")


def _targets(module: nn.Module) -> list[str]:
    """Names of the layers that can be adapted: not those whose owner reads their weights without calling them."""
    layers: dict[str, nn.Module] = {}
    skipped: tuple[str, ...] = ()
    for name, layer in module.named_modules():
        if isinstance(layer, _READ_WEIGHTS_DIRECTLY):
            skipped = (*skipped, f"{name}." if name else "")
        elif name and not name.startswith(skipped):
            layers[name] = layer
    for kind in (nn.Linear, nn.modules.conv._ConvNd):
        names = [name for name, layer in layers.items() if isinstance(layer, kind) and getattr(layer, "groups", 1) == 1]
        if names:
            return names
    raise ConfigError(f"{type(module).__name__} has no linear layer or convolution that can be adapted.")


def merge_adapters(module: nn.Module) -> None:
    """Adds the adapters of a module to its weights and removes them, so that the plain architecture is left."""
    layers = [name for name, layer in module.named_modules() if _is_adapted(layer)]
    for name in layers:
        layer: Any = module.get_submodule(name)
        layer.merge()
        module.set_submodule(name, layer.get_base_layer())
    for name, wrapper in list(module.named_modules()):
        if hasattr(wrapper, "original_module") and hasattr(wrapper, "modules_to_save"):  # trained beside the adapters
            module.set_submodule(name, wrapper.modules_to_save["default"])
