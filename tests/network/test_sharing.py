import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.part import Part, parse_parts
from hybrid_lightning.network.record import NetworkRecord

ENCODER = {"module": "ConvExtractor", "args": {"channels": [4]}, "lr_scale": 0.5}
PARTS = {"front": ENCODER, "back": {"share": "front"}}
BATCH = {
    name: torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(place)) for place, name in enumerate("xyz")
}
IMAGES = {"front": BATCH["x"], "back": BATCH["y"], "other": BATCH["z"]}


def made(parts=None, batch=IMAGES, **options):
    torch.manual_seed(0)
    return build(parse_parts(parts or PARTS), 2, batch, **options).eval()


def test_two_parts_have_one_module_and_each_its_own_input():
    network = made()
    assert network.feeding == ["front", "back"]
    module = network.parts["front"]
    assert network.parts["back"] is module
    for name in ("front", "back"):
        torch.testing.assert_close(network.features(IMAGES)[name], module(IMAGES[name]).mean((2, 3)))


def test_weights_are_saved_grouped_and_trained_once():
    network = made()
    assert not [name for name in network.state_dict() if name.startswith("parts.back")]
    groups = network.param_groups(1.0, 0.0)
    assert {group["part"] for group in groups} == {"front", "fusion", "head"}
    assert {group["lr_factor"] for group in groups if group["part"] == "front"} == {0.5}
    alone = sum(parameter.numel() for parameter in network.parts["front"].parameters())
    assert sum(p.numel() for group in groups if group["part"] == "front" for p in group["params"]) == alone


def test_the_part_with_the_module_may_stand_behind_the_one_that_shares_it():
    network = made({"back": {"share": "front"}, "front": ENCODER})
    assert network.wiring.order == ["front", "back"]
    assert list(network.parts) == ["front", "fusion", "head"]


def test_a_rebuilt_network_shares_again():
    parts = {**PARTS, "third": {"share": "front", "input": "other"}}
    network = made(parts)
    saved = {name: part.plain() for name, part in parse_parts(parts).items()}
    assert saved["third"] == {"share": "front", "input": "other"}
    record = NetworkRecord.parse(network.record.plain())
    again = rebuild(parse_parts(saved), 2, record).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(IMAGES), network(IMAGES))
    assert again.parts["third"] is again.parts["front"]
    parsed = parse_parts(parts)
    assert parse_parts(parsed) == parsed


def test_a_live_module_may_be_shared():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    network = made({"front": {"module": module}, "back": {"share": "front"}})
    assert network.parts["back"] is network.parts["front"] is module


def test_a_missing_sample_of_one_input_leaves_the_other():
    present = torch.tensor([True, False, True, True, True, True])
    batch = {**IMAGES, "present/back": present}
    network = made(batch=batch)
    features = network.features(batch)
    assert not features["back"][1].any()
    assert features["front"][1].any()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"share": "front", "unfreeze": "10%"},
            r"back\.unfreeze: it has the module of 'front'.*'unfreeze' can be stated",
        ),
        (
            {"share": "front", "lr_scale": 0.1, "module": "MLP"},
            r"back\.lr_scale: .*'lr_scale', 'module' can be stated there",
        ),
        (
            {"share": "frnt"},
            r"back\.share: 'frnt' is not a part whose module this one can have\. Possible: 'front', 'third'",
        ),
        ({"share": "back"}, r"back\.share: 'back' is not a part"),
        ({"share": "fourth"}, r"back\.share: 'fourth' is not a part .* parts that share a module themselves, are not"),
        ({"share": "head"}, r"back\.share: 'head' is not a part"),
        ({"share": ["front"]}, r"back\.share: \['front'\] is not a part"),
        ({"shar": "front"}, r"back: unknown key 'shar'"),
        ({"share": "front", "inputs": "y"}, r"back: unknown key 'inputs'\. Did you mean 'input'"),
    ],
)
def test_what_a_sharing_part_cannot_state_is_refused_by_name(part, message):
    parts = {"front": ENCODER, "back": part, "third": "MLP", "fourth": {"share": "third"}}
    with pytest.raises(ConfigError, match=r"^model\.parts\." + message):
        parse_parts(parts)


def test_the_head_shares_with_no_part():
    with pytest.raises(ConfigError, match=r"^model\.parts\.head\.share: 'front' is not a part"):
        parse_parts({"front": ENCODER, "head": {"share": "front"}})


def test_a_part_cannot_share_with_one_that_reads_it():
    parts = {"front": {**ENCODER, "input": "back"}, "back": {"share": "front"}}
    with pytest.raises(ConfigError, match=r"'front', 'back' depend on each other \(a circular"):
        made(parts)


def test_an_input_that_the_module_cannot_take_is_told_at_the_part_that_reads_it():
    with pytest.raises(ConfigError, match=r"^model\.parts\.back: ConvExtractor fails on its input tensor \(6, 5\)"):
        made(batch={"front": BATCH["x"], "back": torch.zeros(6, 5)})


def test_a_part_in_python_is_told_apart_by_what_it_shares():
    assert Part("MLP").share is None
