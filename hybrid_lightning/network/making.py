"""From the options of a part to its module: the factory, its arguments, weights, channels and adapters."""

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from hybrid_lightning.errors import ConfigError, at, listing, reason
from hybrid_lightning.importing import cache_hint, check_arguments, trusted
from hybrid_lightning.network.adapters import add_adapter
from hybrid_lightning.network.channels import adapt_channels
from hybrid_lightning.network.image_layout import prefer_channels_last
from hybrid_lightning.network.libraries import complete_arguments, refuse_other_ways, without_classifier, without_hub
from hybrid_lightning.network.part import Part
from hybrid_lightning.network.registry import forbid_fetching, refuse_hidden_weights, resolve, switch_weights
from hybrid_lightning.weights.loading import load_weights
from hybrid_lightning.weights.tensor_values import value_range

_COMPILE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "mode": (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "dynamic": (None, True, False),
    "fullgraph": (True, False),
}
"""The options of torch.compile that a file may state; others can name programs that torch then runs."""


@dataclass(frozen=True)
class PartMaker:
    """Makes the modules of parts; errors have places within a part's options."""

    trust: Collection[str] | None = None  # the packages that a file's dotted paths may name, see `resolve`
    sizes_from_file: bool = False  # a file may not state more than a dry run would
    with_weights: Collection[str] = ()  # names of the parts whose weights are read

    def factory_of(self, part: Part) -> Callable[..., Any] | None:
        """The class or factory that a part names; None for a live module."""
        if isinstance(part.module, nn.Module):
            return None
        return resolve(part.module, "module", self.trust)

    def make(
        self,
        name: str,
        part: Part,
        factory: Callable[..., Any] | None,
        sizes: Mapping[str, Any],
    ) -> tuple[nn.Module, str]:
        """The part's module, `sizes` being the arguments left out, and a line about the file read into it, or ""."""
        if self.trust is not None:
            _refuse_compile_options(part)
        reads = name in self.with_weights and part.weights is not None
        report = ""
        if factory is None:
            module = part.module
            _refuse_unready(module)
            # whoever passed a live module has loaded it
            is_loaded = part.weights == "pretrained"
        else:
            module, is_loaded = self._create(part, factory, sizes, reads)
        if reads and not is_loaded:
            report = _read_weights(name, part, module)
        if reads:
            _refuse_not_finite(module)
        if part.channels:
            adapt_channels(module, part.channels)
        if part.adapter:
            with at("adapter"):
                add_adapter(module, part.adapter)
        prefer_channels_last(module)
        return module, report

    def _create(
        self,
        part: Part,
        factory: Callable[..., Any],
        sizes: Mapping[str, Any],
        reads: bool,
    ) -> tuple[nn.Module, bool]:
        """The module that the factory makes, and whether it has read its pretrained weights itself."""
        path = part.module
        args = {**sizes, **part.args}
        # all checks come before the call, which may read files or the hub
        if self.trust is None:
            refuse_other_ways(path)
        with at("args"):
            if self.sizes_from_file:
                forbid_fetching(factory, path, dict(sizes))
            complete_arguments(path, factory, args)
            is_loaded = part.weights == "pretrained" and switch_weights(factory, args, reads)
            if self.trust is None and part.weights is None:
                refuse_hidden_weights(path, args)
            if self.trust is not None and not trusted(path, self.trust):
                forbid_fetching(factory, path, args)
            check_arguments(factory, args)
        with nullcontext() if self.trust is None else without_hub():
            return without_classifier(path, _call(factory, args, path)), is_loaded


def _refuse_compile_options(part: Part) -> None:
    """Raises `ConfigError` if options of torch.compile, which come from a file, are not among `_COMPILE_OPTIONS`."""
    options = part.compile if isinstance(part.compile, Mapping) else {}
    for option, value in options.items():
        possible = _COMPILE_OPTIONS.get(option, ())
        if type(value) not in (type(None), bool, str) or value not in possible:
            raise ConfigError(
                f"{{{option!r}: {value!r:.100}}} comes from a file, which may only give {listing(_COMPILE_OPTIONS)}, "
                f"as torch documents them, because other options can run programs. Use the config of the run instead: "
                f"predict --config ... --ckpt_path ..., or from_config(...).",
                "compile",
            )


def _refuse_unready(module: nn.Module) -> None:
    """Raises `ConfigError` for a live module that torch.compile has wrapped, or that has no values."""
    if hasattr(module, "_orig_mod"):
        raise ConfigError(
            "torch.compile has wrapped it, which hides its layers and names. Pass the module itself (module._orig_mod) "
            "and write 'compile: true' on the part.",
            "module",
        )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise ConfigError(
            f"{listing(empty, 4)} lie on the meta device, which holds no values. Make the module on the CPU, or "
            f"module.to_empty(device='cpu') and load its weights.",
            "module",
        )


def _call(factory: Callable[..., Any], args: Mapping[str, Any], path: str) -> nn.Module:
    """Calls a factory; whatever it raises becomes a `ConfigError`."""
    try:
        with at("args"):
            module = factory(**args)
    except ConfigError:
        raise
    except Exception as error:  # third-party code may raise any exception
        fetches = isinstance(error, OSError) and (args.get("pretrained") or args.get("weights"))
        hint = cache_hint(path) if fetches else ""
        raise ConfigError(
            f"{path!r} refuses its arguments: {reason(error)}{hint} They are {dict(args)!r:.300}.", "args"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{path!r} returns a {type(module).__name__}, not a torch module.", "module")
    return module


def _refuse_not_finite(module: nn.Module) -> None:
    """Raises `ConfigError` if pretrained weights are no numbers, as far as they were read by a library."""
    found = [parameter for parameter in module.named_parameters() if not is_lazy(parameter[1])]
    bad = [name for name, parameter in found if not all(map(math.isfinite, value_range(parameter)))]
    if bad:
        raise ConfigError(f"{listing(bad, 4)} hold values that are not finite. Fetch them again.", "weights")


def _read_weights(name: str, part: Part, module: nn.Module) -> str:
    """Reads a part's weights, also from a file that was written after the part's channels had been adapted."""
    try:
        return load_weights(module, part.weights, "weights", name)
    except ConfigError as error:
        if part.channels is None:
            raise
        try:
            adapt_channels(module, part.channels)
            return load_weights(module, part.weights, "weights", name)
        except ConfigError:
            # the first error describes the file as the user knows it
            raise error from None
