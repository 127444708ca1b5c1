"""Whether a blend of closed-form votes is as good as the best of its parts, on the test splits of five sets.

The parts of a series are its statistics as random Fourier features (`stats`), random convolutions (`kernels`) and the
pretrained Fracast encoder (`encoder`); those of a solar cell of ELPV at 96 pixels random convolutions (`texture`), the
pretrained EfficientNet-Lite0 (`cell`) and its type (`kind`). Votes and blend are those of ``start: probe``, from the
training rows alone; the test rows are read once, for the table, and choose nothing. `all parts`, the vote on all
features, takes part in the blend, but is not one of the parts that it is compared with.

RESULT blend_sets: smallest over sets of (the blend's accuracy - the best part's) / the standard error of the latter.
RESULT blend_sets_<set>: the same for each set, mean over the seeds of what is random.

    python tests/benchmarks/blend_sets.py --sets PLAID ACSF1 OSULeaf ArrowHead --seeds 0 1 2 --threads 1
"""

import argparse
import math
import statistics
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybrid_lightning.demo.efficientnet_lite import EfficientNetLite0
from hybrid_lightning.demo.elpv import ElpvDataModule
from hybrid_lightning.demo.fracast import FracastEncoder
from hybrid_lightning.demo.plaid import describe, pad_left
from hybrid_lightning.demo.series import as_measured, longest_of, read_set
from hybrid_lightning.network.blend import BlendFusion
from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.network.modules.random_convolutions import RandomConvolutions
from hybrid_lightning.network.modules.random_convolutions_2d import RandomConvolutions2d
from hybrid_lightning.network.modules.random_fourier import RandomFourierFeatures
from hybrid_lightning.probe.score import score
from hybrid_lightning.tasks.classifier import ClassificationObjective
from hybrid_lightning.tasks.features import SplitFeatures
from hybrid_lightning.tasks.probing import TOGETHER, probe_features

SERIES = ("PLAID", "ACSF1", "OSULeaf", "ArrowHead")
CONTEXT = 512  # samples that the encoder reads
PIXELS = 96


class Split(NamedTuple):
    """What the parts of a set read: part → arguments of its module; and the classes."""

    inputs: dict[str, tuple[Tensor, ...]]
    target: Tensor  # (N,)


def read_series(name: str) -> tuple[Split, Split]:
    """The training and the test split of a set of the UCR archive."""
    sets = read_set(name)
    longest = longest_of(sets[0].values + sets[1].values)
    splits = []
    for series, target in sets:
        padded = as_measured(series, longest)["values"]
        inputs = {"stats": (describe(series),), "kernels": (padded,), "encoder": pad_left(series, CONTEXT)}
        splits.append(Split(inputs, target))
    return splits[0], splits[1]


def read_cells() -> tuple[Split, Split]:
    """The training rows of ELPV, validation rows left out, and the test rows."""
    data = ElpvDataModule(size=PIXELS).load()
    splits = []
    for name in ("train", "test"):
        entries = data[name].entries
        gray = entries["image"][:, :1].contiguous()
        inputs = {"texture": (gray,), "cell": (entries["image"],), "kind": (entries["type"],)}
        splits.append(Split(inputs, entries["target"]))
    return splits[0], splits[1]


def make_part(name: str, inputs: tuple[Tensor, ...], seed: int) -> nn.Module:
    """The module of a part, prepared with the training rows."""
    module: nn.Module
    if name == "stats":
        module = RandomFourierFeatures(inputs[0].shape[1], features=512, seed=seed)
    elif name == "kernels":
        module = RandomConvolutions(list(inputs[0].shape[1:]), seed=seed)
    elif name == "texture":
        module = RandomConvolutions2d(1, seed=seed)
    elif name == "kind":
        return nn.Identity()
    else:
        pretrained = FracastEncoder(CONTEXT) if name == "encoder" else EfficientNetLite0()
        pretrained.load_pretrained()
        return pretrained.eval()
    module.prepare([list(inputs)])
    return module


def features_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Features `(N, features)`; maps are averaged."""
    found = []
    for batch in zip(*(tensor.split(64) for tensor in inputs), strict=True):
        features = module(*batch)
        found.append(features.mean((2, 3)) if features.ndim == 4 else features)
    return torch.cat(found)


def accuracies(train: Split, test: Split, seed: int, cached: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Voter → its accuracy on the test split, and that of the blend; keeps features that no seed changes."""
    parts = {}
    for name, inputs in train.inputs.items():
        if name not in cached:
            module = make_part(name, inputs, seed)
            parts[name] = (features_of(module, inputs), features_of(module, test.inputs[name]))
            if not hasattr(module, "seed"):
                cached[name] = parts[name]
        else:
            parts[name] = cached[name]
    own = {name: features for name, (features, _) in parts.items()}
    unseen = {name: features for name, (_, features) in parts.items()}
    classes = int(train.target.max()) + 1
    objective = ClassificationObjective(classes, "multiclass", None, label_smoothing=0.0, loss_function=None)
    found = probe_features(objective, SplitFeatures(own, {}, train.target, None))
    fusion = BlendFusion({name: features.shape[1] for name, features in own.items()}, classes).eval()
    votes = {name: LinearVote(voter.vote.weight, voter.vote.bias) for name, voter in found.voters.items()}
    fusion.start_at(own, {}, votes, votes[TOGETHER], [found.weights[name] for name in [*own, TOGETHER]])
    outputs = {}
    scaled = {name: fusion.scales[name](unseen[name]) for name in own}
    for name, features in scaled.items():
        outputs[name] = fusion.heads[name](features)
    outputs[TOGETHER] = fusion.joint(torch.cat(list(scaled.values()), dim=1))
    outputs["blend"] = fusion(unseen)
    return {name: score(output, test.target, "classes").value for name, output in outputs.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[*SERIES, "ELPV"], choices=[*SERIES, "ELPV"], help="Sets.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the random parts.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for name in options.sets:
        train, test = read_cells() if name == "ELPV" else read_series(name)
        cached: dict[str, tuple[Tensor, Tensor]] = {}
        by_seed = [accuracies(train, test, seed, cached) for seed in options.seeds]
        means = {voter: statistics.mean(found[voter] for found in by_seed) for voter in by_seed[0]}
        best = max(means[part] for part in train.inputs)
        error = math.sqrt(best * (1 - best) / len(test.target))
        results[name] = (means["blend"] - best) / error
        shown = ", ".join(f"{voter} {value:.4f}" for voter, value in means.items())
        print(f"{name}: {shown}; standard error of the best part {error:.4f}", flush=True)
    print(f"RESULT blend_sets {min(results.values()):.3f} s.e.")
    for name, value in results.items():
        print(f"RESULT blend_sets_{name} {value:.3f} s.e.")


if __name__ == "__main__":
    main()
