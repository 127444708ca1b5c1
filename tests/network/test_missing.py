"""Samples that lack a part: what is encoded, what the fusions make of it, and what stays as it was."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import drop_at_random, presence
from hybrid_lightning.network.part import Part, parse_parts
from hybrid_lightning.network.standardize import SampleNorm

FUSIONS = ["ConcatFusion", "GatedFusion", "AttentionFusion", "LogitFusion"]


class Counting(nn.Module):
    """Batch statistics, and a count of the samples that it was given."""

    def __init__(self, in_features: int = 4, width: int = 6) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_features, width), nn.BatchNorm1d(width)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.norm(self.linear(x))


def a_batch(samples: int = 8, lacking_a: tuple[int, ...] = (1, 4), lacking_b: tuple[int, ...] = (0,)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    batch: dict[str, Any] = {key: torch.randn(samples, 4, generator=generator) for key in ("a", "b")}
    for key, lacking in (("a", lacking_a), ("b", lacking_b)):
        there = torch.ones(samples, dtype=torch.bool)
        there[list(lacking)] = False
        batch[key][~there] = 0
        batch[f"present/{key}"] = there
    return batch


def a_network(batch: dict[str, Any], fusion: str = "ConcatFusion", live: bool = False, **args: Any) -> HybridNetwork:
    torch.manual_seed(0)
    parts = {"a": Counting() if live else {"module": "MLP", "args": {"hidden": [5]}}, "b": {"module": "MLP"}}
    head = {"head": "torch.nn.Identity"} if fusion == "LogitFusion" else {}
    example = {key: value[:2] for key, value in batch.items()}
    return build(parse_parts({**parts, **head}), 3, example, fusion=Part(fusion, args=args, lr_scale=1))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_stands_in_the_place_of_an_absent_part_changes_nothing(fusion: str) -> None:
    batch = a_batch()
    network = a_network(batch, fusion).eval()
    other = {**batch, "a": batch["a"].masked_fill(~batch["present/a"][:, None], 1e6)}
    torch.testing.assert_close(network(other), network(batch), rtol=0, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_sample_with_everything_does_not_see_what_others_lack(fusion: str) -> None:
    batch = a_batch()
    network = a_network(batch, fusion).eval()
    alone = {key: value[2:3] for key, value in batch.items()}
    torch.testing.assert_close(network(alone), network(batch)[2:3])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_absent_part_is_seen_in_the_outputs(fusion: str) -> None:
    batch = a_batch(lacking_a=(1,), lacking_b=())
    network = a_network(batch, fusion).eval()
    whole = {**batch, "present/a": torch.ones(8, dtype=torch.bool)}
    differs = (network(batch) - network(whole)).abs().amax(1) > 1e-6
    assert differs.tolist() == [False, True, *[False] * 6]


def test_only_samples_that_have_a_part_are_encoded() -> None:
    batch = a_batch()
    network = a_network(batch, live=True)
    module = network.parts["a"]
    assert isinstance(module, Counting)
    module.seen.clear()
    network(batch)
    assert module.seen == [6]


def test_batch_statistics_are_those_of_the_samples_that_are_there() -> None:
    batch = a_batch(lacking_a=(1, 4))
    network = a_network(batch, live=True)
    features = network.features(batch)["a"]
    module = network.parts["a"]
    assert isinstance(module, Counting)
    there = batch["present/a"]
    raw = module.linear(batch["a"][there])
    expected = (raw - raw.mean(0)) / (raw.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(features[there], expected)
    assert (features[~there] == 0).all()


def test_the_fusion_standardizes_over_the_samples_that_are_there() -> None:
    batch = a_batch()
    network = a_network(batch)
    norm = network.parts["fusion"].projections["a"][0]  # type: ignore[index, union-attr]
    features = network.features(batch)
    network(batch)
    there = features["a"][batch["present/a"]]
    torch.testing.assert_close(norm.running_mean, 0.1 * there.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * there.var(0))


@pytest.mark.parametrize("there", [[], [5]])
def test_a_part_that_nobody_or_one_has_is_called_and_keeps_its_statistics(there: list[int]) -> None:
    batch = a_batch(lacking_a=tuple(set(range(8)) - set(there)))
    network = a_network({**batch, "present/a": torch.ones(8, dtype=torch.bool)}, live=True)
    module = network.parts["a"]
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    network(batch).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert module.norm.training  # type: ignore[union-attr]
    if not there:
        assert all((parameter.grad == 0).all() for parameter in module.parameters())  # type: ignore[union-attr]


def test_a_chain_is_encoded_only_where_something_follows() -> None:
    batch = a_batch(lacking_a=(1, 4), lacking_b=())
    parts = {"stem": {"module": Counting(4, 6), "input": "a"}, "body": {"module": Counting(6, 5), "input": "stem"}}
    network = build(parse_parts({**parts, "b": "MLP"}), 3, {key: v[:2] for key, v in batch.items()})
    assert network.record.absent == ["b", "body"]
    assert network.keys_read == ["a", "b", "present/a", "present/b"]
    for name in ("stem", "body"):
        network.parts[name].seen.clear()  # type: ignore[union-attr, operator]
    network(batch)
    assert [network.parts[name].seen for name in ("stem", "body")] == [[6], [6]]


def test_a_model_that_was_never_without_a_part_refuses_to_guess() -> None:
    batch = a_batch(lacking_a=(1,), lacking_b=())
    network = a_network({"a": batch["a"], "b": batch["b"]})
    with pytest.raises(
        ConfigError, match=r"^data: some samples have nothing that part 'a' reads, and the model was tr"
    ):
        network(batch)
    whole = {**batch, "present/a": torch.ones(8, dtype=torch.bool)}
    assert network.eval()(whole).shape == (8, 3)


def test_a_fusion_of_ones_own_without_presence_is_refused_where_samples_lack_parts() -> None:
    class Sum(nn.Module):
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            return features["a"] + features["b"]

    batch = a_batch()
    parts = {"a": {"module": "MLP"}, "b": {"module": "MLP"}}
    with pytest.raises(ConfigError, match=r"^model\.fusion: samples may lack 'a', 'b', and Sum takes no second argume"):
        build(parse_parts(parts), 3, {key: v[:2] for key, v in batch.items()}, fusion=Part(Sum()))
    plain = {key: batch[key] for key in ("a", "b")}
    network = build(parse_parts(parts), 3, {k: v[:2] for k, v in plain.items()}, fusion=Part(Sum()))
    outputs, without = network.forward_and_without(plain)
    assert (outputs.shape, without) == ((8, 3), {})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_outputs_without_a_part_are_those_of_a_sample_that_lacks_it(fusion: str) -> None:
    batch = a_batch(lacking_a=(), lacking_b=())
    network = a_network(batch, fusion).eval()
    _, without = network.forward_and_without(batch)
    lacking = {**batch, "present/a": torch.zeros(8, dtype=torch.bool)}
    torch.testing.assert_close(without["a"], network(lacking))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_rebuild_from_the_record_lacks_the_same_parts(fusion: str) -> None:
    batch = a_batch()
    network = a_network(batch, fusion)
    facts = {name: network.options[name].plain() for name in ("a", "b", "head")}
    rebuilt = rebuild(parse_parts(facts), 3, network.record, fusion=Part(fusion, lr_scale=1), trust=())
    rebuilt.load_state_dict(network.state_dict())
    torch.testing.assert_close(rebuilt.eval()(batch), network.eval()(batch), rtol=0, atol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_without_gaps_gives_the_same_with_a_presence_of_all(fusion: str) -> None:
    plain = {key: a_batch()[key] for key in ("a", "b")}
    network = a_network(plain, fusion).eval()
    everybody = {f"present/{key}": torch.ones(8, dtype=torch.bool) for key in ("a", "b")}
    torch.testing.assert_close(network({**plain, **everybody}), network(plain), rtol=0, atol=0)


def test_modality_dropout_leaves_parts_out_at_its_rate_and_never_all() -> None:
    there = {"a": torch.rand(40_000) < 0.5}
    kept = drop_at_random(there, ["a", "b", "c"], 0.3, torch.zeros(40_000, 2))
    stacked = torch.stack([kept[part] for part in "abc"], 1)
    assert stacked.any(1).all()
    assert not (kept["a"] & ~there["a"]).any()
    # b is dropped by its own draw, unless everything else is out too and b drew highest
    alone = (~there["a"]).float().mean() * 0.3**2 * 0.5 + there["a"].float().mean() * 0.3**3 / 3
    assert float((~kept["b"]).float().mean()) == pytest.approx(0.3 - float(alone), abs=0.01)


def test_modality_dropout_acts_only_while_training_and_is_drawn_from_torch() -> None:
    plain = {key: a_batch()[key] for key in ("a", "b")}
    network = a_network(plain, modality_dropout=0.5)
    assert network.record.absent == ["a", "b"]
    torch.manual_seed(1)
    first, second = network(plain), network(plain)
    torch.manual_seed(1)
    assert not torch.equal(first, second)
    assert torch.equal(network.eval()(plain), network(plain))


@pytest.mark.parametrize("rate", [-0.1, 1.0, "0.1"])
def test_an_impossible_rate_of_modality_dropout_is_an_error(rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.fusion\.args\.modality_dropout"):
        a_network(a_batch(), modality_dropout=rate)


def test_every_combination_of_absence_gives_finite_outputs_and_gradients() -> None:
    for fusion, lacking in itertools.product(FUSIONS, [((), ()), ((0,), (1,)), (range(8), ()), ((), range(8))]):
        batch = a_batch(lacking_a=tuple(lacking[0]), lacking_b=tuple(lacking[1]))
        network = a_network(batch, fusion)
        outputs = network(batch)
        outputs.sum().backward()
        assert outputs.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()), (fusion, lacking)


def test_hints_fill_arguments_that_are_left_out() -> None:
    batch = {"table": {"numeric": torch.randn(2, 3), "categorical": torch.zeros(2, 1, dtype=torch.long)}}
    parts = {"table": {"module": "TabularMLP"}}
    network = build(parse_parts(parts), 2, batch, inferred={"table": {"categories": [4], "other": 1}})
    assert network.record.parts["table"].sizes == {"in_features": 3, "categories": [4]}
    given = {"table": {"module": "TabularMLP", "args": {"categories": [9]}}}
    network = build(parse_parts(given), 2, batch, inferred={"table": {"categories": [4]}})
    assert network.record.parts["table"].sizes == {"in_features": 3}


def test_a_part_is_absent_by_what_it_reads_and_not_by_an_entry_of_the_same_name_as_what_it_reads() -> None:
    there = torch.tensor([True, False])
    batch = {"scan": torch.randn(2, 3), "photo": torch.randn(2, 3), "present/photo": there}
    assert presence(["photo", "body"], {"photo": ["scan"], "body": ["photo"]}, batch) == {}
    found = presence(["photo", "body"], {"photo": ["photo"], "body": ["photo"]}, batch)
    assert torch.equal(found["body"], there)


def test_features_are_zeros_where_nobody_has_a_part() -> None:
    batch = a_batch(lacking_a=tuple(range(8)), lacking_b=())
    assert (a_network(batch).features(batch)["a"] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_samples_are_standardized_in_every_precision(dtype: torch.dtype) -> None:
    norm, features = SampleNorm(3).to(dtype), torch.randn(6, 3, dtype=dtype)
    there = torch.tensor([True] * 4 + [False] * 2)
    expected = nn.BatchNorm1d(3, affine=False).to(dtype)
    torch.testing.assert_close(norm(features, there)[:4], expected(features[:4]))
    torch.testing.assert_close(norm.running_mean, expected.running_mean)


@pytest.mark.parametrize("sizes", [{"hidden": [9]}, {"trust_remote_code": True}])
def test_a_record_says_no_more_than_a_dry_run_would(sizes: dict[str, Any]) -> None:
    parts = parse_parts({"a": {"module": "MLP", "args": {"hidden": [5]}}})
    record = build(parts, 3, {"a": torch.randn(2, 4)}).record
    part = dataclasses.replace(record.parts["a"], sizes={**record.parts["a"].sizes, **sizes})
    record = dataclasses.replace(record, parts={**record.parts, "a": part})
    if "hidden" in sizes:
        assert rebuild(parts, 3, record).parts["a"](torch.randn(2, 4)).shape == (2, 5)
    else:
        with pytest.raises(ConfigError, match="would fetch or load something"):
            rebuild(parts, 3, record)
