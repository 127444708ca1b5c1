"""The command line: ``main``."""

from hybrid_lightning.cli.commands import main

__all__ = ["main"]
