"""What each part did in a run, as the table at its end and in its report."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from hybrid_lightning.errors import format_table
from hybrid_lightning.tasks.selection import BLEND
from hybrid_lightning.unfreezing.timeline import stage_name

NUMBERS = ("alone", "error", "share", "without", "whole", "contribution")
"""What is known of some parts; None of others."""


def parts_of(trainer: Trainer, task: Any) -> list[dict[str, Any]]:
    """The parts in the order of the network: when their stages began to train, and what the end of the run compared."""
    network = task.built()
    stages: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in network.wiring.order}
    groups = trainer.optimizers[0].param_groups if len(trainer.optimizers) == 1 else []
    for group in groups:
        if {"part", "stage", "unfrozen_at"} <= group.keys():
            of_part = stages.setdefault(group["part"], {})
            start = None if group["fixed"] else group["unfrozen_at"]
            stage = of_part.setdefault(stage_name(group), {"values": 0, "start": start})
            stage["values"] += sum(parameter.numel() for parameter in group["params"])
    compared = getattr(task, "compared", {})
    shares = compared[BLEND].shares if BLEND in compared else {}
    found = []
    for part, of_part in stages.items():
        options = network.options.get(part)
        if options is not None and options.share is not None:
            continue  # it is listed as the part whose weights it has
        known: dict[str, Any] = dict.fromkeys(NUMBERS)
        if part in compared:
            known |= {"alone": compared[part].score.value, "error": compared[part].score.error}
            known["share"] = shares.get(part)
        listed = [{"stage": name, **values} for name, values in of_part.items()]
        found.append(
            {"part": part, "origin": str(options.origin) if options else "untrained", "stages": listed, **known}
        )
    return found


def what_it_did(part: Mapping[str, Any], steps: int) -> str:
    """What a part did in a run of so many steps."""
    values = sum(stage["values"] for stage in part["stages"])
    frozen = sum(stage["values"] for stage in part["stages"] if stage["start"] is None)
    starts = sorted({stage["start"] for stage in part["stages"] if stage["start"] is not None})
    if not values:
        return "has no weights to train"
    if not starts:
        return f"frozen for all {steps:,} steps: its {values:,} values are as they were"
    text = f"frozen until step {starts[0]:,}, then trained" if starts[0] else "trained from the start"
    if len(starts) > 1:
        text += f", the last stage from step {starts[-1]:,}"
    text += f": {values - frozen:,} values"
    if frozen:
        text += f"; {frozen:,} stayed frozen"
    return text


def summary(trainer: Trainer, task: Any) -> str:
    """The table at the end of a run; empty where the groups of the optimizer do not say what trained."""
    parts = parts_of(trainer, task)
    if not any(part["stages"] for part in parts):
        return ""
    rows = []
    for part in parts:
        text = what_it_did(part, trainer.global_step)
        drift = trainer.callback_metrics.get(f"drift/{part['part']}")
        if drift:
            text += f"; moved by {float(drift):.1%}"
        rows.append({"part": part["part"], "origin": part["origin"], "what it did": text})
    return format_table(rows, ("part", "origin", "what it did"))
