"""Runs hostile inputs, each in a fork with a folder of its own, and tells which of them the program withstood."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.zygote import set_libraries

KINDS = {
    1: "a file decides what happens",
    2: "what parses is taken for right",
    3: "settings that mean the opposite",
    4: "a part of a value is lost",
    5: "one thing under two spellings",
    6: "tables that are no such table",
    7: "ranks differ in more than weights",
    8: "a run folder without an owner",
    9: "failed writes",
    10: "limits and special files",
    11: "what only the Trainer does",
    12: "text of data on a terminal",
    13: "misplaced messages",
    14: "defaults that cost the result",
}
LENGTH = 700
"""Characters of a problem that are shown."""
MEMORY = 3 * 2**30
"""Bytes that a process of a case may have beyond those of the process that it was forked from."""
CASES: list["Case"] = []
MATERIALS: dict[str, Callable[[], None]] = {}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # also those that turn text around
_PROGRAMS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Case:
    """One hostile input."""

    kind: int  # see `KINDS`
    place: str  # what of the program it reaches, such as ``lr_schedulers``
    mechanism: str  # how it deceives; a changed number is no other mechanism
    run: Callable[["Box"], None]
    seconds: float  # in which it has to end
    runs_programs: bool  # whether it may start programs

    @property
    def name(self) -> str:
        return self.run.__name__


def case(
    kind: int, place: str, mechanism: str, seconds: float = 60, runs_programs: bool = False
) -> Callable[[Callable[["Box"], None]], Callable[["Box"], None]]:
    """Registers a function that takes a `Box` and raises AssertionError if the program does not withstand its input."""

    def register(function: Callable[["Box"], None]) -> Callable[["Box"], None]:
        CASES.append(Case(kind, place, mechanism, function, seconds, runs_programs))
        return function

    return register


def material(function: Callable[[], None]) -> Callable[[], None]:
    """Registers a function that writes files into its working folder, once for all cases; `Box.start_from` copies."""
    MATERIALS[function.__name__] = function
    return function


class Told(NamedTuple):
    """What a command ended with and printed."""

    code: int
    out: str
    err: str


@dataclass
class Box:
    """Where a case runs: ``folder``, its working folder, and beside it ``outside``, which must not change."""

    root: Path
    materials: Path
    events: list[str] = field(default_factory=list)  # programs started, and paths outside of `root` that were changed

    @property
    def folder(self) -> Path:
        return self.root / "here"

    @property
    def outside(self) -> Path:
        """Has ``victim/keep.txt`` and ``home``; for what a hostile input is aimed at."""
        return self.root / "outside"

    def start_from(self, name: str) -> None:
        """Copies what the function `name` has written."""
        shutil.copytree(self.materials / name, self.folder, dirs_exist_ok=True, symlinks=True)

    def command(self, *words: str) -> Told:
        """Runs ``python -m hybrid_lightning words``, or ``load_from_checkpoint PATH``, which may print no traceback."""
        [told] = self.together([words])
        return told

    def together(self, commands: Sequence[Sequence[str]], **environments: Sequence[str]) -> list[Told]:
        """Runs several commands at a time, each in a fork; variable of the environment → its value for each.

        With ``WAIT_FOR`` a command begins when there is a file or folder of this name; ``FILE_SIZE`` is the most
        bytes that it can write into a file; ``CLOSED_OUTPUT`` gives it a pipe that nobody reads, ``OUTPUT`` another
        file than the one that is told, and ``ENCODING`` is that of its terminal.
        """
        running = []
        for number, words in enumerate(commands):
            own = {name: values[number] for name, values in environments.items()}
            files = [self.root / f"{stream}_{len(self._files())}_{number}" for stream in ("out", "err")]
            running.append((_fork(lambda words=words, own=own: _main(words, own), files), files))
        tolds = []
        for process, files in running:
            process.join()
            tolds.append(Told(process.exitcode or 0, *(file.read_text(errors="replace") for file in files)))
        for told in tolds:
            assert "Traceback" not in told.err, f"a traceback: {told.err[-500:]}"
            assert told.code >= 0, f"ended by {signal.Signals(-told.code).name}: {told.err[-1500:]}"
            raw = _CONTROL.search(told.out + told.err)
            assert raw is None, f"prints {raw[0]!r}: {(told.out + told.err)[max(raw.start() - 80, 0) :][:160]!r}"
        return tolds

    def _files(self) -> list[Path]:
        return list(self.root.glob("out_*"))

    def refused(self, *words: str, says: str = "") -> Told:
        """The same for a command that has to end with 2 and one error in words, in which `says` (a pattern) stands."""
        told = self.command(*words)
        assert told.code == 2, f"exit code {told.code}, not 2: {told.err[-300:]}"
        self.says(told, says)
        return told

    def accepted(self, *words: str) -> Told:
        """The same for a command that has to succeed, because what is hostile does not reach it."""
        told = self.command(*words)
        assert told.code == 0, f"exit code {told.code}, not 0: {told.err[-1000:]}"
        return told

    @staticmethod
    def says(told: Told, pattern: str) -> None:
        """Raises AssertionError unless the last line of errors is in words, bounded, and matches."""
        lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, f"{len(lines)} errors: {told.err[-1000:]}"
        message = told.err[told.err.index("error: ") :]
        assert len(message) < 4000, f"an error of {len(message)} characters"
        assert re.search(pattern, message, re.DOTALL), f"{pattern!r} is not in {message!r}"


class Result(NamedTuple):
    """Whether a case was withstood, or why not."""

    case: Case
    problem: str
    seconds: float


def _main(words: Sequence[str], environment: dict[str, str]) -> int:
    """Runs the command line as a new process would."""
    os.environ.update(environment)
    set_libraries()
    place = environment.get("WAIT_FOR")
    while place and not Path(place).exists():
        time.sleep(0.02)
    if "FILE_SIZE" in environment:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["FILE_SIZE"]),) * 2)
    if "CLOSED_OUTPUT" in environment:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
    if "OUTPUT" in environment:
        os.dup2(os.open(environment["OUTPUT"], os.O_WRONLY), 1)
    if "ENCODING" in environment:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=environment["ENCODING"], errors="strict")  # type: ignore[union-attr]
    if words[0] == "load_from_checkpoint":
        return _load(words[1])
    from hybrid_lightning.cli import main

    return main(list(words))


def _load(path: str) -> int:
    """Rebuilds a model of images as `load_from_checkpoint` in a program of somebody else, and uses it."""
    from hybrid_lightning import HybridTask
    from hybrid_lightning.errors import ConfigError

    try:
        model = HybridTask.load_from_checkpoint(path)
        outputs = model({"image": torch.rand(2, 3, 16, 16)})
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("outputs", tuple(outputs.shape), bool(outputs.isfinite().all()))
    return 0


def _fork(function: Callable[[], int], files: Sequence[Path]) -> Any:
    """A fork that runs a function, with its output in files; its exit code is what the function returns."""

    def run() -> None:
        for number, file in zip((1, 2), files, strict=True):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, number)
        sys.stdout = open(1, "w", errors="replace", closefd=False)  # noqa: SIM115  for the rest of the process
        sys.stderr = open(2, "w", errors="replace", closefd=False)  # noqa: SIM115
        code = 1
        try:
            code = function()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code & 0xFF)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


# One case


def snapshot(folder: Path) -> dict[str, Any]:
    """Path → what it is, of all that lies in a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns if content else 0, content)
    return found


def _watch(box: Box, allowed: Path) -> None:
    """Notes the programs that this process and its forks start, and what they change outside of the box."""
    log = os.open(box.root / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_PROGRAMS):
            os.write(log, f"program: {arguments[0]!r}\n".encode(errors="replace"))
            return
        is_write = event == "open" and len(arguments) > 2 and bool((arguments[2] or 0) & _WRITES)
        if not is_write and event not in _CHANGES:
            return
        for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
            if isinstance(path, str | bytes | os.PathLike):
                place = os.path.realpath(os.fsdecode(path))
                own = (str(allowed), "/dev/", "/proc/")
                if not place.startswith(own):
                    os.write(log, f"{event}: {place!r}\n".encode(errors="replace"))

    sys.addaudithook(hook)


def _run_case(one: Case, box: Box) -> int:
    """In a fork: runs a case, and compares what lies outside before and after."""
    os.setsid()
    limit = MEMORY + 4096 * int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    home = box.outside / "home"
    os.environ.update(HOME=str(home), TMPDIR=str(box.root / "tmp"), XDG_CACHE_HOME=str(home))
    tempfile.tempdir = str(box.root / "tmp")
    for folder in (box.folder, home, box.outside / "victim", box.root / "tmp"):
        folder.mkdir(parents=True)
    (box.outside / "victim" / "keep.txt").write_text("keep")
    os.chdir(box.folder)
    _watch(box, box.root)
    before = snapshot(box.outside)
    one.run(box)
    after = snapshot(box.outside)
    changed = sorted({*before.items()} ^ {*after.items()})
    assert not changed, f"changed outside: {sorted({path for path, _ in changed})}"
    events = (box.root / "events").read_text().splitlines()
    if one.runs_programs:
        events = [event for event in events if not event.startswith("program: ")]
    assert not events, f"{len(events)} events outside: {events[:3]}"
    return 0


def run_cases(
    cases: Sequence[Case],
    jobs: int,
    folder: Path,
    tell: Callable[[Result], None],
    made: Mapping[str, Callable[[], None]],
) -> list[Result]:
    """Runs cases, so many at a time; `folder` is for their files, `made` are the materials that are made first."""
    materials = folder / "materials"
    for name, make in made.items():
        (materials / name).mkdir(parents=True)
        files = [folder / f"{name}.{stream}" for stream in ("out", "err")]
        process = _fork(lambda name=name, make=make: _make(materials / name, make), files)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the material {name!r} cannot be made: {files[1].read_text()[-3000:]}")
    waiting = list(enumerate(cases))
    running: list[tuple[Case, Any, Path, float]] = []
    results: list[Result] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            number, one = waiting.pop(0)
            root = folder / f"case_{number}"
            root.mkdir()
            box = Box(root, materials)
            files = [root / "case.out", root / "case.err"]
            running.append((one, _fork(lambda one=one, box=box: _run_case(one, box), files), root, time.monotonic()))
        time.sleep(0.02)
        for entry in list(running):
            one, process, root, began = entry
            seconds = time.monotonic() - began
            is_late = process.exitcode is None and seconds > one.seconds
            if process.exitcode is None and not is_late:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
            process.join()
            running.remove(entry)
            result = Result(
                one, f"not ended after {one.seconds:.0f} s" if is_late else _problem(process, root), seconds
            )
            results.append(result)
            tell(result)
            shutil.rmtree(root, ignore_errors=True)
    return results


def _make(folder: Path, make: Callable[[], None]) -> int:
    os.chdir(folder)
    make()
    return 0


def _problem(process: Any, root: Path) -> str:
    """Why a case failed; empty if it did not."""
    if process.exitcode == 0:
        return ""
    if process.exitcode < 0:
        return f"the case ended by {signal.Signals(-process.exitcode).name}"
    lines = (root / "case.err").read_text(errors="replace").strip().splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith(("AssertionError", "Traceback"))]
    is_assertion = bool(starts) and lines[starts[-1]].startswith("AssertionError")
    text = "\n".join(lines[starts[-1] :]) if is_assertion else "\n".join(lines[-12:])
    return json.dumps(text.removeprefix("AssertionError: ")[:LENGTH])[1:-1].replace("\\n", "\n      ")
