"""What each part of a network knows about the target: closed-form fits on features, without any training."""

from typing import NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.network.part import place_of
from hybrid_lightning.probe.blend import blended, fit_blend
from hybrid_lightning.probe.score import Score, score
from hybrid_lightning.probe.targets import Kind
from hybrid_lightning.probe.vote import Vote, fit_vote
from hybrid_lightning.tasks.features import SplitFeatures
from hybrid_lightning.tasks.objective import Objective

TOGETHER = "all parts"
"""The voter that reads the features of all parts at once; no part can have this name."""


class Goal(NamedTuple):
    """What the fits aim at."""

    kind: Kind
    target: Tensor  # in the form of its kind
    outputs: int
    row_weights: Tensor | None  # (N,)


class Voter(NamedTuple):
    """A closed-form fit on some features."""

    vote: Vote
    held_out: Tensor  # (N, outputs), of each training row by a fit that has not seen it
    score: Score  # of these


class Probe(NamedTuple):
    """The voters of a network, and how they are combined."""

    voters: dict[str, Voter]  # part → its voter; of several parts also `TOGETHER`
    weights: dict[str, float]  # voter → its share of the blend, 0 to 1
    blend: Score


def probe_features(objective: Objective, features: SplitFeatures, groups: Tensor | None = None) -> Probe:
    """A voter per part and one on all, and their blend; rows of one of the `groups` `(N,)` are held out together."""
    goal = _goal(objective, features)
    voters = fit_voters(objective, features, groups)
    if len(voters) > 1:
        with at(TOGETHER):
            voters[TOGETHER] = _fit_voter(objective, _joined(features), None, goal, groups)
    held_out = {name: voter.held_out for name, voter in voters.items()}
    weights = fit_blend(held_out, goal.target, goal.kind, goal.row_weights)
    outputs = blended(held_out, weights, goal.kind)
    return Probe(voters, weights, _score(objective, outputs, goal, groups))


def fit_voters(objective: Objective, features: SplitFeatures, groups: Tensor | None = None) -> dict[str, Voter]:
    """A voter per part; for `groups` see `probe_features`."""
    goal = _goal(objective, features)
    voters = {}
    for name, tensor in features.parts.items():
        with at(place_of(name)):
            voters[name] = _fit_voter(objective, tensor, features.present.get(name), goal, groups)
    return voters


def _goal(objective: Objective, features: SplitFeatures) -> Goal:
    if features.target is None:
        raise ConfigError("the batches have no 'target', so nothing can be fitted to the features.", "data")
    objective.check_target(features.target)
    kind = objective.closed_form
    if kind is None:
        raise ConfigError(f"{type(objective).__name__} has no closed form, so nothing can be fitted.", "model")
    target = objective.closed_form_target(features.target)
    return Goal(kind, target, objective.outputs, objective.row_weights(features.target))


def _joined(features: SplitFeatures) -> Tensor:
    """The features of all parts `(N, features)`, with the mean where a sample lacks a part."""
    complete = []
    for name, tensor in features.parts.items():
        mask = features.present.get(name)
        if mask is not None:
            tensor = torch.where(mask[:, None], tensor, tensor[mask].mean(0))
        complete.append(tensor)
    return torch.cat(complete, dim=1)


def _score(objective: Objective, outputs: Tensor, goal: Goal, groups: Tensor | None) -> Score:
    """The score of outputs `(N, outputs)`, numbers in their units."""
    target = objective.in_units(goal.target)
    return score(objective.in_units(outputs), target, goal.kind, groups=groups)


def _fit_voter(
    objective: Objective,
    features: Tensor,
    present: Tensor | None,
    goal: Goal,
    groups: Tensor | None,
) -> Voter:
    """A voter on features `(N, features)`; for samples without them, `present` `(N,)` False, it takes their mean."""
    rows = torch.arange(len(features)) if present is None else present.nonzero().flatten()
    if not len(rows):
        raise ConfigError("no training row has what this part reads. Leave the part out.")
    vote = fit_vote(
        features[rows],
        goal.target[rows],
        goal.kind,
        outputs=goal.outputs,
        row_weights=None if goal.row_weights is None else goal.row_weights[rows],
        groups=None if groups is None else groups[rows],
    )
    held_out = vote.held_out
    if present is not None:
        mean = features[rows].mean(0, keepdim=True)
        held_out = vote(mean).repeat(len(features), 1).to(vote.held_out.dtype)
        held_out[rows] = vote.held_out
    return Voter(vote, held_out, _score(objective, held_out, goal, groups))
