"""What missing modalities cost, with presence masks and with zeros in their place.

PLAID, with three parts: the features of the pretrained encoder, which stays frozen (computed once, for speed, and read
by an MLP), a convolution net on the wave, and an MLP on four statistics. In training and test data alike each of the
three is absent with the given rate, independently, but never all of them; the same cells for all ways.

- ``ours``: absent parts are not encoded, and a learned vector stands in for each of them (`ConcatFusion`).
- ``dropout``: the same with ``modality_dropout`` 0.2.
- ``gated``, ``attention``, ``late``: the other fusions.
- ``zeros``: the same network as ``ours``, not told what is missing; zeros in the place of traces, waves and statistics.

RESULT missing_rate: test error of zero filling / test error of ``ours`` at the highest rate, means over the seeds;
above 1 the masks help.
RESULT missing_rate_<way>_<rate in %>: mean test accuracy.

    python tests/benchmarks/missing_rate.py --rates 0 0.2 0.4 0.6 --seeds 0 1 2 3 4 --threads 1
"""

import argparse
import statistics
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier
from hybrid_lightning.data import DictDataset
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.demo.fracast import FracastEncoder
from hybrid_lightning.demo.plaid import PlaidDataModule

KEYS = ("features", "wave", "stats")
FUSIONS: dict[str, dict[str, Any]] = {
    "ours": {},
    "dropout": {"args": {"modality_dropout": 0.2}},
    "gated": {"module": "GatedFusion"},
    "attention": {"module": "AttentionFusion"},
    "late": {"module": "LogitFusion"},
    "zeros": {},
}
Entries = dict[str, Tensor]


def encoded_splits() -> tuple[dict[str, Entries], Tensor]:
    """PLAID with the encoder's features in the place of the traces, standardized; and those of a trace of zeros."""
    data = PlaidDataModule(batch_size=32)
    data.setup()
    encoder = FracastEncoder(context=data.context).eval()
    encoder.load_pretrained()
    splits: dict[str, Entries] = {}
    with torch.no_grad():
        for split, dataset in data.splits.items():
            trace: Any = dataset.entries["trace"]
            chunks = zip(trace["values"].split(64), trace["mask"].split(64), strict=True)
            features = torch.cat([encoder(values, mask) for values, mask in chunks])
            rest = {key: dataset.entries[key] for key in ("wave", "stats", "target")}
            splits[split] = {"features": features, **rest}  # type: ignore[dict-item]
        zeros = encoder(torch.zeros(1, data.context), torch.ones(1, data.context, dtype=torch.bool))
    std, mean = torch.std_mean(splits["train"]["features"], dim=0)
    for entries in splits.values():
        entries["features"] = (entries["features"] - mean) / std
    return splits, (zeros - mean) / std


def with_gaps(splits: dict[str, Entries], rate: float, seed: int, told: bool, zeros: Tensor) -> dict[str, Entries]:
    """The splits with a share of each modality taken away."""
    generator = torch.Generator().manual_seed(seed)
    result: dict[str, Entries] = {}
    for split, entries in splits.items():
        draws = torch.rand(len(entries["target"]), len(KEYS), generator=generator)
        there = (draws >= rate) | (draws == draws.amax(1, keepdim=True))
        own = dict(entries)
        for key, mask in zip(KEYS, there.unbind(1), strict=True):
            shape = (-1, *[1] * (entries[key].ndim - 1))
            filling = zeros if key == "features" and not told else torch.zeros(())
            own[key] = torch.where(mask.view(shape), entries[key], filling)
            if told and rate:
                own[f"present/{key}"] = mask
        result[split] = own
    return result


def accuracy(way: str, splits: dict[str, Entries], seed: int, epochs: int) -> float:
    """The test accuracy of one run, with the last weights."""
    pl.seed_everything(seed, verbose=False)
    parts = {
        "features": {"module": "MLP", "args": {"hidden": [64]}},
        "wave": {"module": "ResidualConv1d", "args": {"channels": [16, 32, 32], "kernel_size": 15, "flip": 0.5}},
        "stats": {"module": "MLP"},
    }
    model = HybridClassifier(num_classes=11, lr=3e-3, rates={"shape": "one_cycle"}, parts=parts, fusion=FUSIONS[way])
    loaders = {
        split: DataLoader(DictDataset(entries), 32, shuffle=split == "train", collate_fn=as_batch)
        for split, entries in splits.items()
    }
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=epochs, gradient_clip_val=1.0, accelerator="cpu", enable_checkpointing=False, **quiet
    )
    trainer.fit(model, loaders["train"])
    [metrics] = trainer.test(model, loaders["test"], verbose=False)
    return metrics["test/accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6], help="Shares that are missing.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Of the model and of what is missing.")
    parser.add_argument("--ways", nargs="+", default=["ours", "zeros"], choices=list(FUSIONS), help="See above.")
    parser.add_argument("--epochs", type=int, default=20, help="Of each run.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    whole, zeros = encoded_splits()
    means: dict[tuple[str, float], float] = {}
    for rate in options.rates:
        for way in options.ways:
            scores = []
            for seed in options.seeds:
                splits = with_gaps(whole, rate, seed, way != "zeros", zeros)
                scores.append(accuracy(way, splits, seed, options.epochs))
            means[way, rate] = statistics.mean(scores)
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            print(f"{rate:4.0%}  {way:10}  {means[way, rate]:.3f} ± {spread:.3f}", flush=True)
    highest = max(options.rates)
    if {"ours", "zeros"} <= set(options.ways):
        ratio = (1 - means["zeros", highest]) / (1 - means["ours", highest])
        print(f"RESULT missing_rate {ratio:.3f} ratio")
    for (way, rate), mean in means.items():
        print(f"RESULT missing_rate_{way}_{rate * 100:.0f} {mean:.4f} accuracy")


if __name__ == "__main__":
    main()
