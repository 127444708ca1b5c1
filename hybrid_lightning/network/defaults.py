"""Options that parts take from their origin, unless they state them themselves."""

from collections.abc import Mapping
from typing import Any

from hybrid_lightning.errors import check_choice, check_keys

_COMMON = {"lr_scale": 1.0, "layer_decay": 1.0, "decay_all": False, "unfreeze": "always"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "pretrained": {**_COMMON, "lr_scale": 0.1, "unfreeze": "10%"},
    "untrained": _COMMON,
    "random": {**_COMMON, "unfreeze": "never"},
}
"""Pretrained parts learn at a tenth of the base rate, after the new parts have settled for a tenth of the run."""
_WITH_DEFAULTS = (*_COMMON, "weight_decay", "l2sp", "batch_norm", "clip", "checkpoint_activations")
_OF_ORIGIN = {"pretrained": ("adapter",), "untrained": ("origin",)}
"""Origin → further options that only its parts can have. `origin` makes of untrained towers random ones."""
Defaults = Mapping[str, Mapping[str, Any]]
"""Origin → options of all parts of that origin that do not state them themselves."""


def all_defaults(pretrained: Mapping[str, Any] | None, untrained: Mapping[str, Any] | None) -> Defaults:
    """Origin → its defaults with the user's changes."""
    found = dict(DEFAULTS)
    for origin, given in (("pretrained", pretrained), ("untrained", untrained)):
        check_keys(given or {}, (*_WITH_DEFAULTS, *_OF_ORIGIN[origin]), f"model.{origin}")
        found[origin] = DEFAULTS[origin] | without_none(given or {})
    check_choice(found["untrained"].get("origin", "random"), "model.untrained.origin", ("random",), "origin")
    return found


def defaults_of(name: str, origin: str, defaults: Defaults) -> dict[str, Any]:
    """What a part of this origin takes; the head and the fusion train even where untrained parts are drawn and kept."""
    own = dict(defaults[origin])
    if own.pop("origin", None) and name not in ("head", "fusion"):
        return {**defaults["random"], "origin": "random"}
    return own


def without_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are stated."""
    # null in a config is the same as leaving the option out
    return {name: value for name, value in options.items() if value is not None}
