"""All checks, one after the other: ``python -m tests``. Stops at the first that fails."""

import subprocess
import sys
from pathlib import Path

CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("mypy",),
    ("pytest", "-n", "auto", "--maxprocesses", "8", "--dist", "worksteal"),
)


def main() -> int:
    for check in CHECKS:
        print("$", *check, flush=True)
        done = subprocess.run([sys.executable, "-m", *check], cwd=Path(__file__).parents[1])
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
