"""``lr_find``: a range test of the base learning rate, at the ratios of the groups."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.tuner.tuning import Tuner

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.cli.config_files import mapping_at, read_yaml_file
from hybrid_lightning.cli.tables import check_output
from hybrid_lightning.errors import ConfigError, at, check_number, format_table, writing
from hybrid_lightning.files import is_regular_file, whole_file
from hybrid_lightning.importing import import_extra

_LINES = 12  # of the drawing
_BAR = 40  # characters of the longest bar
_SKIPPED = 10  # steps at the start, where the smoothed loss has few values
_FEWEST = 20
_IMAGES = (".png", ".jpg", ".pdf", ".svg")


def lr_find(
    setup: Setup,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    plot: str | None = None,
    write: str | None = None,
) -> None:
    """Prints how the training loss follows the base rate, and the rate at which it falls fastest.

    The range test of Smith (2017, arXiv 1506.01186): the base rate is raised after each step, those of the groups keep
    their ratios, and what is frozen at the first step stays frozen. A loss above four times the lowest one ends it.

    Args:
        setup: What would be trained.
        low: The first base rate, above 0.
        high: The last base rate.
        steps: Optimizer steps from low to high, each at a rate of its own; 20 or more.
        plot: Image to draw, such as lr.png (needs matplotlib); null draws with letters alone.
        write: YAML file for the rate that is suggested, which goes behind the config: fit mine.yaml lr.yaml.
    """
    check_number(low, "low", low=0, above_low=True)
    check_number(high, "high", low=low, above_low=True)
    check_number(steps, "steps", low=_FEWEST)
    if write is not None:
        check_output(write, (".yaml", ".yml"), "write")
        _refuse_other_config(Path(write))
    if plot is not None:
        check_output(plot, _IMAGES, "plot")
        import_extra("matplotlib", "notebook", "a plot")
    if setup.options.trainer.fast_dev_run:
        raise ConfigError("a run of one batch has no room for it; leave it out.", "trainer.fast_dev_run")
    # each epoch has a step at least, and the steps are what ends the test
    setup.trainer.fit_loop.max_epochs = steps * setup.trainer.accumulate_grad_batches
    found = Tuner(setup.trainer).lr_find(
        setup.model, datamodule=setup.data, min_lr=low, max_lr=high, num_training=steps, update_attr=False
    )
    assert found is not None  # it is for a run of one batch
    rates, losses = found.results["lr"], found.results["loss"]
    print(_drawn(rates, losses))
    rate = suggested(rates, losses)
    if plot is not None:
        _plot(found, rate, plot)
    if rate is None:
        raise ConfigError(f"{len(losses)} steps show no rate at which the loss falls. Give more --steps.", "lr_find")
    print(f"lr: {rate:g} (the loss falls fastest there, per decade; the config has {setup.model.lr:g})")
    if write is not None:
        _write(rate, write)


def _refuse_other_config(path: Path) -> None:
    """Raises `ConfigError` for a file that holds more than a rate, such as the config itself."""
    content = read_yaml_file(path, "write") if is_regular_file(path) else None
    lr = mapping_at(content, "model", "init_args").get("lr")
    if content is not None and content != _only(lr):
        raise ConfigError(f"{str(path)!r} is there already, and holds more than a rate. Name another file.", "write")


def _only(rate: Any) -> dict[str, Any]:
    """A config that sets the rate and nothing else."""
    return {"model": {"init_args": {"lr": rate}}}


def suggested(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the loss falls fastest over the logarithm of the rate; None if it does not fall."""
    # over the rate itself, as Lightning takes it, the slope favors the smallest rates
    known = [(math.log10(rate), loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    known = known[_SKIPPED:-1]
    if len(known) < 3:
        return None
    decades, values = torch.tensor(known, dtype=torch.float64).T
    [slopes] = torch.gradient(values, spacing=[decades])
    place = int(slopes.argmin())
    return float(f"{10 ** float(decades[place]):.2g}") if slopes[place] < 0 else None


def _drawn(rates: list[float], losses: list[float]) -> str:
    """The smoothed losses over the rates, as bars."""
    places = {round(index * (len(rates) - 1) / (_LINES - 1)) for index in range(_LINES)}
    known = [loss for loss in losses if math.isfinite(loss)]
    top = min(max(known, default=1.0), 4 * min(known, default=1.0)) or 1.0
    rows = []
    for place in sorted(places):
        loss = losses[place]
        length = round(_BAR * min(loss / top, 1)) if math.isfinite(loss) else _BAR
        rows.append({"lr": f"{rates[place]:.1e}", "training loss": f"{loss:.4g}", "": "#" * max(length, 0)})
    return format_table(rows, ("lr", "training loss", ""), ("lr", "training loss"))


def _plot(found: Any, rate: float | None, path: str) -> None:
    """Draws the losses over the rates as an image."""
    import matplotlib

    matplotlib.use("agg")  # no window
    with at("plot"), writing(path, "Choose another place."):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure = found.plot()
        if rate is not None:
            figure.axes[0].axvline(rate, linestyle="--")
        figure.savefig(path)
    print(f"plot: {path}")


def _write(rate: float, path: str) -> None:
    """Writes a config that sets the rate and nothing else."""
    with at("write"), writing(path, "Choose another place."):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as temporary:
            temporary.write_text(yaml.safe_dump(_only(rate)), encoding="utf-8")
    print(f"write: {path}; train with: fit CONFIG.yaml {path}")
