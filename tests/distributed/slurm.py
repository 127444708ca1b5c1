"""A SLURM of one machine: `srun` starts the tasks, `scontrol` writes down what it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes import ALONE, ROOT, free_port

SCRIPT = ROOT / "configs/cluster/slurm.sbatch"
TASKS = 2
LIMIT = 300
"""Seconds of one start of the job."""
SRUN = f"""#!{sys.executable}
import os, subprocess, sys

words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
count, tasks = os.environ["SLURM_NTASKS"], []
for number in map(str, range(int(count))):
    own = {{"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": count}}
    tasks.append(subprocess.Popen(words, env={{**os.environ, **own}}))
codes = [task.wait() for task in tasks]
sys.exit(max(codes))
"""
SCONTROL = '#!/bin/sh\necho "$@" >> "$SCONTROL_CALLS"\n'


def job(tasks: int) -> dict[str, str]:
    """The variables of a job of so many tasks on one node."""
    count = str(tasks)
    name = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "hybrid"}
    nodes = {"SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": free_port()}
    return {**name, **nodes, "SLURM_NTASKS": count, "SLURM_NTASKS_PER_NODE": count}


def run_job(folder: Path, *words: str) -> int:
    """Runs the script of the package, again and again for as long as it is queued anew; gives the number of starts."""
    programs = folder / "programs"
    programs.mkdir()
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    calls = folder / "calls.txt"
    calls.touch()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **ALONE, "PATH": path, "SCONTROL_CALLS": str(calls)}
    starts = 0
    while starts == len(calls.read_text().splitlines()):
        starts += 1
        command = ["bash", str(SCRIPT), *words]
        environment |= job(TASKS)
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        wanted = 143 if starts == len(calls.read_text().splitlines()) else 0
        assert done.returncode == wanted, done.stdout[-2000:] + done.stderr[-4000:]
    assert set(calls.read_text().splitlines()) <= {"requeue 4242"}
    return starts
