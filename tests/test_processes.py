"""The forks that tests take for interpreters are as these would be."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import ALONE, LIMIT, Running, python, ranks, succeed

LOOK = """
import json, os, random, signal, sys, warnings
import numpy, torch
state = {
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "environment": dict(os.environ),
    "name": __name__, "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "ignored": [rule[0] for rule in warnings.filters if rule[1:4] == (None, Warning, None)],
    "draws": [random.random(), float(numpy.random.rand())], "torch": float(torch.rand(())),
    "threads": len(os.listdir("/proc/self/task")), "session": os.getsid(0) == os.getpid(),
    "pytest": "pytest" in sys.modules,
}
print(json.dumps(state))
"""


def look(*words, **options):
    return json.loads(succeed(*words, **options).stdout)


@pytest.fixture
def script(folder):
    (folder / "look.py").write_text(LOOK)
    return folder / "look.py"


def test_a_fork_has_the_words_the_folder_and_the_environment_that_it_is_given(script, folder, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    found = look("-m", "look", "--a", "b", cwd=folder, ADDED="1")
    assert found["environment"] == {**os.environ, **ALONE, "ADDED": "1"}
    assert found["name"] == "__main__"
    assert found["argv"] == [str(script), "--a", "b"]
    assert found["path"] == found["cwd"] == str(folder)
    (folder / "else").mkdir()
    found = look(str(script), "c", cwd=folder / "else")
    assert (found["argv"], found["path"]) == ([str(script), "c"], str(folder))
    assert "ADDED" not in found["environment"]


def test_a_fork_knows_nothing_of_the_tests(script, folder):
    one, other = (look("-m", "look", cwd=folder) for _ in range(2))
    for found in (one, other):
        assert not found["pytest"]
        assert "error" not in found["ignored"]
        assert found["interrupt"]
        assert found["threads"] == 1
        assert found["session"]
    assert not set(one["draws"]) & set(other["draws"])
    assert one["torch"] == other["torch"]  # as torch begins


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("raise ValueError('why')", 1, "ValueError: why\n"),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt\n"),
        ("import os; os.abort()", -6, ""),
        ("import os; os._exit(7)", 7, ""),
    ],
)
def test_a_fork_ends_as_an_interpreter(code, status, error):
    done = python("-c", f"import atexit; atexit.register(print, 'end'); print('begun', flush=True)\n{code}")
    assert done.returncode == status
    assert done.stderr.endswith(error)
    assert done.stdout == ("begun\n" if "abort" in code or "_exit" in code else "begun\nend\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_a_fork(number):
    with Running("-c", "import time; print(1, flush=True); time.sleep(1000)") as running:
        while not running.texts()[0]:
            time.sleep(0.01)
        assert running.process.poll() is None
        running.process.send_signal(number)
        assert running.process.wait(LIMIT) == -number


def test_one_that_hangs_says_where_and_takes_its_children_with_it():
    code = "import os, time\nchild = os.fork()\nprint(child or os.getpid(), flush=True)\ntime.sleep(1000)"
    with pytest.raises(AssertionError, match=r"(?s)still running after 2 s\n\d+\n.*<module>") as told:
        python("-c", code, seconds=2)
    child = int(str(told.value).split("\n")[1])
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ranks_know_their_number_and_one_that_fails_ends_the_others(monkeypatch):
    monkeypatch.setattr("tests.processes.GRACE", 1.0)
    code = "import os, sys, time; print(rank := os.environ['RANK']); time.sleep(1000 * (rank == '0')); sys.exit(4)"
    done = ranks(2, "-c", code)
    assert [one.returncode for one in done] == [-signal.SIGKILL, 4]
    assert done[1].stdout == "1\n"
