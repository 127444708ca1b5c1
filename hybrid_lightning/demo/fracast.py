"""Fracast, a small pretrained forecaster of series, as a feature extractor."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.importing import import_extra
from hybrid_lightning.weights.safe_files import read_file


class FracastEncoder(nn.Module):
    """The encoder of Fracast (25,536 parameters), pooled to 192 features per series.

    One convolution block with shared weights runs at dilations 1, 2, 4, ..., 512. Construction gives random weights;
    `load_pretrained` reads the published ones from the installed package.

    Args:
        context: Length of the series, in samples; at least 16.

    Raises:
        ConfigError: If the package `fracast` is not installed, or `context` is too short.
    """

    def __init__(self, context: int = 512) -> None:
        super().__init__()
        if context < 16:
            raise ConfigError(f"{context} is too short; give at least 16 samples.", "FracastEncoder.context")
        self.context = context
        self.core = _build_core(context)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Mean, standard deviation and last value of the encoder's 64 channels over the observed samples.

        Args:
            values: Series `(B, context)`, float, each scaled to [0, 1] over its observed samples, padded on the left.
            mask: `(B, context)`, bool; True where a sample was observed.

        Returns:
            Features `(B, 192)`.

        Raises:
            ConfigError: If the series are not `context` samples long.
        """
        length = values.shape[-1]
        if length != self.context:
            raise ConfigError(
                f"series have {length} samples; the encoder was built for {self.context}. Set args: {{context: "
                f"{length}}}.",
                "FracastEncoder",
            )
        observed = mask[:, None]
        encoded = self.core(values[:, None], observed, observed.to(values.dtype))
        return pool_observed(encoded, mask)

    def load_pretrained(self) -> None:
        """Loads the published weights; every one of the encoder's tensors must be there."""
        tensors = read_file(_package_folder() / "weights" / "model.safetensors", "FracastEncoder")
        own = {}
        for name, tensor in tensors.items():
            if name.startswith("core."):  # the rest is the forecaster's head
                own[name.removeprefix("core.")] = tensor
        self.core.load_state_dict(own)


def pool_observed(encoded: Tensor, mask: Tensor) -> Tensor:
    """Mean, standard deviation and last value of `encoded` `(B, L, C)` where `mask` `(B, L)`: `(B, 3 * C)`.

    A row without any True gives finite, meaningless features.
    """
    weight = mask[..., None].to(encoded.dtype)
    count = weight.sum(1).clamp(min=1)
    mean = (encoded * weight).sum(1) / count
    squares = (encoded - mean[:, None]).square()
    variance = (squares * weight).sum(1) / count
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = (steps * mask).amax(1)
    rows = torch.arange(encoded.shape[0], device=mask.device)  # len() would fix the size in an exported program
    std = (variance + 1e-6).sqrt()  # the small constant keeps the gradient finite for a constant channel
    return torch.cat([mean, std, encoded[rows, last]], dim=-1)


def _build_core(context: int) -> nn.Module:
    folder = _package_folder()
    model = import_extra("fracast._core.model", "demo", "FracastEncoder")
    text = (folder / "weights" / "config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    config["model"].update(W=context, level_widths=[context])
    core: nn.Module = model.build_from_cfg(config)[0]
    return core


def _package_folder() -> Path:
    """Where `fracast` is installed; imported late, because that takes a second."""
    return Path(import_extra("fracast", "demo", "FracastEncoder").__file__).parent
