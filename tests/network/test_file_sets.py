import copy

import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.file_sets import pooled_over_files
from hybrid_lightning.network.part import parse_parts
from hybrid_lightning.network.record import NetworkRecord

FILES = torch.randn(4, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
THERE = torch.tensor([[True, True, True], [True, False, False], [False, False, False], [False, True, True]])
BATCH = {"photos": {"values": FILES, "present": THERE}, "present/photos": THERE.any(1), "x": FILES[:, 0, 0, 0].clone()}
ENCODER = {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "photos"}
PARTS = {"encoder": ENCODER, "x": {"module": "MLP", "args": {"hidden": [5]}}}


def made(parts=None, pool="mean", **options):
    torch.manual_seed(0)
    inferred = {"photos": {"files_pool": pool}}
    return build(parse_parts(parts or PARTS), 2, BATCH, inferred=inferred, **options).eval()


def features_one_by_one(network, pool):
    found = torch.zeros(4, 4)
    for sample, there in enumerate(THERE):
        files = network.parts["encoder"](FILES[sample, there]).mean((2, 3)) if there.any() else None
        if files is not None:
            found[sample] = files.mean(0) if pool == "mean" else files.amax(0)
    return found


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_features_are_pooled_over_the_files_that_are_there(pool):
    network = made(pool=pool)
    found = network.features(BATCH)["encoder"]
    torch.testing.assert_close(found, features_one_by_one(network, pool))
    assert not found[2].any()


def test_a_missing_file_has_no_influence_whatever_its_values():
    other = copy.deepcopy(BATCH)
    other["photos"]["values"][~THERE] = float("nan")
    network = made().train()
    expected = network(BATCH)
    moved = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network = made().train()
    network.zero_grad()
    torch.testing.assert_close(network(other), expected)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, moved[name]), "statistics of batches come from files that are there alone"
    network(other).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_maps_that_another_part_reads_are_pooled_place_by_place():
    parts = {
        "stem": {**ENCODER, "input": "photos"},
        "body": {"module": "ConvExtractor", "args": {"channels": [6]}, "input": "stem"},
        "x": PARTS["x"],
    }
    network = made(parts, pool="max")
    assert network.record.parts["body"].sizes["in_channels"] == 4
    maps = network.parts["stem"](FILES[:1].flatten(0, 1)).amax(0)
    torch.testing.assert_close(network.kept_outputs(BATCH, ["stem"])["stem"][0], maps)


def test_the_record_says_how_files_are_pooled():
    network = made(pool="max")
    record = NetworkRecord.parse(network.record.plain())
    again = rebuild(parse_parts(PARTS), 2, record).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(BATCH), network(BATCH))
    plain = network.record.plain()
    plain["files"]["encoder"] = "sum"
    with pytest.raises(ConfigError, match=r"files\.encoder: the record of the network is damaged"):
        NetworkRecord.parse(plain)


def test_a_part_that_reads_several_files_reads_nothing_beside_them():
    parts = {"encoder": {**ENCODER, "input": ["photos", "x"]}}
    message = r"^model\.parts\.encoder\.input: 'photos' has several files per sample.* Let another part read 'x'"
    with pytest.raises(ConfigError, match=message):
        made(parts)


def test_what_a_part_prepares_itself_with_are_the_files_that_are_there():
    assert made().inputs_of("encoder", BATCH)[0].shape == (6, 3, 8, 8)


def test_a_series_per_column_is_pooled_by_its_own_mask():
    steps = torch.randn(2, 2, 5, 3)
    mask = torch.ones(2, 2, 5, dtype=torch.bool)
    mask[0, 1, 3:] = False
    there = torch.tensor([[True, True], [True, False]])
    batch = {"series": {"values": steps, "mask": mask, "present": there}}
    parts = parse_parts({"series": {"module": Steps(), "pool": "tokens"}})
    network = build(parts, 2, batch, inferred={"series": {"files_pool": "mean"}})
    expected = (steps[0, 0].mean(0) + steps[0, 1, :3].mean(0)) / 2
    torch.testing.assert_close(network.features(batch)["series"][0], expected)
    torch.testing.assert_close(network.features(batch)["series"][1], steps[1, 0].mean(0))


class Steps(nn.Module):
    def forward(self, values, mask):
        return values


def test_the_highest_of_no_file_is_zero_and_passes_a_finite_gradient():
    features = torch.randn(4, 2, requires_grad=True)
    there = torch.tensor([[True, False], [False, False]])
    found = pooled_over_files(features, there, "max")
    assert torch.equal(found[0], features[0])
    assert not found[1].any()
    found.sum().backward()
    assert features.grad.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
