import dataclasses
import functools

import pytest
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.gradients.clipping_rule import ClippingRule
from hybrid_lightning.network.adapters import AdapterSpec
from hybrid_lightning.network.defaults import all_defaults
from hybrid_lightning.network.modules.mlp import MLP
from hybrid_lightning.network.part import Part, parse_part, parse_parts
from hybrid_lightning.optim.groups import PartRates
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.weights.loading import WeightSource


def chain(**inputs: str | list[str] | None) -> dict[str, Part]:
    return parse_parts({name: {"module": "MLP", "input": given} for name, given in inputs.items()})


def test_defaults_follow_the_origin():
    parts = parse_parts({"tower": {"module": "MLP", "weights": "pretrained"}, "table": "MLP"})
    assert (parts["tower"].origin, parts["tower"].rates, parts["tower"].unfreeze) == (
        "pretrained",
        PartRates(lr_scale=0.1),
        UnfreezingSchedule.parse("10%"),
    )
    assert (parts["table"].origin, parts["table"].rates, parts["table"].unfreeze) == (
        "untrained",
        PartRates(),
        UnfreezingSchedule.parse("always"),
    )


def test_a_fact_of_a_part_beats_the_users_defaults_and_those_beat_ours():
    facts = {"module": "MLP", "weights": "pretrained", "lr_scale": 0}
    part = parse_parts({"tower": facts}, pretrained={"lr_scale": 0.5, "layer_decay": 0.8, "unfreeze": "never"})["tower"]
    assert part.rates == PartRates(lr_scale=0, layer_decay=0.8)
    assert part.unfreeze == UnfreezingSchedule.parse("never")


def test_the_defaults_of_one_origin_leave_the_other_alone():
    assert parse_parts({"table": "MLP"}, pretrained={"lr_scale": 0.5})["table"].lr_scale == 1.0


@pytest.mark.parametrize(
    "value", ["MLP", {"module": "MLP", "args": None}, Part("MLP"), {"module": "MLP", "pool": None}]
)
def test_a_part_may_be_written_in_several_ways(value):
    assert parse_parts({"table": value}) == parse_parts({"table": {"module": "MLP"}})


def test_a_class_of_ours_is_kept_by_its_name_another_by_its_path_and_a_live_module_as_it_is():
    live = nn.Linear(2, 2)
    parts = parse_parts({"table": MLP, "flat": nn.Flatten, "other": live})
    assert parts["table"].module == "MLP"
    assert parts["flat"].module == "torch.nn.modules.flatten.Flatten"
    assert parts["other"].module is live


def test_plain_facts_can_be_read_again():
    parts = parse_parts(
        {"table": {"module": "MLP", "args": {"hidden": [8]}, "input": ["a", "b"], "weights": "w.pt", "stages": ["out"]}}
    )
    assert parse_parts({name: part.plain() for name, part in parts.items()}) == parts
    assert "module" not in parse_parts({"table": nn.Linear(2, 2)})["table"].plain()


@pytest.mark.parametrize(
    "name",
    [
        *("Image", "1st", "my-part", "", "a.b", "tabelle_ä", 3),
        *("keys", "type", "pop", "training"),
        *("fusion", "target", "id", "present", "pretrained", "untrained", "total"),
    ],
)
def test_a_name_that_would_collide_is_refused(name):
    with pytest.raises(ConfigError, match=r"^model\.parts: .* cannot name a part. Names are lower-case words") as error:
        parse_parts({"table": "MLP", name: "MLP"})
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("parts", [{}, {"head": "LinearHead"}, None, ["table"]])
def test_a_model_has_at_least_one_part_beside_the_head(parts):
    with pytest.raises(ConfigError, match=r"^model\.parts: name at least one part beside the head"):
        parse_parts(parts)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"modul": "MLP"}, r"^model\.parts\.t: unknown key 'modul'. Did you mean 'module'\?"),
        ({"args": {}}, r"^model\.parts\.t: 'module' is missing"),
        (3, r"^model\.parts\.t: a part is a dict of options or a module, not 3"),
        ({"module": "MLP", "args": [64]}, r"\.args: \[64\] are not keyword arguments"),
        ({"module": "MLP", "lr_scale": -1}, r"\.lr_scale: -1 is not a number at least 0"),
        (
            {"module": "MLP", "lr_scale": "1e-3"},
            r"\.lr_scale: '1e-3' is not a number at least 0 \(YAML reads 1e-3 as text",
        ),
        ({"module": "MLP", "lr_scale": True}, r"\.lr_scale: True is not a number"),
        ({"module": "MLP", "lr_scale": float("nan")}, r"\.lr_scale: nan is not a number"),
        ({"module": "MLP", "lr_scale": float("inf")}, r"\.lr_scale: inf is not a number"),
        ({"module": "MLP", "layer_decay": 0}, r"\.layer_decay: 0 is not a number above 0 and at most 1"),
        ({"module": "MLP", "layer_decay": 1.5}, r"\.layer_decay: 1.5 is not a number above 0 and at most 1"),
        ({"module": "MLP", "weight_decay": -0.1}, r"\.weight_decay: -0.1 is not a number at least 0"),
        ({"module": "MLP", "pool": "avg"}, r"\.pool: unknown pooling 'avg'. Possible: 'mean', 'max', 'flatten'"),
        ({"module": "MLP", "weights": True}, r"\.weights: .*True is neither 'pretrained', nor a path, nor "),
        ({"module": "MLP", "input": 3}, r"\.input: 3 is neither a key, nor a part, nor a list of keys"),
        ({"module": "MLP", "input": [1]}, r"\.input: \[1\] is neither"),
        ({"module": "MLP", "input": []}, r"\.input: \[\] is neither"),
        ({"module": "MLP", "stages": "layer1"}, r"\.stages: 'layer1' is not a list of patterns"),
        ({"module": "MLP", "unfreeze": 3}, r"\.unfreeze: .*3 is not a duration"),
        (
            {"module": "MLP", "unfreeze": "2 validations"},
            r"\.unfreeze: .*'2 validations' cannot be turned into steps",
        ),
        (
            {"module": "MLP", "unfreeze": {"every": "1 validation"}},
            r"\.every: '1 validation' cannot be turned into steps",
        ),
    ],
)
def test_impossible_facts_are_refused(facts, message):
    with pytest.raises(ConfigError, match=message):
        parse_parts({"t": facts})


def test_what_has_no_path_is_refused_as_a_factory():
    for factory in (lambda: MLP(3), functools.partial(MLP, 3)):
        with pytest.raises(ConfigError, match=r"cannot be named by a path; pass an instance of it instead"):
            parse_parts({"t": factory})


@pytest.mark.parametrize("origin", ["pretrained", "untrained"])
def test_an_unknown_default_is_refused(origin):
    with pytest.raises(ConfigError, match=rf"^model\.{origin}: unknown key 'lrscale'. Did you mean 'lr_scale'\?"):
        parse_parts({"t": "MLP"}, **{origin: {"lrscale": 1}})


def test_the_fusion_is_named_in_its_errors():
    with pytest.raises(ConfigError, match=r"^model\.fusion\.lr_scale: -1"):
        parse_part("fusion", {"module": "ConcatFusion", "lr_scale": -1}, all_defaults(None, None))


def test_a_head_reads_what_is_left_and_nothing_else():
    with pytest.raises(ConfigError, match=r"^model\.parts\.head\.input: 'stem' has no meaning"):
        chain(stem=None, head="stem")


def test_words_are_read_once_and_kept_for_checkpoints():
    words = {"unfreeze": {"start": "10%", "every": "1 epochs"}, "clip": "agc", "adapter": "lora", "weights": "w.pt"}
    part = Part("MLP", **words)
    types = [UnfreezingSchedule, ClippingRule, AdapterSpec, WeightSource]
    assert [type(value) for value in (part.unfreeze, part.clip, part.adapter, part.weights)] == types
    assert {name: part.plain()[name] for name in words} == words
    other = dataclasses.replace(part, unfreeze="never", clip=None, compile=True)
    expected = {**part.plain(), "unfreeze": "never", "compile": True}
    del expected["clip"]
    assert other.plain() == expected
    assert other.weights is part.weights


def test_a_typed_value_does_not_get_the_words_of_another():
    part = dataclasses.replace(Part("MLP", unfreeze="10%"), unfreeze=UnfreezingSchedule.parse("never"))
    assert part.plain()["unfreeze"] == UnfreezingSchedule.parse("never")


def test_only_weights_may_be_called_pretrained():
    assert Part("MLP", weights="pretrained").plain()["weights"] == "pretrained"
    with pytest.raises(ConfigError, match="'pretrained'"):
        Part("MLP", adapter="pretrained")


def test_a_default_that_is_null_is_ours():
    part = parse_parts({"t": "MLP"}, untrained={"lr_scale": None, "unfreeze": None})["t"]
    assert part == parse_parts({"t": "MLP"})["t"]


def test_a_part_may_say_that_its_weights_are_trained_already():
    """A live module, weights set by hand, or those of init_from."""
    defaults = {"unfreeze": "never"}
    for module in (nn.Linear(2, 2), "MLP"):
        part = parse_parts({"table": {"module": module, "origin": "pretrained"}}, pretrained=defaults)["table"]
        assert (part.unfreeze, part.lr_scale, part.weights) == (UnfreezingSchedule.parse("never"), 0.1, None)
        assert part.plain()["origin"] == "pretrained"


def test_a_part_with_weights_is_not_untrained():
    with pytest.raises(ConfigError, match="'untrained' does not go with weights"):
        Part("MLP", weights="pretrained", origin="untrained")


def test_a_live_module_whose_origin_is_not_said_is_doubtful():
    live = nn.Linear(2, 2)
    parts = {"a": live, "b": {"module": live, "origin": "untrained"}, "c": {"module": live, "weights": "pretrained"}}
    parsed = parse_parts({**parts, "d": "MLP"})
    assert [name for name, part in parsed.items() if part.is_doubtful] == ["a"]


def test_untrained_parts_may_be_left_as_drawn_but_not_what_reads_them():
    drawn = {"origin": "random", "unfreeze": "10%"}
    parts = parse_parts({"tower": {"module": "MLP", "weights": "a.pt"}, "table": "MLP"}, untrained=drawn)
    assert [(part.origin, part.unfreeze) for part in parts.values()] == [
        ("pretrained", UnfreezingSchedule.parse("10%")),
        ("random", UnfreezingSchedule.parse("never")),
        ("untrained", UnfreezingSchedule.parse("10%")),
    ]
    fusion = parse_part("fusion", "ConcatFusion", all_defaults(None, drawn))
    assert fusion.origin == "untrained"
    assert parse_parts({"table": parts["table"]})["table"].origin == "random"  # as a checkpoint is read


@pytest.mark.parametrize(
    ("origin", "option", "message"),
    [
        ("untrained", {"origin": "pretrained"}, r"model\.untrained\.origin: .*'pretrained'.*'random'"),
        ("untrained", {"adapter": "lora"}, r"model\.untrained: unknown key 'adapter'"),
        ("pretrained", {"origin": "random"}, r"model\.pretrained: unknown key 'origin'"),
    ],
)
def test_an_option_that_one_origin_alone_has_is_no_default_of_the_other(origin, option, message):
    with pytest.raises(ConfigError, match=message):
        all_defaults(**{"pretrained": None, "untrained": None, origin: option})


def test_an_adapter_may_be_the_default_of_pretrained_parts():
    parts = parse_parts({"tower": {"module": "MLP", "weights": "a.pt"}, "table": "MLP"}, {"adapter": "lora"})
    assert parts["tower"].adapter == AdapterSpec.parse("lora")
    assert parts["table"].adapter is None
