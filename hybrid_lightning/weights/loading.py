"""Loading the tensors of a file into a module: which part they belong to, how they are named, how much they cover."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from hybrid_lightning.errors import ConfigError, at, check_keys, check_number, listing, unknown
from hybrid_lightning.weights.safe_files import check_digest, read_file
from hybrid_lightning.weights.tensor_values import unfit

_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "backbone.", "model.", "network.", "encoder.", "net.")
_OURS = ("network.parts.", "parts.")
ADAPTED = ".base_layer."  # what peft puts into the names of a layer's own tensors
MERGE = (
    " The file has adapters: merge them by 'export --config ... --ckpt_path ... --format safetensors --output "
    "net.safetensors', and give what it writes."
)


@dataclass(frozen=True)
class WeightSource:
    """The file with the weights of a part.

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
    def parse(cls, given: object) -> Self:
        """Reads a path, or a dict of the fields.

        Raises:
            ConfigError: If a key or a value is not possible.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            given = {"path": given}
        if not isinstance(given, Mapping) or not isinstance(given.get("path"), str):
            raise ConfigError(f"{given!r} is neither 'pretrained', nor a path, nor {{path: ...}}, nor null.")
        check_keys(given, [option.name for option in dataclasses.fields(cls)])
        source = cls(**given)
        check_number(source.coverage, "coverage", low=0, high=1, above_low=True)
        is_readable = isinstance(source.strip, list) and isinstance(source.rename, Mapping)
        if not is_readable or not all(
            isinstance(p, str) for p in (*source.strip, *source.rename, *source.rename.values())
        ):
            raise ConfigError(
                "'strip' is a list of prefixes, and 'rename' a dict {old prefix: new prefix}; a prefix is a text, and "
                "one such as '0.' needs its quotes."
            )
        return source


def load_weights(module: nn.Module, given: Any, place: str = "", name: str | None = None) -> str:
    """Loads a module's weights; after an error it still has its own."""
    with at(place):
        if given == "pretrained":
            _load_pretrained(module)
            return ""
        source = WeightSource.parse(given)
        check_digest(source.path, source.sha256, "sha256")
        tensors = _of_part(read_file(source.path), source.part or name)
        fit = Fit.of(module, _renamed(tensors, source))
        fit.require(source, module)
    # what is missing or surplus has been judged by the coverage
    module.load_state_dict(fit.found, strict=False)
    return f"{source.path}: {fit}"


@runtime_checkable
class PretrainedModule(Protocol):
    """A module that has pretrained weights of its own, for ``weights: pretrained``."""

    def load_pretrained(self) -> None:
        """Reads them."""


def _load_pretrained(module: nn.Module) -> None:
    if not isinstance(module, PretrainedModule):
        raise ConfigError(
            f"{type(module).__name__} brings no pretrained weights of its own. Give the path of a .safetensors or .pt "
            f"file, or null for an untrained part."
        )
    module.load_pretrained()


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a file, out of the entry in which training scripts keep them; of other entries, by path."""
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return tensors_of(content[key])
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            found[str(name)] = value
        elif isinstance(value, Mapping):
            for inner, tensor in tensors_of(value).items():
                found[f"{name}.{inner}"] = tensor
    return found


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Part → its tensors, if they are those of a whole network of this program; else nothing."""
    for prefix in _OURS:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                part, _, own = name.removeprefix(prefix).partition(".")
                parts.setdefault(part, {})[own] = tensor
        if parts:
            return parts
    return {}


def _of_part(content: Mapping[str, Any], part: str | None) -> dict[str, Tensor]:
    """The tensors of one part of a checkpoint of this program, or all tensors of any other file."""
    tensors = tensors_of(content)
    parts = parts_of(tensors)
    if not parts:
        return tensors
    if part is None or part not in parts:
        raise unknown("part", "part", str(part), parts)
    return parts[part]


def _renamed(tensors: Mapping[str, Tensor], source: WeightSource) -> dict[str, Tensor]:
    """Tensors under the names that the user's prefixes give them."""
    renamed = {}
    for name, tensor in tensors.items():
        for prefix in source.strip:
            name = name.removeprefix(prefix)
        for old, new in source.rename.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break  # a new name is not renamed again
        renamed[name] = tensor
    return renamed


@dataclass
class Fit:
    """What of a file fits a module."""

    found: dict[str, Tensor] = field(default_factory=dict)  # name in the module → tensor
    missing: list[str] = field(default_factory=list)  # names in the module that the file lacks
    surplus: list[str] = field(default_factory=list)  # names in the file that the module lacks
    # name → shape in the file and in the module
    other: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)  # names of positional embeddings that were resized
    unfit: list[str] = field(default_factory=list)  # names and what is wrong with their values in the file
    share: float = 0.0  # share of the module's values that were found, in [0, 1]

    @classmethod
    def of(cls, module: nn.Module, tensors: Mapping[str, Tensor]) -> Self:
        """Compares a module with tensors; prefixes that wrappers add to names are taken off where a name then fits."""
        # a layer below an adapter takes the tensors of a plain layer; an adapter that the file lacks starts anew
        expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        own_prefix = getattr(module, "base_model_prefix", None)  # of transformers, such as "bert"
        wrappers = (*_WRAPPERS, f"{own_prefix}.") if own_prefix and isinstance(own_prefix, str) else _WRAPPERS
        sources = _sources(expected, tensors, wrappers)
        adapted = [name.partition(ADAPTED)[0] + "." for name in expected if ADAPTED in name]
        fit = cls()
        values = 0
        for name, wanted in expected.items():
            if name in sources:
                fit._take(name, tensors[sources[name]], wanted)
            elif name.endswith("num_batches_tracked") or (name.startswith(tuple(adapted)) and ADAPTED not in name):
                continue  # files of old versions lack the counter, and an adapter starts anew
            else:
                fit.missing.append(name)
            values += _size(wanted)
        fit.share = sum(_size(expected[name]) for name in fit.found) / max(values, 1)
        used = set(sources.values())
        fit.surplus = [name for name in tensors if name not in used]
        return fit

    def _take(self, name: str, tensor: Tensor, wanted: Tensor) -> None:
        """Sorts a tensor in by its shape, in comparison with the one that the module has."""
        if is_lazy(wanted) or tensor.shape == wanted.shape:
            self._keep(name, tensor, wanted)
            return
        resized = resized_positions(name, tensor, wanted)
        if resized is None:
            self.other[name] = (tuple(tensor.shape), tuple(wanted.shape))
        else:
            self._keep(name, resized, wanted)
            self.resized.append(name)

    def _keep(self, name: str, tensor: Tensor, wanted: Tensor) -> None:
        self.found[name] = tensor
        problem = unfit(name, tensor, wanted)
        if problem:
            self.unfit.append(f"{name} {problem}")

    @property
    def loses_adapters(self) -> bool:
        """Whether the file has an adapter on a layer that is a plain one in the module."""
        return any(ADAPTED in name for name in self.surplus)

    def sentences(self) -> list[str]:
        """What does not fit, and what was resized."""
        other = [f"{name} {old} in the file, {new} in the part" for name, (old, new) in self.other.items()]
        names_of = {
            "Missing in the file": self.missing,
            "Not in the part": self.surplus,
            "Of another shape": other,
            "Resized": self.resized,
        }
        return [f"{kind}: {listing(names, 4)}." for kind, names in names_of.items() if names]

    def __str__(self) -> str:
        total = len(self.found) + len(self.missing) + len(self.other)
        return " ".join([f"{len(self.found)} of {total} tensors, {self.share:.1%} of the values.", *self.sentences()])

    def refuse_unfit(self, path: str) -> None:
        """Raises `ConfigError` if the file, of this path, holds values that the module cannot take."""
        if self.unfit:
            raise ConfigError(f"{path!r} is damaged: {listing(self.unfit, 4)}. Fetch it again, or use another one.")

    def require(self, source: WeightSource, module: nn.Module) -> None:
        """Raises `ConfigError` if less was found than the source says, or nothing, or what cannot be used."""
        self.refuse_unfit(source.path)
        is_complete = not self.missing and not self.other
        if self.found and (is_complete or self.share >= source.coverage):
            return
        hint = ""
        if self.loses_adapters:
            hint = MERGE
        elif any(_differ_in_channels(*shapes) for shapes in self.other.values()):
            hint = (
                " If only the input channels differ, build the part with those of the file, and write 'channels: N' on "
                "it."
            )
        raise ConfigError(
            f"{source.path!r} covers {self.share:.1%} of the values of {type(module).__name__}, and "
            f"{source.coverage:.1%} are asked for. {' '.join(self.sentences())} Map names by weights: {{path: ..., "
            f"strip: [prefix], rename: {{old: new}}}}, or lower its 'coverage'.{hint}"
        )


def _sources(expected: Collection[str], given: Collection[str], wrappers: tuple[str, ...]) -> dict[str, str]:
    """Name in the module → name in the file."""
    known = {name: name for name in expected}
    for name in expected:
        if ADAPTED in name:
            known[name.replace(ADAPTED, ".")] = name  # in the file of a plain layer
    sources: dict[str, str] = {}
    for name in sorted(given, key=len):  # the name with fewer wrappers wins
        bare = _unwrapped(name, known, wrappers)
        if bare is not None:
            sources.setdefault(known[bare], name)
    return sources


def _unwrapped(name: str, known: Collection[str], wrappers: tuple[str, ...]) -> str | None:
    """The name without as few wrappers as make it a known one."""
    if name in known:
        return name
    for wrapper in wrappers:
        if name.startswith(wrapper):
            bare = _unwrapped(name.removeprefix(wrapper), known, wrappers)
            if bare is not None:
                return bare
    return None


def _size(tensor: Tensor) -> int:
    return 1 if is_lazy(tensor) else tensor.numel()


def _differ_in_channels(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes of convolutions differ in nothing but the second dimension."""
    return len(one) > 2 and len(one) == len(other) and one[:1] + one[2:] == other[:1] + other[2:]


def resized_positions(name: str, given: Tensor, wanted: Tensor) -> Tensor | None:
    """Positional embeddings `(T, C)` or `(1, T, C)` of a square grid of patches for a grid of another size."""
    # Bicubic, as in ViT (arXiv 2010.11929, section 3.2). Tokens before the grid, such as a class token, stay as they
    # are. None if the tensor is of another kind; its name has to contain ``pos``.
    same_kind = given.ndim == wanted.ndim and given.shape[-1:] == wanted.shape[-1:]
    is_table = given.ndim == 2 or (given.ndim == 3 and given.shape[0] == wanted.shape[0] == 1)
    if "pos" not in name or not same_kind or not is_table:
        return None
    for extra in range(6):  # tokens before the grid: classes, registers
        old = _side(given.shape[-2] - extra)
        new = _side(wanted.shape[-2] - extra)
        if old is None or new is None:
            continue
        tokens = given.reshape(-1, given.shape[-1])
        # half precision has no bicubic interpolation on the CPU
        grid = tokens[extra:].T.reshape(1, -1, old, old).float()
        grid = functional.interpolate(grid, (new, new), mode="bicubic", align_corners=False, antialias=True)
        patches = grid.flatten(2)[0].T.to(given.dtype)
        return torch.cat([tokens[:extra], patches]).reshape(wanted.shape)
    return None


def _side(patches: int) -> int | None:
    """Side of a square grid with this number of patches, 2 at least; None if there is none."""
    side = math.isqrt(max(patches, 0))
    return side if side > 1 and side**2 == patches else None
