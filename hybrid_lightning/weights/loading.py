"""Putting the tensors of a file into a module: whose they are, how they are named, and how much of it they cover."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from hybrid_lightning.errors import ConfigError, check_number, listing, unknown
from hybrid_lightning.weights.safe_files import check_digest, read_file

_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "backbone.", "model.", "network.", "encoder.", "net.")
_OURS = ("network.parts.", "parts.")
ADAPTED = ".base_layer."
"""What peft puts into the names of a layer's own tensors."""
MERGE = (
    " The file has adapters: merge them by 'export --config ... --ckpt_path ... --format safetensors --output "
    "net.safetensors', and give what it writes."
)


@dataclass(frozen=True)
class WeightSource:
    """Where a part's weights come from.

    Args:
        path: A file for `read_file`: safetensors, of torch.save, or a checkpoint of this program.
        sha256: Digest that the file must have, in hexadecimal; None takes any file.
        part: Name of the part in a checkpoint of this program; None takes the one of the same name.
        strip: Prefixes that are removed from the file's names, where they stand.
        rename: Prefix in the file → prefix in the part, such as ``{blocks.: layers.}``; applied after ``strip``.
        coverage: Least share of the part's values that the file has to hold, in (0, 1].
    """

    path: str
    sha256: str | None = None
    part: str | None = None
    strip: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)
    coverage: float = 1.0

    @classmethod
    def parse(cls, given: Any, where: str = "weights") -> "WeightSource":
        """Reads a path, or a dict of the fields.

        Raises:
            ConfigError: If a key or a value is not possible.
        """
        if isinstance(given, WeightSource):
            return given
        facts = {"path": given} if isinstance(given, str) else given
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(facts, Mapping) or not isinstance(facts.get("path"), str):
            raise ConfigError(f"{where}: {given!r} is neither 'pretrained', nor a path, nor {{path: ...}}, nor null.")
        for key in facts:
            if key not in known:
                raise unknown(where, "key", str(key), known)
        source = cls(**facts)
        check_number(source.coverage, f"{where}.coverage", low=0, high=1, above_low=True)
        prefixes = source.strip if isinstance(source.strip, list) else [None]
        prefixes = [*prefixes, *(sum(source.rename.items(), ()) if isinstance(source.rename, Mapping) else [None])]
        if not all(isinstance(prefix, str) for prefix in prefixes):
            raise ConfigError(
                f"{where}: 'strip' is a list of prefixes, and 'rename' a dict {{old prefix: new prefix}}; a prefix is "
                f"a text, and one such as '0.' needs its quotes."
            )
        return source


def load_weights(module: nn.Module, given: Any, where: str = "weights", name: str | None = None) -> str:
    """Loads a module's weights; on an error it keeps those it has.

    Args:
        module: A module of matching architecture.
        given: ``pretrained`` (the module's own ``load_pretrained()``), a path, or the fields of `WeightSource`.
        where: Config path named in errors.
        name: Name of the part, by which it is found in a checkpoint of this program.

    Returns:
        What was loaded, in a line; empty for ``pretrained``.

    Raises:
        ConfigError: If the module brings no weights, or the file covers too little of it.
    """
    if given == "pretrained":
        load_pretrained = getattr(module, "load_pretrained", None)
        if load_pretrained is None:
            raise ConfigError(
                f"{where}: {type(module).__name__} brings no pretrained weights of its own. Give the path of a "
                f".safetensors or .pt file, or null for an untrained part."
            )
        load_pretrained()
        return ""
    source = WeightSource.parse(given, where)
    check_digest(source.path, source.sha256, f"{where}.sha256")
    tensors = of_part(read_file(source.path, where), source.part or name, f"{where}.part")
    fit = Fit.of(module, renamed(tensors, source))
    fit.require(source, module, where)
    module.load_state_dict(fit.found, strict=False)
    return f"{source.path}: {fit}"


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a file, out of the entry in which training scripts keep them; of other entries, by path."""
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return tensors_of(content[key])
    found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, entry in content.items():
        if isinstance(entry, Mapping):
            found |= {f"{name}.{inner}": tensor for inner, tensor in tensors_of(entry).items()}
    return found


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Part → its tensors, if they are those of a whole network of this program; else nothing."""
    for prefix in _OURS:
        if tensors and any(name.startswith(prefix) for name in tensors):
            parts: dict[str, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(prefix):
                    part, _, own = name.removeprefix(prefix).partition(".")
                    parts.setdefault(part, {})[own] = tensor
            return parts
    return {}


def of_part(content: Mapping[str, Any], part: str | None, where: str) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint of this program, or all tensors of any other file."""
    tensors = tensors_of(content)
    parts = parts_of(tensors)
    if parts and part not in parts:
        raise unknown(where, "part", str(part), parts)
    return parts[str(part)] if parts else tensors


def renamed(tensors: Mapping[str, Tensor], source: WeightSource) -> dict[str, Tensor]:
    """Tensors under the names that the user's prefixes give them."""
    new = {}
    for name, tensor in tensors.items():
        for prefix in source.strip:
            name = name.removeprefix(prefix)
        old = next((prefix for prefix in source.rename if name.startswith(prefix)), None)
        new[name if old is None else source.rename[old] + name.removeprefix(old)] = tensor
    return new


@dataclass(frozen=True)
class Fit:
    """What of a file fits a module.

    Args:
        found: Name in the module → tensor.
        missing: Names in the module that the file lacks.
        surplus: Names in the file that the module lacks.
        other: Name → shape in the file and in the module, where they differ.
        resized: Names of positional embeddings that were resized.
        share: Share of the module's values that were found, in [0, 1].
    """

    found: dict[str, Tensor]
    missing: list[str]
    surplus: list[str]
    other: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    resized: list[str]
    share: float

    @classmethod
    def of(cls, module: nn.Module, tensors: Mapping[str, Tensor]) -> "Fit":
        """Compares a module with tensors; prefixes that wrappers add to names are taken off where a name then fits.

        A layer below an adapter takes the tensors of a plain layer; an adapter that the file lacks starts anew.
        """
        expected = {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}
        own_prefix = getattr(module, "base_model_prefix", None)  # of transformers, such as "bert"
        wrappers = (*_WRAPPERS, f"{own_prefix}.") if isinstance(own_prefix, str) and own_prefix else _WRAPPERS
        plain = {n.replace(ADAPTED, "."): n for n in expected if ADAPTED in n}
        known = {**dict(zip(expected, expected, strict=True)), **plain}
        by_name: dict[str, str] = {}
        for given in sorted(tensors, key=len):  # the name with fewer wrappers wins
            name = _unwrapped(given, known, wrappers)
            if name is not None:
                by_name.setdefault(known[name], given)
        found, other, resized = {}, {}, []
        for name, given in by_name.items():
            tensor, wanted = tensors[given], expected[name]
            if is_lazy(wanted) or tensor.shape == wanted.shape:
                found[name] = tensor
            elif (grid := resized_positions(name, tensor, wanted)) is not None:
                found[name] = grid
                resized.append(name)
            else:
                other[name] = (tuple(tensor.shape), tuple(wanted.shape))
        adapted = tuple({n.partition(ADAPTED)[0] + "." for n in plain.values()})
        new = {n for n in expected if adapted and n.startswith(adapted) and ADAPTED not in n}
        new |= {n for n in expected if n.endswith("num_batches_tracked")}  # old files lack it
        counted = [n for n in expected if n in by_name or n not in new]
        sizes = {n: 1 if is_lazy(expected[n]) else expected[n].numel() for n in counted}
        share = sum(sizes[n] for n in found) / max(sum(sizes.values()), 1)
        missing = [n for n in counted if n not in by_name]
        surplus = [given for given in tensors if given not in by_name.values()]
        return cls(found, missing, surplus, other, resized, share)

    @property
    def loses_adapters(self) -> bool:
        """Whether the file has an adapter on a layer that is a plain one in the module."""
        return any(ADAPTED in name for name in self.surplus)

    def sentences(self) -> list[str]:
        """What does not fit, and what was resized."""
        other = [f"{n} {old} in the file, {new} in the part" for n, (old, new) in self.other.items()]
        kinds = {"Missing in the file": self.missing, "Not in the part": self.surplus, "Of another shape": other}
        kinds["Resized"] = self.resized
        return [f"{kind}: {listing(names, 4)}." for kind, names in kinds.items() if names]

    def __str__(self) -> str:
        total = len(self.found) + len(self.missing) + len(self.other)
        return " ".join([f"{len(self.found)} of {total} tensors, {self.share:.1%} of the values.", *self.sentences()])

    def require(self, source: WeightSource, module: nn.Module, where: str) -> None:
        """Raises `ConfigError` if less was found than the source says, or nothing."""
        if self.found and (self.share >= source.coverage or (not self.missing and not self.other)):
            return
        channels = any(
            len(a) > 2 and len(a) == len(b) and a[:1] + a[2:] == b[:1] + b[2:] for a, b in self.other.values()
        )
        hint = (
            " If only the input channels differ, build the part with those of the file, and write 'channels: N' on it."
            if channels
            else ""
        )
        hint = MERGE if self.loses_adapters else hint
        raise ConfigError(
            f"{where}: {source.path!r} covers {self.share:.1%} of the values of {type(module).__name__}, and "
            f"{source.coverage:.1%} are asked for. {' '.join(self.sentences())} Map names by weights: {{path: ..., "
            f"strip: [prefix], rename: {{old: new}}}}, or lower its 'coverage'.{hint}"
        )


def _unwrapped(name: str, expected: Collection[str], wrappers: tuple[str, ...]) -> str | None:
    """The name without as few wrappers as make it one that is expected."""
    if name in expected:
        return name
    shorter = [name.removeprefix(wrapper) for wrapper in wrappers if name.startswith(wrapper)]
    return next((found for rest in shorter if (found := _unwrapped(rest, expected, wrappers))), None)


def resized_positions(name: str, given: Tensor, wanted: Tensor) -> Tensor | None:
    """Positional embeddings of a square grid of patches for a grid of another size, by bicubic interpolation.

    As in ViT (arXiv 2010.11929, section 3.2). Tokens before the grid, such as a class token, stay as they are.

    Args:
        name: Name of the parameter, which has to contain ``pos``.
        given: `(1, T, C)` or `(T, C)`.
        wanted: A tensor of the wanted shape.

    Returns:
        The embeddings, or None if these are no such embeddings.
    """
    if (
        "pos" not in name
        or given.ndim != wanted.ndim
        or given.ndim not in (2, 3)
        or given.shape[-1] != wanted.shape[-1]
    ):
        return None
    if given.ndim == 3 and (given.shape[0], wanted.shape[0]) != (1, 1):
        return None
    old, new = given.shape[-2], wanted.shape[-2]
    for prefix in range(6):
        sides = [math.isqrt(max(count - prefix, 0)) for count in (old, new)]
        if all(side > 1 and side**2 == count - prefix for side, count in zip(sides, (old, new), strict=True)):
            flat = given.reshape(old, -1)
            grid = flat[prefix:].T.reshape(1, -1, sides[0], sides[0]).float()
            grid = functional.interpolate(
                grid, (sides[1], sides[1]), mode="bicubic", align_corners=False, antialias=True
            )
            patches = grid.flatten(2)[0].T.to(given.dtype)
            return torch.cat([flat[:prefix], patches]).reshape(wanted.shape)
    return None
