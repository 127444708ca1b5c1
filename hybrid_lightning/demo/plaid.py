"""PLAID: which of 11 household appliances was switched on, from its electric current."""

from importlib.util import find_spec
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule, stratified_mask
from hybrid_lightning.errors import ConfigError


class PlaidDataModule(InMemoryDataModule):
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
        super().__init__(batch_size)
        if not 0 < val_fraction < 1:
            raise ConfigError(f"{val_fraction!r} is not between 0 and 1.", "data.val_fraction")
        self.context = context
        self.wave_length = wave_length
        self.series_length = series_length
        self.val_fraction = val_fraction
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        folder = _data_folder()
        traces, target = read_ts(folder / "PLAID_TRAIN.ts")
        in_val = stratified_mask(target, self.val_fraction, self.seed)
        parts = {
            "train": (list(compress(traces, ~in_val)), target[~in_val]),
            "val": (list(compress(traces, in_val)), target[in_val]),
            "test": read_ts(folder / "PLAID_TEST.ts"),
        }
        training, _ = parts["train"]
        std, mean = torch.std_mean(describe(training), dim=0)
        splits = {}
        for split, (own, labels) in parts.items():
            values, mask = pad_left(own, self.context)
            wave = pad_right(own, self.wave_length)
            stats = (describe(own) - mean) / std
            trace = {"values": values, "mask": mask}
            series = as_measured(own, self.series_length)
            splits[split] = DictDataset(
                {"trace": trace, "wave": wave, "series": series, "stats": stats, "target": labels}
            )
        return splits


def read_ts(path: Path) -> tuple[list[Tensor], Tensor]:
    """Series `(L,)` and labels `(N,)` of a ``.ts`` file without time stamps: ``value,value,...:label`` per row."""
    _, _, data = path.read_text(encoding="utf-8").partition("@data")
    traces = []
    labels = []
    for row in data.split():
        values, _, label = row.rpartition(":")
        numbers = [float(value) for value in values.split(",")]
        traces.append(torch.tensor(numbers))
        labels.append(int(label))
    return traces, torch.tensor(labels)


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


def as_measured(traces: list[Tensor], length: int) -> dict[str, Tensor]:
    """The first samples of each trace, ``values`` and ``mask`` `(N, length)`, zeros and False after the last one."""
    values = torch.zeros(len(traces), length)
    mask = torch.zeros(len(traces), length, dtype=torch.bool)
    for row, trace in enumerate(traces):
        kept = trace[:length]
        values[row, : len(kept)] = kept
        mask[row, : len(kept)] = True
    return {"values": values, "mask": mask}


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


def _data_folder() -> Path:
    """Where sktime keeps PLAID; the package is located, never imported, because it needs more than its data."""
    spec = find_spec("sktime")
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location, "datasets", "data", "PLAID")
        if folder.is_dir():
            return folder
    raise ConfigError("PlaidDataModule needs the package sktime. Install it with: pip install 'hybrid_lightning[demo]'")
