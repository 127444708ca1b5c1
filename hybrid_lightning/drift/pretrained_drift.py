"""How far pretrained parts have moved from where they started, in their weights and in what they compute."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hybrid_lightning.distributed.sharding import outermost, reshard
from hybrid_lightning.drift.reference_batch import part_features, read_reference_batch
from hybrid_lightning.drift.similarity import FEWEST_SAMPLES, linear_cka
from hybrid_lightning.drift.start_weights import StartingWeights, StartingWeightsCallback
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.gradients.norms import norm_table, tensor_norms
from hybrid_lightning.unfreezing.timeline import label


class PretrainedDrift(StartingWeightsCallback):
    """Logs how far parts are from where they started: "is my backbone being destroyed?" as two numbers.

    Measured at the end of each validation of the run, so that checkpoints can monitor it, or at the end of each epoch
    if nothing is validated. The same on all ranks. A run that continues from a checkpoint compares with its first
    start. Works in any LightningModule whose one optimizer has groups from `named_param_groups`; the similarity also
    needs a ``forward`` that takes a batch, as a validation would. Nothing of the run changes.

    | key | meaning |
    |---|---|
    | ``drift/<part>`` | ‖w - w0‖ / ‖w0‖ over the part's parameters; 0 for a frozen part; inf if w0 is 0 and w is not |
    | ``drift/<part>.<stage>`` | the same for each stage, if the part has several |
    | ``similarity/<part>`` | linear CKA of the part's output on the reference batch, now and at the start |

    A similarity (see `linear_cka`) is 1 where the outputs are the same up to a rotation and one scale, and about 0, or
    slightly below, where they have nothing in common. The output is taken in eval mode and averaged over positions:
    `(B, C, ...)` to `(B, C)`. That of a part which reads another part changes with the other one. A part that is not
    one module, or does not return one tensor, has no similarity; one warning names it.

    The copy of the starting weights takes as many bytes as the parts' weights, on the CPU (each rank its shard, under
    fsdp2), and the same again in each checkpoint; `L2SP` shares it. The reference batch stays in memory, too.

    Args:
        parts: Names of the parts; null takes the pretrained ones, which only the groups of `HybridTask` name.
        reference_samples: Size of the reference batch: the first samples of the validation data, or of the training
            data if nothing is validated. At least 4; 0 logs no similarity.

    Raises:
        ConfigError: At the start of a run, if a part is unknown, or null is given and no group is marked as pretrained.
    """

    state_form: ClassVar[dict[Any, Any]] = {"features": {str: Tensor}}

    def __init__(self, parts: list[str] | None = None, reference_samples: int = 64) -> None:
        if reference_samples < FEWEST_SAMPLES and reference_samples != 0:
            raise ConfigError(
                f"{reference_samples} is not possible. Give at least {FEWEST_SAMPLES} samples, or 0, which logs no "
                f"similarity.",
                "PretrainedDrift.reference_samples",
            )
        super().__init__(parts)
        self.reference_samples = reference_samples
        self.forget()

    def forget(self) -> None:
        """Forgets the reference batch and its features."""
        self._features: dict[str, Tensor] = {}  # those of the start
        self._modules: dict[str, nn.Module] = {}
        self._batch: Any = None

    def state_dict(self) -> dict[str, Any]:
        """What the parts returned for the reference batch at the start."""
        return {"features": self._features}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the features of the first start from an earlier run."""
        self._features = dict(state_dict["features"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the reference batch, and the parts' features of it, unless a checkpoint holds them."""
        super().on_train_start(trainer, pl_module)
        if self.reference_samples:
            self._start_similarity(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the run the reference batch is not needed."""
        super().teardown(trainer, pl_module, stage)
        self._batch = None
        self._modules = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, if this validation belongs to a run."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, if nothing is validated."""
        if not trainer.enable_validation:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {}
        for name, distance in drift(self.watched_groups(trainer), self.start).items():
            values[f"drift/{name}"] = distance
        for part, similarity in self._similarity(trainer, pl_module).items():
            values[f"similarity/{part}"] = similarity
        pl_module.log_dict(values, sync_dist=True)  # they are equal already; without it Lightning warns

    def _start_similarity(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the parts that have features, and keeps those of the first start."""
        reshard(pl_module)
        modules = self._modules_of_parts(trainer, pl_module)
        problem = ""
        now: dict[str, Tensor] = {}
        try:
            self._batch, samples = read_reference_batch(trainer, self.reference_samples)
            if samples < FEWEST_SAMPLES:
                problem = f"there are {samples} samples, fewer than {FEWEST_SAMPLES}"
            now = part_features(trainer, pl_module, modules, self._batch)
            now = {part: features for part, features in now.items() if len(features) == samples}
        except Exception as error:  # third-party datasets and forward passes may raise any exception
            problem = f"{type(error).__name__}: {error}"[:400]
        if not trainer.strategy.reduce_boolean_decision(not problem):  # all ranks or none
            problem = problem or "another rank could not compute it"
            now = {}
        self._modules = {part: modules[part] for part in now}
        without = [part for part in self.watched if part not in now]
        if without:
            problem = problem or "they are not one module, or do not return one tensor (samples, channels, ...)"
            rank_zero_warn(
                f"PretrainedDrift: similarity is not logged for {listing(without)}: {problem}. Set "
                f"'reference_samples: 0' if you do not need it. Drift is logged."
            )
        self._compare_with(trainer, now)

    def _modules_of_parts(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Part → the one module whose parameters are those of the part, for the parts that have one."""
        wanted: dict[str, set[int]] = {}
        for group in self.watched_groups(trainer):
            wanted.setdefault(group["part"], set()).update(map(id, group["params"]))
        found = {}
        for part, own in wanted.items():
            modules = list(dict.fromkeys(outermost(pl_module, own)))
            # a parameter beside the module would be missed
            if len(modules) == 1 and own == set(map(id, modules[0].parameters())):
                found[part] = modules[0]
        return found

    def _compare_with(self, trainer: Trainer, now: dict[str, Tensor]) -> None:
        """Keeps the features of the first start, where a checkpoint holds them, and those of now elsewhere."""
        saved = {}
        for part, features in now.items():
            if len(self._features.get(part, ())) == len(features):
                saved[part] = self._features[part]
        if trainer.ckpt_path and trainer.global_step and len(saved) < len(now):
            rank_zero_warn(
                f"The checkpoint does not hold what {listing(now.keys() - saved.keys())} returned for these samples at "
                f"the first start. Similarity is measured against this restart."
            )
        self._features = {**now, **saved}

    def _similarity(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Part → similarity; on all ranks that of the first one, whose buffers a checkpoint holds."""
        if not self._modules:
            return {}
        now = part_features(trainer, pl_module, self._modules, self._batch)
        similar = [linear_cka(self._features[part], features) for part, features in now.items()]
        values = torch.tensor(similar, dtype=torch.float32, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            torch.distributed.broadcast(values, 0)
        return dict(zip(now, values, strict=True))


def drift(groups: Sequence[Mapping[str, Any]], start: StartingWeights) -> dict[str, Tensor]:
    """Part, and ``part.stage`` where a part has several → ‖w - w0‖ / ‖w0‖, a scalar. Collective if sharded."""
    sizes = []
    moved = []
    begun = []
    for group in groups:
        held = [parameter for parameter in group["params"] if parameter in start.weights]
        sizes.append((group["part"], label(group), len(held)))
        if held:  # group by group, because differences take as much memory as the weights
            moved.append(tensor_norms(held, start.moved(held)))
            begun.append(tensor_norms(held, [start.weights[parameter] for parameter in held]))
    norms = torch.stack([torch.cat(moved), torch.cat(begun)])
    rows = norm_table(tuple(sizes), norms.device)
    distance, size = rows.combine(norms)
    relative = torch.where(distance == 0, 0.0, distance / size)
    return dict(zip((*rows.parts, *rows.stages), relative, strict=False))  # without the row of everything
