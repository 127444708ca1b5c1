"""How far pretrained parts have moved from where they started, in their weights and in what they compute."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hybrid_lightning.distributed.sharding import outermost, reshard
from hybrid_lightning.drift.reference_batch import part_features, read_probe
from hybrid_lightning.drift.similarity import FEWEST_SAMPLES, linear_cka
from hybrid_lightning.drift.start_weights import (
    Reference,
    ReferenceCallback,
    over_ranks,
    reference_of,
    sum_of_squares,
)
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.trainer import named_groups
from hybrid_lightning.unfreezing.timeline import label, stages_by_part

Group = Mapping[str, Any]


class PretrainedDrift(ReferenceCallback):
    """Logs how far parts are from where they started: "is my backbone being destroyed?" as two numbers.

    Measured at the end of each validation of the fit, so that checkpoints can monitor it, or at the end of each epoch
    if nothing is validated. The same on all ranks. A fit that continues from a checkpoint compares with its first
    start. Works in any LightningModule whose one optimizer has groups from `named_param_groups`; the similarity also
    needs a ``forward`` that takes a batch, as a validation would. Nothing of the fit changes.

    | key | meaning |
    |---|---|
    | ``drift/<part>`` | ‖w - w0‖ / ‖w0‖ over the part's parameters; 0 for a frozen part; inf if w0 is 0 and w is not |
    | ``drift/<part>.<stage>`` | the same for each stage, if the part has several |
    | ``similarity/<part>`` | linear CKA of the part's output on the probe, now and at the start, see `linear_cka` |

    A similarity is 1 where the outputs are the same up to a rotation and one scale, and about 0, or slightly below,
    where they have nothing in common. The output is taken in eval mode and averaged over positions: `(B, C, ...)` to
    `(B, C)`. That of a part which reads another part changes with the other one. A part that is not one module, or does
    not return one tensor, has no similarity, which is said once.

    The copy of the starting weights takes as many bytes as the parts' weights, on the CPU (each rank its share, under
    fsdp2), and the same again in each checkpoint; `L2SP` shares it. The probe batch stays in memory, too.

    Args:
        parts: Names of the parts; null takes the pretrained ones, which only `HybridTask` knows.
        probe: Samples for the similarity: the first ones of the validation data, or of the training data if nothing is
            validated. At least 4; 0 logs no similarity.

    Raises:
        ConfigError: At the start of a fit, if a part is unknown, or null is given and no part is known to be
            pretrained.
    """

    def __init__(self, parts: list[str] | None = None, probe: int = 64) -> None:
        super().__init__(parts, on_device=False)
        if probe < 0 or 0 < probe < FEWEST_SAMPLES:
            raise ConfigError(
                f"PretrainedDrift.probe: {probe} is not possible. Give at least {FEWEST_SAMPLES} samples, or 0, which "
                f"logs no similarity."
            )
        self.probe = probe
        self._forget()

    def _forget(self) -> None:
        self._features: dict[str, Tensor] = {}
        self._modules: dict[str, nn.Module] = {}
        self._batch: Any = None

    def state_dict(self) -> dict[str, Any]:
        """What the parts returned for the probe at the start."""
        return {"features": self._features}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what an earlier run started from."""
        self._features = dict(state_dict["features"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one; a checkpoint is read after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._forget()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads the probe, and what the parts return for it, unless a checkpoint knows."""
        super().on_train_start(trainer, pl_module)
        if self.probe:
            self._start_similarity(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After the fit the probe is not needed."""
        super().teardown(trainer, pl_module, stage)
        self._batch, self._modules = None, {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures, if this validation belongs to a fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures, if nothing is validated."""
        if not trainer.enable_validation:
            self._log(trainer, pl_module)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        groups = [g for g in named_groups(trainer, type(self).__name__) if g["part"] in self.watched]
        values = {f"drift/{name}": value for name, value in drift(groups, reference_of(trainer)).items()}
        values |= {f"similarity/{part}": value for part, value in self._similarity(trainer, pl_module).items()}
        pl_module.log_dict(values, sync_dist=True)  # they are equal already; without it Lightning warns

    # Similarity

    def _start_similarity(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        reshard(pl_module)
        found = {part: self._module_of(trainer, pl_module, part) for part in self.watched}
        modules = {part: module for part, module in found.items() if module is not None}
        problem, samples, now = "", 0, dict[str, Tensor]()
        try:
            self._batch, samples = read_probe(trainer, self.probe)
            now = part_features(trainer, pl_module, modules, self._batch)
        except Exception as error:  # the data and the forward are somebody else's and may raise anything
            problem = f"{type(error).__name__}: {error}"[:400]
        if samples < FEWEST_SAMPLES:
            problem = problem or f"there are {samples} samples, fewer than {FEWEST_SAMPLES}"
        if not trainer.strategy.reduce_boolean_decision(not problem):  # all ranks or none
            problem, now = problem or "another rank could not compute it", {}
        self._modules = {part: modules[part] for part, features in now.items() if len(features) == samples}
        self._warn(problem, [part for part in self.watched if part not in self._modules])
        self._compare_with(trainer, {part: now[part] for part in self._modules})

    def _module_of(self, trainer: pl.Trainer, pl_module: pl.LightningModule, part: str) -> nn.Module | None:
        """The outermost module whose parameters are those of the part."""
        groups = named_groups(trainer, type(self).__name__)
        wanted = {id(p) for group in groups if group["part"] == part for p in group["params"]}
        modules = list(dict.fromkeys(outermost(pl_module, wanted)))
        if len(modules) != 1 or {id(p) for p in modules[0].parameters()} != wanted:
            return None
        return modules[0]

    @staticmethod
    def _warn(problem: str, without: list[str]) -> None:
        if without:
            reason = problem or "they are not one module, or do not return one tensor (samples, channels, ...)"
            rank_zero_warn(
                f"PretrainedDrift: similarity is not logged for {listing(without)}: {reason}. Set 'probe: 0' if you do "
                f"not need it. Drift is logged."
            )

    def _compare_with(self, trainer: pl.Trainer, now: dict[str, Tensor]) -> None:
        """Keeps the features of the first start, where a checkpoint has them, and those of now elsewhere."""
        known = {p: f for p, f in self._features.items() if p in now and len(f) == len(now[p])}
        if trainer.ckpt_path and trainer.global_step and known.keys() < now.keys():
            rank_zero_warn(
                f"The checkpoint does not know what {listing(now.keys() - known.keys())} returned for these samples at "
                f"the first start. Similarity is measured against this restart."
            )
        self._features = {part: known.get(part, features) for part, features in now.items()}

    def _similarity(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        """Part → similarity; on all ranks that of the first one, whose buffers a checkpoint holds."""
        if not self._modules:
            return {}
        now = part_features(trainer, pl_module, self._modules, self._batch)
        similar = {part: linear_cka(self._features[part], features) for part, features in now.items()}
        values = torch.tensor(list(similar.values()), dtype=torch.float32, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.broadcast(values, 0)
        return dict(zip(similar, values, strict=True))


def drift(groups: Sequence[Group], reference: Reference) -> dict[str, Tensor]:
    """Relative distance from the reference weights, ‖w - w0‖ / ‖w0‖; if parameters are sharded, every rank has to ask.

    Args:
        groups: Named param groups of whole parts, at least one.
        reference: Holds their weights.

    Returns:
        Part, and ``part.stage`` where a part has several → scalar; 0 where nothing has moved.
    """
    own = []
    for group in groups:
        moved, start = reference.moved(group["params"]), reference.starts(group["params"])
        own.append(torch.stack([sum_of_squares(tensors).to(_device(groups)) for tensors in (moved, start)]))
    squares = over_ranks(torch.stack(own), [p for group in groups for p in group["params"]])
    several = {part for part, stages in stages_by_part(groups).items() if len(stages) > 1}
    sums: dict[str, Tensor] = {}
    for group, pair in zip(groups, squares, strict=True):
        for name in (group["part"], label(group))[: 2 if group["part"] in several else 1]:
            sums[name] = sums[name] + pair if name in sums else pair
    distances = {name: pair.sqrt() for name, pair in sums.items()}
    return {name: torch.where(moved == 0, 0.0, moved / start) for name, (moved, start) in distances.items()}


def _device(groups: Sequence[Group]) -> torch.device:
    device: torch.device = groups[0]["params"][0].device
    return device
