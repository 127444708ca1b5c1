import itertools
from collections import OrderedDict

import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.optim.groups import PartRates, matches, named_param_groups, partition


def a_model() -> nn.Module:
    body = nn.Sequential(OrderedDict(stem=nn.Conv1d(1, 2, 3), norm=nn.BatchNorm1d(2), block=nn.Conv1d(2, 2, 3)))
    return nn.ModuleDict({"body": body, "head": nn.Linear(2, 3)})


PARTS = {"image": "body", "head": "head"}


def names_by_group(module: nn.Module, groups: list[dict]) -> dict[str, list[str]]:
    names = {id(p): name for name, p in module.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


@pytest.mark.parametrize(
    ("pattern", "name", "covers"),
    [
        ("layers.1", "layers.1.weight", True),
        ("layers.1", "layers.1", True),
        ("layers.1", "layers.10.weight", False),
        ("layers.10", "layers.1.weight", False),
        ("layer", "layers.1.weight", False),
        ("weight", "layers.1.weight", False),
        ("layers.*", "layers.10.weight", True),
        ("layers.[0-3]", "layers.3.weight", True),
        ("layers.[0-3]", "layers.4.weight", False),
        ("layers.1?", "layers.1.weight", False),
        ("*.weight", "layers.1.weight", False),
        ("*", "anything.at.all", True),
        ("layers.1.weight.data", "layers.1.weight", False),
        ("Layers", "layers.1", False),
        ("", "layers.1", False),
    ],
)
def test_a_pattern_is_anchored_and_never_matches_a_longer_number(pattern, name, covers):
    assert matches(pattern, name) is covers


def test_a_partition_keeps_the_order_of_the_names():
    found = partition(["a.2", "b.1", "a.1"], {"late": "b", "early": ["a.1", "a"]})
    assert found == {"late": ["b.1"], "early": ["a.2", "a.1"]}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"x": "a", "y": "c"}, r"^here\.y: pattern 'c' matches no parameter. Names start with: 'a', 'b'\."),
        ({"x": "a", "y": "c.1"}, r"pattern 'c\.1' matches no parameter. Names start with: 'a\.1', 'a\.2', 'b\.1'\."),
        ({"x": ["a", "b"], "y": "a.1"}, r"^here: parameter 'a\.1' is in two, 'x' and 'y'. Narrow the patterns"),
        ({"x": "a"}, r"^here: no pattern covers 'b\.1'. Add it to one of: 'x'\."),
    ],
)
def test_a_name_in_two_or_none_and_a_pattern_without_names_are_errors(patterns, message):
    with pytest.raises(ConfigError, match=message), at("here"):
        partition(["a.1", "a.2", "b.1"], patterns)


def test_every_parameter_is_in_exactly_one_group_by_part_stage_and_decay():
    model = a_model()
    groups = named_param_groups(model, PARTS, lr=1.0, stages={"image": {"in": "body.stem", "out": "body.[nb]*"}})
    assert names_by_group(model, groups) == {
        "image.in": ["body.stem.weight"],
        "image.in/no_decay": ["body.stem.bias"],
        "image.out": ["body.block.weight"],
        "image.out/no_decay": ["body.norm.weight", "body.norm.bias", "body.block.bias"],
        "head": ["head.weight"],
        "head/no_decay": ["head.bias"],
    }


def test_rates_and_decays_equal_hand_arithmetic():
    rates = {
        "image": PartRates(lr_scale=0.1, layer_decay=0.5, weight_decay=0.3),
        "head": {"lr_scale": 2.0, "decay_all": True},
    }
    stages = {"image": {name: f"body.{name}" for name in ("stem", "norm", "block")}}
    groups = named_param_groups(a_model(), PARTS, lr=0.01, weight_decay=0.05, rates=rates, stages=stages)
    found = {g["name"]: (g["lr"], g["lr_factor"], g["weight_decay"], g["stage"]) for g in groups}
    expected = {
        "image.stem": (0.00025, 0.025, 0.3, 0),
        "image.stem/no_decay": (0.00025, 0.025, 0.0, 0),
        "image.norm/no_decay": (0.0005, 0.05, 0.0, 1),
        "image.block": (0.001, 0.1, 0.3, 2),
        "image.block/no_decay": (0.001, 0.1, 0.0, 2),
        "head": (0.02, 2.0, 0.05, 0),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name
    assert {g["part"] for g in groups} == {"image", "head"}


def test_a_frozen_parameter_has_its_group_from_the_start():
    model = a_model()
    model["body"].requires_grad_(False)
    groups = named_param_groups(model, PARTS, lr=1.0)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert [(g["fixed"], g["unfrozen_at"]) for g in groups] == [(False, 0)] * len(groups)


def test_equal_values_are_not_mistaken_for_one_parameter():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].load_state_dict(model["a"].state_dict())
    groups = named_param_groups(model, {"a": "a", "b": "b"}, lr=1.0)
    assert [len(g["params"]) for g in groups] == [1, 1, 1, 1]


@pytest.mark.parametrize("order", list(itertools.permutations(["embed", "head"])), ids=str)
def test_a_parameter_tied_across_parts_is_in_the_group_of_its_first_name(order):
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    groups = named_param_groups(model, {part: part for part in order}, lr=1.0)
    assert names_by_group(model, groups) == {"embed": ["embed.weight"]}
    torch.optim.AdamW(groups)  # refuses a parameter that is in two groups


def test_a_stage_that_holds_only_tied_parameters_keeps_its_place():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    groups = named_param_groups(
        model, {"all": "*"}, lr=1.0, stages={"all": ["a", "b"]}, rates={"all": {"layer_decay": 0.5}}
    )
    assert [(g["name"], g["lr"]) for g in groups] == [("all.a", 0.5), ("all.a/no_decay", 0.5)]


def test_fixed_and_integer_parameters_have_groups_that_never_train():
    model = nn.Module()
    model.table = nn.Parameter(torch.ones(2, 2))
    model.codes = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
    model.weight = nn.Parameter(torch.ones(2, 2))
    groups = named_param_groups(model, {"all": "*"}, lr=1.0, fixed=["table"])
    assert names_by_group(model, groups) == {"all": ["weight"], "all/fixed": ["table", "codes"]}
    assert [(g["fixed"], g["unfrozen_at"], g["weight_decay"]) for g in groups] == [(False, 0, 0.01), (True, None, 0.0)]


def test_a_complex_parameter_is_refused():
    model = nn.Module()
    model.spectrum = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(ConfigError, match=r"parameter 'spectrum' is complex-valued; .*view_as_real"):
        named_param_groups(model, {"all": "*"}, lr=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": {"imag": {}}}, r"^rates: unknown part 'imag'. Did you mean 'image'\? Possible: 'image', 'head'"),
        ({"stages": {"table": ["x"]}}, "^stages: unknown part 'table'. Possible: 'image', 'head'"),
        ({"rates": {"head": {"lrscale": 1}}}, r"^rates\.head: unknown key 'lrscale'. Did you mean 'lr_scale'\?"),
        ({"fixed": ["body.stem.wait"]}, r"^fixed: unknown parameter 'body\.stem\.wait'. Did you mean"),
        ({"stages": {"image": ["body.stem"]}}, r"^parts\.image\.stages: no pattern covers 'body\.norm\.weight'"),
        (
            {"stages": {"image": ["body", "body.stem"]}},
            r"^parts\.image\.stages: parameter 'body\.stem\.weight' is in two",
        ),
        ({"stages": {"image": ["body", "head"]}}, r"^parts\.image\.stages\.head: pattern 'head' matches no parameter"),
    ],
)
def test_impossible_facts_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        named_param_groups(a_model(), PARTS, lr=1.0, **options)


def test_a_part_that_is_forgotten_is_an_error():
    with pytest.raises(ConfigError, match=r"^parts: no pattern covers 'head\.weight', 'head\.bias'. Add it to one of"):
        named_param_groups(a_model(), {"image": "body"}, lr=1.0)
