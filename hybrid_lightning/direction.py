"""Whether a metric is better when low or when high: one rule for all that follow a metric."""

from collections.abc import Mapping
from difflib import get_close_matches

from hybrid_lightning.errors import ConfigError, check_choice

Directions = Mapping[str, str | None]
"""Name of a metric → ``min`` if lower is better, ``max`` if higher is, None if the metric itself does not say."""
MAIN = "main"
"""What stands in place of a metric's name for the main metric of the task."""
_LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity")
_HIGHER_IS_BETTER = ("accuracy", "acc", "f1", "auroc", "auc", "r2", "precision", "recall", "iou", "map")
_TURNED = {"neg", "negative", "minus", "inverse", "inverted"}


def direction_of(metric: str, directions: Directions | None = None) -> str | None:
    """What the metric itself says, or else what the last word of its name does; None if neither is known."""
    stated = (directions or {}).get(metric)
    if stated is not None:
        return stated
    # val/macro_f1, val_auroc and the like too
    words = metric.partition("-")[0].replace("_", "/").lower().split("/")
    if not _TURNED.isdisjoint(words):
        return None
    if words[-1] in _LOWER_IS_BETTER:
        return "min"
    return "max" if words[-1] in _HIGHER_IS_BETTER else None


def checked_mode(metric: str, mode: str | None, directions: Directions | None = None) -> str:
    """The direction of a metric, ``min`` or ``max``, for one who wrote `mode`, None being nothing.

    Raises `ConfigError` if `mode` is the opposite of what the metric itself says, or if nothing says it.
    """
    stated = (directions or {}).get(metric)
    if mode is None:
        mode = direction_of(metric, directions)
    if mode is None:
        close = get_close_matches(metric, directions or ())
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"whether {metric!r} is better when low or high is not known.{hint} Write 'mode: min' (lower is better) or "
            f"'mode: max'.",
            "mode",
        )
    check_choice(mode, "mode", ("min", "max"), "mode")
    # a name alone proves nothing: neg_loss is better when high
    if stated is not None and mode != stated:
        better = "low" if stated == "min" else "high"
        raise ConfigError(
            f"{metric!r} is better when {better}, so 'mode: {mode}' would take the worst for the best. Write 'mode: "
            f"{stated}'.",
            "mode",
        )
    return mode
