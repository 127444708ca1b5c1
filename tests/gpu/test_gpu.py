"""The checks of `python -m tests.gpu`, where there is a GPU; some of them, through the same code, on the CPU."""

import pytest
import torch

from tests.gpu import __main__ as program
from tests.gpu.checks import CHECKS
from tests.gpu.model import Skipped
from tests.processes import python

QUICK = ("frozen parts, norms and unfreezings", "exact resume within an epoch", "random convolutions as on the CPU")

pytestmark = pytest.mark.filterwarnings("ignore")  # the checks run under the filters of their own program


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("title", CHECKS)
def test_a_check_holds_on_the_gpu(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        CHECKS[title]("cuda")
    except Skipped as skipped:
        pytest.skip(str(skipped))


def test_the_quick_checks_pass_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([*QUICK, "no synchronization", "--device", "cpu", "--minutes", "1000"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "torch" in first
    found = [line.split(": ")[1].split(",")[0] for line in lines]
    assert found == ["passed", "passed", "skipped", "passed"]


def test_a_failure_is_said_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(device: str) -> str:
        raise AssertionError(f"wrong on {device}\nand more")

    monkeypatch.setattr(program, "CHECKS", {"bad": fails, "good": lambda device: "as it should be"})
    assert program.main(["--device", "cpu", "--minutes", "1000"]) == 1
    _, bad, good = capsys.readouterr().out.splitlines()
    assert bad.startswith("bad: failed, ")
    assert bad.endswith("AssertionError: wrong on cpu")
    assert good.startswith("good: passed, ")


def test_no_check_starts_when_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([QUICK[2], "--device", "cpu", "--minutes", "0"]) == 0
    assert "skipped, 0.0 s, 0 minutes are over" in capsys.readouterr().out


WITHOUT_EXTRAS = """
import runpy, sys
for name in ("pytest", "pandas", "pyarrow", "timm", "kornia", "peft", "optuna"):
    sys.modules[name] = None
sys.argv = ["tests.gpu", "--device", "cpu", "random convolutions"]
runpy.run_module("tests.gpu", run_name="__main__")
"""


@pytest.mark.exhaustive
def test_it_needs_no_extra_and_no_pytest() -> None:
    done = python("-c", WITHOUT_EXTRAS, fresh=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "passed" in done.stdout


@pytest.mark.exhaustive
def test_all_checks_pass_on_the_cpu() -> None:
    done = python("-m", "tests.gpu", "--device", "cpu", "--minutes", "1000", fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(": passed, ") == len(CHECKS) - 2
