"""The score of a config over several seeds, each a run of its own, as a user would start it.

Runs ``python -m hybrid_lightning fit`` once per seed in a temporary folder and prints the last
validation and test metrics per seed; the config says with ``test_after_fit`` which checkpoint is tested.

RESULT config_scores: mean over the seeds of the test metric (unit: the metric's name).
RESULT config_scores_std: standard deviation over the seeds (of a sample).
RESULT config_scores_seconds: median wall time of the whole command.

    python tests/benchmarks/config_scores.py configs/quickstart.yaml --seeds 0 1 2 3 4 --threads 2
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def fit(config: Path, folder: str, seed: int, threads: int, extra: Sequence[str] = ()) -> Path:
    """Runs ``fit`` as a user would, in a folder; returns the folder of the run."""
    command = [sys.executable, "-m", "hybrid_lightning", "fit", "--config", str(config.resolve())]
    command += ["--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*command, *extra], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    (run_folder,) = Path(folder).glob("runs/*/version_0")
    return run_folder


def last_metrics(run_folder: Path) -> dict[str, float]:
    """The last value of each validation and test metric of a run."""
    rows = list(csv.DictReader((run_folder / "metrics.csv").read_text().splitlines()))
    names = [name for name in rows[0] if name.startswith(("test/", "val/"))]
    last = {name: [row[name] for row in rows if row[name]] for name in names}
    return {name: float(values[-1]) for name, values in last.items() if values}


def run(config: Path, seed: int, threads: int, extra: list[str]) -> tuple[dict[str, float], float]:
    """The test metrics and the seconds of one run."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run_folder = fit(config, folder, seed, threads, extra)
        return last_metrics(run_folder), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="A config file.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of model and batches.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of torch.")
    parser.add_argument("--metric", default="test/accuracy", help="The metric to report.")
    options, extra = parser.parse_known_args()
    scores, times = [], []
    for seed in options.seeds:
        metrics, seconds = run(options.config, seed, options.threads, extra)
        scores.append(metrics[options.metric])
        times.append(seconds)
        print(f"seed {seed}: {seconds:.0f} s", *(f"{name}={value:.4f}" for name, value in metrics.items()), flush=True)
    print(f"RESULT config_scores {statistics.mean(scores):.4f} {options.metric}")
    print(f"RESULT config_scores_std {statistics.stdev(scores) if len(scores) > 1 else 0.0:.4f} {options.metric}")
    print(f"RESULT config_scores_seconds {statistics.median(times):.0f} s")


if __name__ == "__main__":
    main()
