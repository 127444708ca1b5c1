import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.part import parse_parts
from hybrid_lightning.network.record import NetworkRecord, PartRecord

X = PartRecord({"in_features": 4}, {"a": ["layer0"]}, 1, "mean", {"mean": [0.5], "std": [1.0]})
RECORD = NetworkRecord({"x": X, "head": PartRecord()}, fixed=["parts.x.weight"], absent=["x"])


def test_a_record_is_read_as_it_was_written():
    assert NetworkRecord.parse(RECORD.plain()) == RECORD
    assert NetworkRecord.parse({}) == NetworkRecord({})


def test_what_a_part_does_not_have_is_not_written():
    plain = RECORD.plain()
    assert (plain["outputs"], plain["pools"], plain["scales"].keys()) == ({"x": 1}, {"x": "mean"}, {"x"})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sizes", "x"),
        ("sizes", {"x": 3}),
        ("sizes", {3: {}}),
        ("stages", {"x": {}}),
        ("stages", {"x": {"a": "layer0"}}),
        ("stages", {"x": {"a": [3]}}),
        ("outputs", {"x": [1]}),
        ("pools", {"x": "avg"}),
        ("pools", {"x": ["mean"]}),
        ("scales", {"x": {"mean": [0.5]}}),
        ("fixed", "all"),
        ("absent", [3]),
    ],
)
def test_a_damaged_record_is_an_error_with_its_place(place, value):
    with pytest.raises(ConfigError, match=rf"^{place}.*the record of the network is damaged"):
        NetworkRecord.parse({**RECORD.plain(), place: value})


@pytest.mark.parametrize("given", [None, [], "x"])
def test_what_is_not_a_record_is_refused(given):
    with pytest.raises(ConfigError, match="the record of the network is damaged"):
        NetworkRecord.parse(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sizes": {}, "stages": {}, "pools": {}, "scales": {}, "outputs": {}},
            r"^model\.parts\.x: .* lacks this part",
        ),
        ({"fixed": ["parts.x.nothing"]}, r"^fixed: .* fixes 'parts\.x\.nothing', which is not a parameter"),
        ({"scales": {}}, r"^model\.parts\.x: .* lacks the scale"),
    ],
)
def test_a_rebuild_refuses_the_record_of_other_parts(change, message):
    normalize = {"mean": [0.5] * 2, "std": [1.0] * 2}
    parts = parse_parts({"x": {"module": "ConvExtractor", "normalize": normalize}})
    plain = build(parts, 3, {"x": torch.rand(2, 2, 8, 8)}).record.plain()
    with pytest.raises(ConfigError, match=message):
        rebuild(parts, 3, NetworkRecord.parse({**plain, **change}))
