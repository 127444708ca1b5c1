"""Limits of the gradients of single parts, so that one part's spike stays that part's."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from hybrid_lightning.errors import at, check_keys
from hybrid_lightning.gradients.clipping_rule import ClippingRule, ZScoreLimits
from hybrid_lightning.gradients.step import shared_pass
from hybrid_lightning.trainer import FitCallback


class GradientClipping(FitCallback):
    """Limits the gradients of each part by a rule of its own, before the Trainer's ``gradient_clip_val``.

    A global limit lets the part with the largest gradients decide how far all others go; here a spike in one part
    leaves the updates of the others as they are, bit by bit, unless ``gradient_clip_val`` acts on top. Unscaled
    gradients, once per optimizer step, the same on all ranks, also under fsdp2; nothing waits for the device. Works in
    any LightningModule whose one optimizer has groups from `named_param_groups`. What it does is in the log of
    `GradientNormMonitor`: ``grad_norm_clipped/<part>``, ``clip_rate/<part>``.

    Args:
        clip: Part → limit. Parts that are not named are not limited.

            - ``{norm: 1.0}``: the 2-norm of all gradients of the part;
            - ``{value: 0.5}``: every value, to [-0.5, 0.5];
            - ``agc`` or ``{agc: 0.01}``: adaptive gradient clipping (arXiv 2102.06171): the gradient of each unit (what
              feeds one output) is at most 0.01 of the norm of its weights, which are taken to be 0.001 at least. As in
              the paper, a part named ``head`` is left alone. A few small operations per parameter;
            - ``zclip`` or ``{zclip: {z: 2.5, alpha: 0.97, warm_up: 25 steps}}``: ZClip (arXiv 2504.02507): the part's
              norm, if it is more than ``z`` deviations above its running mean. ``alpha`` is the weight of the past;
              during the warm-up, from the part's first gradient on, nothing is limited.

    Raises:
        ConfigError: On another limit; at the start of a run, on an unknown part.
    """

    gradient_order = 1
    state_form: ClassVar[dict[Any, Any]] = {"zclip": {str: [float, float, float]}}

    def __init__(self, clip: dict[str, Any]) -> None:
        super().__init__()
        rules = {}
        for part, value in clip.items():
            with at(f"clip.{part}"):
                rules[part] = ClippingRule.parse(value)
        self.configure(rules)

    def configure(self, rules: Mapping[str, ClippingRule]) -> None:
        """Replaces the rules by others, part → rule, and forgets their histories."""
        self.rules = dict(rules)
        self.forget()

    def forget(self) -> None:
        """Forgets the histories of ZClip."""
        self._histories = ZScoreLimits({part: rule for part, rule in self.rules.items() if rule.method == "zclip"})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the names of the parts."""
        parts = {group["part"]: None for group in self.groups(trainer)}
        check_keys(self.rules, parts, "clip", kind="part")

    def state_dict(self) -> dict[str, Any]:
        """The histories of ZClip."""
        return {"zclip": self._histories.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the histories of an earlier run."""
        self._histories.load_state_dict(state_dict.get("zclip", {}))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Limits the gradients that the optimizer will get."""
        gradients = shared_pass(trainer, type(self).__name__)
        if gradients.skipped:
            return  # and no history must include this step
        for part, rule in self.rules.items():
            if rule.method == "norm":
                gradients.clip_norm(rule.limit, part)
            elif rule.method == "value":
                gradients.clip_value(rule.limit, part)
            elif rule.method == "agc" and part != "head":
                gradients.clip_units(rule.limit, part)
        # ZClip for all of its parts at once: many small operations would take longer than the limits
        parts = self._histories.parts
        if parts:
            norms = torch.stack([gradients.norms_of(part).norm() for part in parts])
            for part, factor in zip(parts, self._histories.factors(norms), strict=True):
                gradients.scale(factor, part)
