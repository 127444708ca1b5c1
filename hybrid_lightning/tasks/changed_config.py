"""Continuing a fit whose facts, groups or optimizer have changed since its checkpoint was written."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.optim.lr_schedules import GroupLR
from hybrid_lightning.resume.optimizer_states import require_groups
from hybrid_lightning.tasks.checkpoint import CHECKPOINT_KEY, other_tensors

ON_GROUP_CHANGE = ("error", "weights_only", "match")
_OF_TODAY = (
    *("params", "name", "part", "stage", "origin", "observer", "fixed"),
    *("lr_factor", "initial_lr", "weight_decay"),
)
Groups = Mapping[str, list[str]]
"""Group name → names of its parameters."""


def take_up(
    checkpoint: dict[str, Any],
    own: Mapping[str, Tensor],
    now: Mapping[str, Any],
    make_optimizer: Callable[[], Optimizer],
    on_group_change: str,
    trainer: pl.Trainer,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Prepares a checkpoint for a fit, before anything is restored from it.

    Args:
        checkpoint: Changed in place, if the model or the optimizer has changed and `on_group_change` allows it.
        own: The model's ``state_dict``.
        now: What the task would add to a checkpoint now.
        make_optimizer: Makes the optimizer of today.
        on_group_change: ``error``; ``weights_only``: the weights that match are taken, and the fit starts at step 0;
            ``match``: the optimizer state that matches is taken too, and the fit goes on from the checkpoint's step.
        trainer: Runs the fit.

    Returns:
        The checkpoint's facts (see `all_facts`), or None if the fit does not go on from it; and lines to print.

    Raises:
        ConfigError: If something has changed that is not allowed.
    """
    if on_group_change not in ON_GROUP_CHANGE:
        raise unknown("on_group_change", "value", str(on_group_change), ON_GROUP_CHANGE)
    saved = checkpoint.get(CHECKPOINT_KEY, now)
    facts, groups, saved_groups = all_facts(saved), now["groups"], saved["groups"]
    optimizers = [facts["optimizer"]["class_path"], all_facts(now)["optimizer"]["class_path"]]
    changes = model_changes(own, checkpoint, groups, saved_groups, optimizers)
    if on_group_change == "error":
        refuse_changes(changes)
    lines = [f"--on_group_change {on_group_change}: {' '.join(changes)}"] if changes else []
    if changes:
        lines += take_matching_weights(own, checkpoint)
    if changes and on_group_change == "weights_only":
        forget_fit(checkpoint, getattr(trainer, "datamodule", None))
        return None, [*lines, "The fit starts at step 0 with a new optimizer."]
    require_groups(checkpoint, saved_groups)
    end_at(checkpoint, trainer.max_epochs)
    if changes or list(groups.items()) != list(saved_groups.items()):
        fresh = make_optimizer().state_dict()["param_groups"]
        kept = match_optimizer(checkpoint, fresh, groups, saved_groups, keep=optimizers[0] == optimizers[1])
        lines += [f"The optimizer state of {kept} parameters is kept."] if lines else []
    return facts, lines


# Facts


def optimizer_spec(spec: Any) -> dict[str, Any]:
    """An optimizer's facts in the long form, with the bare names of torch's classes."""
    spec = {"class_path": spec or "AdamW"} if not isinstance(spec, Mapping) else spec
    return {"class_path": spec["class_path"].removeprefix("torch.optim."), "init_args": spec.get("init_args") or {}}


def all_facts(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a task adds to a checkpoint, as one dict of all facts that may be changed on a restart."""
    facts = {key: value for key, value in saved.get("facts", {}).items() if key != "init_from"}
    parts = {name: {k: v for k, v in part.items() if k != "weights"} for name, part in saved.get("parts", {}).items()}
    fusion = saved.get("fusion", {})
    return {**facts, "optimizer": optimizer_spec(facts.get("optimizer")), "parts": parts, "fusion": fusion}


def changed_facts(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of each fact that differs, at every depth.

    Parts that are not in both are left out (their groups tell), and so are optimizer arguments that are no longer
    given, because their values are kept.
    """
    if isinstance(old, Mapping | None) and isinstance(new, Mapping | None) and (old or new):
        old, new = old or {}, new or {}
        for key in {**new, **old}:
            if not (path == "parts" and (key not in old or key not in new)):
                yield from changed_facts(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif _listed(old) != _listed(new) and not (path.startswith("optimizer.init_args") and new is None):
        yield path, old, new


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any], epoch: int, limit: int = 8) -> list[str]:
    """A line per changed fact, such as ``lr 0.001 → 0.5, applied from epoch 3``, at most `limit` and a count."""
    changes = [
        (path, *("null" if value is None else value for value in pair)) for path, *pair in changed_facts(old, new)
    ]
    lines = [f"{path} {was} → {now}, applied from epoch {epoch}" for path, was, now in changes]
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])


def restate(optimizer: Optimizer, wanted: list[dict[str, Any]], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Gives restored groups the rates, decays and changed optimizer arguments of today; the rest stays as restored.

    Args:
        optimizer: Restored from a checkpoint.
        wanted: Groups as today's facts make them.
        old: The checkpoint's facts, see `all_facts`.
        new: Today's facts.
    """
    given, before = new["optimizer"]["init_args"], old["optimizer"]["init_args"]
    options = {key for key, value in given.items() if _listed(before.get(key)) != _listed(value)}
    of_today = {group["name"]: group for group in wanted}
    for group in optimizer.param_groups:
        today = of_today[group["name"]]
        group.update(lr_factor=today["lr_factor"], weight_decay=today["weight_decay"], initial_lr=today["lr"])
        group["observer"] = today["observer"]
        group.update({key: optimizer.defaults[key] for key in options if key in optimizer.defaults})


def set_position(scheduler: GroupLR, step: int, length: FitLength) -> None:
    """Puts a scheduler that counts otherwise than the one in the checkpoint to where the fit is."""
    if scheduler.restored_clock not in (None, scheduler.clock):
        epoch = step // (length.steps_per_epoch or max(step, 1))
        scheduler.load_state_dict({"last_epoch": step if scheduler.clock == "step" else epoch})


# Groups


def model_changes(
    own: Mapping[str, Tensor],
    checkpoint: Mapping[str, Any],
    groups: Groups,
    saved_groups: Groups,
    optimizers: list[str],
) -> list[str]:
    """Sentences that say how the model and optimizer of a checkpoint differ from those of today; none if they fit."""
    names = {
        "Groups added": [name for name in groups if name not in saved_groups],
        "Groups removed": [name for name in saved_groups if name not in groups],
        "Groups with other parameters": [n for n in groups if set(groups[n]) != set(saved_groups.get(n, groups[n]))],
    }
    sentences = [f"{kind}: {listing(of_kind)}." for kind, of_kind in names.items() if of_kind]
    sentences = sentences or other_tensors(own, checkpoint["state_dict"])
    sentences = ["The checkpoint is of another model.", *sentences] if sentences else []
    old, new = optimizers
    return sentences + ([f"Its optimizer is {old}, not {new}, which cannot use its state."] if old != new else [])


def refuse_changes(changes: list[str]) -> None:
    """Raises `ConfigError` if there are any."""
    if changes:
        raise ConfigError(
            f"--ckpt_path: {' '.join(changes)} Use the config of its run (config.yaml in its folder); or add "
            f"--on_group_change weights_only, which starts a new fit with the weights that match, or --on_group_change "
            f"match, which also keeps the optimizer state that matches and goes on from the checkpoint's step."
        )


def take_matching_weights(own: Mapping[str, Tensor], checkpoint: dict[str, Any]) -> list[str]:
    """Completes a checkpoint's weights by the model's own where they do not fit, and says which are which."""
    saved = checkpoint["state_dict"]
    kept = {name for name, tensor in own.items() if name in saved and saved[name].shape == tensor.shape}
    checkpoint["state_dict"] = {name: saved[name] if name in kept else tensor for name, tensor in own.items()}
    fresh = [name.removeprefix("network.") for name in own if name not in kept]
    dropped = [name.removeprefix("network.") for name in saved if name not in kept]
    lines = [f"kept: {len(kept)} of {len(own)} tensors"]
    return lines + [f"{k}: {listing(n, 6)}" for k, n in (("fresh", fresh), ("dropped", dropped)) if n]


def forget_fit(checkpoint: dict[str, Any], datamodule: Any) -> None:
    """Leaves only the weights in a checkpoint, so that the fit starts at step 0."""
    for key in ("loops", "callbacks", type(datamodule).__qualname__):
        checkpoint.pop(key, None)  # without callbacks Lightning does not ask them to restore anything
    checkpoint |= {"optimizer_states": [], "lr_schedulers": []}


def match_optimizer(
    checkpoint: dict[str, Any], fresh: list[dict[str, Any]], groups: Groups, saved_groups: Groups, keep: bool
) -> int:
    """Rewrites a checkpoint's optimizer state for the groups of today, by parameter name.

    A parameter without state there (it was frozen, or is new, or has another shape) starts without state here. A new
    group starts to train at the step of the restart.

    Args:
        checkpoint: Its weights are those of `take_matching_weights`.
        fresh: ``param_groups`` in the ``state_dict`` of an optimizer made today.
        groups: Of today.
        saved_groups: Of the checkpoint.
        keep: Whether today's optimizer can use the state.

    Returns:
        Number of parameters whose state was kept.
    """
    [saved] = checkpoint["optimizer_states"]
    index: dict[str, int] = {}
    home: dict[str, dict[str, Any]] = {}
    for group in saved["param_groups"]:
        for name, position in zip(saved_groups[group["name"]], group["params"], strict=True):
            index[name], home[name] = position, group
    state, new_groups = {}, []
    for group in fresh:
        names = groups[group["name"]]
        source = next((home[name] for name in names if name in home), {"unfrozen_at": None})
        keys = [key for key in source if key not in _OF_TODAY] if keep else ["unfrozen_at"]
        new_groups.append({**group, **{key: source[key] for key in keys}})
        for name, position in zip(names, group["params"], strict=True):
            tensor = checkpoint["state_dict"][f"network.{name}"]
            found = saved["state"].get(index.get(name, -1), {}) if keep else {}
            if found and all(t.shape in (tensor.shape, ()) for t in found.values() if isinstance(t, Tensor)):
                state[position] = found
    checkpoint["optimizer_states"] = [{**saved, "state": state, "param_groups": new_groups}]
    for key, callback in checkpoint.get("callbacks", {}).items():
        if key.startswith("GradualUnfreezing"):
            callback.pop("best", None)  # whole weights of the other model
    return len(state)


# The end


def finished(trainer: pl.Trainer) -> str | None:
    """Says that a fit has nothing left to do, if that is so."""
    epochs = trainer.fit_loop.epoch_progress.total.processed  # type: ignore[attr-defined]
    done = (("steps", trainer.global_step, trainer.max_steps), ("epochs", epochs, trainer.max_epochs))
    for unit, reached, limit in done:
        if limit is not None and 0 <= limit <= reached:
            return f"finished: {reached} of {limit} {unit} are done; raise --trainer.max_{unit} to train on"
    return None


def end_at(checkpoint: Mapping[str, Any], max_epochs: int | None) -> None:
    """Lets a fit that is past its end come to `finished`, where Lightning would raise."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    if max_epochs is not None and 0 <= max_epochs < progress.get("completed", 0):
        progress.update(processed=max_epochs, completed=max_epochs)
