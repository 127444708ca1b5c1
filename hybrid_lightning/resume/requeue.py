"""Puts a SLURM job back into its queue, from which it starts again with the same command."""

import os
import re
import subprocess

_PATIENCE = 60  # seconds for scontrol to answer


def requeue_job() -> str:
    """Asks SLURM to stop this job and to queue it again; gives a line that says what came of it."""
    job = os.environ.get("SLURM_JOB_ID", "")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    if not re.fullmatch("[0-9]+(_[0-9]+)?", job):
        return f"not resubmitted: {job!r} is not the number of a SLURM job; submit it again"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not resubmitted: scontrol requeue {job}: {error}; submit it again"
    if done.returncode:
        said = " ".join(done.stderr.split())[:300]
        return f"not resubmitted: scontrol requeue {job} ended with code {done.returncode}: {said}; submit it again"
    return f"resubmitted: SLURM job {job} is queued again, and continues this run"
