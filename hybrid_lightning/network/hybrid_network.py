"""The network: parts in chains and parallel towers, a fusion where several meet, and a head."""

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError, listing, reason
from hybrid_lightning.importing import cache_hint, check_arguments, parameters_of, trusted
from hybrid_lightning.network.adapters import add_adapter
from hybrid_lightning.network.channels import (
    Normalize,
    adapt_channels,
    normalization,
    refuse_wrong_channels,
    require_channels,
)
from hybrid_lightning.network.libraries import (
    auto_config,
    complete_arguments,
    family_of,
    preprocessing_of,
    refuse_other_ways,
    timm_stages,
    without_classifier,
    without_hub,
)
from hybrid_lightning.network.missing import PREFIX, Presence, drop_at_random, encode_present, presence
from hybrid_lightning.network.outputs import find_output, find_pool, fix_unused, mask_of, pooled, shapes
from hybrid_lightning.network.part import Part, execution_order, feeding_parts, refuse_compile_options
from hybrid_lightning.network.registry import forbid_fetching, refuse_hidden_weights, resolve, switch_weights
from hybrid_lightning.network.stages import OPENED, Stages, discover_stages, recorded_calls
from hybrid_lightning.optim.groups import named_param_groups
from hybrid_lightning.unfreezing.freezing import dry_run
from hybrid_lightning.weights.loading import load_weights

Batch = Mapping[str, Any]
_CHANNEL_ARGUMENTS = ("in_channels", "in_chans")
_RECORDED = ("sizes", "stages", "outputs", "pools", "preprocessing", "scales")
_OWN = ("fusion", "head", "part_heads")
"""What follows the parts, in this order."""
_FEATURE_ARGUMENTS = ("in_features", "input_size")
_SIZED_ENTRIES = ("values", "numeric")
_OUTPUT_ARGUMENTS = ("out_features", "num_classes")
FUSION = Part("ConcatFusion", lr_scale=1.0, layer_decay=1.0, unfreeze="always")
PART_HEADS = Part("PartHeads", lr_scale=1.0, layer_decay=1.0, unfreeze="always")


class HybridNetwork(nn.Module):
    """Parts → fusion → head, built part by part along one dry run that infers all sizes.

    Args:
        parts: Name → facts, from `parse_parts`, which fills in defaults and the ``head``.
        outputs: Number of outputs of the head.
        fusion: Facts of the fusion; used only if several parts feed the head.
        example: A batch of two samples for the dry run. None if `record` is given.
        record: Sizes and stages of an earlier network with the same facts, see `record`; needs no data.
        load: Whether the parts' weights are read; False where a checkpoint follows.
        trust: None, or the packages that a file's dotted paths may name, see `resolve`.
        initialized: Parts whose weights come from elsewhere later, so that their own are not read.
        part_heads: Whether each part that feeds the fusion has a head of its own, to see what it knows alone.
        part_weight: 0: these heads only look on, and nothing else changes by them. More: their losses, times this,
            train the parts too.
        hints: Key of the batch → arguments that a part which reads it may leave out.

    Raises:
        ConfigError: If a fact is impossible, a key is missing in the batch, or sizes do not fit.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        outputs: int,
        *,
        fusion: Part = FUSION,
        example: Batch | None = None,
        record: Mapping[str, Any] | None = None,
        load: bool = True,
        trust: Collection[str] | None = None,
        initialized: Collection[str] = (),
        part_heads: bool = False,
        part_weight: float = 0.0,
        hints: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.facts = {name: part for name, part in parts.items() if name != "head"}
        self.order = execution_order(parts)
        self.feeding = feeding_parts(parts)
        if len(self.feeding) > 1:
            self.facts["fusion"] = fusion
        self.facts["head"] = parts["head"]
        if len(self.feeding) > 1 and part_heads:
            self.facts["part_heads"] = PART_HEADS
        if trust is not None:
            for name, part in self.facts.items():
                refuse_compile_options(part, self._where(name))
        self.outputs, self.part_weight = outputs, part_weight
        self._hints = hints or {}
        self.absent: list[str] = list((record or {}).get("absent", ()))
        """Parts that feed the fusion and that samples may lack."""
        known = {key: dict((record or {}).get(key, {})) for key in _RECORDED}
        self.sizes: dict[str, dict[str, Any]] = known["sizes"]
        self.stages: dict[str, Stages] = known["stages"]
        self.preprocessing: dict[str, dict[str, Any]] = known["preprocessing"]
        """Part → what its model expects of images, see `preprocessing_of`."""
        self._outputs: dict[str, str | int | None] = known["outputs"]
        self._pools: dict[str, str] = known["pools"]
        self._scales: dict[str, dict[str, Any]] = known["scales"]
        self.parts = nn.ModuleDict()
        self.scales = nn.ModuleDict()
        self._load, self._trust, self._initialized = load, trust, initialized
        self._rebuilt = record is not None
        self.weight_reports: dict[str, str] = {}
        """Part → what was loaded into it from a file."""
        self._compiled: dict[str, Callable[..., Any]] = {}
        if record is None:
            assert example is not None, "a new network needs an example batch"
            self._build_along(example)
        else:
            # in the order of the dry run, because the order of the groups follows it
            for name in [*self.order, *(n for n in _OWN if n in self.facts)]:
                self.parts[name] = self._make(name, self.sizes.get(name, {}))
                self._add_scale(name)
        for name in record["fixed"] if record else ():
            self.get_parameter(name).requires_grad_(False)
        self.fixed = {name for name, p in self.named_parameters() if not p.requires_grad}
        self._refuse_frozen_parts()
        self.param_groups(lr=1.0, weight_decay=0.0)  # finds impossible stages before an optimizer is made

    @property
    def record(self) -> dict[str, Any]:
        """What the dry run found, and the fixed parameters, as plain data; with the facts, all that a rebuild needs."""
        found = {"outputs": self._outputs, "pools": self._pools, "preprocessing": self.preprocessing}
        sizes = {"sizes": self.sizes, "stages": self.stages, "scales": self._scales}
        return {**sizes, **found, "fixed": sorted(self.fixed), "absent": self.absent}

    def _refuse_frozen_parts(self) -> None:
        for name, part in self.facts.items():
            parameters = list(self.parts[name].parameters())
            if parameters and not any(p.requires_grad for p in parameters) and part.unfreeze != "never":
                raise ConfigError(
                    f"{self._where(name)}.unfreeze: all parameters arrive frozen (requires_grad=False), so they would "
                    f"never train. Write 'unfreeze: never', or leave the flags to the schedule: requires_grad_(True)."
                )

    @property
    def keys_read(self) -> list[str]:
        """The keys of a batch that the parts read, and the masks of those that samples may lack."""
        keys = list(dict.fromkeys(key for name in self.order for key in self._wanted(name) if self._is_key(name, key)))
        lacking = [name for name in self.order if set(self._leads_to[name]) & set(self.absent)]
        own = {key for name in lacking for key in self._wanted(name) if self._is_key(name, key)}
        return keys + [PREFIX + key for key in keys if key in own]

    def _wanted(self, name: str) -> list[str]:
        """What a part reads: keys of the batch, and other parts."""
        wanted = self.facts[name].input or name
        return wanted if isinstance(wanted, list) else [wanted]

    def _is_key(self, name: str, key: str) -> bool:
        """Whether what a part reads is the batch's entry of that name, and no part."""
        return key not in self.order or key == name

    @cached_property
    def _leads_to(self) -> dict[str, list[str]]:
        """Part → the parts that feed the fusion through which it reaches it; itself, if it is one of them."""
        found: dict[str, list[str]] = {name: [name] for name in self.feeding}
        for name in reversed(self.order):
            followers = [other for other in self.order if other != name and name in self._wanted(other)]
            found.setdefault(name, list(dict.fromkeys(last for other in followers for last in found[other])))
        return found

    def forward(self, batch: Batch, wanted: str | None = None) -> Any:
        """Runs the network.

        Args:
            batch: A dict with the keys that the parts read, and ``present/<key>`` where samples may lack one.
            wanted: What is asked for beside the outputs, see below.

        Returns:
            Outputs `(B, outputs)`. With ``parts`` also a dict: part → the outputs of its own head, and which samples
            have it (`(B,)` bool; None: all). With ``without`` also a dict: part → the outputs without it.
        """
        present = self.presence(batch)
        if self.training and self._drop_rate:
            present = drop_at_random(present, self.feeding, self._drop_rate, _first_tensor(batch))
        features = self._features(batch, present)
        outputs = self._joined(features, present)
        if wanted == "parts":
            return outputs, self._alone(features, present)
        if wanted == "without":
            return outputs, self._without(features, present)
        return outputs

    @property
    def _states_dropout(self) -> bool:
        """Whether the facts of the fusion say that parts are left out at random."""
        fact = self.facts["fusion"]
        return bool(fact.args.get("modality_dropout") or getattr(fact.module, "modality_dropout", 0.0))

    @property
    def _drop_rate(self) -> float:
        """The probability of leaving a part out of a sample while training, which the fusion states."""
        return float(getattr(dict(self.parts.items()).get("fusion"), "modality_dropout", 0.0))

    def presence(self, batch: Batch) -> Presence:
        """Which parts are there in which samples.

        Raises:
            ConfigError: If samples lack a part that the model has never been without.
        """
        found = presence(self.order, {name: self._wanted(name) for name in self.order}, batch)
        for name in self.feeding:
            if name in found and name not in self.absent:
                if not bool(found[name].all()):
                    raise self._never_absent(name)
                del found[name]
        return found

    def _never_absent(self, name: str) -> ConfigError:
        if len(self.feeding) == 1:
            return ConfigError(
                f"data: some samples have nothing that part {name!r} reads, and the model has no other part. Remove "
                f"these samples, or add a part that reads something else."
            )
        return ConfigError(
            f"data: some samples have nothing that part {name!r} reads, and the model was trained without such "
            f"samples. Train it with them, or with model.fusion.args.modality_dropout, such as 0.2."
        )

    def _joined(self, features: Mapping[str, Tensor], present: Presence) -> Tensor:
        """The outputs from the features of the parts."""
        if "fusion" in self.parts:
            fuse = self._callable("fusion")
            given = {name: mask for name, mask in present.items() if name in self.feeding}
            head_input = fuse(features, given) if given else fuse(features)
        else:
            (head_input,) = features.values()
        output: Tensor = self._callable("head")(head_input)
        return output

    def _alone(self, features: Mapping[str, Tensor], present: Presence) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Part → outputs of its own head, which looks on unless `part_weight` is above 0; and its presence."""
        if "part_heads" not in self.parts:
            return {}
        looking_on = not self.part_weight
        seen = {name: tensor.detach() if looking_on else tensor for name, tensor in features.items()}
        return {name: (out, present.get(name)) for name, out in self._callable("part_heads")(seen, present).items()}

    def _without(self, features: Mapping[str, Tensor], present: Presence) -> dict[str, Tensor]:
        """Part → the outputs if no sample had it; nothing for a fusion that takes no presence."""
        if "fusion" not in self.parts or not _takes_presence(self.parts["fusion"]):
            return {}
        nobody = {name: tensor.new_zeros(len(tensor), dtype=torch.bool) for name, tensor in features.items()}
        return {name: self._joined(features, {**present, name: nobody[name]}) for name in self.feeding}

    def compile_parts(self) -> None:
        """Compiles the parts whose facts say so; weights and names of parameters stay as they are.

        An unfreezing changes which gradients a part needs, so torch compiles it once more for training and for
        evaluation. Its limit of compilations is raised by so many, because beyond it torch runs uncompiled.
        """
        for name, part in self.facts.items():
            if part.compile and name not in self._compiled:
                options = dict(part.compile) if isinstance(part.compile, Mapping) else {}
                try:
                    self._compiled[name] = torch.compile(self.parts[name], **options)
                except (TypeError, ValueError, RuntimeError) as error:
                    raise ConfigError(
                        f"{self._where(name)}.compile: torch.compile refuses {options}: {error}"
                    ) from error
                torch._dynamo.config.recompile_limit += 2 * (len(self.stages[name]) + 1)

    def _callable(self, name: str) -> Callable[..., Any]:
        compiled: Callable[..., Any] = self._compiled.get(name, self.parts[name])
        return compiled

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """The features `(B, features)` of each part that feeds the fusion or the head; zeros where it is absent."""
        return self._features(batch, self.presence(batch))

    def _features(self, batch: Batch, present: Presence) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name in self.order:
            inputs = self._inputs(name, batch, outputs)
            outputs[name] = self._encoded(name, inputs, self._mask(name, present))
            if name in self.feeding:
                features[name] = self._pool(name, outputs[name], inputs)
        return features

    def _mask(self, name: str, present: Presence) -> Tensor | None:
        """The samples for which a part has work: those that have its input, and one of the parts it leads to."""
        own = present.get(name)
        leading = [present.get(last) for last in self._leads_to[name]]
        needed = [mask for mask in leading if mask is not None]
        if len(needed) < len(leading):
            return own
        anywhere = torch.stack(needed).any(0)
        return anywhere if own is None else own & anywhere

    def _encoded(self, name: str, inputs: list[Any], mask: Tensor | None) -> Tensor:
        if mask is None:
            return self._call(name, inputs)
        return encode_present(lambda some: self._call(name, some), self.parts[name], inputs, mask)

    def _pool(self, name: str, output: Tensor, inputs: list[Any]) -> Tensor:
        return pooled(output, self._pools.get(name) or self.facts[name].pool or "mean", mask_of(inputs))

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Named param groups of all parts, see `named_param_groups`; each also has the ``origin`` of its part."""
        names = [name for name, module in self.parts.items() if any(True for _ in module.parameters())]
        groups = named_param_groups(
            self,
            {name: f"parts.{name}" for name in names},
            lr=lr,
            weight_decay=weight_decay,
            rates={name: self.facts[name].rates for name in names},
            stages={name: self._full_patterns(name) for name in names},
            fixed=self.fixed,
        )
        observers = {"part_heads"} if not self.part_weight else set()
        return [
            {**group, "origin": self.facts[group["part"]].origin, "observer": group["part"] in observers}
            for group in groups
        ]

    def _full_patterns(self, name: str) -> dict[str, list[str]]:
        return {s: [f"parts.{name}.{pattern}" for pattern in patterns] for s, patterns in self.stages[name].items()}

    def _inputs(self, name: str, batch: Batch, outputs: Mapping[str, Tensor]) -> list[Any]:
        found = []
        for key in self._wanted(name):
            if key in outputs:
                found.append(outputs[key])
            elif key in batch:
                found.append(batch[key])
            else:
                raise ConfigError(
                    f"model.parts.{name}.input: part {name!r} reads {key!r}, which is neither a part before it nor in "
                    f"the batch. The batch has: {listing(batch)}. Set 'input' to one of them."
                )
        return found

    def _call(self, name: str, inputs: list[Any]) -> Tensor:
        output, key = self._returned(name, inputs), self._outputs.get(name)
        return output if key is None else output[key]  # type: ignore[no-any-return]

    def _returned(self, name: str, inputs: list[Any]) -> Any:
        """What a part's module returns, on images of its own scale."""
        module = self._callable(name)
        if name in self.scales and isinstance(inputs[0], Tensor):
            inputs = [self.scales[name](inputs[0]), *inputs[1:]]
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return module(**inputs[0])
        return module(*inputs)

    def _add_scale(self, name: str) -> None:
        if name in self._scales:
            self.scales[name] = Normalize(**self._scales[name])

    def _build_along(self, example: Batch) -> None:
        """Makes each part with the sizes that the parts before it produce."""
        masks = presence(self.order, {name: self._wanted(name) for name in self.order}, example)
        several = len(self.feeding) > 1
        self.absent = [name for name in self.feeding if several and (self._states_dropout or name in masks)]
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name in self.order:
            inputs = self._inputs(name, example, outputs)
            outputs[name] = self._build_part(name, inputs)
            if name in self.feeding:
                features[name] = self._pool(name, outputs[name], inputs)
        head_input = features[self.feeding[0]]
        if several:
            head_input = self._build_part("fusion", [features], call=lambda module: module(features))
            self._refuse_gaps()
        output = self._build_part("head", [head_input])
        if output.shape != (len(head_input), self.outputs):
            raise ConfigError(
                f"model.parts.head: the head returns shape {tuple(output.shape)} for {len(head_input)} samples; the "
                f"task needs ({len(head_input)}, {self.outputs}). Leave its output size out, or correct it."
            )
        if "part_heads" in self.facts:
            sizes = {"in_features": _widths(features), "out_features": self.outputs}
            self.sizes["part_heads"] = sizes | {"standardize": self.facts["fusion"].args.get("standardize", "samples")}
            with torch.random.fork_rng(devices=[]):  # whatever is drawn later is drawn as without them
                self.parts["part_heads"] = self._make("part_heads", self.sizes["part_heads"])
            self.stages["part_heads"] = {"all": ["*"]}

    def _refuse_gaps(self) -> None:
        if self.absent and not _takes_presence(self.parts["fusion"]):
            raise ConfigError(
                f"model.fusion: samples may lack {listing(self.absent)}, and {type(self.parts['fusion']).__name__} "
                f"takes no second argument 'present' (part → bool (B,)). Give its forward one, or use ConcatFusion."
            )

    def _build_part(self, name: str, inputs: list[Any], call: Callable[[nn.Module], Tensor] | None = None) -> Tensor:
        where = self._where(name)
        sizes = self._infer_sizes(name, inputs)
        self.sizes[name] = sizes
        self.parts[name] = module = self._make(name, sizes)
        self._add_scale(name)
        if name in self.scales:
            require_channels(self._scales[name]["mean"], inputs[0], where)
        called: list[nn.Module] = []
        has_branches = family_of(self.facts[name].module) == "transformers"  # such as a pooler that nothing reads
        try:
            with dry_run(module), recorded_calls(module, called), torch.set_grad_enabled(has_branches):
                returned: Any = call(module) if call else self._returned(name, inputs)
        except ConfigError:
            raise
        except Exception as error:  # somebody else's code may raise anything
            refuse_wrong_channels(module, called, inputs, where)
            raise ConfigError(
                f"{where}: {type(module).__name__} fails on its input {shapes(inputs)}: {str(error)[:400]}"
            ) from error
        part, kind = self.facts[name], type(module).__name__
        self._outputs[name] = key = find_output(returned, part.output, where, kind)
        output = returned if key is None else returned[key]
        if output.requires_grad:
            fix_unused(module, output)
            output = output.detach()
        samples = _samples(inputs)
        if output.ndim < 2 or samples not in (0, len(output)):
            raise ConfigError(
                f"{where}: {kind} returns {shapes([output])} for {samples} samples; a part returns one tensor "
                f"(B, ...), the samples first. Wrap it in a module that picks and shapes the tensor to use."
            )
        if name in self.feeding:
            self._pools[name] = find_pool(output, part.pool, called, where)
        self.stages[name] = self._find_stages(name, module, called)
        return output  # type: ignore[no-any-return]

    def _find_stages(self, name: str, module: nn.Module, called: list[nn.Module]) -> Stages:
        part = self.facts[name]
        if name == "fusion":  # its projections run side by side, not one after the other
            return {"all": ["*"]}
        if part.stages:
            return {stage: [stage] for stage in part.stages}
        family = family_of(part.module)
        stated = timm_stages(module) if family == "timm" else None
        return stated or discover_stages(module, called, OPENED if family else ())

    def _infer_sizes(self, name: str, inputs: list[Any]) -> dict[str, Any]:
        """Values for the size arguments that the facts leave out."""
        part = self.facts[name]
        if isinstance(part.module, nn.Module):
            return {}
        factory = resolve(part.module, f"{self._where(name)}.module", self._trust)
        wanted = [argument for argument in parameters_of(factory) if argument not in part.args]
        sizes: dict[str, Any] = {}
        if name == "fusion":
            known = {"in_features": _widths(inputs[0]), "out_features": self.outputs, "absent": self.absent}
            return {argument: value for argument, value in known.items() if argument in wanted and value}
        if part.module == "transformers.AutoModel" and (part.args.get("name") or part.args.get("config")):
            given = part.args.get("name"), part.args.get("config")
            return {"config": auto_config(*given, f"{self._where(name)}.args")}
        first = inputs[0] if inputs else None
        if isinstance(first, Mapping):
            first = next((first[key] for key in _SIZED_ENTRIES if key in first), None)
        hints = {argument: value for key in self._wanted(name) for argument, value in self._hints.get(key, {}).items()}
        for argument in wanted:
            if argument in hints:
                sizes[argument] = hints[argument]
            elif isinstance(first, Tensor) and first.ndim >= 2 and argument in _CHANNEL_ARGUMENTS:
                sizes[argument] = first.shape[1]
            elif isinstance(first, Tensor) and first.ndim >= 2 and argument in _FEATURE_ARGUMENTS:
                sizes[argument] = first.shape[-1]
            elif name == "head" and argument in _OUTPUT_ARGUMENTS:
                sizes[argument] = self.outputs
        return sizes

    def _make(self, name: str, sizes: Mapping[str, Any]) -> nn.Module:
        """The part's module, with its weights, its channels and its adapters."""
        part, where = self.facts[name], self._where(name)
        factory, load = None, self._load and name not in self._initialized
        if isinstance(part.module, nn.Module):
            module, has_weights = part.module, part.weights == "pretrained"
        else:
            factory = resolve(part.module, f"{where}.module", self._trust)
            if self._rebuilt:  # from a file, which may not say more than a dry run would
                forbid_fetching(factory, part.module, dict(sizes), f"{where}.args")
            args = {**sizes, **part.args}
            complete_arguments(part.module, factory, args, f"{where}.args")
            has_weights = part.weights == "pretrained" and switch_weights(factory, args, load)
            if self._trust is None:
                refuse_other_ways(part.module, f"{where}.module")
                if part.weights is None:
                    refuse_hidden_weights(part.module, args, f"{where}.args")
            elif not trusted(part.module, self._trust):
                forbid_fetching(factory, part.module, args, f"{where}.args")
            with nullcontext() if self._trust is None else without_hub():
                module = without_classifier(part.module, self._create(factory, args, part.module, where))
        if load and part.weights is not None and not has_weights:
            report = self._read_weights(name, module)
            self.weight_reports |= {name: report} if report else {}
        if name not in self.preprocessing:
            self.preprocessing[name] = facts = preprocessing_of(part.module, module, factory)
            if part.normalize:
                self._scales[name] = normalization(part.normalize, facts, part.channels, where)
        if part.channels:
            adapt_channels(module, part.channels, where)
        if part.adapter:
            add_adapter(module, part.adapter, f"{where}.adapter")
        return module

    def _read_weights(self, name: str, module: nn.Module) -> str:
        """Loads a part's file, also one that was written after the part's channels had been adapted."""
        part, where = self.facts[name], self._where(name)
        try:
            return load_weights(module, part.weights, f"{where}.weights", name)
        except ConfigError as error:
            if part.channels is None or part.weights == "pretrained":
                raise
            try:
                adapt_channels(module, part.channels, where)
                return load_weights(module, part.weights, f"{where}.weights", name)
            except ConfigError:
                raise error from None

    @staticmethod
    def _create(factory: Callable[..., Any], args: Mapping[str, Any], path: str, where: str) -> nn.Module:
        """Calls a factory; what goes wrong there is told with its place."""
        check_arguments(factory, args, f"{where}.args")
        try:
            module = factory(**args)
        except ConfigError:
            raise
        except Exception as error:  # somebody else's code may raise anything
            fetches = isinstance(error, OSError) and (args.get("pretrained") or args.get("weights"))
            hint = cache_hint(path) if fetches else ""
            raise ConfigError(
                f"{where}.args: {path!r} refuses its arguments: {reason(error)}{hint} They are {dict(args)!r:.300}."
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{where}.module: {path!r} returns a {type(module).__name__}, not a torch module.")
        return module

    def leave_out_part_heads(self) -> None:
        """Takes the parts' own heads away, such as for a checkpoint that has none; nothing else depends on them."""
        del self.parts["part_heads"], self.facts["part_heads"], self.stages["part_heads"], self.sizes["part_heads"]

    @staticmethod
    def _where(name: str) -> str:
        return "model.fusion" if name == "fusion" else f"model.parts.{name}"


def _widths(features: Mapping[str, Tensor]) -> dict[str, int]:
    return {part: tensor.shape[1] for part, tensor in features.items()}


def _takes_presence(fusion: nn.Module) -> bool:
    """Whether a fusion's forward has a second argument, the presence of the parts."""
    return len(inspect.signature(fusion.forward).parameters) > 1


def _first_tensor(batch: Batch) -> Tensor:
    """Any tensor of a batch, samples first."""
    entries = [e for value in batch.values() for e in (value.values() if isinstance(value, Mapping) else [value])]
    return next(entry for entry in entries if isinstance(entry, Tensor) and entry.ndim)


def _samples(inputs: list[Any]) -> int:
    """Number of samples in a part's inputs, each a tensor or a dict of tensors; 0 if that cannot be seen."""
    entries = [e for value in inputs for e in (value.values() if isinstance(value, Mapping) else [value])]
    return next((len(e) for e in entries if isinstance(e, Tensor) and e.ndim), 0)


def first_samples(batch: Batch, count: int = 2) -> dict[str, Any]:
    """The first samples of a batch, on the CPU; a single one is repeated."""

    def cut(entry: Any) -> Any:
        if isinstance(entry, Tensor) and entry.ndim:
            short = entry[:count].detach().cpu().clone()  # a module that works in place gets a copy
            return short if len(short) == count else short.repeat(count, *[1] * (entry.ndim - 1))
        if isinstance(entry, Mapping):
            return {key: cut(value) for key, value in entry.items()}
        return entry[:count] if isinstance(entry, list | tuple) else entry

    return {key: cut(entry) for key, entry in batch.items()}
