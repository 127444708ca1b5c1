"""The command line: ``main``. Lightning is imported only when a command runs."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import hybrid_lightning
from hybrid_lightning.cli.commands import COMMANDS
from hybrid_lightning.cli.help import help_of, overview
from hybrid_lightning.distributed.lost_rank import command_has_ended, lost_rank
from hybrid_lightning.errors import ConfigError, listing, reason, shortened, unknown

__all__ = ["main"]

_HELP = ("help", "--help", "-h")
_OF_OTHER_TOOLS = {"train": "fit", "eval": "evaluate", "infer": "predict", "inference": "predict"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; None takes those of the process.

    Returns:
        0; 2 if an input was wrong (the reason is on standard error) or no command was given (the overview is printed);
        1 if another process of the run has ended or did not come in time;
        130 after an interrupt;
        143 if a run was told to end by SIGTERM or SIGHUP, or by the end of a SLURM job's time.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack letters of the data, or of our own tables
            with contextlib.suppress(OSError):  # one that is closed is told when it is written to
                stream.reconfigure(errors="backslashreplace")
    if not words:
        print(overview())
        return 2
    if "--version" in words:
        print(f"hybrid_lightning {hybrid_lightning.__version__}")
        return 0
    topic = _topic(words)
    if topic is not None:
        return _help(topic)
    if words[0] not in COMMANDS:
        print(f"error: {shortened(_no_command(words))}", file=sys.stderr)
        return 2
    return _run(words)


def _topic(words: list[str]) -> list[str] | None:
    """What help is asked for, as the words after ``help``; None if for none, or for the parser's own."""
    if words[0] in _HELP:
        return [word for word in words[1:] if word not in _HELP]
    asked = [index for index, word in enumerate(words) if word in _HELP[1:]]
    if not asked or words[0] not in COMMANDS:
        return None
    rest = words[asked[0] + 1 :]
    if rest == ["all"]:
        words[:] = [words[0], "--help"]
        return None
    return rest or [words[0]]


def _help(topic: list[str]) -> int:
    """Prints what help is asked for; for what it returns see `main`."""
    if not topic or topic == ["help"]:
        print(overview())
        return 0
    if topic[0] in COMMANDS and len(topic) == 1:
        print(help_of(topic[0]))
        return 0
    # not at the top of the file: it imports torch, and for some topics Lightning
    from hybrid_lightning.cli.help_topics import help_on

    try:
        print(help_on(topic))
    except ConfigError as error:
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return 2
    return 0


def _no_command(words: list[str]) -> str:
    """What is wrong with words that do not begin with a command."""
    if words[0] in _OF_OTHER_TOOLS:
        command = _OF_OTHER_TOOLS[words[0]]
        return f"unknown command {words[0]!r}. Here it is {command!r}: write '{' '.join([command, *words[1:]])}'."
    is_file = words[0].endswith((".yaml", ".yml"))
    if not is_file and not words[0].startswith("-"):
        return str(unknown("", "command", words[0], [*COMMANDS, "help"]))
    command = next((word for word in words if word in COMMANDS), "fit")
    rest = [word for word in words if word != command]
    example = " ".join([command, *rest])
    return f"the command comes first: write '{example}'. Commands: {listing(COMMANDS)}."


def _tell_closed_output() -> int:
    """Says on standard error that nobody reads standard output."""
    _silence_output()
    print(
        "error: standard output was closed by its reader, so the command has ended. What a run has saved is whole: "
        "go on with --resume auto, and write the output to a file.",
        file=sys.stderr,
    )
    return 2


def _silence_output() -> None:
    """After a fault nothing more can be printed where standard output is closed or full, not even at the end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    """Runs a command; for what it returns see `main`."""
    try:
        _call(words)
    except BrokenPipeError:
        return _tell_closed_output()
    except OSError as error:  # of what the machine does not give; files are told where they are read and written
        if os.environ.get("HYBRID_LIGHTNING_TRACEBACK"):
            raise
        _silence_output()
        place = f"{str(error.filename)[:300]!r}: " if error.filename else ""
        print(f"error: {shortened(f'{place}{error.strerror or reason(error)}')}", file=sys.stderr)
        return 2
    except Exception as error:
        if os.environ.get("HYBRID_LIGHTNING_TRACEBACK"):
            raise
        told = lost_rank(error)
        if told is None and not _is_of_input(error):
            raise
        print(f"error: {shortened(told or str(error))}", file=sys.stderr)
        return 1 if told else 2
    except _sigterm() as error:
        return int(error.code or 0)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns an interrupt of a run into sys.exit(1)
        if isinstance(error.__context__, BrokenPipeError):  # so does rich, which draws the progress bar
            return _tell_closed_output()
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        way_on = "; add --resume auto to go on from the last checkpoint" if words[:1] == ["fit"] else ""
        print(f"interrupted{way_on}", file=sys.stderr)
        return 130
    return 0


def _sigterm() -> type[SystemExit]:
    """What ends a run by SIGTERM; where nobody has imported Lightning, which takes seconds, nothing does."""
    if "lightning" not in sys.modules:
        return _Never
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    found: type[SystemExit] = SIGTERMException
    return found


class _Never(SystemExit):
    """Nobody raises it."""


def _call(words: list[str]) -> None:
    from hybrid_lightning.cli.warning_filters import without_known_warnings

    command = COMMANDS[words[0]]
    with without_known_warnings():
        if command.has_setup:
            from hybrid_lightning.cli.loggers import end_loggers
            from hybrid_lightning.cli.report import report_after
            from hybrid_lightning.cli.running import run_with_setup

            try:
                setup = run_with_setup(words)
                report_after(words[0], setup)
                end_loggers(setup.trainer)
            finally:
                command_has_ended()
        else:
            command.function()(words[1:])
        sys.stdout.flush()  # so that a closed pipe is told here


def _is_of_input(error: Exception) -> bool:
    """Whether an input was wrong, and not the program: our own errors, and what Lightning itself refuses."""
    if isinstance(error, ConfigError):
        return True
    if "lightning" not in sys.modules:
        return False
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    if isinstance(error, MisconfigurationException):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    home = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    # such as EarlyStopping with a metric that nobody logs
    return type(error) in (ValueError, RuntimeError) and home.startswith("lightning.pytorch.")
