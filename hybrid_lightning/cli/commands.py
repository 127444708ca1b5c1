"""The commands: one table, from which ``main``, the help and the parsers are made. Imports no torch."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

PROGRAM = "python -m hybrid_lightning"
SECTIONS = {
    "model": "Class, learning rate and parts: 'help model'; options of each part: 'help part'.",
    "data": "Where samples come from, inputs, target and splits: 'help data'.",
    "trainer": "Lightning's Trainer: max_epochs, accelerator, devices, ...: 'help trainer'.",
    "checkpoint": "Which checkpoint is the best: 'help checkpoint'.",
}
"""The sections of a config, and what `help` says of each."""
LOOK = "look at data and model before training"
TRAIN = "train"
USE = "use a trained model"
RESULTS = "look at results"

OF_MEMBERS = ("test", "predict")
"""Commands that take several checkpoints."""


class Command(NamedTuple):
    """A row of the table."""

    path: str  # file of this folder and the function in it
    description: str
    has_setup: bool = True  # whether the function takes a Setup, and flags; else the words of the command line
    formats: tuple[str, ...] = ()  # of the table that --output names
    output: str | None = None  # the table's name in the folder of the runs, where that is known without --output
    group: str = RESULTS  # under which the overview lists it
    examples: tuple[str, ...] = ()  # words after the command's name; the first one stands in the overview

    def function(self) -> Callable[..., Any]:
        """The function; imports its file, and with it Lightning."""
        module, name = self.path.split(".")
        found: Callable[..., Any] = getattr(importlib.import_module(f"hybrid_lightning.cli.{module}"), name)
        return found


COMMANDS = {
    "init": Command(
        "init.init",
        "Looks at a table or a folder per class, and writes a first config with a comment on each choice.",
        has_setup=False,
        group=LOOK,
        examples=("samples.csv --target label --output mine.yaml",),
    ),
    "check": Command(
        "preparation.check",
        "Builds the model, reads all files of the data, and lists what is wrong.",
        group=LOOK,
        examples=("mine.yaml",),
    ),
    "plan": Command(
        "preparation.plan",
        "Prints what would train when and at which rate; trains nothing.",
        group=LOOK,
        examples=("mine.yaml", "mine.yaml head_first --trainer.max_epochs 20"),
    ),
    "probe": Command(
        "probe.probe",
        "Prints what each part knows about the target before any training.",
        formats=(".csv",),
        output="probe.csv",
        group=LOOK,
        examples=("mine.yaml", "mine.yaml --ckpt_path best"),
    ),
    "shards": Command(
        "shards.shards",
        "Writes the data of a config as tar shards, for data too large for single files.",
        group=LOOK,
        examples=("mine.yaml --output shards",),
    ),
    "lr_find": Command(
        "lr_find.lr_find",
        "Raises the learning rate over a short training, and suggests one; trains nothing for good.",
        group=TRAIN,
        examples=("mine.yaml --write lr.yaml", "mine.yaml --steps 200 --high 0.1 --plot lr.png"),
    ),
    "fit": Command(
        "training.fit",
        "Trains a model, and writes config, metrics and checkpoints to a run folder.",
        group=TRAIN,
        examples=(
            "mine.yaml",
            "mine.yaml head_first --trainer.max_epochs 20 --model.parts.image.lr_scale 0.05",
            "mine.yaml --resume auto",
        ),
    ),
    "cross_validate": Command(
        "cross_validation.cross_validate",
        "Fits, tests and predicts on each fold of the data.",
        has_setup=False,
        group=TRAIN,
        examples=("mine.yaml --folds 5", "mine.yaml --folds 5 --resume"),
    ),
    "compare": Command(
        "compare.compare",
        "Fits recipes and baselines over several seeds, and prints a table of their scores.",
        has_setup=False,
        group=TRAIN,
        examples=("mine.yaml --recipes as_is full head_first --seeds 5",),
    ),
    "validate": Command(
        "training.validate",
        "Measures a checkpoint on the validation data.",
        group=USE,
        examples=("mine.yaml --ckpt_path best",),
    ),
    "test": Command(
        "training.test",
        "Measures a checkpoint on the test data.",
        group=USE,
        examples=("mine.yaml --ckpt_path best", "mine.yaml --ckpt_path last --select joint"),
    ),
    "predict": Command(
        "predictions.predict",
        "Writes a table with the predictions of a checkpoint.",
        formats=(".csv", ".parquet"),
        group=USE,
        examples=(
            "mine.yaml --ckpt_path best --data.predict_path new.csv",
            'mine.yaml --ckpt_path "runs/mine_fold*" --output mean.csv',
        ),
    ),
    "evaluate": Command(
        "evaluate.evaluate",
        "Measures a checkpoint on a new table, with intervals; needs no config.",
        has_setup=False,
        group=USE,
        examples=(
            "new.csv --ckpt_path runs/mine",
            "new.csv --ckpt_path best.ckpt --groups patient --output metrics.csv",
        ),
    ),
    "export": Command(
        "export.export",
        "Writes the plain network of a checkpoint for other programs.",
        group=USE,
        examples=("mine.yaml --ckpt_path best --output mine.pt2",),
    ),
    "export_part": Command(
        "export.export_part",
        "Writes the weights of one part of a checkpoint.",
        has_setup=False,
        group=USE,
        examples=("--ckpt_path best.ckpt --part image --output image.safetensors",),
    ),
    "embed": Command(
        "embed.embed",
        "Writes the features of each part for every row of the data.",
        formats=(".npz", ".parquet"),
        group=USE,
        examples=("mine.yaml --ckpt_path best --output features.npz",),
    ),
    "prefetch": Command(
        "preparation.prefetch",
        "Fetches pretrained weights, for machines without a network.",
        group=USE,
        examples=("mine.yaml",),
    ),
    "report": Command(
        "report.report",
        "Writes a page with curves, predictions and samples of runs.",
        has_setup=False,
        group=RESULTS,
        examples=("runs/mine", "runs/a runs/b --output both.html"),
    ),
}
"""Name → command, in the order of the help."""
