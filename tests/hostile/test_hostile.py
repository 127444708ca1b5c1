import os
from pathlib import Path

import pytest

from tests.hostile import cases  # noqa: F401  registers them
from tests.hostile.__main__ import FEWEST, inputs
from tests.hostile.harness import CASES, Box, Case, Result, run_cases
from tests.processes import succeed

WITH_INPUTS = (1, 2, 7, 8, 9, 11, 12)


@pytest.mark.parametrize("kind", WITH_INPUTS)
def test_each_kind_is_tried_by_inputs_that_differ_in_place_or_mechanism(kind):
    assert inputs(CASES, kind) >= FEWEST


def test_cases_have_names_of_their_own():
    names = [one.name for one in CASES]
    assert sorted(set(names)) == sorted(names)


def result_of(function, folder: Path, seconds: float = 60) -> Result:
    return run_cases([Case(1, "place", "mechanism", function, seconds, False)], 1, folder, lambda _: None, {})[0]


def changes_what_lies_outside(box: Box) -> None:
    (box.outside / "victim" / "keep.txt").unlink()


def writes_elsewhere(box: Box) -> None:
    Path(os.environ["ELSEWHERE"]).write_text("x")


def starts_a_program(box: Box) -> None:
    os.system("true")


def ends_by_a_signal(box: Box) -> None:
    os.abort()


def takes_too_long(box: Box) -> None:
    import time

    time.sleep(60)


def accepts_what_is_wrong(box: Box) -> None:
    box.accepted("fit", "--config", "missing.yaml")


def is_withstood(box: Box) -> None:
    box.refused("fit", "--config", "missing.yaml", says="missing.yaml")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (changes_what_lies_outside, "keep.txt"),
        (writes_elsewhere, "events outside"),
        (starts_a_program, "program"),
        (ends_by_a_signal, "SIGABRT"),
        (takes_too_long, "not ended after 1 s"),
        (accepts_what_is_wrong, "exit code 2, not 0"),
        (is_withstood, ""),
    ],
)
def test_the_runner_sees_what_a_case_must_not_do(function, words, tmp_path, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    (tmp_path / "cases").mkdir()
    result = result_of(function, tmp_path / "cases", 1 if function is takes_too_long else 60)
    assert words in result.problem
    assert bool(words) == bool(result.problem), result.problem


@pytest.mark.exhaustive
def test_the_program_withstands_all_hostile_inputs():
    print(succeed("-m", "tests.hostile", fresh=True).stdout)
