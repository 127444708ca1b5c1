"""How long the command line takes to answer without a command: ``python tests/benchmarks/start_up.py --rounds 9``.

``start_up`` is the median of ``python -m hybrid_lightning --help``, divided by that of an interpreter that does nothing
(``python -c pass``), in turn in one run; ``start_up_seconds`` is the former itself, and ``start_up_version`` and
``start_up_without_arguments`` the seconds of the two other answers. ``start_up_plan`` is the median of ``plan`` of a
config, divided by that of an interpreter that imports Lightning's command line (``import lightning.pytorch.cli``).
``start_up_slowest_help_seconds`` is the largest median over all commands of ``COMMAND --help``; ``start_up_help_part``
and ``start_up_help_model`` are ``help part`` and ``help model``, divided by ``import lightning.pytorch``.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from hybrid_lightning.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
ANSWERS = {"": ["--help"], "_version": ["--version"], "_without_arguments": []}
TOPICS = {"help_part": ["help", "part"], "help_model": ["help", "model"]}
HELP = {f"{name} --help": [name, "--help"] for name in COMMANDS}
PLAN = ["-m", "hybrid_lightning", "plan", "--config"]
IMPORTS = ["-c", "import lightning.pytorch.cli"]


def seconds(words: list[str]) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    before = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, **quiet)
    return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    options = parser.parse_args()
    times: dict[str, list[float]] = {
        name: [] for name in ("nothing", "imports", "lightning", "plan", *ANSWERS, *TOPICS, *HELP)
    }
    for _ in range(options.rounds):
        times["imports"].append(seconds(IMPORTS))
        times["plan"].append(seconds([*PLAN, options.config]))
        times["nothing"].append(seconds(["-c", "pass"]))
        times["lightning"].append(seconds(["-c", "import lightning.pytorch"]))
        for name, words in {**ANSWERS, **TOPICS, **HELP}.items():
            times[name].append(seconds(["-m", "hybrid_lightning", *words]))
    median = {name: statistics.median(of) for name, of in times.items()}
    print(f"RESULT start_up {median[''] / median['nothing']:.2f} ratio")
    print(f"RESULT start_up_seconds {median['']:.3f} s")
    for name in ("_version", "_without_arguments"):
        print(f"RESULT start_up{name} {median[name]:.3f} s")
    print(f"RESULT start_up_slowest_help_seconds {max(median[name] for name in HELP):.3f} s")
    for name in TOPICS:
        print(f"RESULT start_up_{name} {median[name] / median['lightning']:.2f} ratio")
    print(f"RESULT start_up_plan {median['plan'] / median['imports']:.2f} ratio")
    print(f"RESULT start_up_plan_seconds {median['plan']:.3f} s")


if __name__ == "__main__":
    main()
