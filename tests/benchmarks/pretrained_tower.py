"""What ImageNet weights are worth: one tower, pretrained and randomly initialized, on solar cells.

Both fits are those of ``configs/elpv.yaml`` with the part ``cell`` (EfficientNet-Lite0) alone, on images of ``--size``
pixels, each started as a user would. The random tower is an untrained part: it trains from the first step on at the
full rate, with BatchNorm in training mode. Same data, epochs, base rate and seeds.

RESULT pretrained_tower: test error of the random tower / test error of the pretrained one, means over the seeds;
above 1 the weights help.
RESULT pretrained_tower_pretrained, pretrained_tower_random: mean test accuracy.

    python tests/benchmarks/pretrained_tower.py --seeds 0 1 2 --threads 1
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from config_scores import run

CONFIG = Path(__file__).parents[2] / "configs" / "elpv.yaml"


def tower_alone(weights: str | None, size: int) -> dict[str, Any]:
    """The config with the image tower as its only part."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    arguments = config["model"]["init_args"]
    cell = arguments["parts"]["cell"]
    arguments["parts"] = {"cell": cell if weights else {"module": cell["module"], "input": cell["input"]}}
    config["data"]["init_args"]["size"] = size
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of head, tower and batches.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--size", type=int, default=96, help="Height and width of the images, in pixels.")
    options, extra = parser.parse_known_args()
    scores: dict[str, list[float]] = {"pretrained": [], "random": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for name, found in scores.items():
                config = Path(folder) / f"{name}.yaml"
                config.write_text(yaml.safe_dump(tower_alone(name if name == "pretrained" else None, options.size)))
                metrics, seconds = run(config, seed, options.threads, extra)
                found.append(metrics["test/accuracy"])
                print(f"{name}, seed {seed}: {seconds:.0f} s, test/accuracy {found[-1]:.4f}", flush=True)
    means = {name: statistics.mean(found) for name, found in scores.items()}
    print(f"RESULT pretrained_tower {(1 - means['random']) / (1 - means['pretrained']):.3f} ratio")
    for name, mean in means.items():
        print(f"RESULT pretrained_tower_{name} {mean:.4f} test/accuracy")


if __name__ == "__main__":
    main()
