"""The command line."""

import os
import sys
import warnings
from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hybrid_lightning.cli.export import export_part
from hybrid_lightning.cli.lightning_cli import run_cli, shortened
from hybrid_lightning.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; None takes those of the process.

    Returns:
        0; 2 if an input was wrong (the reason is on standard error); 130 after an interrupt; 143 if a fit was told to
        end by SIGTERM.
    """
    # the data of this package are in memory; worker processes would cost more than they bring
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # a repeated sample counts once, see tasks/evaluation.py
    warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")
    # of a stream, whose order is taken as it comes
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices fetched")
    # lightning 2.6.6 calls a function that torch 2.13 deprecates
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        if words[:1] == ["export_part"]:
            export_part(words[1:])
        elif words[:1] == ["cross_validate"]:
            from hybrid_lightning.cli.cross_validation import cross_validate  # which imports this module

            cross_validate(words[1:])
        else:
            run_cli(words)
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
