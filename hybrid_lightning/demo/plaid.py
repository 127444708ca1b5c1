"""PLAID: which of 11 household appliances was switched on, from its electric current."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule, stratified_mask
from hybrid_lightning.errors import ConfigError

Traces = tuple[list[Tensor], Tensor]
"""Series of different lengths, each `(L,)` float32, and their labels `(N,)` int64."""


class PlaidDataModule(InMemoryDataModule):
    """The PLAID appliance data (Gao et al., BuildSys 2014; UCR archive), read from the installed package sktime.

    537 training and 537 test traces of 100 to 1344 samples, 11 classes. A stratified share of the training traces
    becomes the validation split. Each sample has

    - ``trace``: ``values`` `(context,)` scaled to [0, 1] and padded on the left, ``mask`` `(context,)` bool;
    - ``wave``: `(1, wave_length)`, the trace relative to its mean magnitude, peaks compressed, padded on the right;
    - ``stats``: `(4,)`, logarithms of length, standard deviation and peak, and the mean, which ``trace`` and ``wave``
      no longer show; standardized with the training split;
    - ``target``: the class, 0 to 10.

    Args:
        batch_size: Samples per batch.
        context: Length of ``trace``, in samples; of longer traces the end is kept.
        wave_length: Length of ``wave``, in samples; of longer traces the start is kept.
        val_fraction: Share of the training traces used for validation, between 0 and 1.
        seed: Seed of the validation split; does not follow the seed of the model.
    """

    def __init__(
        self,
        batch_size: int = 16,
        context: int = 512,
        wave_length: int = 512,
        val_fraction: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction: {val_fraction!r} is not between 0 and 1.")
        self.context = context
        self.wave_length = wave_length
        self.val_fraction = val_fraction
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``.

        Raises:
            ConfigError: If the package sktime is not installed.
        """
        folder = _data_folder()
        traces, targets = read_ts(folder / "PLAID_TRAIN.ts")
        in_val = stratified_mask(targets, self.val_fraction, self.seed)
        splits = {name: _select((traces, targets), mask) for name, mask in (("train", ~in_val), ("val", in_val))}
        splits["test"] = read_ts(folder / "PLAID_TEST.ts")
        stats = {name: describe(split) for name, (split, _) in splits.items()}
        std, mean = torch.std_mean(stats["train"], dim=0)
        return {name: self._dataset(splits[name], (stats[name] - mean) / std) for name in splits}

    def _dataset(self, split: Traces, stats: Tensor) -> DictDataset:
        traces, targets = split
        values, mask = pad_left(traces, self.context)
        wave = pad_right(traces, self.wave_length)
        return DictDataset({"trace": {"values": values, "mask": mask}, "wave": wave, "stats": stats, "target": targets})


def read_ts(path: Path) -> Traces:
    """Reads a ``.ts`` file of univariate series without time stamps: ``value,value,...:label`` per row."""
    _, _, data = path.read_text(encoding="utf-8").partition("@data")
    rows = [row.rpartition(":") for row in data.splitlines() if row.strip()]
    traces = [torch.tensor([float(value) for value in values.split(",")]) for values, _, _ in rows]
    return traces, torch.tensor([int(label) for _, _, label in rows])


def pad_left(traces: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Scales each trace to [0, 1] and aligns the ends.

    Args:
        traces: Series `(L,)` of different lengths; of longer ones the last `length` samples are kept.
        length: Length of the result, in samples.

    Returns:
        Values `(N, length)` with zeros before the first sample, and the mask `(N, length)` of real samples.
    """
    values = torch.zeros(len(traces), length)
    mask = torch.zeros(len(traces), length, dtype=torch.bool)
    for row, trace in enumerate(traces):
        kept = trace[-length:]
        low, high = torch.aminmax(kept)
        values[row, -len(kept) :] = (kept - low) / (high - low).clamp(min=1e-5)
        mask[row, -len(kept) :] = True
    return values, mask


def pad_right(traces: list[Tensor], length: int) -> Tensor:
    """Divides each trace by its mean magnitude, compresses its peaks (arsinh) and aligns the starts.

    Args:
        traces: Series `(L,)` of different lengths; of longer ones the first `length` samples are kept.
        length: Length of the result, in samples.

    Returns:
        `(N, 1, length)` with zeros after the last sample.
    """
    wave = torch.zeros(len(traces), 1, length)
    for row, trace in enumerate(traces):
        kept = torch.asinh(trace / trace.abs().mean().clamp(min=1e-5))[:length]
        wave[row, 0, : len(kept)] = kept
    return wave


def describe(traces: list[Tensor]) -> Tensor:
    """Logarithms of length, standard deviation and peak, and the mean, `(N, 4)`."""
    rows = [torch.stack([torch.tensor(float(len(t))), t.std(), t.abs().max(), t.mean()]) for t in traces]
    stats = torch.stack(rows)
    return torch.cat([stats[:, :3].clamp(min=1e-5).log(), stats[:, 3:]], dim=1)


def _select(traces: Traces, mask: Tensor) -> Traces:
    series, targets = traces
    return [trace for trace, chosen in zip(series, mask.tolist(), strict=True) if chosen], targets[mask]


def _data_folder() -> Path:
    """Where sktime keeps PLAID; the package is located, never imported, because it needs more than its data."""
    spec = find_spec("sktime")
    for location in spec.submodule_search_locations or [] if spec else []:
        folder = Path(location, "datasets", "data", "PLAID")
        if folder.is_dir():
            return folder
    raise ConfigError("PlaidDataModule needs the package sktime. Install it with: pip install 'hybrid_lightning[demo]'")
