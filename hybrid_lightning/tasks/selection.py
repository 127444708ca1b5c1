"""Which output a run leaves: that of the joint network, of a part alone or of a blend, whichever validation prefers."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hybrid_lightning.data.first_samples import FirstSamples
from hybrid_lightning.data.loaders import plain_samples
from hybrid_lightning.data.preflight import first_rank_first
from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.drift.reference_batch import batches_on_device, evaluation_loaders, first_of
from hybrid_lightning.errors import ConfigError, format_table
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import rows_with
from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.network.selection import JOINT, Selection, serve
from hybrid_lightning.probe.blend import blended, fit_blend
from hybrid_lightning.probe.ranking import average_precision, paired_ranking
from hybrid_lightning.probe.score import Score, log_likelihood, paired_difference, score
from hybrid_lightning.probe.targets import Kind, numbered, relative_weights
from hybrid_lightning.resume.atomic_checkpoint_io import rewriting
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.checkpoint import (
    SELECTION,
    network_record,
    other_tensors,
    read_checkpoint,
    serve_selection,
    without_selection,
)
from hybrid_lightning.tasks.features import SplitFeatures, collect_features, reading
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from hybrid_lightning.tasks.probing import Voter, fit_voters
from hybrid_lightning.tasks.settings import has_own_steps
from hybrid_lightning.tasks.start import samples_of_fit
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.unfreezing.freezing import dry_run

BLEND = "convex blend"
"""The candidate that is a blend; no part can have this name."""
_MOST_SAMPLES = 8192
"""Of the training split, from which the votes of parts are fitted; more would hardly change them."""
_FOLDS = 5
_PRIOR = 5.0
"""Rows that count as seen before the validation rows, by which shares are fitted; see `fit_blend`."""


class Candidate(NamedTuple):
    """An output that may be served, on the validation rows."""

    score: Score
    difference: Score  # to the blend, paired
    shares: dict[str, float]  # voter → its share
    loss: float = 0.0  # the mean log loss, with the weights of classes; 0 of values


class Rows(NamedTuple):
    """The rows that a selection is made from; groups are a number per row `(N,)`, or None."""

    training: SplitFeatures
    validation: SplitFeatures
    joint: Tensor  # outputs of the network for the validation rows `(N, outputs)`
    training_groups: Tensor | None
    validation_groups: Tensor | None


class SelectOutput(FitCallback):
    """After a run, lets ``best.ckpt`` serve a blend of the joint network and of votes on single parts, or one of them.

    What a part knows alone is a ridge regression on its features of the training rows, fitted in closed form. The blend
    is a convex one of these votes and the joint network; the fewer validation rows there are, the closer its shares
    are to equal ones. It is scored on validation rows by shares of other rows, and served unless another is better by
    more than one standard error of the difference and, of classes and labels, has no higher log loss: by accuracy alone
    a constant may win where one class is rare. The joint network stays in the file; training states are not touched.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Selects, and writes what was selected into the best checkpoint, on the first rank; the others wait."""
        task: Any = pl_module
        path = best_checkpoint(trainer)
        # the disks of other ranks may not have the file
        if trainer.strategy.broadcast(path is not None and selects(trainer, task)):
            first_rank_first(trainer, lambda: _select_and_write(trainer, task, path))


def _select_and_write(trainer: Trainer, task: Any, path: Any) -> None:
    """Lets a checkpoint serve what is best; it stays as it is where nothing can be compared, as the run is sound."""
    try:
        with weights_of(trainer, task, path) as serves_another:
            rows = rows_to_select_from(trainer, task)
            voters = fit_voters(task.objective, rows.training, rows.training_groups)
            found = task.compared = candidates(task, rows, voters)
    except ConfigError as error:
        print(f"selection: {path.name} stays as it is, because the outputs cannot be compared. {error}")
        return
    chosen = choose(found)
    print(described(found, chosen, path.name))
    shares = found[chosen].shares
    if shares.get(JOINT) == 1 and not serves_another:
        return
    try:
        select(task, rows.training, voters, shares)
        write(task, path)
    finally:
        serve(task.built(), {}, None)


def best_checkpoint(trainer: Trainer) -> Path | None:
    """The file with the best value of a metric, that of `BestCheckpoint` before others; None if there is none."""
    for callback in sorted(trainer.checkpoint_callbacks, key=lambda one: not isinstance(one, BestCheckpoint)):
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            path = Path(callback.best_model_path)
            if path.is_file():
                return path
    return None


def selects(trainer: Trainer, task: Any) -> bool:
    """Whether a run has outputs to select from, rows that decide, and a file to serve them."""
    is_wanted = task.settings.selection == "validation" and best_checkpoint(trainer) is not None
    several = len(task.built().feeding) > 1
    is_known = task.objective.closed_form is not None and not has_own_steps(type(task))
    is_whole = not isinstance(trainer.strategy, FSDP2Strategy)
    is_validated = trainer.val_dataloaders is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]
    return is_wanted and several and is_known and is_whole and is_validated


@contextmanager
def weights_of(trainer: Trainer, task: Any, path: Path, select: bool = False) -> Iterator[bool]:
    """A task with the weights of a checkpoint, on the Trainer's device in eval mode, for a while.

    With `select` it serves what the file does. Gives whether that is not its joint network, from an earlier end of the
    fit. Raises `ConfigError` if the checkpoint is of another model, such as one that the Trainer fitted before.
    """
    saved, state = read_checkpoint(path)
    content = {CHECKPOINT_KEY: saved, "state_dict": state}
    own = copy.deepcopy(task.state_dict())
    device = task.device
    try:
        serve_selection(task, content, select)
        state = content["state_dict"]
        if other_tensors(task.state_dict(), state):
            raise ConfigError("It is of another model.")
        # the end of a run has moved it to the CPU
        task.to(trainer.strategy.root_device)
        task.load_state_dict(state)
        with dry_run(task):
            yield bool(network_record(saved).selection)
    finally:
        serve_selection(task, {}, False)
        task.to(device)
        task.load_state_dict(own)


def rows_to_select_from(trainer: Trainer, task: Any) -> Rows:
    """At most `_MOST_SAMPLES` rows of each split, by index where they can be; those of all ranks."""
    network: HybridNetwork = task.built()
    data = trainer.datamodule  # type: ignore[attr-defined]
    with samples_of_fit(trainer, _MOST_SAMPLES) as loader:
        training = collect_features(network, batches_on_device(trainer, task, loader))
        training_groups = groups_of(loader, getattr(data, "train_groups", None))
    joint: list[Tensor] = []

    def seen(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            joint.append(task(batch).float().cpu())
            yield batch

    with reading(trainer):
        loader = plain_samples(None, evaluation_loaders(trainer), most_validation_rows(trainer))
        validation = collect_features(network, seen(batches_on_device(trainer, task, loader)))
        validation_groups = groups_of(loader, getattr(data, "val_groups", None))
    return Rows(training, validation, torch.cat(joint), training_groups, validation_groups)


def groups_of(loader: Any, groups: Tensor | None) -> Tensor | None:
    """The group of each sample of a loader of `plain_samples`, in its order; None without groups, or of a stream."""
    if groups is None or isinstance(loader, FirstSamples):
        return None
    return groups[list(loader.sampler)]


def most_validation_rows(trainer: Trainer) -> int:
    """`_MOST_SAMPLES`, or fewer with the Trainer's ``limit_val_batches``."""
    batches = first_of(trainer.num_val_batches)
    size = getattr(first_of(evaluation_loaders(trainer)), "batch_size", None)
    if math.isinf(batches) or size is None:
        return _MOST_SAMPLES
    return min(_MOST_SAMPLES, int(batches) * int(size) * trainer.world_size)


def candidates(task: Any, rows: Rows, voters: Mapping[str, Voter]) -> dict[str, Candidate]:
    """The joint network, each part alone, and their blend, with scores on the validation rows."""
    kind = task.objective.closed_form
    target = task.objective.closed_form_target(rows.validation.target)
    outputs = {JOINT: _as_fitted(task, rows.joint)}
    for name, voter in voters.items():
        outputs[name] = _alone(name, voter, rows)
    groups = rows.validation_groups
    weights = relative_weights(task.objective.row_weights(rows.validation.target), rows.joint)
    blend, shares = _crossed(outputs, target, kind, groups, weights)
    outputs[BLEND] = blend
    in_units = task.objective.in_units  # as metrics see them: no logarithms
    shown = {name: in_units(tensor.double()) for name, tensor in outputs.items()}
    scored = _ranked if task.objective.main_metric == "average_precision" else _scored
    found = {}
    for name, (value, difference) in scored(shown, in_units(target), kind, groups).items():
        of_voters = shares if name == BLEND else {name: 1.0}
        loss = 0.0 if kind == "values" else _log_loss(outputs[name], target, kind, weights)
        found[name] = Candidate(value, difference, of_voters, loss)
    return found


def _scored(
    outputs: Mapping[str, Tensor], target: Tensor, kind: Kind, groups: Tensor | None
) -> dict[str, tuple[Score, Score]]:
    """The accuracy or R² of each output, and its difference to that of the blend."""
    found = {}
    for name, own in outputs.items():
        difference = paired_difference(own, outputs[BLEND], target, kind, groups=groups)
        found[name] = (score(own, target, kind, groups=groups), difference)
    return found


def _ranked(
    outputs: Mapping[str, Tensor], target: Tensor, kind: Kind, groups: Tensor | None
) -> dict[str, tuple[Score, Score]]:
    """The same by average precision."""
    ranked = {name: average_precision(own, target, kind, groups) for name, own in outputs.items()}
    found = {}
    for name, own in ranked.items():
        found[name] = (own.score, paired_ranking(own, ranked[BLEND]))
    return found


def _log_loss(outputs: Tensor, target: Tensor, kind: Kind, weights: Tensor) -> float:
    """The mean over rows, which have `weights` `(N,)`, and labels."""
    losses = -log_likelihood(outputs, target, kind).mean(1)
    return float(weights @ losses / weights.sum())


def _alone(name: str, voter: Voter, rows: Rows) -> Tensor:
    """The vote of a part for each validation row; that for its mean features where a row lacks it."""
    outputs = voter.vote(rows.validation.parts[name])
    mask = rows.validation.present.get(name)
    if mask is None:
        return outputs
    in_training = rows_with(name, rows.training.parts, rows.training.present)
    of_mean = voter.vote(in_training.mean(0, keepdim=True))
    return torch.where(mask[:, None], outputs, of_mean)


def _as_fitted(task: Any, outputs: Tensor) -> Tensor:
    """Outputs of the network, in the units of a closed-form fit."""
    if task.objective.closed_form != "values":
        return outputs
    # the inverse of what makes outputs of a vote: a scale and a shift of each output
    one = torch.ones(1, outputs.shape[1])
    same: LinearVote = task.objective.in_outputs(LinearVote(one, torch.zeros(outputs.shape[1])))
    return (outputs - same.bias) / same.weight


def _crossed(
    outputs: Mapping[str, Tensor], target: Tensor, kind: Kind, groups: Tensor | None, weights: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The blend of outputs, each row by shares fitted to other rows, and the shares fitted to all."""
    member = numbered(len(target), groups)
    if int(member.max()) == 0:
        raise ConfigError("there is one validation row, or one group of them; two are needed.", "data")
    folds = member % _FOLDS
    blend = torch.zeros_like(outputs[JOINT])
    for fold in torch.unique(folds):
        inside = folds == fold
        of_others = {name: tensor[~inside] for name, tensor in outputs.items()}
        of_fold = {name: tensor[inside] for name, tensor in outputs.items()}
        shares = fit_blend(of_others, target[~inside], kind, weights[~inside], _PRIOR)
        blend[inside] = blended(of_fold, shares, kind).to(blend.dtype)
    return blend, fit_blend(outputs, target, kind, weights, _PRIOR)


def choose(found: Mapping[str, Candidate]) -> str:
    """The candidate with the best score of those that beat the blend, see `SelectOutput`."""
    better = {}
    for name, candidate in found.items():
        difference = candidate.difference
        if difference.value > difference.error > 0 and candidate.loss <= found[BLEND].loss:
            better[name] = candidate.score.value
    return max(better, key=better.__getitem__, default=BLEND)


def described(found: Mapping[str, Candidate], chosen: str, file: str) -> str:
    """The candidates as a table, and what is served."""
    score_column = f"{found[JOINT].score.name} on validation rows"
    columns = ("output", score_column, "above the blend", "share")
    rows = []
    for voter, candidate in found.items():
        share = found[BLEND].shares.get(voter, 0)
        compared = [_with_error(candidate.difference, "+.3f"), f"{share:.2f}"]
        cells = [voter, _with_error(candidate.score, ".3f"), *(["", ""] if voter == BLEND else compared)]
        rows.append(dict(zip(columns, cells, strict=True)))
    table = format_table(rows, columns, columns[1:])
    return f"{table}\n{file} serves: {chosen}{_meaning(chosen)}"


def _meaning(chosen: str) -> str:
    """What stands behind the name of what is served."""
    if chosen == JOINT:
        return ""
    of = " of these outputs" if chosen == BLEND else " alone, by ridge regression on its features"
    return f"{of}; --select joint takes the joint network"


def _with_error(value: Score, form: str) -> str:
    return f"{value.value:{form}} ± {value.error:.3f}"


def select(task: Any, training: SplitFeatures, voters: Mapping[str, Voter], shares: Mapping[str, float]) -> None:
    """Lets a task's network serve a blend of its joint outputs and of votes."""
    network: HybridNetwork = task.built()
    used = [name for name in voters if shares.get(name)]
    if not used:
        return
    sizes = {name: training.parts[name].shape[1] for name in used}
    serve(network, sizes, task.objective.closed_form)
    assert isinstance(network.selection, Selection)
    votes = {}
    for name in used:
        votes[name] = task.objective.in_outputs(LinearVote(voters[name].vote.weight, voters[name].vote.bias))
    device = next(network.parameters()).device
    features = {name: training.parts[name].to(device) for name in used}
    present = {name: mask.to(device) for name, mask in training.present.items()}
    network.selection.set(features, present, votes, [shares.get(JOINT, 0.0), *(shares[name] for name in used)])


def write(task: Any, path: Path) -> None:
    """Writes what a task serves into a checkpoint, in which nothing else changes."""
    with rewriting(path) as checkpoint:
        checkpoint.update(without_selection(checkpoint))
        checkpoint[CHECKPOINT_KEY]["network"] |= {"selection": task.built().record.selection}
        for name, tensor in task.state_dict().items():
            if name.startswith(SELECTION):
                checkpoint["state_dict"][name] = tensor.cpu()
