"""The commands that there are, and ``main``. Lightning is imported only when a command runs."""

import os
import sys
import warnings
from collections.abc import Sequence

import hybrid_lightning
from hybrid_lightning.errors import ConfigError, listing, shortened

COMMANDS = {
    "fit": "Trains a model, and writes config, metrics and checkpoints to a run folder.",
    "validate": "Measures a checkpoint on the validation data.",
    "test": "Measures a checkpoint on the test data.",
    "predict": "Writes a table with the predictions of a checkpoint.",
    "plan": "Prints what would train when and at which rate; trains nothing.",
    "check": "Reads all files of the data, and lists what is wrong with them.",
    "prefetch": "Fetches pretrained weights, for machines without a network.",
    "export": "Writes the plain network of a checkpoint for other programs.",
    "export_part": "Writes the weights of one part of a checkpoint.",
    "cross_validate": "Fits, tests and predicts on each fold of the data.",
}
"""Name → what it does, in one line."""


def overview() -> str:
    """The help that is printed without a command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m hybrid_lightning COMMAND --config FILE.yaml [--config FILE.yaml ...] [--KEY VALUE ...]",
            "",
            "Trains models that are part pretrained and part new.",
            "",
            "commands:",
            *lines,
            "",
            "'COMMAND --help' lists the keys of a command, 'fit --model.help HybridClassifier' those of a model.",
        ]
    )


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
    return _run(words)


def _run(words: list[str]) -> int:
    """Runs a command; for what it returns see `main`."""
    # not at the top of the file: importing Lightning takes seconds, and help needs none of it
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    _mute_warnings()
    try:
        _dispatch(words)
    except (ConfigError, MisconfigurationException) as error:
        if os.environ.get("HYBRID_LIGHTNING_TRACEBACK"):
            raise
        print(f"error: {shortened(str(error))}", file=sys.stderr)
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


def _mute_warnings() -> None:
    # the data of this package are in memory; worker processes would cost more than they bring
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # a repeated sample counts once, see tasks/evaluation.py
    warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")
    # of a stream, whose order is taken as it comes
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices fetched")
    # lightning 2.6.6 calls a function that torch 2.13 deprecates
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")


def _dispatch(words: list[str]) -> None:
    if words[0] == "export_part":
        from hybrid_lightning.cli.export import export_part

        export_part(words[1:])
    elif words[0] == "cross_validate":
        from hybrid_lightning.cli.cross_validation import cross_validate

        cross_validate(words[1:])
    else:
        from hybrid_lightning.cli.lightning_cli import run_cli

        run_cli(words)
