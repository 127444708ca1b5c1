"""PLAID: which of 11 household appliances was switched on, from its electric current."""

import torch
from torch import Tensor

from hybrid_lightning.data.tensors import Tensors
from hybrid_lightning.demo.series import SeriesDataModule, as_measured


class PlaidDataModule(SeriesDataModule):
    """The PLAID appliance data (Gao et al., BuildSys 2014; UCR archive), read from the installed package sktime.

    537 training and 537 test traces of 100 to 1344 samples, 11 classes. A stratified share of the training traces
    becomes the validation split. Each sample has

    - ``trace``: ``values`` `(context,)` scaled to [0, 1] and padded on the left, ``mask`` `(context,)` bool;
    - ``wave``: `(1, wave_length)`, the trace relative to its mean magnitude, peaks compressed, padded on the right;
    - ``series``: ``values`` `(series_length,)` as they were measured, zeros after the last sample, ``mask``
      `(series_length,)` bool;
    - ``stats``: `(4,)`, logarithms of length, standard deviation and peak, and the mean, which ``trace`` and ``wave``
      no longer show; standardized with the training split;
    - ``target``: the class, 0 to 10.

    Args:
        batch_size: Samples per batch.
        context: Length of ``trace``, in samples; of longer traces the end is kept.
        wave_length: Length of ``wave``, in samples; of longer traces the start is kept.
        series_length: Length of ``series``, in samples; of longer traces the start is kept.
        val_fraction: Share of the training traces used for validation, between 0 and 1.
        seed: Seed of the validation split; does not follow the seed of the model.

    Raises:
        ConfigError: If the fraction is impossible; in `setup`, if the package sktime is not installed.
    """

    def __init__(
        self,
        batch_size: int = 16,
        context: int = 512,
        wave_length: int = 512,
        series_length: int = 1344,
        val_fraction: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__("PLAID", batch_size, val_fraction, seed)
        self.context = context
        self.wave_length = wave_length
        self.series_length = series_length

    def entries(
        self,
        series: list[Tensor],
        training: list[Tensor],
        longest: int,
    ) -> dict[str, Tensors]:
        """What the samples of some traces have apart from the target."""
        std, mean = torch.std_mean(describe(training), dim=0)
        values, mask = pad_left(series, self.context)
        return {
            "trace": {"values": values, "mask": mask},
            "wave": pad_right(series, self.wave_length),
            "series": as_measured(series, self.series_length),
            "stats": (describe(series) - mean) / std,
        }


def pad_left(traces: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Scales the last `length` samples of each trace to [0, 1] and aligns the ends.

    Returns values `(N, length)` with zeros before the first sample, and the mask `(N, length)` of real samples.
    """
    values = torch.zeros(len(traces), length)
    mask = torch.zeros(len(traces), length, dtype=torch.bool)
    for row, trace in enumerate(traces):
        kept = trace[-length:]
        low, high = torch.aminmax(kept)
        end = slice(length - len(kept), length)
        values[row, end] = (kept - low) / (high - low).clamp(min=1e-5)  # a trace may be constant
        mask[row, end] = True
    return values, mask


def pad_right(traces: list[Tensor], length: int) -> Tensor:
    """Each trace over its mean magnitude, peaks compressed (arsinh), `(N, 1, length)`, zeros after the last sample."""
    wave = torch.zeros(len(traces), 1, length)
    for row, trace in enumerate(traces):
        magnitude = trace.abs().mean().clamp(min=1e-5)  # of the whole trace, not of what is kept
        kept = torch.asinh(trace / magnitude)[:length]
        wave[row, 0, : len(kept)] = kept
    return wave


def describe(traces: list[Tensor]) -> Tensor:
    """Logarithms of length, standard deviation and peak, and the mean, `(N, 4)`."""
    rows = []
    for trace in traces:
        length = torch.tensor(float(len(trace)))
        peak = trace.abs().max()
        rows.append(torch.stack([length, trace.std(), peak, trace.mean()]))
    stats = torch.stack(rows)
    positive = stats[:, :3].clamp(min=1e-5)
    stats[:, :3] = positive.log()  # but not of the mean, which may be negative
    return stats
