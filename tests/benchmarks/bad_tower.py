"""Does a badly initialized tower destroy the pretrained tower beside it?

Runs ``configs/bad_tower.yaml`` (ours), ``configs/bad_tower_one_rate.yaml`` (one global rate, everything trains from the
start) and variations of the two, each as ``python -m hybrid_lightning fit`` in a temporary folder, once per seed. After
a run, the last checkpoint says

- drift: ||w - w0|| / ||w0|| of all weights of the pretrained encoder, where w0 are the weights that it started with;
- probe: the test accuracy of a logistic regression on the encoder's features alone (fitted on the training split), and
  beside the table that of the encoder as it was pretrained. A tower that is destroyed has lost it.

RESULT bad_tower: mean drift with one rate / mean drift with ours.
RESULT bad_tower_accuracy_one_rate: mean test accuracy of one rate.
RESULT bad_tower_accuracy: mean test accuracy of ours.

    python tests/benchmarks/bad_tower.py --seeds 0 1 2 3 4 --threads 1
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from config_scores import fit, last_metrics
from torch import Tensor, nn

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli.config_files import read_config
from hybrid_lightning.data import DictDataset
from hybrid_lightning.demo.fracast import FracastEncoder
from hybrid_lightning.demo.plaid import PlaidDataModule

CONFIGS = Path(__file__).parents[2] / "configs"
OURS, ONE_RATE = CONFIGS / "bad_tower.yaml", CONFIGS / "bad_tower_one_rate.yaml"
WAYS: dict[str, tuple[Path, list[str]]] = {
    "ours": (OURS, []),
    "one_rate": (ONE_RATE, []),
    "one_rate_good_init": (ONE_RATE, ["--model.parts.stats.args.init_gain", "1"]),
    "lr_scale_alone": (OURS, ["--model.parts.encoder.unfreeze", "always"]),
    "freezing_alone": (OURS, ["--model.parts.encoder.lr_scale", "1"]),
    "part_clipping_alone": (
        ONE_RATE,
        [
            *("--model.pretrained.clip", "{norm: 1.0}", "--model.untrained.clip", "{norm: 1.0}"),
            *("--trainer.gradient_clip_val", "null"),
        ],
    ),
    "one_rate_standardized": (ONE_RATE, ["--model.fusion.args.standardize", "samples"]),
    "ours_standardized": (OURS, ["--model.fusion.args.standardize", "samples"]),
}
COMPARED = ["ours", "one_rate", "one_rate_good_init"]


@dataclass
class Scores:
    """What one run is measured by; shares, except for the drift (a ratio) and the seconds."""

    test: float
    val: float
    drift: float
    probe: float
    seconds: float


def measure(way: str, seed: int, threads: int) -> Scores:
    config, flags = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run_folder = fit(config, folder, seed, threads, flags)
        seconds = time.perf_counter() - started
        metrics = last_metrics(run_folder)
        model = HybridClassifier.load_from_checkpoint(str(run_folder / "checkpoints" / "last.ckpt"))
    encoder = model.built().parts["encoder"]
    drift = relative_distance(encoder, pretrained_encoder())
    return Scores(metrics["test/accuracy"], metrics["val/accuracy"], drift, probe_accuracy(encoder), seconds)


def pretrained_encoder() -> FracastEncoder:
    """The encoder with the weights that each run starts from."""
    part = read_config(OURS)["model"]["init_args"]["parts"]["encoder"]
    encoder = FracastEncoder(**part["args"])
    encoder.load_pretrained()
    return encoder


@torch.no_grad()
def relative_distance(module: nn.Module, origin: nn.Module) -> float:
    """||w - w0|| / ||w0|| over all parameters."""
    now, then = (nn.utils.parameters_to_vector(m.parameters()) for m in (module, origin))
    return float((now - then).norm() / then.norm())


def probe_accuracy(encoder: FracastEncoder) -> float:
    """Test accuracy of a logistic regression on the encoder's features, standardized with the training split."""
    from sklearn.linear_model import LogisticRegression

    data = PlaidDataModule(context=encoder.context)
    data.setup()
    train, test = data.splits["train"], data.splits["test"]
    features = features_of(encoder, train)
    std, mean = torch.std_mean(features, dim=0)
    scaled = [(f - mean) / std.clamp(min=1e-6) for f in (features, features_of(encoder, test))]
    probe = LogisticRegression(max_iter=2000).fit(scaled[0].numpy(), train.targets.numpy())
    return float(probe.score(scaled[1].numpy(), test.targets.numpy()))


@torch.no_grad()
def features_of(encoder: nn.Module, dataset: DictDataset) -> Tensor:
    """Features `(N, F)` of all samples."""
    trace = dataset.entries["trace"]
    encoder.eval()
    pairs = zip(trace["values"].split(64), trace["mask"].split(64), strict=True)
    return torch.cat([encoder(values, mask) for values, mask in pairs])


def row(way: str, seed: str, cells: list[str]) -> str:
    return "  ".join([way.ljust(21), seed.ljust(4), *(cell.rjust(13) for cell in cells)])


def summary(runs: list[Scores]) -> list[str]:
    """Mean ± standard deviation (of a sample) of each score."""
    columns = zip(*(asdict(run).values() for run in runs), strict=True)
    return [f"{statistics.mean(c):.3f} ± {statistics.stdev(c) if len(runs) > 1 else 0.0:.3f}" for c in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Seeds of model and batches.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--ways", nargs="+", default=COMPARED, choices=WAYS, help="What is run.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"probe of the encoder as it was pretrained: {probe_accuracy(pretrained_encoder()):.3f}")
    print(row("way", "seed", list(Scores.__annotations__)), flush=True)
    results: dict[str, list[Scores]] = {way: [] for way in options.ways}
    for seed in options.seeds:
        for way, runs in results.items():
            runs.append(measure(way, seed, options.threads))
            print(row(way, str(seed), [f"{value:.3f}" for value in asdict(runs[-1]).values()]), flush=True)
    for way, runs in results.items():
        print(row(way, "all", summary(runs)))
    if {"ours", "one_rate"} <= results.keys():
        ours, one_rate = results["ours"], results["one_rate"]
        drifts = [statistics.mean(run.drift for run in runs) for runs in (one_rate, ours)]
        print(f"RESULT bad_tower {drifts[0] / drifts[1]:.1f} ratio")
        print(f"RESULT bad_tower_accuracy_one_rate {statistics.mean(run.test for run in one_rate):.4f} share")
        print(f"RESULT bad_tower_accuracy {statistics.mean(run.test for run in ours):.4f} share")


if __name__ == "__main__":
    main()
