"""What each part of the quickstart is worth on its test traces, against ridge on random convolutions alone.

Fits ``configs/quickstart.yaml`` whole, without its encoder, and with the encoder at random weights; beside each, on the
features of ``kernels`` of the same training traces, the closed-form fit alone, the bar to pass. Each is measured on the
test traces: fits by their best checkpoint. The difference to ridge is paired over traces, with its standard error. Test
is read once per fit; nothing is chosen by it.

RESULT quickstart_parts: mean over seeds of the whole hybrid's accuracy minus ridge's (unit: share of the traces).
RESULT quickstart_parts_error: standard error of this difference, paired over traces, mean over seeds.
RESULT quickstart_parts_moved: how far the encoder's weights went in the run, relative to their norm, mean over seeds.

    python tests/benchmarks/quickstart_parts.py --seeds 0 1 2 3 4 --threads 2
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from hybrid_lightning import from_config
from hybrid_lightning.probe.score import Score, paired_difference, score
from hybrid_lightning.probe.vote import fit_vote

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "whole": {},
    "without the encoder": None,
    "encoder at random weights": {"weights": None, "origin": "random", "unfreeze": "never"},
}
"""Name → what changes in the encoder; None leaves it out."""


class Fitted(NamedTuple):
    """A run, measured on the test traces."""

    outputs: Tensor  # (N, classes)
    target: Tensor  # (N,)
    weights: dict[str, float]  # voter → its weight in the blend, after training
    moved: float  # of the encoder, in the whole run; nan without one
    ridge: Tensor  # (N, classes), of the closed-form fit on kernels alone


def config_of(changes: dict[str, Any] | None, folder: str) -> Path:
    """The config with another encoder, as a file."""
    config = yaml.safe_load(CONFIG.read_text())
    parts = config["model"]["init_args"]["parts"]
    if changes is None:
        del parts["encoder"]
    else:
        parts["encoder"].update(changes)
    path = Path(folder) / "quickstart.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@torch.no_grad()
def fit(changes: dict[str, Any] | None, seed: int) -> Fitted:
    """Fits a variant, and measures its best checkpoint."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = config_of(changes, folder)
        trainer = {"default_root_dir": folder, "enable_progress_bar": False}
        model, data, runner = from_config(path, seed_everything=seed, trainer=trainer)
        with torch.enable_grad():
            runner.fit(model, data)
        network = model.built().eval()
        moved = distance(model)
        best = torch.load(runner.checkpoint_callback.best_model_path, weights_only=True)
    model.load_state_dict(best["state_dict"])
    train, test = data.splits["train"].entries, data.splits["test"].entries
    names = [*network.feeding, "all parts"]
    weights = dict(zip(names, network.parts["fusion"].log_weights().exp().tolist(), strict=True))
    kernels = [network.features(split, parts=["kernels"])["kernels"] for split in (train, test)]
    vote = fit_vote(kernels[0], train["target"], "classes", outputs=11)
    return Fitted(network(test), test["target"], weights, moved, vote(kernels[1]))


def distance(model: Any) -> float:
    """‖w - w₀‖ / ‖w₀‖ of the encoder's parameters, w₀ being its pretrained weights."""
    network = model.built()
    if "encoder" not in network.parts or network.options["encoder"].weights is None:
        return float("nan")
    fresh = type(network.parts["encoder"])(network.parts["encoder"].context)
    fresh.load_pretrained()
    before = torch.cat([parameter.flatten() for parameter in fresh.parameters()])
    after = torch.cat([parameter.flatten() for parameter in network.parts["encoder"].parameters()])
    return float((after - before).norm() / before.norm())


def mean(values: list[float]) -> float:
    return statistics.mean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the fits.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    compared: dict[str, list[Score]] = {}
    for name, changes in VARIANTS.items():
        fits = [fit(changes, seed) for seed in options.seeds]
        accuracy = mean([score(one.outputs, one.target, "classes").value for one in fits])
        ridge = mean([score(one.ridge, one.target, "classes").value for one in fits])
        compared[name] = [paired_difference(one.outputs, one.ridge, one.target, "classes") for one in fits]
        difference, error = mean([one.value for one in compared[name]]), mean([one.error for one in compared[name]])
        shares = ", ".join(f"{voter} {weight:.2f}" for voter, weight in fits[0].weights.items())
        print(f"{name}: {accuracy:.4f}, ridge on kernels {ridge:.4f}, difference {difference:+.4f} ± {error:.4f}")
        print(f"  blend of the first seed: {shares}; encoder moved {mean([one.moved for one in fits]):.4f}", flush=True)
        if name == "whole":
            moved = mean([one.moved for one in fits])
    whole = compared["whole"]
    print(f"RESULT quickstart_parts {mean([one.value for one in whole]):.4f} share")
    print(f"RESULT quickstart_parts_error {mean([one.error for one in whole]):.4f} share")
    print(f"RESULT quickstart_parts_moved {moved:.4f} share")


if __name__ == "__main__":
    main()
