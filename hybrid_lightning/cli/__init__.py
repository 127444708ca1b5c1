"""The command line: ``main``. Lightning is imported only when a command runs."""

import contextlib
import os
import sys
from collections.abc import Sequence

import hybrid_lightning
from hybrid_lightning.cli.commands import COMMANDS, overview
from hybrid_lightning.errors import ConfigError, listing, shortened, unknown

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; None takes those of the process.

    Returns:
        0; 2 if an input was wrong (the reason is on standard error) or no command was given; 130 after an interrupt;
        143 if a fit was told to end by SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(overview())
        print(f"error: no command was given. Possible: {listing(COMMANDS)}.", file=sys.stderr)
        return 2
    if words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"hybrid_lightning {hybrid_lightning.__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"error: {unknown('', 'command', words[0], COMMANDS)}", file=sys.stderr)
        return 2
    return _run(words)


def _run(words: list[str]) -> int:
    """Runs a command; for what it returns see `main`."""
    # not at the top of the file: importing Lightning takes seconds, and help needs none of it
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from hybrid_lightning.cli.building import run_with_setup
    from hybrid_lightning.cli.warning_filters import without_known_warnings

    command = COMMANDS[words[0]]
    try:
        with without_known_warnings():
            if command.has_setup:
                run_with_setup(words)
            else:
                command.function()(words[1:])
            sys.stdout.flush()  # so that a closed pipe is told here
    except (ConfigError, MisconfigurationException) as error:
        if os.environ.get("HYBRID_LIGHTNING_TRACEBACK"):
            raise
        print(f"error: {shortened(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # nothing more can be printed, not even at the end of the process
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(
            "error: standard output was closed by its reader, so the command has ended. What a fit has saved is whole: "
            "go on with --resume auto, and write the output to a file.",
            file=sys.stderr,
        )
        return 2
    except SIGTERMException as error:
        return int(error.code or 0)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns an interrupt of a fit into sys.exit(1)
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print("interrupted", file=sys.stderr)
        return 130
    return 0
