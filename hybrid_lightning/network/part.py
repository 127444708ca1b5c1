"""Parts: what a user says about each sub-network, as plain facts."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, at, check_number, listing, unknown
from hybrid_lightning.gradients.clipping_rule import ClippingRule
from hybrid_lightning.network.adapters import parse_adapter
from hybrid_lightning.network.outputs import POOLS
from hybrid_lightning.network.registry import registered_name
from hybrid_lightning.optim.groups import PartRates
from hybrid_lightning.unfreezing.freezing import BATCH_NORM_MODES
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.weights.loading import WeightSource

_COMPILE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "mode": (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "dynamic": (None, True, False),
    "fullgraph": (True, False),
}
"""The options of torch.compile that a file may state; others can name programs that torch then runs."""
RESERVED = ("fusion", "part_heads", "target", "id", "present", "pretrained", "untrained", "total")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Part:
    """One named sub-network. A fact that is None takes its value from the defaults of the part's origin.

    Args:
        module: A registered name, a dotted path to a class or factory function, or a live module.
        args: Keyword arguments of the class or function. Input sizes (``in_features``, ``in_channels``, ...) that are
            left out are filled in by the dry run.
        weights: ``pretrained`` (the module brings its own), the path of a ``.safetensors`` or ``.pt`` file or of a
            checkpoint of this program, or ``{path: ..., sha256: ..., strip: [...], rename: {...}, coverage: 0.9}`` (see
            `WeightSource`), or None for an untrained part. A live module that is already trained says ``pretrained``.
        input: Name of another part, key of the batch, or a list of them passed by position; a part's name wins over a
            key of the same name. None reads the key of the part's own name.
        output: Key or position of the tensor to use, where the module returns a dict or a tuple; None takes
            ``last_hidden_state``, ``out``, or the only tensor.
        pool: How an output with more than two dimensions becomes ``(B, features)`` before the fusion or the head:
            ``mean``, ``max`` or ``flatten`` of ``(B, C, ...)``; ``tokens``, the mean of ``(B, ..., C)`` over all but
            the last, without what an ``attention_mask`` in the part's input leaves out. None sees in the dry run where
            the module's last layer left the channels.
        channels: Input channels, for a module whose first convolution was made for another number: its weights are
            summed or repeated, see `adapt_channels`. None leaves it.
        normalize: Whether images in [0, 1] are put on the scale that the weights were trained on, as the model states
            it, or ``{mean: [...], std: [...]}``.
        stages: Patterns of parameter names from input to output; None cuts the part by execution order.
        lr_scale: Factor on the base rate.
        layer_decay: Factor on the rate for each stage towards the input.
        weight_decay: Weight decay of parameters with two or more dimensions.
        decay_all: Whether biases and 1-d parameters decay too.
        l2sp: Strength of the pull towards the weights the part started from, see `L2SP`; None or 0 pulls nothing.
        unfreeze: ``always``, ``never``, a duration, ``{start: 10%, every: 1 epochs}`` (top-down by stage), a plateau
            such as ``{plateau: val/loss, patience: 2 validations}``, and more, see `GradualUnfreezing`.
        batch_norm: Normalizations with running statistics: ``frozen`` uses the stored statistics also once the part
            trains; ``recalibrate`` estimates them anew from training data before each validation; ``train`` uses those
            of the batch also while the part is frozen. None uses the stored ones while it is frozen, those of the batch
            later.
        clip: Limit of the part's gradients, before the Trainer's ``gradient_clip_val``: ``{norm: 1.0}``,
            ``{value: 0.5}``, ``agc`` (by the norm of the weights; never the head) or ``zclip`` (by their own history),
            see `GradientClipping`; None limits nothing.
        adapter: ``lora``, ``dora``, ``loha``, ``lokr`` or ``ia3``, or ``{kind: lora, r: 8, ...}`` with arguments of
            peft's config (extra ``peft``): the part's own weights stay fixed, and adapters train in its groups, at its
            rates and by its schedule, see `add_adapter`. None trains the part itself.
        compile: Whether the part is compiled with ``torch.compile``, or its options as a dict.
    """

    module: Any
    args: dict[str, Any] = field(default_factory=dict)
    weights: str | dict[str, Any] | None = None
    input: str | list[str] | None = None
    output: str | int | None = None
    pool: str | None = None
    channels: int | None = None
    normalize: Any = False
    stages: list[str] | None = None
    lr_scale: float | None = None
    layer_decay: float | None = None
    weight_decay: float | None = None
    decay_all: bool | None = None
    l2sp: float | None = None
    unfreeze: Any = None
    batch_norm: str | None = None
    clip: Any = None
    adapter: Any = None
    compile: Any = False

    @property
    def origin(self) -> str:
        """``pretrained`` if weights are loaded, else ``untrained``."""
        return "untrained" if self.weights is None else "pretrained"

    @property
    def rates(self) -> PartRates:
        """The facts that `named_param_groups` needs."""
        return PartRates(self.lr_scale or 0.0, self.layer_decay or 1.0, self.weight_decay, bool(self.decay_all))

    def plain(self) -> dict[str, Any]:
        """The facts as plain data, without those that are None; a live module is left out."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in facts.items() if v is not None and not (k == "module" and not isinstance(v, str))}


@dataclass(frozen=True)
class OriginDefaults:
    """Facts for all parts of one origin that do not state them themselves; the fields are those of `Part`."""

    lr_scale: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float | None = None
    decay_all: bool = False
    l2sp: float | None = None
    unfreeze: Any = "always"
    batch_norm: str | None = None
    clip: Any = None


DEFAULTS = {"pretrained": OriginDefaults(lr_scale=0.1, unfreeze="10%"), "untrained": OriginDefaults()}
"""Pretrained parts learn at a tenth of the base rate, after the new parts have settled for a tenth of the fit."""


def _defaults(origin: str, given: Mapping[str, Any] | None) -> OriginDefaults:
    known = [f.name for f in dataclasses.fields(OriginDefaults)]
    for key in given or {}:
        if key not in known:
            raise unknown(f"model.{origin}", "key", str(key), known)
    return dataclasses.replace(DEFAULTS[origin], **(given or {}))


def parse_part(name: str, value: Any, defaults: Mapping[str, OriginDefaults]) -> Part:
    """Reads one part and fills in the defaults of its origin.

    Args:
        name: The part's name.
        value: A `Part`, a dict of its fields, a module name, or a live module.
        defaults: Origin → defaults.

    Raises:
        ConfigError: If a name, a key or a value is not possible.
    """
    where = f"model.parts.{name}" if name != "fusion" else "model.fusion"
    if isinstance(value, str | nn.Module) or (callable(value) and not isinstance(value, Part)):
        value = {"module": value}
    if isinstance(value, Mapping):
        known = [f.name for f in dataclasses.fields(Part)]
        for key in value:
            if key not in known:
                raise unknown(where, "key", str(key), known)
        if "module" not in value:
            raise ConfigError(f"{where}: 'module' is missing; give a registered name, a dotted path or a live module.")
        if not isinstance(value.get("args") or {}, Mapping):
            raise ConfigError(f"{where}.args: {value['args']!r} are not keyword arguments such as {{hidden: [64]}}.")
        value = Part(**{**value, "args": dict(value.get("args") or {})})
    if not isinstance(value, Part):
        raise ConfigError(f"{where}: a part is a dict of facts or a module, not {value!r}.")
    origin = defaults[value.origin]
    missing = {f.name: getattr(origin, f.name) for f in dataclasses.fields(origin) if getattr(value, f.name) is None}
    part = dataclasses.replace(value, module=_named(value.module, where), **missing)
    _check_values(part, where)
    return part


def _named(module: Any, where: str) -> Any:
    """A class or function as its registered name or dotted path, for checkpoints; anything else as it is."""
    if isinstance(module, nn.Module):
        return module
    if isinstance(module, str):
        return registered_name(module)
    path = f"{getattr(module, '__module__', '')}.{getattr(module, '__qualname__', '')}"
    if not callable(module) or "<" in path or path.startswith(".") or path.endswith("."):
        raise ConfigError(f"{where}.module: {module!r} cannot be named by a path; pass an instance of it instead.")
    return registered_name(path)


def _check_values(part: Part, where: str) -> None:
    check_number(part.lr_scale, f"{where}.lr_scale", low=0)
    check_number(part.layer_decay, f"{where}.layer_decay", low=0, high=1, above_low=True)
    if part.weight_decay is not None:
        check_number(part.weight_decay, f"{where}.weight_decay", low=0)
    if part.l2sp is not None:
        check_number(part.l2sp, f"{where}.l2sp", low=0)
    if part.pool is not None and part.pool not in POOLS:
        raise unknown(f"{where}.pool", "pooling", str(part.pool), POOLS)
    if not isinstance(part.output, str | int | None) or isinstance(part.output, bool):
        raise ConfigError(f"{where}.output: {part.output!r} is neither a key nor a position.")
    if part.channels is not None and (type(part.channels) is not int or part.channels < 1):
        raise ConfigError(f"{where}.channels: {part.channels!r} is not a number of channels, 1 or more.")
    if not isinstance(part.normalize, bool | Mapping):
        raise ConfigError(
            f"{where}.normalize: {part.normalize!r} is neither true, nor false, nor {{mean: ..., std: ...}}."
        )
    if part.weights not in (None, "pretrained"):
        with at(f"{where}.weights"):
            WeightSource.parse(part.weights)
    if not (part.input is None or isinstance(part.input, str) or _is_list_of_names(part.input)):
        raise ConfigError(f"{where}.input: {part.input!r} is neither a key, nor a part, nor a list of keys.")
    if not (part.stages is None or _is_list_of_names(part.stages)):
        raise ConfigError(f"{where}.stages: {part.stages!r} is not a list of patterns such as [stem, layer1, layer2].")
    if part.batch_norm is not None and part.batch_norm not in BATCH_NORM_MODES:
        raise unknown(f"{where}.batch_norm", "mode", str(part.batch_norm), BATCH_NORM_MODES)
    if part.clip is not None:
        with at(f"{where}.clip"):
            ClippingRule.parse(part.clip)
    if part.adapter is not None:
        parse_adapter(part.adapter, f"{where}.adapter")
    if not isinstance(part.compile, bool | Mapping):
        raise ConfigError(f"{where}.compile: {part.compile!r} is neither true, nor false, nor options as a dict.")
    UnfreezingSchedule.parse(part.unfreeze, f"{where}.unfreeze")


def refuse_compile_options(part: Part, where: str) -> None:
    """Raises `ConfigError` if the facts of a part, which come from a file, give torch.compile other than plain options.

    Args:
        part: Of a checkpoint.
        where: Config path of the part.
    """
    for option, value in part.compile.items() if isinstance(part.compile, Mapping) else ():
        possible = _COMPILE_OPTIONS.get(option, ())
        if type(value) not in (type(None), bool, str) or value not in possible:
            raise ConfigError(
                f"{where}.compile: {{{option!r}: {value!r:.100}}} comes from a file, which may only give "
                f"{listing(_COMPILE_OPTIONS)}, as torch documents them, because other options can run programs. Use "
                f"the config of the run instead: predict --config ... --ckpt_path ..., or from_config(...)."
            )


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def parse_parts(
    parts: Mapping[str, Any], pretrained: Mapping[str, Any] | None = None, untrained: Mapping[str, Any] | None = None
) -> dict[str, Part]:
    """Reads all parts, and adds a linear head if there is none.

    Args:
        parts: Name → facts; names match ``[a-z][a-z0-9_]*``.
        pretrained: Defaults of the parts that have weights.
        untrained: Defaults of the parts that have none.

    Raises:
        ConfigError: If there is no part beside the head, or a name or a fact is not possible.
    """
    if not isinstance(parts, Mapping) or not set(parts) - {"head"}:
        raise ConfigError(
            "model.parts: name at least one part beside the head, such as {image: {module: ConvExtractor}}."
        )
    taken = nn.ModuleDict()
    for name in parts:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED or hasattr(taken, name):
            raise ConfigError(
                f"model.parts: {name!r} cannot name a part. Names are lower-case words ([a-z][a-z0-9_]*) other than "
                f"{listing(RESERVED)} and the names of torch's module methods."
            )
    defaults = all_defaults(pretrained, untrained)
    with_head = {**parts, "head": parts.get("head", "LinearHead")}
    parsed = {name: parse_part(name, value, defaults) for name, value in with_head.items()}
    if parsed["head"].input is not None:
        raise ConfigError(
            f"model.parts.head.input: {parsed['head'].input!r} has no meaning; the head reads the parts that no other "
            f"part reads. Remove it, and set 'input' of the parts."
        )
    return parsed


def all_defaults(
    pretrained: Mapping[str, Any] | None, untrained: Mapping[str, Any] | None
) -> dict[str, OriginDefaults]:
    """Origin → its defaults with the user's changes."""
    return {"pretrained": _defaults("pretrained", pretrained), "untrained": _defaults("untrained", untrained)}


def execution_order(parts: Mapping[str, Part]) -> list[str]:
    """Part names, each after the part it reads; the head is left out.

    Raises:
        ConfigError: If parts read each other in a circle.
    """
    order: list[str] = []
    waiting = [name for name in parts if name != "head"]
    while waiting:
        ready = [n for n in waiting if not set(part_inputs(n, parts)) & set(waiting)]
        if not ready:
            raise ConfigError(f"model.parts: {listing(waiting)} read each other in a circle; let one read a batch key.")
        order += ready
        waiting = [name for name in waiting if name not in ready]
    return order


def part_inputs(name: str, parts: Mapping[str, Part]) -> list[str]:
    """The other parts that a part reads."""
    wanted = parts[name].input
    wanted = wanted if isinstance(wanted, list) else [wanted] if wanted else []
    return [key for key in wanted if key in parts and key not in (name, "head")]


def feeding_parts(parts: Mapping[str, Part]) -> list[str]:
    """The parts that no other part reads: they feed the fusion, or the head if there is only one."""
    read = {other for name in parts for other in part_inputs(name, parts)}
    return [name for name in execution_order(parts) if name not in read]
