"""Builds networks: along an example batch, which gives all sizes, or again from the record of an earlier network."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.data.tensors import PART_POOL
from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.importing import parameters_of
from hybrid_lightning.network.batch import Batch, sizes_of, tensors_in
from hybrid_lightning.network.calling import refuse_other_precision, run_module
from hybrid_lightning.network.channels import Normalize, refuse_wrong_channels, require_channels
from hybrid_lightning.network.contracts import takes_presence
from hybrid_lightning.network.file_sets import pool_of_files, pooled_over_files, rows_of_files
from hybrid_lightning.network.fusion import SHRINK_ABOVE
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.lazy import give_shapes, names_of_tensors, shapes_found
from hybrid_lightning.network.libraries import auto_config, family_of, timm_stages
from hybrid_lightning.network.longest_text import refuse_longer_texts
from hybrid_lightning.network.making import PartMaker
from hybrid_lightning.network.missing import presence
from hybrid_lightning.network.outputs import described, find_output, find_pool, fix_unused, mask_of, pooled
from hybrid_lightning.network.part import Part, place_of
from hybrid_lightning.network.record import NetworkRecord, PartRecord
from hybrid_lightning.network.scales import remark_on_scale, scale_of
from hybrid_lightning.network.stages import OPENED, Stages, discover_stages, recorded_calls
from hybrid_lightning.network.wiring import OWN, Wiring
from hybrid_lightning.unfreezing.freezing import dry_run

FUSION = Part("ConcatFusion", lr_scale=1.0, layer_decay=1.0, unfreeze="always")
_OUTPUT_ARGUMENTS = ("out_features", "num_classes")


def build(
    parts: Mapping[str, Part],
    outputs: int,
    example: Batch,
    *,
    fusion: Part = FUSION,
    load: bool = True,
    trust: Collection[str] | None = None,
    initialized: Collection[str] = (),
    inferred: Mapping[str, Mapping[str, Any]] | None = None,
) -> HybridNetwork:
    """Builds a network part by part along one dry run that infers all sizes.

    `example` is a batch of two samples. The parts in `initialized` get their weights from elsewhere later, so that
    their own are not read; with `load` False none are, because a checkpoint follows. `trust` is that of `resolve`.
    `inferred`: key of the batch → arguments that a part which reads it may leave out.
    """
    wiring = Wiring(parts)
    options = _options(parts, wiring, fusion)
    with_weights = set(options).difference(initialized) if load else ()
    draft = _Draft(options, outputs, wiring, PartMaker(trust, with_weights=with_weights), inferred or {})
    draft.make_all(example)
    record = NetworkRecord(draft.records, _fixed(draft.modules), draft.absent)
    network = HybridNetwork(options, outputs, draft.modules, record)
    network.weight_reports = draft.reports
    refuse_longer_texts(network, example, inferred)
    return network


def rebuild(
    parts: Mapping[str, Part],
    outputs: int,
    record: NetworkRecord,
    *,
    fusion: Part = FUSION,
    trust: Collection[str] | None = None,
) -> HybridNetwork:
    """Builds the network of a record again, without data and without weights; for the arguments see `build`."""
    wiring = Wiring(parts)
    options = _options(parts, wiring, fusion)
    maker = PartMaker(trust, sizes_from_file=True)
    modules: dict[str, nn.Module] = {}
    records: dict[str, PartRecord] = {}
    # in the order of the dry run, because the order of the groups follows it
    for name in [*wiring.order, *(own for own in OWN if own in options)]:
        if name not in record.parts:
            raise ConfigError("the record of the network lacks this part. Use another checkpoint.", place_of(name))
        records[name] = record.parts[name]
        part = options[name]
        if part.share is not None:
            modules[name] = modules[part.share]
            continue
        with at(place_of(name)):
            modules[name], _ = maker.make(name, part, maker.factory_of(part), records[name].sizes)
            give_shapes(modules[name], records[name].shapes or {})
            if part.normalize and records[name].scale is None:
                raise ConfigError("the record of the network lacks the scale. Use another checkpoint.")
    _fix(modules, record.fixed)
    complete = NetworkRecord(records, _fixed(modules), record.absent)
    return HybridNetwork(options, outputs, modules, complete)


def _options(
    parts: Mapping[str, Part],
    wiring: Wiring,
    fusion: Part,
) -> dict[str, Part]:
    """The options of all that the network consists of."""
    options = dict(parts)
    head = options.pop("head")
    # where one part feeds the head there is nothing to join or to compare
    several = len(wiring.feeding) > 1
    if several:
        options["fusion"] = fusion
    options["head"] = head
    return options


def _fix(modules: Mapping[str, nn.Module], names: Collection[str]) -> None:
    # a tied parameter may be recorded by any of its names
    parameters = dict(nn.ModuleDict(modules).named_parameters(prefix="parts", remove_duplicate=False))
    for name in names:
        if name not in parameters:
            raise ConfigError(f"the record of the network fixes {name!r}, which is not a parameter of it.", "fixed")
        parameters[name].requires_grad_(False)


def _fixed(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of the parameters that arrive without gradient, or that no output depends on."""
    parameters = nn.ModuleDict(modules).named_parameters(prefix="parts")
    return sorted(name for name, parameter in parameters if not parameter.requires_grad)


@dataclass
class _Draft:
    """A network in the making: each part gets the sizes that the parts before it produce."""

    options: dict[str, Part]
    outputs: int
    wiring: Wiring
    maker: PartMaker
    inferred: Mapping[str, Mapping[str, Any]]
    absent: list[str] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    records: dict[str, PartRecord] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)

    def make_all(self, example: Batch) -> None:
        """Makes all parts, then what follows them."""
        self.absent = self._find_absent(example)
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name in self.wiring.order:
            inputs = self.wiring.inputs(name, example, outputs)
            outputs[name] = self._add(name, inputs)
            if name in self.wiring.feeding:
                features[name] = pooled(outputs[name], self.records[name].pool or "mean", mask_of(inputs))
        head_input = next(iter(features.values()))
        if "fusion" in self.options:
            head_input = self._add("fusion", [features])
            fusion = self.modules["fusion"]
            if self.absent and not takes_presence(fusion):
                raise ConfigError(
                    f"samples may lack {listing(self.absent)}, and {type(fusion).__name__} takes no second argument "
                    f"'present' (part → bool (B,)). Give its forward one, or use ConcatFusion.",
                    "model.fusion",
                )
        output = self._add("head", [head_input])
        if output.shape != (len(head_input), self.outputs):
            raise ConfigError(
                f"the head returns shape {tuple(output.shape)} for {len(head_input)} samples; the task needs "
                f"({len(head_input)}, {self.outputs}). Leave its output size out, or correct it.",
                "model.parts.head",
            )

    def _find_absent(self, example: Batch) -> list[str]:
        """The parts that feed the fusion and that samples may lack: by the data, or because the fusion drops them."""
        if "fusion" not in self.options:
            return []
        fusion = self.options["fusion"]
        # the fusion is made last, but `absent` is among its arguments
        drops = fusion.args.get("modality_dropout") or getattr(fusion.module, "modality_dropout", 0.0)
        masks = presence(self.wiring.order, self.wiring.reads, example)
        return [name for name in self.wiring.feeding if drops or name in masks]

    def _add(self, name: str, inputs: list[Any]) -> Tensor:
        """Makes a part, runs it on its inputs, records what that shows, and returns its output."""
        part = self.options[name]
        with at(place_of(name)):
            files = pool_of_files(name, self.wiring, self.inferred)
            there = None
            if files is not None:
                inputs, there = rows_of_files(inputs)
            factory = self.maker.factory_of(part)
            sizes = self._make(name, factory, inputs)
            module = self.modules[name]
            scale = scale_of(part, module, factory, inputs)
            if scale is not None:
                require_channels(scale["mean"], inputs[0])
            names = names_of_tensors(module)
            returned, called = _run(name, part, module, inputs, scale)
            shapes = shapes_found(module, names)
            output, key = _output_of(part, module, returned, inputs)
            pool = None
            if name in self.wiring.feeding:
                pool = part.pool or self._pool_of(name, output, called)
            if files is not None and there is not None:
                features = output if pool is None else pooled(output, pool, mask_of(inputs))
                output = pooled_over_files(features, there, files)
        stages = {"all": ["*"]}
        if name != "fusion":  # its projections run side by side, not one after the other
            stages = _find_stages(part, module, called)
        self.records[name] = PartRecord(sizes, stages, key, pool, scale, shapes, files)
        return output

    def _make(self, name: str, factory: Callable[..., Any] | None, inputs: list[Any]) -> dict[str, Any]:
        """Makes a part's module, or takes that of the part whose module it has; returns the sizes it was made with."""
        part = self.options[name]
        report = ""
        if part.share is None:
            sizes = self._infer_sizes(name, factory, inputs)
            self.modules[name], report = self.maker.make(name, part, factory, sizes)
        else:
            sizes = self.records[part.share].sizes
            self.modules[name] = self.modules[part.share]
        lines = [report, remark_on_scale(part, self.modules[name], inputs)]
        report = "\n".join(filter(None, lines))
        if report:
            self.reports[name] = report
        return sizes

    def _pool_of(self, name: str, output: Tensor, called: list[nn.Module]) -> str:
        """How a part's output is pooled, if the part does not say so: maps as the data state it for their input."""
        pool = find_pool(output, called)
        if pool != "mean" or output.ndim != 4:
            return pool
        read = {name}
        for part in reversed(self.wiring.order):
            if part in read:
                read.update(self.wiring.reads[part])
        stated = [self.inferred[key][PART_POOL] for key in read if PART_POOL in self.inferred.get(key, {})]
        return str(stated[0]) if stated else pool

    def _infer_sizes(self, name: str, factory: Callable[..., Any] | None, inputs: list[Any]) -> dict[str, Any]:
        """Values for the arguments that the options leave out."""
        if factory is None:
            return {}
        part = self.options[name]
        # the whole architecture is recorded, so that a rebuild reads neither a folder nor the hub
        if part.module == "transformers.AutoModel" and (part.args.get("name") or part.args.get("config")):
            with at("args"):
                return {"config": auto_config(part.args.get("name"), part.args.get("config"))}
        known: dict[str, Any] = {}
        if name == "fusion":
            known = {"in_features": _widths(inputs[0]), "out_features": self.outputs, "shrink_above": SHRINK_ABOVE}
            if self.absent:
                known["absent"] = self.absent
        else:
            if name == "head":
                known = dict.fromkeys(_OUTPUT_ARGUMENTS, self.outputs)
            known |= sizes_of(inputs)
            for key in self.wiring.reads.get(name, ()):
                known |= self.inferred.get(key, {})
        sizes = {}
        for argument in parameters_of(factory):
            if argument in known and argument not in part.args:
                sizes[argument] = known[argument]
        return sizes


def _widths(features: Mapping[str, Tensor]) -> dict[str, int]:
    return {part: tensor.shape[1] for part, tensor in features.items()}


def _run(
    name: str,
    part: Part,
    module: nn.Module,
    inputs: list[Any],
    scale: dict[str, list[float]] | None,
) -> tuple[Any, list[nn.Module]]:
    """What a module returns in a dry run, and its submodules in the order of their first call."""
    # the graph shows which parameters nothing reads, such as those of a pooler
    with_graph = family_of(part.module) == "transformers"
    with recorded_calls(module) as called:
        try:
            with dry_run(module), torch.set_grad_enabled(with_graph):
                if name == "fusion":
                    # a dict is its one argument, where a part would take keywords
                    return module(*inputs), called
                normalize = None if scale is None else Normalize(**scale)
                return run_module(module, inputs, normalize), called
        except ConfigError:
            raise
        except Exception as error:  # third-party code may raise any exception
            refuse_wrong_channels(module, called, inputs)
            refuse_other_precision(module, inputs)
            raise ConfigError(
                f"{type(module).__name__} fails on its input {', '.join(map(described, inputs))}: {str(error)[:400]}"
            ) from error


def _output_of(part: Part, module: nn.Module, returned: Any, inputs: list[Any]) -> tuple[Tensor, str | int | None]:
    """The output among what a module returned, and its key or position."""
    kind = type(module).__name__
    key = find_output(returned, part.output, kind)
    output: Tensor = returned if key is None else returned[key]
    if output.requires_grad:
        fix_unused(module, output)
        output = output.detach()
    first = next(tensors_in(inputs), output)
    if output.ndim < 2 or len(first) not in (0, len(output)):
        raise ConfigError(
            f"{kind} returns {described(output)} for {len(first)} samples; a part returns one tensor (B, ...), the "
            f"samples first. Wrap it in a module that picks and shapes the tensor to use."
        )
    return output, key


def _find_stages(part: Part, module: nn.Module, called: list[nn.Module]) -> Stages:
    if part.stages:
        return {stage: [stage] for stage in part.stages}
    family = family_of(part.module)
    stated = timm_stages(module) if family == "timm" else None
    return stated or discover_stages(module, called, OPENED if family else ())
