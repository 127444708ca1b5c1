import random

import numpy as np
import pytest
import torch
from torch import nn

from hybrid_lightning.cache.fingerprints import WatchedTensors, digest, part_fingerprint, random_state, same_values
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.part import parse_parts

X = torch.arange(6.0).view(2, 3)
DIFFERENT = [
    X,
    X.view(3, 2),
    X.double(),
    X + 1,
    {"a": X},
    {"b": X},
    [X],
    [X, X],
    X.numpy(),
    "x",
    b"x",
    1,
    1.0,
    None,
    torch.zeros(0),
]


def test_a_digest_tells_values_shapes_types_and_containers_apart():
    digests = [digest(value) for value in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)
    assert digests == [digest(value) for value in DIFFERENT]
    assert digest(X.t().contiguous().t()) == digest(X), "the layout in memory does not count"


def test_values_are_the_same_if_their_digests_are():
    for number, one in enumerate(DIFFERENT):
        for other_number, other in enumerate(DIFFERENT):
            assert same_values(one, other) == (number == other_number)
    changed = {"image": X.clone(), "id": ["a", "b"]}
    kept = {"image": X.clone(), "id": ["a", "b"]}
    assert same_values(changed, kept)
    changed["image"][1, 2] += 1
    assert not same_values(changed, kept)
    nan = torch.tensor([float("nan")])
    assert same_values(nan, nan.clone())


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), np.random.rand, random.random])
def test_a_draw_from_any_global_generator_changes_the_random_state(draw):
    before = random_state()
    assert random_state() == before
    draw()
    assert random_state() != before


def network():
    torch.manual_seed(0)
    parts = {
        "stem": {"module": "MLP", "args": {"hidden": [3]}, "input": "x"},
        "body": {"module": "MLP", "input": "stem"},
    }
    return build(parse_parts(parts), 2, {"x": torch.rand(2, 4)})


def test_a_part_is_known_by_its_weights_and_those_of_the_parts_that_it_reads():
    one, other = network(), network()
    assert part_fingerprint(one, "body") == part_fingerprint(other, "body")
    with torch.no_grad():
        next(other.parts["body"].parameters()).add_(1)
    assert part_fingerprint(one, "body") != part_fingerprint(other, "body")
    assert part_fingerprint(one, "stem") == part_fingerprint(other, "stem")
    other = network()
    with torch.no_grad():
        next(other.parts["stem"].parameters()).add_(1)
    assert part_fingerprint(one, "body") != part_fingerprint(other, "body")


def replace_a_weight(stem):
    linear = next(module for module in stem.modules() if isinstance(module, nn.Linear))
    linear.weight = nn.Parameter(linear.weight + 1)


def replace_a_module(stem):
    name = next(name for name, module in stem.named_modules() if isinstance(module, nn.Linear))
    parent, _, own = name.rpartition(".")
    setattr(stem.get_submodule(parent), own, nn.Linear(4, 3))


def write_in_place(stem):
    with torch.no_grad():
        next(stem.parameters()).add_(1)


@pytest.mark.parametrize("change", [replace_a_weight, replace_a_module, write_in_place])
def test_watched_tensors_notice_what_is_written_or_replaced(change):
    one = network()
    watched = WatchedTensors(one, ["stem"])
    assert watched.have_same_values()
    change(one.parts["stem"])
    assert not watched.have_same_values()


def test_watched_tensors_are_the_same_after_equal_values_were_written():
    one = network()
    watched = WatchedTensors(one, ["stem"])
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.copy_(parameter.clone())
    one.parts["new"] = nn.Identity()
    assert watched.have_same_values()
    assert watched.have_same_values()
    assert watched.any_trains()
    one.requires_grad_(False)
    assert not watched.any_trains()
