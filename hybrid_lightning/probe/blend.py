"""Convex blends of votes: mixtures of probabilities, or means of values."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, at, check_choice, check_keys
from hybrid_lightning.probe.score import check_outputs, log_likelihood
from hybrid_lightning.probe.simplex import best_mixture, least_squares
from hybrid_lightning.probe.targets import KINDS, Kind, encode, relative_weights, standardize

_SMALLEST = 1e-4  # a smaller weight changes nothing that could be measured


@torch.no_grad()
def fit_blend(
    held_out: Mapping[str, Tensor],
    target: Tensor,
    kind: Kind,
    row_weights: Tensor | None = None,
    prior: float = 0.0,
) -> dict[str, float]:
    """The convex weights of voters whose blend has the least loss on outputs held out.

    The loss is the log loss of the mixture of probabilities (of labels: of each label's), or for values the squared
    error of the mean, in units of each output's variance. Both are convex, so the result depends on nothing else
    (stacking: Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1; with weights that are not negative: Breiman 1996,
    doi:10.1007/BF00117832). Equal voters share their weight; one that only harms gets 0.

    The blend of the same held-out outputs is a slightly optimistic score: the weights have seen its rows. They are
    as many numbers as voters less one, under bounds, so this bias is in the order of (voters - 1) / (2 rows) of the
    log loss, far below a standard error of it; each vote's own held-out outputs saw nothing of their row.

    Args:
        held_out: Voter → its outputs `(N, K)` for rows that it was not fitted to: logits, or values.
        target: As for `fit_vote`.
        kind: ``classes``, ``labels`` or ``values``.
        row_weights: `(N,)`, how much each row's loss counts; only the ratios matter. Default: all the same.
        prior: Number of rows that count as seen before: each is explained by one voter alone, all voters equally
            often; of values, the errors of the voters are as large as the best one's, and independent. The fewer rows
            there are, the closer the weights stay to equal ones.

    Returns:
        Voter → weight, in the order given. They sum to 1; those below 1e-4 are exactly 0.

    Raises:
        ConfigError: If there is no voter, or one's outputs have another shape or are not finite.
    """
    check_choice(kind, "kind", KINDS)
    if not held_out:
        raise ConfigError("there are no voters. Give the outputs of at least one.", "held_out")
    first = next(iter(held_out.values()))
    weights = relative_weights(row_weights, first)
    columns = []
    for name, outputs in held_out.items():
        with at(name):
            losses = _row_losses(outputs, target, kind, weights)
        columns.append(losses)
    stacked = torch.stack(columns, 1)  # a row for each loss: of classes one per sample, else one per output
    repeats = len(stacked) // len(weights)
    weights = weights.repeat_interleave(repeats)
    blend = _least_error if kind == "values" else _likeliest
    found = blend(stacked, weights, prior * repeats)
    found = torch.where(found < _SMALLEST, 0.0, found)
    shares = found / found.sum()
    return dict(zip(held_out, shares.tolist(), strict=True))


def _least_error(errors: Tensor, weights: Tensor, prior: float) -> Tensor:
    """Voters' weights `(V,)` with the least squared error of their mean; errors `(N, V)`, weights of rows `(N,)`."""
    gram = errors.T @ (weights[:, None] * errors)
    of_best_row = gram.diagonal().min() / len(errors)
    every_voter = torch.eye(errors.shape[1], dtype=errors.dtype, device=errors.device)
    return least_squares(gram + prior * of_best_row * every_voter)


def _likeliest(log_likelihoods: Tensor, weights: Tensor, prior: float) -> Tensor:
    """Voters' weights `(V,)` with the likeliest mixture; log-likelihoods `(N, V)`, weights of rows `(N,)`."""
    # relative to the best voter of each row, so that none underflows
    best = log_likelihoods.amax(1, keepdim=True)
    likelihoods = (log_likelihoods - best).exp()
    if prior:
        voters = likelihoods.shape[1]
        every_voter = torch.eye(voters, dtype=likelihoods.dtype, device=likelihoods.device)
        likelihoods = torch.cat([likelihoods, every_voter])
        weights = torch.cat([weights, weights.new_full((voters,), prior / voters)])
    return best_mixture(likelihoods, weights)


def _row_losses(
    outputs: Tensor,
    target: Tensor,
    kind: Kind,
    weights: Tensor,
) -> Tensor:
    """Of one voter, row by row: log-likelihoods `(N,)` or `(N × K,)`, or errors `(N × K,)` over the target's spread."""
    if kind != "values":
        likelihoods = log_likelihood(outputs, target, kind)
        return likelihoods.flatten()
    check_outputs(outputs, target)
    goal = encode(target, kind, outputs.shape[1])
    goal = goal.to(outputs.device)
    _, _, unit = standardize(goal, weights)
    error = outputs.double() - goal
    return (error / unit).flatten()


def blended(outputs: Mapping[str, Tensor], weights: Mapping[str, float], kind: Kind) -> Tensor:
    """The outputs `(B, K)` of a blend.

    Args:
        outputs: Voter → its outputs `(B, K)`: logits of classes or labels, or values. Voters with the weight 0 may
            be left out, and may be nan.
        weights: Voter → weight, 0 or more, with the sum 1, such as from `fit_blend`.
        kind: ``classes``, ``labels`` or ``values``.

    Returns:
        For classes the logarithms of the mixture of probabilities, for labels the logits of it, so that cross-entropy
        and metrics read them like any logits; for values the weighted mean. Gradients flow to the outputs.

    Raises:
        ConfigError: If no weight is positive, or the outputs of a voter with a weight are not there.
    """
    check_choice(kind, "kind", KINDS)
    kept = {name: weight for name, weight in weights.items() if weight != 0}
    with at("weights"):
        check_keys(kept, outputs, kind="voter")
        if not kept or min(kept.values()) < 0:
            raise ConfigError("weights have to be 0 or more, and one of them positive.")
    stacked = torch.stack([outputs[name] for name in kept])
    positive = stacked.new_tensor(list(kept.values()))
    return mixture(stacked, positive.log(), kind)


def mixture(outputs: Tensor, log_weights: Tensor, kind: Kind) -> Tensor:
    """The outputs `(B, K)` of a blend whose weights can be trained, such as by ``parameter.log_softmax(0)``.

    Args:
        outputs: `(voters, B, K)`, as for `blended`.
        log_weights: `(voters,)`, logarithms of weights that sum to 1. A voter with -inf is ignored, also where it is
            nan.
        kind: ``classes``, ``labels`` or ``values``.
    """
    log_weights = log_weights[:, None, None]
    # nan times 0 would be nan, in the backward pass too
    is_ignored = log_weights == -torch.inf
    outputs = torch.where(is_ignored, 0.0, outputs)
    if kind == "values":
        weighted = log_weights.exp() * outputs
        return weighted.sum(0)
    if kind == "classes":
        by_voter = log_weights + outputs.log_softmax(2)
        return by_voter.logsumexp(0)
    with_label = log_weights + functional.logsigmoid(outputs)
    without = log_weights + functional.logsigmoid(-outputs)
    return with_label.logsumexp(0) - without.logsumexp(0)
