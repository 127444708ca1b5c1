"""Split-conformal prediction: how far a truth may be from a prediction, from rows that nothing else has seen."""

import math

import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.targets import numbered

FEWEST_ROWS = 100
"""With fewer, the coverage of one fit would often be off by five points and more: its standard deviation is 0.03."""

_ROUNDING = 1e-9  # of a rank


@torch.no_grad()
def score_quantiles(scores: Tensor, coverage: float, groups: Tensor | None = None) -> list[float]:
    """What the score of a new row does not exceed with the probability `coverage`; a number for each output.

    The rank is ``coverage * (N + 1)``, rounded up, so that the promise holds for any distribution and any N, on average
    over draws of these rows and over new ones (Vovk et al. 2005, doi:10.1007/b106715). Of rows in groups each group
    counts once, shared among its rows, and the promise is for a row of a new group (Lee, Barber and Willett 2023,
    arXiv 2306.06342).

    Args:
        scores: `(N, K)`, higher where the prediction is worse.
        coverage: 0 to 1.
        groups: `(N,)` integers; None: rows are independent.

    Raises:
        ConfigError: If there are fewer than `FEWEST_ROWS` rows, or too few groups.
    """
    if len(scores) < FEWEST_ROWS:
        raise too_few(len(scores))
    if not scores.isfinite().all():
        raise ConfigError("predictions of calibration rows are not finite.", "data")
    member = numbered(len(scores), groups)
    sizes = torch.bincount(member)
    needed = coverage * (len(sizes) + 1) - _ROUNDING
    if needed > len(sizes):
        least = math.ceil(coverage / (1 - coverage) - _ROUNDING)
        raise ConfigError(
            f"the calibration rows are of {len(sizes)} groups, and a coverage of {coverage:g} needs at least {least}. "
            f"Hold out more groups, or ask for less.",
            "model.calibrate.coverage",
        )
    weights = 1 / sizes[member].double()
    found = []
    for own in scores.double().T:
        values, order = own.sort()
        reached = weights[order].cumsum(0) >= needed
        found.append(float(values[reached.int().argmax()]))
    return found


def too_few(rows: int) -> ConfigError:
    """An error that names the number of rows."""
    return ConfigError(
        f"there are {rows} calibration rows, and sets and intervals need at least {FEWEST_ROWS} that neither training "
        f"nor validation has seen. Hold them out: data.fractions {{calibration: 0.15}}, or 'calibration' in the split "
        f"column; a DataModule of your own has a method calibration_dataloader. Or leave 'coverage' out.",
        "model.calibrate.coverage",
    )


def class_scores(probabilities: Tensor, target: Tensor) -> Tensor:
    """1 less the probability of the true class, `(N, 1)`, from `(N, classes)` and classes `(N,)`."""
    return 1 - probabilities.double().gather(1, target.long()[:, None])


def class_sets(probabilities: Tensor, decided: Tensor, quantile: float) -> Tensor:
    """Which classes a set holds, bool `(N, classes)`: all that are likely enough, and the one decided for, `(N,)`.

    These are the smallest sets for a coverage (Sadinle, Lei and Wasserman 2019, arXiv 1609.00451), but for those that
    would be empty, or lack the prediction: more than was asked for may then be covered.
    """
    is_likely = 1 - probabilities.double() <= quantile
    return is_likely.scatter(1, decided[:, None], True)
