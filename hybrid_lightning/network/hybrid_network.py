"""The network: parts in chains and parallel towers, a fusion where several meet, and a head."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.network.batch import CACHED, Batch, tensors_in
from hybrid_lightning.network.calling import run_module, scaled
from hybrid_lightning.network.channels import Normalize
from hybrid_lightning.network.compiling import compiled
from hybrid_lightning.network.contracts import ReadsTrainingData, modality_dropout, takes_presence
from hybrid_lightning.network.file_sets import encode_files, rows_of_files
from hybrid_lightning.network.missing import (
    Presence,
    drop_at_random,
    encode_present,
    everybody,
    never_absent,
    presence,
    take,
)
from hybrid_lightning.network.outputs import mask_of, pooled
from hybrid_lightning.network.part import Part, place_of
from hybrid_lightning.network.recomputing import recomputed_modules, recomputing
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.network.sharing import Modules
from hybrid_lightning.network.short_circuit import ShortCircuit, is_inside, part_of, parts_of
from hybrid_lightning.network.untrainable import refuse_contradicting_ties, refuse_untrainable_parts
from hybrid_lightning.network.wiring import Wiring
from hybrid_lightning.optim.groups import named_param_groups
from hybrid_lightning.unfreezing.freezing import evaluating


class HybridNetwork(nn.Module):
    """Parts → fusion → head; made by `build` or `rebuild`.

    `options` and `modules` have the names of the parts, of the ``fusion`` where there is one, and of the ``head``; the
    modules in the order in which they run.

    A module whose outputs pass no gradient back to its inputs says so by an attribute ``passes_gradient = False``; a
    part that would train through such modules alone is refused with a `ConfigError`.
    """

    def __init__(
        self,
        options: Mapping[str, Part],
        outputs: int,
        modules: Mapping[str, nn.Module],
        record: NetworkRecord,
    ) -> None:
        super().__init__()
        self.options = dict(options)
        self.outputs = outputs
        self.record = record
        self.wiring = Wiring(options)
        self.feeding = self.wiring.feeding
        """The parts that feed the fusion, or the head if there is only one."""
        # their order is that of the param groups
        self.parts = Modules(modules, self.options)
        self.scales = nn.ModuleDict()
        for name, of_part in record.parts.items():
            if of_part.scale is not None:
                self.scales[name] = Normalize(**of_part.scale)
        self.weight_reports: dict[str, str] = {}
        """Part → what was loaded into it from a file."""
        self.short_circuits: dict[str, ShortCircuit] = {}
        """Place within a part → how to run the part from there on, for what a cache keeps of it."""
        self.selection: nn.Module | None = None
        """What is served in place of the joint outputs, see `Selection`."""
        self.temperature = 1.0  # by which what is served is divided, see `fit_temperature`
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._recomputed: dict[str, list[nn.Module]] = {}
        for name, part in self.options.items():
            if part.checkpoint_activations:
                self._recomputed[name] = recomputed_modules(self.parts[name], record.parts[name].stages)
        refuse_untrainable_parts(self.options, self.parts, self.wiring)
        refuse_contradicting_ties(self.options, self.parts)
        self.param_groups(lr=1.0, weight_decay=0.0)  # finds impossible stages in time

    @property
    def keys_read(self) -> list[str]:
        """The keys of a batch that the parts read, and the masks of those that samples may lack."""
        return self.wiring.keys_read(self.record.absent)

    def forward(self, batch: Batch) -> Tensor:
        """The outputs `(B, outputs)`; samples may lack a key of the batch that has ``present/<key>``.

        Parts under `CACHED` in the batch are not run, here and in all other methods; see `kept_outputs`.
        """
        present = self._sampled_presence(batch)
        _, features = self._run(batch, present)
        return self._served(features, present)

    def forward_and_without(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs, and part → the outputs if no sample had it, of a fusion that takes the presence.

        The latter take a fusion and a head more per part.
        """
        present = self._sampled_presence(batch)
        _, features = self._run(batch, present)
        return self._served(features, present), self._without(features, present)

    def features(
        self,
        batch: Batch,
        cached: Mapping[str, Tensor] | None = None,
        parts: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """The features `(B, features)` of each part that feeds the fusion or the head; zeros where it is absent.

        Args:
            batch: As for `forward`; keys that only cached parts read may be left out.
            cached: Part → its output for this batch. Neither it nor a part that it alone reads is run. A key of
                `short_circuits` → the output there. None takes what the batch has under `CACHED`.
            parts: Those whose features are wanted; None takes all.
        """
        _, features = self._run(batch, self.presence(batch), cached, parts)
        return features

    def kept_outputs(self, batch: Batch, parts: Collection[str]) -> dict[str, Tensor]:
        """What a cache keeps of these parts: features of those that feed the fusion or the head, else outputs.

        For a key of `short_circuits` it is the output of the module at that place.
        """
        whole = [name for name in parts if not is_inside(name)]
        outputs, features = self._run(batch, self.presence(batch), None, whole)
        kept = {name: features.get(name, outputs[name]) for name in whole}
        return kept | {place: self._activation(place, batch) for place in parts if is_inside(place)}

    def _activation(self, place: str, batch: Batch) -> Tensor:
        """The output of the module at a place `(B, ...)`; zeros for samples without the part."""
        name = part_of(place)
        module = self.parts[name]
        inputs, mask = self._inputs(name, batch)
        capture = partial(self.short_circuits[place].capture, module, scale=self._scale(name))
        return capture(inputs) if mask is None else encode_present(capture, module, inputs, mask)

    def unprepared(self) -> list[str]:
        """The parts that have yet to take something from training data, in the order in which they run."""
        found = []
        for name in self.wiring.order:
            part = self.parts[name]
            if isinstance(part, ReadsTrainingData) and not bool(part.prepared):
                found.append(name)
        return found

    def prepare(self, read: Callable[[], Iterable[Batch]]) -> None:
        """Lets these parts take it, each after those that it reads; `read` starts a new pass over the same samples."""
        with evaluating(self), torch.no_grad():
            for name in self.unprepared():
                part = self.parts[name]
                assert isinstance(part, ReadsTrainingData)
                with at(place_of(name)):
                    part.prepare(self.inputs_of(name, batch) for batch in read())

    def inputs_of(self, name: str, batch: Batch) -> list[Any]:
        """What a part is called with, of the samples that have it."""
        inputs, mask = self._inputs(name, batch)
        if self.record.parts[name].files is not None:
            inputs, there = rows_of_files(inputs, mask)
            mask = there.flatten()
        if mask is not None:
            inputs = [take(value, mask) for value in inputs]
        scale = self._scale(name)
        return inputs if scale is None else scaled(inputs, scale)

    def _inputs(self, name: str, batch: Batch) -> tuple[list[Any], Tensor | None]:
        """What a part reads, and in which samples it has work (None: all)."""
        present = self.presence(batch)
        outputs, _ = self._run(batch, present, None, self.wiring.parts_read(name))
        return self.wiring.inputs(name, batch, outputs), self.wiring.mask(name, present)

    def presence(self, batch: Batch) -> Presence:
        """Which parts are there in which samples; refused if one is absent that the model has never been without."""
        found = presence(self.wiring.order, self.wiring.reads, batch)
        for name in self.feeding:
            if name in found and name not in self.record.absent:
                # a mask that is True everywhere is harmless
                if not bool(found[name].all()):
                    raise never_absent(name, is_alone=len(self.feeding) == 1)
                del found[name]
        return found

    def _sampled_presence(self, batch: Batch) -> Presence:
        """The presence of the parts, while training after modality dropout."""
        present = self.presence(batch)
        if self.training and "fusion" in self.parts:
            rate = modality_dropout(self.parts["fusion"])
            if rate:
                return drop_at_random(present, self.feeding, rate, next(tensors_in(batch.values())))
        return present

    def _run(
        self,
        batch: Batch,
        present: Presence,
        cached: Mapping[str, Tensor] | None = None,
        parts: Collection[str] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The outputs of the parts that had to run or are cached, and the features of those that feed."""
        given = batch.get(CACHED, {}) if cached is None else cached
        outputs = {key: tensor for key, tensor in given.items() if not is_inside(key)}
        started = {part_of(key): key for key in given if is_inside(key)}
        features: dict[str, Tensor] = {}
        needed = self.wiring.needed(parts_of(given), parts)
        for name in self.wiring.order:
            if name not in needed:
                continue
            if name in outputs or name in started:
                # for the mask alone; what a cached part reads need not be there
                inputs = [batch[key] for key in self.wiring.reads[name] if key in batch]
            else:
                inputs = self.wiring.inputs(name, batch, outputs)
            if name in started:
                place = started[name]
                outputs[name] = self._encode(name, [given[place]], self.wiring.mask(name, present), place)
            elif name not in outputs:
                outputs[name] = self._encode(name, inputs, self.wiring.mask(name, present))
            if name in self.feeding:
                features[name] = pooled(outputs[name], self.record.parts[name].pool or "mean", mask_of(inputs))
        return outputs, features

    def _encode(self, name: str, inputs: list[Any], mask: Tensor | None, place: str | None = None) -> Tensor:
        """The output of a part `(B, ...)`, run from a place on if it is given; zeros where the mask is False."""
        files = self.record.parts[name].files
        if files is not None:
            return encode_files(partial(self._features, name), self.parts[name], inputs, mask, files)
        if mask is None:
            return self._call(name, inputs, place)
        return encode_present(lambda some: self._call(name, some, place), self.parts[name], inputs, mask)

    def _features(self, name: str, inputs: list[Any]) -> Tensor:
        """The features of a part that feeds the fusion or the head; else its output."""
        output = self._call(name, inputs, None)
        pool = self.record.parts[name].pool
        return output if pool is None else pooled(output, pool, mask_of(inputs))

    def _call(self, name: str, inputs: list[Any], place: str | None) -> Tensor:
        with self._recomputing(name, place):
            if place is None:
                returned = run_module(self._callable(name), inputs, self._scale(name))
            else:
                returned = self.short_circuits[place].run(self.parts[name], inputs[0])
        key = self.record.parts[name].output
        try:
            return returned if key is None else returned[key]  # type: ignore[no-any-return]
        except (TypeError, LookupError) as error:
            what = f"{type(returned).__name__} that the part returns has no output {key!r}"
            raise ConfigError(f"the {what}. Use another checkpoint.", place_of(name)) from error

    def _recomputing(self, name: str, place: str | None = None) -> AbstractContextManager[None]:
        """Within it, a part that is run, from a place on if it is given, keeps no activations if its options say so."""
        if not self.training or name not in self._recomputed:
            return nullcontext()
        # what is replayed from a cache cannot run again
        without = () if place is None else self.short_circuits[place].replayed(self.parts[name])
        option = f"{place_of(self.options[name].share or name)}.checkpoint_activations"
        return recomputing(self._recomputed[name], option, without)

    def _scale(self, name: str) -> nn.Module | None:
        if name in self.scales:
            return self.scales[name]
        return None

    def _served(self, features: Mapping[str, Tensor], present: Presence) -> Tensor:
        """The outputs `(B, outputs)`, or what was selected in their place."""
        joint = self.join(features, present)
        served = joint if self.selection is None else self.selection(joint, features, present)
        return served if self.temperature == 1 else served / self.temperature

    def join(self, features: Mapping[str, Tensor], present: Presence) -> Tensor:
        """The outputs `(B, outputs)` from the features of the parts."""
        if "fusion" in self.parts:
            fuse = self._callable("fusion")
            masks = {name: present[name] for name in present if name in self.feeding}
            with self._recomputing("fusion"):
                # a fusion may take no presence
                head_input = fuse(features, masks) if masks else fuse(features)
        else:
            (head_input,) = features.values()
        with self._recomputing("head"):
            return self._callable("head")(head_input)  # type: ignore[no-any-return]

    def _without(self, features: Mapping[str, Tensor], present: Presence) -> dict[str, Tensor]:
        if "fusion" not in self.parts or not takes_presence(self.parts["fusion"]):
            return {}
        found = {}
        for name in self.feeding:
            found[name] = self._served(features, {**present, name: ~everybody(features[name])})
        return found

    def compile_parts(self) -> None:
        """Compiles the parts whose options say so, once; after sharding, where there is any."""
        for name, part in self.options.items():
            if not part.compile or name in self._compiled:
                continue
            options = dict(part.compile) if isinstance(part.compile, Mapping) else {}
            try:
                self._compiled[name] = compiled(self.parts[name], len(self.record.parts[name].stages), options)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"torch.compile refuses {options}: {error}", f"{place_of(name)}.compile") from error

    def _callable(self, name: str) -> Callable[..., Any]:
        return self._compiled.get(name, self.parts[name])

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Named param groups of all parts, see `named_param_groups`; each also has the ``origin`` of its part."""
        patterns = {}
        stages: dict[str, dict[str, list[str]]] = {}
        for name, module in self.parts.items():
            if any(True for _ in module.parameters()):
                patterns[name] = f"parts.{name}"
                stages[name] = {}
                for stage, of_stage in self.record.parts[name].stages.items():
                    stages[name][stage] = [f"parts.{name}.{pattern}" for pattern in of_stage]
        groups = named_param_groups(
            self,
            patterns,
            lr=lr,
            weight_decay=weight_decay,
            rates={name: self.options[name].rates for name in patterns},
            stages=stages,
            fixed=self.record.fixed,
        )
        for group in groups:
            group["origin"] = self.options[group["part"]].origin
        return groups
