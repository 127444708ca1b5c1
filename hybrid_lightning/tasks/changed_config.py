"""Continuing a run whose settings, groups or optimizer have changed since its checkpoint was written."""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from hybrid_lightning.averaging.average_weights import AverageWeights
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, check_choice, listing
from hybrid_lightning.importing import ClassSpec
from hybrid_lightning.optim.lr_schedules import GroupLR
from hybrid_lightning.resume import own_files
from hybrid_lightning.resume.loop_counters import first_damaged
from hybrid_lightning.resume.optimizer_states import Make, damaged, first_problem, require_groups
from hybrid_lightning.resume.saved_fit import refuse_damaged_fit
from hybrid_lightning.tasks.checkpoint import other_tensors
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from hybrid_lightning.weights.tensor_values import refuse_unfit

ON_GROUP_CHANGE = ("error", "weights_only", "match")
_DESCRIBING = ("part", "stage", "origin", "fixed")
_OF_TODAY = ("params", "name", *_DESCRIBING, "lr_factor", "initial_lr", "weight_decay")
"""Entries of an optimizer's group that follow the config of today, not the checkpoint."""
_DEFAULTS = {"cache": "auto", "start": "default", "selection": "validation", "average": None, "calibrate": None}
Groups = Mapping[str, list[str]]
"""Group name → names of its parameters."""
Checkpoint = dict[str, Any]
Settings = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def adapt_checkpoint(
    checkpoint: Checkpoint,
    own: Tensors,
    today: Settings,
    optimizer: Optimizer,
    on_group_change: str,
    trainer: pl.Trainer,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Prepares a checkpoint for a run, in place, before anything is restored from it.

    Gives its settings (see `all_settings`), or None if the run does not go on from it; and lines to print. `own` is the
    model's ``state_dict``, `today` what the task would add to a checkpoint now, with today's optimizer.
    """
    check_choice(on_group_change, "on_group_change", ON_GROUP_CHANGE)
    refuse_unfit(checkpoint["state_dict"], own, "the checkpoint", "--ckpt_path")
    lines = take_copies(checkpoint, own, trainer)
    saved = checkpoint.get(CHECKPOINT_KEY, today)
    settings = all_settings(saved)
    groups, saved_groups = today["groups"], saved["groups"]
    optimizers = [settings["optimizer"]["class_path"], all_settings(today)["optimizer"]["class_path"]]
    changes = model_changes(own, checkpoint, groups, saved_groups, optimizers)
    if changes:
        if on_group_change == "error":
            raise _not_allowed(changes)
        lines += [f"--on_group_change {on_group_change}: {' '.join(changes)}"]
        lines += take_matching_weights(own, checkpoint)
    if changes and on_group_change == "weights_only":
        forget_fit(checkpoint, getattr(trainer, "datamodule", None))
        return None, [*lines, "The run starts at step 0 with a new optimizer."]
    # from here on the run goes on from the checkpoint's step
    require_groups(checkpoint, saved_groups)
    end_at(checkpoint, trainer)
    fresh = optimizer.state_dict()["param_groups"]
    if changes or list(groups.items()) != list(saved_groups.items()):
        kept = match_optimizer(checkpoint, fresh, groups, saved_groups, keep=optimizers[0] == optimizers[1])
        if changes:
            lines.append(f"The optimizer state of {kept} parameters is kept.")
    _describe_groups(checkpoint, fresh)
    return settings, lines


def _describe_groups(checkpoint: Checkpoint, fresh: list[dict[str, Any]]) -> None:
    """Takes from today's groups which part each belongs to, which a file does not say."""
    of_today = {group["name"]: group for group in fresh}
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        own = of_today[group["name"]]
        group.update({key: own[key] for key in _DESCRIBING if key in own})


# Settings


def all_settings(saved: Settings) -> dict[str, Any]:
    """What a task adds to a checkpoint, as one dict of all settings that may be changed on a restart."""
    settings = dict(saved.get("settings", {}))
    settings.pop("init_from", None)  # where the weights came from is over
    for option, default in _DEFAULTS.items():
        settings.setdefault(option, default)  # of a checkpoint that is older than this option
    optimizer = ClassSpec.parse(settings.get("optimizer") or "AdamW", "AdamW").plain()
    settings["optimizer"] = {**optimizer, "class_path": optimizer["class_path"].removeprefix("torch.optim.")}
    settings["parts"] = {}
    for name, part in saved.get("parts", {}).items():
        options = _without_false_scale(part)
        settings["parts"][name] = {option: value for option, value in options.items() if option != "weights"}
    settings["fusion"] = _without_false_scale(saved.get("fusion", {}))
    return settings


def _without_false_scale(options: Mapping[str, Any]) -> dict[str, Any]:
    # false was the default of normalize, and today's is to leave it out
    return {option: value for option, value in options.items() if option != "normalize" or value}


def changed_settings(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of each setting that differs, at every depth."""
    are_dicts = isinstance(old, Mapping | None) and isinstance(new, Mapping | None)
    if are_dicts and (old or new):
        old, new = old or {}, new or {}
        for key in {**new, **old}:
            is_in_both = key in old and key in new
            if is_in_both or path != "parts":  # of other parts, the groups are compared
                yield from changed_settings(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return
    # an optimizer argument that is no longer given keeps its value
    is_kept = new is None and path.startswith("optimizer.init_args")
    if _listed(old) != _listed(new) and not is_kept:
        yield path, old, new


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe_changes(old: Settings, new: Settings, epoch: int) -> list[str]:
    """A line per changed setting, such as ``lr 0.001 → 0.5, applied from epoch 3``, at most 8 and a count."""
    lines = []
    for path, was, now in changed_settings(old, new):
        before = "null" if was is None else was
        after = "null" if now is None else now
        lines.append(f"{path} {before} → {after}, applied from epoch {epoch}")
    if len(lines) > 8:
        return [*lines[:8], f"and {len(lines) - 8} more"]
    return lines


def apply_current_settings(
    optimizer: Optimizer,
    wanted: list[dict[str, Any]],
    old: Settings,
    new: Settings,
) -> None:
    """Gives restored groups the rates, decays and changed optimizer arguments of today; the rest stays as restored."""
    given, before = new["optimizer"]["init_args"], old["optimizer"]["init_args"]
    changed = {}
    for key, value in given.items():
        if _listed(before.get(key)) != _listed(value) and key in optimizer.defaults:
            changed[key] = optimizer.defaults[key]
    of_today = {group["name"]: group for group in wanted}
    for group in optimizer.param_groups:
        today = of_today[group["name"]]
        for key in ("lr_factor", "weight_decay"):
            group[key] = today[key]
        group["initial_lr"] = today["lr"]
        group.update(changed)


def set_position(scheduler: GroupLR, step: int, length: FitLength) -> None:
    """Puts a scheduler that counts otherwise than the one in the checkpoint to where the run is."""
    if scheduler.restored_clock not in (None, scheduler.clock):
        epoch = step // (length.steps_per_epoch or max(step, 1))
        scheduler.load_state_dict({"last_epoch": step if scheduler.clock == "step" else epoch})


# Groups


def model_changes(
    own: Tensors,
    checkpoint: Checkpoint,
    groups: Groups,
    saved_groups: Groups,
    optimizers: list[str],
) -> list[str]:
    """Sentences that say how the model and optimizer of a checkpoint differ from those of today; none if they fit."""
    names: dict[str, list[str]] = {"added": [], "removed": [], "with other parameters": []}
    for name in {**groups, **saved_groups}:
        if name not in saved_groups:
            names["added"].append(name)
        elif name not in groups:
            names["removed"].append(name)
        elif set(groups[name]) != set(saved_groups[name]):
            names["with other parameters"].append(name)
    sentences = []
    for kind, of_kind in names.items():
        if of_kind:
            sentences.append(f"Groups {kind}: {listing(of_kind)}.")
    # groups that differ are easier to read than tensors that differ because of them
    sentences = sentences or other_tensors(own, checkpoint["state_dict"])
    if sentences:
        sentences.insert(0, "The checkpoint is of another model.")
    old, new = optimizers
    if old != new:
        sentences.append(f"Its optimizer is {old}, not {new}, which cannot use its state.")
    return sentences


def _not_allowed(changes: list[str]) -> ConfigError:
    return ConfigError(
        f"{' '.join(changes)} Use the config of its run (config.yaml in its folder); or add --on_group_change "
        f"weights_only, which starts a new fit with the weights that match, or --on_group_change match, which also "
        f"keeps the optimizer state that matches and goes on from the checkpoint's step.",
        "--ckpt_path",
    )


def take_copies(checkpoint: Checkpoint, own: Tensors, trainer: pl.Trainer) -> list[str]:
    """Checks the second copy of all weights in a checkpoint with an average; returns lines to print.

    Its ``state_dict`` is the average. A run without a callback for it goes on from the weights that were in training.
    """
    if "current_model_state" not in checkpoint:
        return []
    state, averaging = checkpoint["current_model_state"], checkpoint.get("averaging_state")
    if not isinstance(state, Mapping) or other_tensors(state, checkpoint["state_dict"]):
        raise own_files.damaged("its 'current_model_state' is of another model than its 'state_dict'.")
    refuse_unfit(state, own, "the checkpoint", "--ckpt_path")
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    if any(issubclass(kind, AverageWeights) for kind in kinds):
        return []
    if averaging is not None or any(issubclass(kind, WeightAveraging) for kind in kinds):
        path = first_damaged(averaging, {"n_averaged": torch.zeros((), dtype=torch.long)}, "averaging_state")
        if path is not None:
            raise own_files.damaged(f"{path!r} is missing or of another type.")
    if any(issubclass(kind, WeightAveraging) for kind in kinds):
        return []
    checkpoint["state_dict"] = checkpoint.pop("current_model_state")
    checkpoint.pop("averaging_state", None)
    return ["The checkpoint serves averaged weights. This run goes on from those in training, which stand beside them."]


def take_matching_weights(own: Tensors, checkpoint: Checkpoint) -> list[str]:
    """Keeps a checkpoint's matching weights, fills the rest from the model, and reports both."""
    saved = checkpoint["state_dict"]
    kept = {}
    for name, tensor in own.items():
        if name in saved and saved[name].shape == tensor.shape:
            kept[name] = saved[name]
    checkpoint["state_dict"] = {**own, **kept}
    if "current_model_state" in checkpoint:  # of the same names and shapes
        in_training = {name: checkpoint["current_model_state"][name] for name in kept}
        checkpoint["current_model_state"] = {**own, **in_training}
    lines = [f"kept: {len(kept)} of {len(own)} tensors"]
    for kind, tensors in (("fresh", own), ("dropped", saved)):
        names = [name.removeprefix("network.") for name in tensors if name not in kept]
        if names:
            lines.append(f"{kind}: {listing(names, 6)}")
    return lines


def forget_fit(checkpoint: Checkpoint, datamodule: Any) -> None:
    """Leaves only the weights in a checkpoint, so that the run starts at step 0."""
    for key in ("loops", "callbacks", "current_model_state", "averaging_state", type(datamodule).__qualname__):
        checkpoint.pop(key, None)  # without callbacks Lightning restores none
    checkpoint["optimizer_states"] = []
    checkpoint["lr_schedulers"] = []


def match_optimizer(
    checkpoint: Checkpoint, fresh: list[dict[str, Any]], groups: Groups, saved_groups: Groups, keep: bool
) -> int:
    """Rewrites a checkpoint's optimizer state for groups of today, `fresh`, by parameter name; counts what it keeps.

    A parameter without state there (it was frozen, or is new, or has another shape) starts without state here, and a
    new group starts to train at the step of the restart. Without `keep`, today's optimizer cannot use any state.
    """
    [saved] = checkpoint["optimizer_states"]
    old_groups, old_states = {}, {}
    for group in saved["param_groups"]:
        for name, index in zip(saved_groups[group["name"]], group["params"], strict=True):
            old_groups[name] = group
            old_states[name] = saved["state"].get(index, {})
    states = {}
    matched = []
    for group in fresh:
        names = groups[group["name"]]
        source = next((old_groups[name] for name in names if name in old_groups), {"unfrozen_at": None})
        # another kind of optimizer has other options; when a group was unfrozen holds for any
        kept = [key for key in source if key not in _OF_TODAY] if keep else ["unfrozen_at"]
        matched.append(group | {key: source[key] for key in kept})
        for name, index in zip(names, group["params"], strict=True):
            state = old_states.get(name, {})
            if keep and _fits(state, checkpoint["state_dict"][f"network.{name}"]):
                states[index] = state
    checkpoint["optimizer_states"] = [{**saved, "state": states, "param_groups": matched}]
    for key, callback in checkpoint.get("callbacks", {}).items():
        if key.startswith("GradualUnfreezing"):
            callback.pop("best", None)  # whole weights of the other model
        if key.startswith("GreedySoup"):
            callback["ingredients"] = {}
        if "statistics" in callback:
            callback["statistics"] = None
    return len(states)


def _fits(state: Mapping[str, Any], weight: Tensor) -> bool:
    """Whether there is a state, and all its tensors are of the weight's shape, or numbers."""
    shapes = [entry.shape for entry in state.values() if isinstance(entry, Tensor)]
    return bool(state) and all(shape in (weight.shape, ()) for shape in shapes)


def refuse_damaged_state(
    checkpoint: Checkpoint,
    settings: Settings,
    optimizer: Optimizer,
    network: nn.Module,
    make: Make,
    trainer: pl.Trainer,
) -> None:
    """Raises `ConfigError` on all ranks if the optimizer state does not fit its parameters on one of them."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    problem = first_problem(checkpoint, optimizer, names, make, settings["optimizer"]["init_args"])
    if trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
        raise damaged(problem or "another rank reports it.")


# The end


def finished(trainer: pl.Trainer) -> str | None:
    """A sentence if a run has nothing left to do."""
    epochs = trainer.fit_loop.epoch_progress.total.processed  # type: ignore[attr-defined]
    done = (("steps", trainer.global_step, trainer.max_steps), ("epochs", epochs, trainer.max_epochs))
    for unit, reached, limit in done:
        if limit is not None and 0 <= limit <= reached:
            return f"finished: {reached} of {limit} {unit} are done; raise --trainer.max_{unit} to train on"
    return None


def end_at(checkpoint: Checkpoint, trainer: pl.Trainer) -> None:
    """Lets a run that is past its end come to `finished`, where Lightning would raise."""
    refuse_damaged_fit(trainer, checkpoint)
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    last = trainer.max_epochs
    if last is not None and 0 <= last < progress["completed"]:
        progress.update(processed=last, completed=last)
