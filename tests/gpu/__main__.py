"""Checks on a GPU, with the core dependencies alone: ``python -m tests.gpu``.

Data are generated and weights drawn, so that nothing is downloaded. Each check prints one line; the others follow after
a failure, and the exit status is 1 if any check failed. Words choose the checks whose titles contain one of them.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable

# read by cuBLAS when it starts; torch refuses deterministic algorithms without it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from tests.gpu.checks import CHECKS
from tests.gpu.model import Skipped

MINUTES = 6.0
STARTED = time.monotonic()


def outcome(check: Callable[[str], str], device: str) -> tuple[str, str]:
    """``passed``, ``failed`` or ``skipped``, and what was measured, or the reason."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "passed", check(device)
    except Skipped as skipped:
        return "skipped", str(skipped)
    except Exception as error:
        traceback.print_exc()
        first_line = (str(error).splitlines() or [""])[0]
        return "failed", f"{type(error).__name__}: {first_line}"


def described(device: str) -> str:
    """The device and the versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    count = torch.cuda.device_count() if device == "cuda" else 1
    return f"{name} × {count}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def main(words: list[str]) -> int:
    """Runs the checks and returns the exit status."""
    parser = argparse.ArgumentParser("python -m tests.gpu", description="Checks on a GPU.")
    parser.add_argument("words", nargs="*", help="of titles; all checks if none is given")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu runs what makes sense there")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="starts no check later")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device was found; --device cpu runs what makes sense on the CPU", file=sys.stderr)
        return 1
    chosen = [title for title in CHECKS if not options.words or any(word in title for word in options.words)]
    if not chosen:
        print(f"no title contains one of these words; titles: {', '.join(CHECKS)}", file=sys.stderr)
        return 1
    print(described(options.device), flush=True)
    has_failed = False
    for title in chosen:
        started = time.monotonic()
        if started - STARTED > 60 * options.minutes:
            found, said = "skipped", f"{options.minutes:g} minutes are over"
        else:
            found, said = outcome(CHECKS[title], options.device)
        has_failed = has_failed or found == "failed"
        print(f"{title}: {found}, {time.monotonic() - started:.1f} s, {said}", flush=True)
    return int(has_failed)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main(sys.argv[1:]))
