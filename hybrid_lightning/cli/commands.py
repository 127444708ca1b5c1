"""The commands: one table, from which ``main``, the help and the parsers are made. Imports no torch."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A row of the table."""

    path: str  # file of this folder and the function in it
    description: str
    has_setup: bool = True  # whether the function takes a Setup, and flags; else the words of the command line
    formats: tuple[str, ...] = ()  # of the table that --output names
    output: str | None = None  # the table's name in the folder of the runs, where that is known without --output

    def function(self) -> Callable[..., Any]:
        """The function; imports its file, and with it Lightning."""
        module, name = self.path.split(".")
        found: Callable[..., Any] = getattr(importlib.import_module(f"hybrid_lightning.cli.{module}"), name)
        return found


COMMANDS = {
    "fit": Command("training.fit", "Trains a model, and writes config, metrics and checkpoints to a run folder."),
    "validate": Command("training.validate", "Measures a checkpoint on the validation data."),
    "test": Command("training.test", "Measures a checkpoint on the test data."),
    "predict": Command(
        "predictions.predict", "Writes a table with the predictions of a checkpoint.", formats=(".csv", ".parquet")
    ),
    "plan": Command("preparation.plan", "Prints what would train when and at which rate; trains nothing."),
    "probe": Command(
        "probe.probe",
        "Prints what each part knows about the target before any training.",
        formats=(".csv",),
        output="probe.csv",
    ),
    "embed": Command(
        "embed.embed", "Writes the features of each part for every row of the data.", formats=(".npz", ".parquet")
    ),
    "check": Command("preparation.check", "Builds the model, reads all files of the data, and lists what is wrong."),
    "prefetch": Command("preparation.prefetch", "Fetches pretrained weights, for machines without a network."),
    "export": Command("export.export", "Writes the plain network of a checkpoint for other programs."),
    "export_part": Command("export.export_part", "Writes the weights of one part of a checkpoint.", has_setup=False),
    "cross_validate": Command(
        "cross_validation.cross_validate", "Fits, tests and predicts on each fold of the data.", has_setup=False
    ),
    "compare": Command(
        "compare.compare",
        "Fits recipes and baselines over several seeds, and prints a table of their scores.",
        has_setup=False,
    ),
}
"""Name → command, in the order of the help."""


def overview() -> str:
    """The help that is printed without a command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.description}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m hybrid_lightning COMMAND --config FILE.yaml [--config FILE.yaml ...] [--KEY VALUE ...]",
            "",
            "Trains models that are part pretrained and part new.",
            "",
            "commands:",
            *lines,
            "",
            "'COMMAND --help' lists the keys of a command, 'fit --model.help HybridClassifier' those of a model, and",
            "'fit --help part' those of each of its parts.",
        ]
    )
