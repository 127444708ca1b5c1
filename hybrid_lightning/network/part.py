"""Parts: what a user says about each sub-network, read into typed options."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, at, check_choice, check_keys, listing
from hybrid_lightning.gradients.clipping_rule import ClippingRule
from hybrid_lightning.network.adapters import AdapterSpec
from hybrid_lightning.network.contracts import ReadsTrainingData
from hybrid_lightning.network.defaults import DEFAULTS, Defaults, all_defaults, defaults_of, without_none
from hybrid_lightning.network.option_checks import check_kinds, check_numbers
from hybrid_lightning.network.registry import RANDOM_MODULES, registered_name
from hybrid_lightning.optim.groups import PartRates
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.weights.loading import WeightSource

_OF_SHARING = ("share", "input")
NEVER = UnfreezingSchedule.parse("never")
RESERVED = ("fusion", "cached", "target", "id", "present", "pretrained", "untrained", "total")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TYPES: dict[str, Any] = {
    "weights": WeightSource,
    "unfreeze": UnfreezingSchedule,
    "clip": ClippingRule,
    "adapter": AdapterSpec,
}
"""Options that are read into an object of their own."""


@dataclass(frozen=True)
class Part:
    """One named sub-network. An option that is None takes its value from the defaults of the part's origin.

    The words of ``weights``, ``unfreeze``, ``clip`` and ``adapter`` are read at once: the attributes are typed values.

    Args:
        module: A registered name, a dotted path to a class or factory function, or a live module.
        args: Keyword arguments of the class or function. Input sizes (``in_features``, ``in_channels``, ...) that are
            left out are filled in by the dry run.
        weights: ``pretrained`` (the module brings its own), the path of a ``.safetensors`` or ``.pt`` file or of a
            checkpoint of this program, or ``{path: ..., sha256: ..., strip: [...], rename: {...}, coverage: 0.9}`` (see
            `WeightSource`), or None for an untrained part. A live module that is already trained says ``pretrained``.
        origin: ``pretrained``, ``untrained`` or ``random``, which is drawn once and never trained. None takes the one
            that follows: pretrained with ``weights``; random for modules of random features; else untrained. A part
            that gets trained weights otherwise, by hand or by ``init_from``, says ``pretrained``.
        input: Name of another part, key of the batch, or a list of them passed by position; a part's name wins over a
            key of the same name. None reads the key of the part's own name.
        output: Key or position of the tensor to use, where the module returns a dict or a tuple; None takes
            ``last_hidden_state``, ``out``, or the only tensor.
        pool: How an output with more than two dimensions becomes ``(B, features)`` before the fusion or the head:
            ``mean``, ``max`` or ``flatten`` of ``(B, C, ...)``; ``time``, the mean over the last dimension alone (the
            default for maps of a spectrogram, whose other side is pitch); ``tokens``, the mean of ``(B, ..., C)`` over
            all but the last, without what an ``attention_mask`` in the part's input leaves out. None sees in the dry
            run where the module's last layer left the channels.
        channels: Input channels, for a module whose first convolution was made for another number: its weights are
            summed or repeated, see `adapt_channels`. None leaves it.
        normalize: Whether images in [0, 1] are put on the scale that the weights were trained on, as the model states
            it, or ``{mean: [...], std: [...]}``. None does so for the published weights of timm's and torchvision's
            models where they state it, and refuses images that are not in [0, 1].
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
        checkpoint_activations: Whether the backward pass computes the part's activations again, stage by stage, where
            they would else be kept in memory from the forward pass on. Results are the same; not beside ``compile``.
        share: Name of the part whose module this one has, with all other options but ``input``; filled in, for what is
            written as ``{share: front, input: back}``.
        written: Option → its typed value and the words behind it; filled in.

    Raises:
        ConfigError: If a value is impossible.
    """

    module: Any
    args: dict[str, Any] = field(default_factory=dict)
    weights: WeightSource | Any = None
    origin: str | None = None
    input: str | list[str] | None = None
    output: str | int | None = None
    pool: str | None = None
    channels: int | None = None
    normalize: bool | Mapping[str, Any] | None = None
    stages: list[str] | None = None
    lr_scale: float | None = None
    layer_decay: float | None = None
    weight_decay: float | None = None
    decay_all: bool | None = None
    l2sp: float | None = None
    unfreeze: UnfreezingSchedule | Any = None
    batch_norm: str | None = None
    clip: ClippingRule | Any = None
    adapter: AdapterSpec | Any = None
    compile: bool | Mapping[str, Any] = False
    checkpoint_activations: bool | None = None
    share: str | None = None
    written: dict[str, tuple[Any, Any]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Reads the words and checks all values."""
        self._set("module", _named(self.module))
        if not isinstance(self.args, Mapping):
            raise ConfigError(f"{self.args!r} are not keyword arguments such as {{hidden: [64]}}.", "args")
        # a copy, because the caller may change the dict later
        self._set("args", dict(self.args))
        written = dict(self.written)
        for name, kind in _TYPES.items():
            words = getattr(self, name)
            is_own = name == "weights" and words == "pretrained"
            # a typed value comes from `dataclasses.replace`, and has been read before
            if words is None or is_own or isinstance(words, kind):
                continue
            with at(name):
                typed = kind.parse(words)
            self._set(name, typed)
            written[name] = (typed, words)
        if self.origin is not None:
            written["origin"] = (self.origin, self.origin)
        self._set("written", written)
        if self.origin is None:
            self._set("origin", implied_origin(self.module, self.weights))
        _check_origin(self)
        check_numbers(self)
        check_kinds(self)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def is_doubtful(self) -> bool:
        """Whether it counts as untrained although its live module may have been trained."""
        is_live = isinstance(self.module, nn.Module)
        return is_live and self.origin == "untrained" and "origin" not in self.written

    @property
    def rates(self) -> PartRates:
        """The options that `named_param_groups` needs."""
        return PartRates(self.lr_scale or 0.0, self.layer_decay or 1.0, self.weight_decay, bool(self.decay_all))

    def plain(self) -> dict[str, Any]:
        """The options as they were written, without those that are None; a live module is left out."""
        plain = {}
        for option in _OPTIONS if self.share is None else _OF_SHARING:
            value = getattr(self, option)
            is_live = option == "module" and not isinstance(value, str)
            is_implied = option == "origin" and value == implied_origin(self.module, self.weights)
            if value is None or is_live or is_implied:
                continue
            typed, words = self.written.get(option, (None, None))
            plain[option] = words if value is typed else value
        return plain


_OPTIONS = tuple(option.name for option in dataclasses.fields(Part) if option.name != "written")


def parse_part(name: str, value: Any, defaults: Defaults) -> Part:
    """Reads a `Part`, a dict of its options, a module name, or a live module; fills in the defaults of its origin."""
    with at(place_of(name)):
        options = _options_of(value)
        origin = options.get("origin") or implied_origin(_named(options["module"]), options.get("weights"))
        check_choice(origin, "origin", tuple(DEFAULTS), "origin")
        return Part(**{**defaults_of(name, origin, defaults), **options})


def _owner_of(value: Any) -> Any:
    """The name of the part whose module a part has, from its options; None if it has its own."""
    if isinstance(value, Part):
        return value.share
    return value.get("share") if isinstance(value, Mapping) else None


def _parse_sharing_part(name: str, value: Any, owners: Mapping[str, Part]) -> Part:
    """Reads a part that has the module of one of the `owners`, with all of its options but the input."""
    with at(place_of(name)):
        stated = value.plain() if isinstance(value, Part) else value
        options = without_none(stated)
        check_keys(options, _OPTIONS)
        owner = options["share"]
        others = [option for option in options if option not in _OF_SHARING]
        if others:
            raise ConfigError(
                f"it has the module of {owner!r}, which trains once for both, so that {listing(others)} can be "
                f"stated there alone. Leave it out here, or leave 'share' out and give the part a module.",
                others[0],
            )
        possible = [part for part in owners if part not in (name, "head")]
        if name == "head" or owner not in possible:
            raise ConfigError(
                f"{owner!r} is not a part whose module this one can have. Possible: {listing(possible)}. The head, and "
                f"parts that share a module themselves, are not.",
                "share",
            )
        return dataclasses.replace(owners[owner], input=options.get("input"), share=owner)


def refuse_unused_defaults(pretrained: Mapping[str, Any] | None, parts: Mapping[str, Part]) -> None:
    """Raises `ConfigError` if there are defaults of pretrained parts, and no such part."""
    if not without_none(pretrained or {}) or any(part.origin == "pretrained" for part in parts.values()):
        return
    raise ConfigError(
        f"no part is pretrained, so {listing(pretrained or {})} would hold for none of {listing(parts)}. Write "
        f"'weights: pretrained' or a path on the part that is meant; or 'origin: pretrained', if its weights are "
        f"trained already: as a live module, set by hand, or by init_from. Else leave this out.",
        "model.pretrained",
    )


def implied_origin(module: Any, weights: Any) -> str:
    """The origin of a part that states none."""
    if weights is not None:
        return "pretrained"
    if isinstance(module, nn.Module):
        is_random = isinstance(module, ReadsTrainingData) and not any(True for _ in module.parameters())
    else:
        is_random = module in RANDOM_MODULES
    return "random" if is_random else "untrained"


def place_of(name: str) -> str:
    """The place of a part's options in the config, for errors."""
    return "model.fusion" if name == "fusion" else f"model.parts.{name}"


def _options_of(value: Any) -> dict[str, Any]:
    """What is stated about a part, by the names of the options."""
    if isinstance(value, Part):
        # the words are read anew, with the defaults of the origin
        return {**value.plain(), "module": value.module}
    if isinstance(value, str | nn.Module) or callable(value):
        return {"module": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"a part is a dict of options or a module, not {value!r}.")
    check_keys(value, [option for option in _OPTIONS if option != "share"])
    if value.get("module") is None:
        raise ConfigError("'module' is missing; give a registered name, a dotted path or a live module.")
    return without_none(value)


def _named(module: Any) -> Any:
    """A class or function as its registered name or dotted path, for checkpoints; anything else as it is."""
    if isinstance(module, nn.Module):
        return module
    if isinstance(module, str):
        return registered_name(module)
    path = f"{getattr(module, '__module__', '')}.{getattr(module, '__qualname__', '')}"
    if not callable(module) or "<" in path or path.startswith(".") or path.endswith("."):
        raise ConfigError(f"{module!r} cannot be named by a path; pass an instance of it instead.", "module")
    return registered_name(path)


def _check_origin(part: Part) -> None:
    check_choice(part.origin, "origin", tuple(DEFAULTS), "origin")
    # trained weights may have been set by hand, but not in what is drawn
    is_drawn = implied_origin(part.module, part.weights) == "random"
    if is_drawn if part.origin == "pretrained" else part.weights is not None:
        raise ConfigError(f"{part.origin!r} does not go with weights {part.weights!r}. Leave 'origin' out.", "origin")
    if part.origin != "random":
        return
    for option, value in (("unfreeze", part.unfreeze), ("adapter", part.adapter)):
        if value not in (None, NEVER):
            raise ConfigError(
                "a random part is drawn once and never trained. Leave this out; or, if its module has parameters, "
                "write 'origin: untrained' on the part, and they train.",
                option,
            )


def parse_parts(
    parts: Mapping[str, Any], pretrained: Mapping[str, Any] | None = None, untrained: Mapping[str, Any] | None = None
) -> dict[str, Part]:
    """Reads all parts with the defaults of both origins, and adds a linear head if there is none."""
    if not isinstance(parts, Mapping) or not set(parts) - {"head"}:
        raise ConfigError(
            "name at least one part beside the head, such as {image: {module: ConvExtractor}}.", "model.parts"
        )
    # parts are entries of a ModuleDict, which refuses the names of its own methods
    attributes = nn.ModuleDict()
    for name in parts:
        is_word = isinstance(name, str) and _NAME.fullmatch(name)
        if not is_word or name in RESERVED or hasattr(attributes, name):
            raise ConfigError(
                f"{name!r} cannot name a part. Names are lower-case words ([a-z][a-z0-9_]*) other than "
                f"{listing(RESERVED)} and the names of torch's module methods.",
                "model.parts",
            )
    defaults = all_defaults(pretrained, untrained)
    with_head = {**parts, "head": parts.get("head", "LinearHead")}
    owners = {}
    for name, value in with_head.items():
        if _owner_of(value) is None:
            owners[name] = parse_part(name, value, defaults)
    parsed = {}
    for name, value in with_head.items():
        parsed[name] = owners[name] if name in owners else _parse_sharing_part(name, value, owners)
    if parsed["head"].input is not None:
        raise ConfigError(
            f"{parsed['head'].input!r} has no meaning; the head reads the parts that no other part reads. Remove it, "
            f"and set 'input' of the parts.",
            "model.parts.head.input",
        )
    return parsed
