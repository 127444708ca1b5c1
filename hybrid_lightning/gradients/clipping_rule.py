"""How the gradients of one part are limited: by norm, by value, by its weights (AGC), or by its own history (ZClip)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError, at, check_keys, check_number

METHODS = ("norm", "value", "agc", "zclip")
_ZCLIP = {"z": 2.5, "alpha": 0.97, "warm_up": "25 steps"}
"""Settings of ZClip and their defaults: the paper's (arXiv 2504.02507), and the warm-up of its authors' program."""
_AGC = 0.01  # λ of the paper (arXiv 2102.06171)
_SMALL = 1e-6  # added to a deviation, so that a norm that never varied divides by no zero


@dataclass(frozen=True)
class ClippingRule:
    """One part's limit."""

    method: str  # one of `METHODS`
    limit: float  # largest norm or value; for AGC λ, for ZClip the z-score from which on a norm is limited
    alpha: float = 0.97  # ZClip: weight of the past in the running mean and variance, in (0, 1)
    warm_up: int = 25  # ZClip: steps that are only observed

    @classmethod
    def parse(cls, value: object) -> "ClippingRule":
        """Reads ``{norm: 1.0}``, ``{value: 0.5}``, ``agc``, ``{agc: 0.01}``, ``zclip`` or ``{zclip: {z: 2.5}}``."""
        if isinstance(value, ClippingRule):
            return value
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, Mapping) or len(value) != 1:
            raise ConfigError(
                f"{value!r} is not a clipping rule. Write {{norm: 1.0}}, {{value: 0.5}}, agc, {{agc: 0.01}}, zclip or "
                f"{{zclip: {{z: 2.5, alpha: 0.97, warm_up: 25 steps}}}}."
            )
        check_keys(value, METHODS, kind="limit")
        method = next(iter(value))
        setting = value[method]
        if method == "zclip":
            with at("zclip"):
                return cls._parse_zclip(setting or {})
        if method == "agc" and setting is None:
            setting = _AGC
        check_number(setting, method, low=0, above_low=True)
        return cls(method, setting)

    @classmethod
    def _parse_zclip(cls, given: object) -> "ClippingRule":
        if not isinstance(given, Mapping):
            raise ConfigError(f"{given!r} is not a dict of settings such as {{z: 2.5, alpha: 0.97}}.")
        check_keys(given, _ZCLIP)
        settings = {**_ZCLIP, **given}
        check_number(settings["z"], "z", low=0, above_low=True)
        check_number(settings["alpha"], "alpha", low=0, high=1, above_low=True)
        warm_up = Duration.parse(settings["warm_up"], "warm_up")
        if warm_up.unit != "steps" or warm_up.value < 2:
            raise ConfigError(f"'{warm_up}' is too short or not in steps. Write at least '2 steps'.", "warm_up")
        return cls("zclip", settings["z"], settings["alpha"], int(warm_up.value))

    def plain(self) -> dict[str, Any]:
        """What `parse` reads as this rule."""
        if self.method != "zclip":
            return {self.method: self.limit}
        return {"zclip": {"z": self.limit, "alpha": self.alpha, "warm_up": f"{self.warm_up} steps"}}


class ZScoreLimits:
    """ZClip (arXiv 2504.02507) for several parts at once: limits a norm by the running mean and variance of its own.

    A norm g with ``z = (g - mean) / deviation`` above the limit is brought to ``mean + limit² / z × deviation``; what
    it was brought to enters the mean and the variance. A part's history begins with its first gradient; norms that are
    not finite neither enter it nor are limited.
    """

    def __init__(self, rules: Mapping[str, ClippingRule]) -> None:
        self.parts = tuple(rules)  # their names, in the order of the norms
        settings = [(rule.limit, rule.alpha, rule.warm_up) for rule in rules.values()]
        self._settings = torch.tensor(settings, dtype=torch.float64).reshape(-1, 3).T
        self._history = torch.zeros(3, len(rules))  # mean, variance, number of norms

    def factors(self, norms: Tensor) -> Tensor:
        """Factor on each part's gradients, `(parts,)` in (0, 1], from its norm, `(parts,)`, for the history."""
        # a part without gradients has the norm 0, which does not
        self._settings = self._settings.to(norms)  # moved to the device once; after that nothing is copied
        limit, alpha, warm_up = self._settings
        history = self._history.to(norms)
        mean, variance, seen = history
        deviation = variance.sqrt()
        z = (norms - mean) / (deviation + _SMALL)
        # as tensors, without a branch: a branch would wait for the device
        spikes = (seen >= warm_up) & (z > limit) & norms.isfinite()
        limited = torch.where(spikes, mean + limit.square() / z * deviation, norms)

        starts = seen < warm_up  # there, plain mean and variance of all norms so far
        weight = torch.where(starts, 1 / (seen + 1), 1 - alpha)
        new_mean = mean + weight * (limited - mean)
        square = torch.where(starts, (1 - weight) * (limited - mean).square(), (limited - new_mean).square())
        new_variance = (1 - weight) * variance + weight * square
        counted = norms.isfinite() & (norms > 0)
        new_history = torch.stack([new_mean, new_variance, seen + 1])
        self._history = torch.where(counted, new_history, history)
        return torch.where(spikes, limited / norms, torch.ones_like(norms))

    def state_dict(self) -> dict[str, list[float]]:
        """Part → mean, variance and number of its norms."""
        return dict(zip(self.parts, self._history.T.tolist(), strict=True))

    def load_state_dict(self, state_dict: Mapping[str, list[float]]) -> None:
        """Continues the histories of the parts that are still there."""
        rows = [state_dict.get(part, [0.0, 0.0, 0.0]) for part in self.parts]
        self._history = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T
