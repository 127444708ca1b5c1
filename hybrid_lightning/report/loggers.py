"""Gives the page of a run, its figures or its tables to the loggers that show them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from hybrid_lightning.errors import reason
from hybrid_lightning.report.sections import Section, Table
from hybrid_lightning.report.traces import Figure, plain

_LONGEST_TITLE = 120


def log_page(loggers: Iterable[Logger], page: Path, sections: Sequence[Section], step: int) -> list[str]:
    """Gives each logger what it takes; what went wrong, a line each. Call it on the first rank."""
    problems = []
    figures = named_figures(sections)
    for logger in loggers:
        try:
            if isinstance(logger, WandbLogger):
                _to_wandb(logger, page, figures)
            elif isinstance(logger, MLFlowLogger):
                _to_mlflow(logger, page, figures)
            elif isinstance(logger, TensorBoardLogger):
                _to_tensorboard(logger, sections, figures, step)
        except Exception as error:  # of a library or a server; the page itself is in the run's folder
            problems.append(f"{type(logger).__name__} has not taken the report: {reason(error)}")
    return problems


def named_figures(sections: Sequence[Section]) -> dict[str, Figure]:
    """``report/roc``, or ``report/roc/new.csv_120_rows`` of one of several tables → the figure with a title."""
    found: dict[str, Figure] = {}
    for section in sections:
        found |= _titled(section, section.title, "")
        for one in section.of_each:
            table = re.sub(r"[^\w.-]+", "_", one.title)
            found |= _titled(one, f"{section.title}, {one.title}", f"/{table}")
    return found


def _titled(section: Section, title: str, ending: str) -> dict[str, Figure]:
    """The figures of a section that show something; alone, they need a title, which the page has above them."""
    found = {}
    heading = {"title": {"text": plain(title, _LONGEST_TITLE)}}
    for name, figure in section.figures.items():
        if figure["data"]:
            found[f"report/{name}{ending}"] = {**figure, "layout": {**figure["layout"], **heading}}
    return found


def _to_wandb(logger: WandbLogger, page: Path, figures: Mapping[str, Figure]) -> None:
    import wandb

    # injected styles would be fetched, which the page forbids
    shown: dict[str, Any] = {"report": wandb.Html(str(page), inject=False)}
    for name, figure in _of_plotly(figures).items():
        shown[name] = wandb.Plotly(figure)
    logger.experiment.log(shown)  # at once, as every call is a row of its history


def _to_mlflow(logger: MLFlowLogger, page: Path, figures: Mapping[str, Figure]) -> None:
    logger.experiment.log_artifact(logger.run_id, str(page))
    for name, figure in _of_plotly(figures).items():
        logger.experiment.log_figure(logger.run_id, figure, f"{name}.html")


def _of_plotly(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The figures as objects of plotly; none where it is not installed."""
    if not find_spec("plotly"):
        return {}
    from plotly.graph_objects import Figure as PlotlyFigure

    found = {}
    for name, figure in figures.items():
        drawn = PlotlyFigure(figure)
        drawn.update_layout(template="plotly_white")
        found[name] = drawn
    return found


def _to_tensorboard(
    logger: TensorBoardLogger, sections: Sequence[Section], figures: Mapping[str, Figure], step: int
) -> None:
    # it shows neither pages nor figures of plotly
    for section in sections:
        if section.table is not None and section.table.rows:
            logger.experiment.add_text(f"report/{section.key}", markdown(section.table), step)
    if find_spec("matplotlib"):
        from hybrid_lightning.report.images import image

        for name, figure in figures.items():
            logger.experiment.add_image(name, image(figure), step, dataformats="HWC")
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
