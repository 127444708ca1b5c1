"""How the gradients of one part are limited: by norm, by value, by its weights (AGC), or by its own history (ZClip)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError, check_number, unknown

METHODS = ("norm", "value", "agc", "zclip")
_ZCLIP_KEYS = ("z", "alpha", "warm_up")


@dataclass(frozen=True)
class ClippingRule:
    """One part's limit.

    Args:
        method: One of `METHODS`.
        limit: Largest norm or value; for AGC λ, for ZClip the z-score from which on a norm is limited.
        alpha: ZClip: weight of the past in the running mean and variance, in (0, 1).
        warm_up: ZClip: steps that are only observed.
    """

    method: str
    limit: float
    alpha: float = 0.97
    warm_up: int = 25

    @classmethod
    def parse(cls, value: object, where: str = "clip") -> "ClippingRule":
        """Reads ``{norm: 1.0}``, ``{value: 0.5}``, ``agc``, ``{agc: 0.01}``, ``zclip`` or ``{zclip: {z: 2.5, ...}}``.

        Defaults are those of the papers: λ 0.01 (AGC, arXiv 2102.06171); z 2.5, alpha 0.97 (ZClip, arXiv 2504.02507)
        and 25 steps of warm-up, as its authors' program has them.

        Args:
            value: What the config says.
            where: Its config path, for errors.

        Raises:
            ConfigError: If it is none of these, or a number is out of range.
        """
        if isinstance(value, ClippingRule):
            return value
        if isinstance(value, str):
            value = {value: None}
        if not isinstance(value, Mapping) or len(value) != 1:
            raise ConfigError(
                f"{where}: {value!r} is no limit. Write {{norm: 1.0}}, {{value: 0.5}}, agc, {{agc: 0.01}}, zclip or "
                f"{{zclip: {{z: 2.5, alpha: 0.97, warm_up: 25 steps}}}}."
            )
        [(method, setting)] = value.items()
        if method not in METHODS:
            raise unknown(where, "limit", str(method), METHODS)
        if method == "zclip":
            return cls._parse_zclip(setting or {}, f"{where}.zclip")
        limit = 0.01 if method == "agc" and setting is None else setting
        check_number(limit, f"{where}.{method}", low=0, above_low=True)
        return cls(method, limit)

    @classmethod
    def _parse_zclip(cls, settings: object, where: str) -> "ClippingRule":
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{where}: {settings!r} are no settings such as {{z: 2.5, alpha: 0.97}}.")
        for key in settings:
            if key not in _ZCLIP_KEYS:
                raise unknown(where, "key", str(key), _ZCLIP_KEYS)
        z, alpha = settings.get("z", 2.5), settings.get("alpha", 0.97)
        check_number(z, f"{where}.z", low=0, above_low=True)
        check_number(alpha, f"{where}.alpha", low=0, high=1, above_low=True)
        warm_up = Duration.parse(settings.get("warm_up", "25 steps"), f"{where}.warm_up")
        if warm_up.unit != "steps" or warm_up.value < 2:
            raise ConfigError(f"{where}.warm_up: '{warm_up}' are not at least '2 steps'.")
        return cls("zclip", z, alpha, int(warm_up.value))


class ZScoreLimits:
    """ZClip (arXiv 2504.02507) for several parts at once: limits a norm by the running mean and variance of its own.

    A norm g with ``z = (g - mean) / deviation`` above the limit is brought to ``mean + limit² / z × deviation``; what
    it was brought to enters the mean and the variance. A part's history begins with its first gradient; norms that are
    not finite neither enter it nor are limited.

    Args:
        rules: Part → rule with the method ``zclip``.
    """

    def __init__(self, rules: Mapping[str, ClippingRule]) -> None:
        self._rules = dict(rules)
        self._constants: Tensor | None = None
        self._history = torch.zeros(3, len(self._rules))  # mean, variance, number of norms

    @property
    def parts(self) -> Sequence[str]:
        """Their names, in the order of the norms."""
        return tuple(self._rules)

    def factors(self, norms: Tensor) -> Tensor:
        """What each part's gradients have to be multiplied by, `(parts,)`, in (0, 1]; takes the norms into account.

        Args:
            norms: Norm of each part, `(parts,)`; 0 for a part that has no gradients.
        """
        if self._constants is None or self._constants.device != norms.device:
            rows = [(rule.limit, rule.alpha, rule.warm_up) for rule in self._rules.values()]
            self._constants = torch.tensor(rows, dtype=norms.dtype, device=norms.device).T
        limit, alpha, warm_up = self._constants
        mean, variance, seen = history = self._history.to(norms)
        deviation = variance.sqrt()
        z = (norms - mean) / (deviation + 1e-6)
        spikes = (seen >= warm_up) & (z > limit) & norms.isfinite()
        limited = torch.where(spikes, mean + limit.square() / z * deviation, norms)

        starts = seen < warm_up  # there, plain mean and variance of all norms so far
        weight = torch.where(starts, 1 / (seen + 1), 1 - alpha)
        new_mean = mean + weight * (limited - mean)
        square = torch.where(starts, (1 - weight) * (limited - mean).square(), (limited - new_mean).square())
        new_variance = (1 - weight) * variance + weight * square
        counted = norms.isfinite() & (norms > 0)
        self._history = torch.where(counted, torch.stack([new_mean, new_variance, seen + 1]), history)
        return torch.where(spikes, limited / norms, torch.ones_like(norms))

    def state_dict(self) -> dict[str, list[float]]:
        """Part → mean, variance and number of its norms."""
        return dict(zip(self._rules, self._history.T.tolist(), strict=True))

    def load_state_dict(self, state_dict: Mapping[str, list[float]]) -> None:
        """Takes up the histories of the parts that are still there."""
        rows = [state_dict.get(part, [0.0, 0.0, 0.0]) for part in self._rules]
        self._history = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T
