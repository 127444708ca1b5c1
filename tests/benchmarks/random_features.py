"""Random convolutions of ours against those of aeon: accuracy of a ridge classifier on them, and time.

`RandomConvolutions` beside aeon's MiniRocket (its one pool: share of positives) and MultiRocket (four pools, on the
series and on its differences), with equal numbers of features, on the official splits of four sets of the UCR archive
that the package sktime brings. Shorter series are padded with zeros at their end for both, and nothing is scaled. The
classifier is scikit-learn's ridge with its strength from leave-one-out on the training split, on standardized features.

A round times the transform of the test split, ours and aeon's in turn, after a first call of each that is not counted
and in which aeon compiles. Both run on the given number of threads.

RESULT random_features: median over rounds of our time / aeon's time, MiniRocket on PLAID.
RESULT random_features_<kind>_<set>: the same for each kind and set.
RESULT random_features_<kind>_<set>_<ours or aeon>: accuracy on the test split, mean over the seeds.
RESULT random_features_<kind>_<set>_error: one standard error of an accuracy, from the number of test series.

Without aeon the ratios and its accuracies are left out.

    python tests/benchmarks/random_features.py --rounds 3 --seeds 0 1 2 --threads 1
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hybrid_lightning.demo.series import as_measured, longest_of, read_set
from hybrid_lightning.network.modules.positive_pools import POOLS
from hybrid_lightning.network.modules.random_convolutions import RandomConvolutions

SETS = ("PLAID", "ACSF1", "OSULeaf", "ArrowHead")
KINDS: dict[str, dict[str, Any]] = {
    "mini": {"features": 10_000},
    "multi": {"features": 50_000, "pool": POOLS, "difference": True},
}
Transform = Callable[[Tensor], Tensor]


def read(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Series `(N, L)` and classes `(N,)` of the training split, then of the test split."""
    train, test = read_set(name)
    longest = longest_of(train.values + test.values)
    padded = [as_measured(split.values, longest)["values"] for split in (train, test)]
    return padded[0], train.classes, padded[1], test.classes


def ours(kind: str, train: Tensor, seed: int) -> Transform:
    module = RandomConvolutions(list(train.shape[1:]), seed=seed, **KINDS[kind])
    module.prepare([[train]])
    return module


def aeons(kind: str, train: Tensor, seed: int, threads: int) -> Transform:
    from aeon.transformations.collection import convolution_based

    if kind == "mini":
        rocket = convolution_based.MiniRocket(n_kernels=10_000, random_state=seed, n_jobs=threads)
    else:
        # eight features of each: four pools, of the series and of its differences
        rocket = convolution_based.MultiRocket(n_kernels=50_000 // 8, random_state=seed, n_jobs=threads)
    rocket.fit(train.unsqueeze(1).numpy())
    return lambda series: torch.as_tensor(rocket.transform(series.unsqueeze(1).numpy()))


def accuracy(transform: Transform, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Of ridge on the features, on the test split."""
    train, train_labels, test, test_labels = data
    strengths = torch.logspace(-3, 3, 10).tolist()
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(strengths))
    classifier.fit(transform(train).double().numpy(), train_labels.numpy())
    return float(classifier.score(transform(test).double().numpy(), test_labels.numpy()))


def seconds(transform: Transform, series: Tensor) -> float:
    started = time.perf_counter()
    transform(series)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="Counted rounds of each timing.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the convolutions.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch and of numba.")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="Sets of series.")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="Kinds of features.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compares = find_spec("aeon") is not None
    if not compares:
        print("The package aeon is not installed: ours alone, without ratios. Install it with: pip install aeon")
    results: dict[str, float] = {}
    for kind in options.kinds:
        for name in options.sets:
            data = read(name)
            makers: dict[str, Callable[[int], Transform]] = {}
            makers["ours"] = lambda seed, kind=kind, train=data[0]: ours(kind, train, seed)
            if compares:
                makers["aeon"] = lambda seed, kind=kind, train=data[0]: aeons(kind, train, seed, options.threads)
            results |= measure(f"random_features_{kind}_{name}", data, makers, options)
    first = "random_features_mini_PLAID"
    if first in results:
        results = {"random_features": results[first], **results}
    for name, value in results.items():
        unit = "accuracy" if name.endswith(("_ours", "_aeon", "_error")) else "ratio"
        print(f"RESULT {name} {value:.4f} {unit}")


def measure(
    name: str,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    makers: dict[str, Callable[[int], Transform]],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Accuracies and, with two programs, the ratio of their times, by the names of the results."""
    results: dict[str, float] = {}
    for program, make in makers.items():
        scores = [accuracy(make(seed), data) for seed in options.seeds]
        print(name, program, "accuracy for each seed:", *(f"{score:.4f}" for score in scores), flush=True)
        results[f"{name}_{program}"] = statistics.mean(scores)
    share = results[f"{name}_ours"]
    results[f"{name}_error"] = math.sqrt(share * (1 - share) / len(data[3]))
    if len(makers) < 2:
        return results
    transforms = {program: make(0) for program, make in makers.items()}
    ratios = []
    for index in range(options.rounds + 1):
        taken = {program: seconds(transform, data[2]) for program, transform in transforms.items()}
        print(name, "warm-up" if index == 0 else f"round {index}", "seconds:", taken, flush=True)
        if index:
            ratios.append(taken["ours"] / taken["aeon"])
    return {name: statistics.median(ratios), **results}


if __name__ == "__main__":
    main()
