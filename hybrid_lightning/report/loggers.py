"""Gives the page of a run, or its tables, to the loggers that show them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from hybrid_lightning.errors import reason
from hybrid_lightning.report.sections import Section, Table


def log_page(loggers: Iterable[Logger], page: Path, sections: Sequence[Section], step: int) -> list[str]:
    """Gives each logger what it takes; what went wrong, a line each. Call it on the first rank."""
    ways: dict[type[Logger], Callable[[Any], None]] = {
        WandbLogger: lambda logger: _to_wandb(logger, page),
        MLFlowLogger: lambda logger: logger.experiment.log_artifact(logger.run_id, str(page)),
        TensorBoardLogger: lambda logger: _to_tensorboard(logger, sections, step),
    }
    problems = []
    for logger in loggers:
        for kind, give in ways.items():
            if isinstance(logger, kind):
                try:
                    give(logger)
                except Exception as error:  # of a library or a server; the page itself is in the run's folder
                    problems.append(f"{type(logger).__name__} has not taken the report: {reason(error)}")
    return problems


def _to_wandb(logger: WandbLogger, page: Path) -> None:
    import wandb

    # injected styles would be fetched, which the page forbids
    logger.experiment.log({"report": wandb.Html(str(page), inject=False)})


def _to_tensorboard(logger: TensorBoardLogger, sections: Sequence[Section], step: int) -> None:
    # it shows neither pages nor figures of plotly
    for section in sections:
        if section.table is not None and section.table.rows:
            logger.experiment.add_text(f"report/{section.key}", markdown(section.table), step)
    logger.experiment.flush()


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    texts = []
    for line in lines:
        cells = " | ".join(map(_cell, line))
        texts.append(f"| {cells} |")
    return "\n".join(texts)


def _cell(text: str) -> str:
    """A cell that begins no column or row of its own, and no markup."""
    shown = " ".join(text.split())
    for character in "\\`*_[]<>|":
        shown = shown.replace(character, f"\\{character}")
    return shown
