"""Adapters: a few new weights beside the frozen ones of a part, by peft (extra ``peft``)."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, reason, unknown

_CONFIGS = {"lora": "LoraConfig", "dora": "LoraConfig", "loha": "LoHaConfig", "lokr": "LoKrConfig", "ia3": "IA3Config"}
KINDS = tuple(_CONFIGS)
"""LoRA (arXiv 2106.09685), DoRA (2402.09353), LoHa (2108.06098), LoKr (2212.10650) and (IA)³ (2205.05638)."""
_READ_WEIGHTS_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def parse_adapter(given: Any, where: str) -> tuple[str, dict[str, Any]]:
    """The kind of an adapter, and the arguments of peft's config.

    Raises:
        ConfigError: If the kind is not known, or an argument names code.
    """
    facts = {"kind": given} if isinstance(given, str) else given
    if not isinstance(facts, Mapping) or "kind" not in facts:
        raise ConfigError(f"{where}: {given!r} is neither a kind ({', '.join(KINDS)}) nor {{kind: lora, r: 8}}.")
    if facts["kind"] not in KINDS:
        raise unknown(where, "kind", str(facts["kind"]), KINDS)
    for key in facts:
        if str(key).startswith("megatron"):  # the name of a module that peft would import, also from a checkpoint
            raise ConfigError(f"{where}.{key}: layers of Megatron cannot be adapted here. Remove it.")
    return facts["kind"], {key: value for key, value in facts.items() if key != "kind"}


def add_adapter(module: nn.Module, given: Any, where: str) -> None:
    """Puts adapters into a module; its own weights are fixed from then on, and only the adapters train.

    Args:
        module: Changed in place; the names of adapted layers gain ``base_layer``.
        given: ``lora`` (or another of `KINDS`), or ``{kind: lora, r: 8, target_modules: [...], ...}`` with arguments of
            peft's config. Without ``target_modules`` all linear layers are adapted, or all convolutions if there are
            none.
        where: Config path, for errors.

    Raises:
        ConfigError: If peft is not installed, refuses the arguments, or nothing can be adapted.
    """
    kind, args = parse_adapter(given, where)
    if any(map(_is_adapted, module.modules())):
        return  # a live module of which a network was built before
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(f"{where}: needs peft. Install it with: pip install 'hybrid_lightning[peft]'") from None
    args.setdefault("target_modules", _targets(module, where))
    if kind == "dora":
        args["use_dora"] = True
    if kind == "ia3":
        args.setdefault("feedforward_modules", [])
    try:
        config = getattr(peft, _CONFIGS[kind])(**args)
        peft.inject_adapter_in_model(config, module)
    except Exception as error:  # peft makes layers of the module's own classes, which may raise anything
        raise ConfigError(f"{where}: peft refuses {kind}: {reason(error)} Its arguments are {args!r:.200}.") from error


def _is_adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "get_base_layer")


def _targets(module: nn.Module, where: str) -> list[str]:
    """Names of the layers that can be adapted: not those whose owner reads their weights without calling them."""
    skipped = tuple(
        f"{name}." if name else "" for name, m in module.named_modules() if isinstance(m, _READ_WEIGHTS_DIRECTLY)
    )
    layers = {n: m for n, m in module.named_modules() if n and not (skipped and n.startswith(skipped))}
    for kind in (nn.Linear, nn.modules.conv._ConvNd):
        names = [name for name, layer in layers.items() if isinstance(layer, kind) and getattr(layer, "groups", 1) == 1]
        if names:
            return names
    raise ConfigError(f"{where}: {type(module).__name__} has no linear layer or convolution that can be adapted.")


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
