import functools
import io
import math
from itertools import combinations

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from hybrid_lightning.cli.export import exported_program, plain_network
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.batch import sizes_of
from hybrid_lightning.network.modules import random_convolutions
from hybrid_lightning.network.modules.positive_pools import POOLS
from hybrid_lightning.network.modules.random_convolutions import RandomConvolutions
from tests.data.make_files import make_manifest
from tests.network.towers import build
from tests.small import changed, command
from tests.tables import write_rows

RandomConvolutions = functools.partial(RandomConvolutions, seed=0)  # type: ignore[misc]  # so that two of them are equal

NAN = float("nan")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(series: torch.Tensor, **options) -> RandomConvolutions:
    module = RandomConvolutions(list(series.shape[1:]), **options)
    module.prepare([[series]])
    return module


def kernel_of(chosen: tuple[int, ...]) -> list[float]:
    return [2.0 if tap in chosen else -1.0 for tap in range(9)]


def by_hand(module: RandomConvolutions, series: torch.Tensor) -> list[list[float]]:
    """The four pools of one series `(L,)`, feature by feature, one convolution at a time."""
    kernels = [kernel_of(chosen) for chosen in combinations(range(9), 3)]
    biases = iter(module.biases.tolist())
    features = []
    for block in module._blocks:
        x = series.diff() if block.difference else series
        for kernel in kernels[block.kernels]:
            padding = 4 * block.dilation if block.padded else 0
            weights = torch.tensor(kernel).view(1, 1, 9)
            activations = nn.functional.conv1d(x[None, None], weights, dilation=block.dilation, padding=padding)[0, 0]
            features += [pools(activations - next(biases), len(series)) for _ in range(block.thresholds)]
    return features


def pools(above: torch.Tensor, length: int) -> list[float]:
    longest = run = 0
    for one in (above >= 0).tolist():
        run = run + 1 if one else 0
        longest = max(longest, run)
    positive = above > 0
    where = positive.nonzero()[:, 0].float()
    if not len(where):
        return [0.0, 0.0, 0.0, longest / length]
    share = positive.float().mean().item()
    return [share, above[positive].mean().item(), (where.mean().item() + 1) / length, longest / length]


@pytest.mark.parametrize("difference", [False, True])
def test_features_are_those_of_one_convolution_at_a_time(difference):
    series = draw(3, 60)
    module = prepared(series, features=84 * 8 * 3, pool=POOLS, difference=difference)
    expected = torch.tensor([by_hand(module, one) for one in series])
    found = module(series)
    # each block has all features of the first pool, then of the next
    start = 0
    row = 0
    for block in module._blocks:
        count = 42 * block.thresholds
        own = found[:, start : start + 4 * count].view(3, 4, count).transpose(1, 2)
        torch.testing.assert_close(own, expected[:, row : row + count], rtol=1e-4, atol=1e-4)
        start += 4 * count
        row += count
    assert start == found.shape[1]


def test_dilations_reach_from_1_to_the_length_and_small_ones_have_more_biases():
    blocks = RandomConvolutions([1344])._blocks
    dilations = sorted({block.dilation for block in blocks})
    assert dilations[0] == 1
    assert 150 < dilations[-1] <= 1343 // 8
    assert blocks[0].thresholds > blocks[-1].thresholds
    assert sum(block.thresholds for block in blocks if block.padded) == 10_000 // 84


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 9996),
        ({"features": 1000, "pool": POOLS, "difference": True}, 84 * 8),
        ({"features": 2000, "pool": ["share", "index"]}, 84 * 22),
    ],
)
def test_the_number_of_features_is_about_what_is_asked_for(options, count):
    assert RandomConvolutions([2, 50], **options)(draw(2, 2, 50)).shape == (2, count)


@pytest.mark.parametrize("left", [0, 7, 30])
@pytest.mark.parametrize("length", [5, 40, 90])
def test_padding_under_a_mask_changes_nothing(length, left):
    module = prepared(draw(4, 120), features=84 * 8 * 2, pool=POOLS, difference=True)
    series = draw(3, length, seed=1)
    padded = torch.full((3, 120), 1e9)
    padded[:, left : left + length] = series
    mask = torch.zeros(3, 120, dtype=torch.bool)
    mask[:, left : left + length] = True
    features = module(series)
    assert features.isfinite().all()
    assert features.count_nonzero() > 0 or length < 9
    torch.testing.assert_close(module(values=padded, mask=mask), features, rtol=1e-5, atol=1e-5)


def test_a_mask_is_respected_by_the_quantiles():
    series, mask = draw(5, 30), torch.ones(5, 30, dtype=torch.bool)
    plain = prepared(series, features=84 * 3)
    padded = RandomConvolutions([30], features=84 * 3)
    longer = torch.cat([series, torch.full((5, 20), 50.0)], 1)
    padded.prepare([[{"values": longer, "mask": torch.cat([mask, torch.zeros(5, 20, dtype=torch.bool)], 1)}]])
    torch.testing.assert_close(padded.biases, plain.biases)


def test_what_is_not_finite_counts_as_missing():
    module = prepared(draw(4, 2, 40), features=84 * 4, pool=POOLS)
    series = draw(3, 2, 40, seed=1)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[:, [3, 20]] = False
    broken = series.clone()
    broken[:, 0, 3], broken[:, 1, 20] = NAN, math.inf
    assert torch.equal(module(broken), module(series, mask))
    assert module(torch.full((2, 2, 40), NAN)).count_nonzero() == 0


@pytest.mark.parametrize("value", [0.0, 3.0, -1e6])
def test_a_constant_series_has_finite_features(value):
    series = torch.full((2, 40), value)
    features = prepared(series, features=84 * 8, pool=POOLS, difference=True)(series)
    assert features.isfinite().all()
    assert torch.equal(features[0], features[1])


def test_biases_are_within_the_activations_of_a_training_sample():
    series = draw(1, 50)
    module = prepared(series, features=84 * 20)
    shares = module(series)
    # the quantiles are spread evenly over the activations, and so over the shares above them
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.std().item() == pytest.approx(1 / 12**0.5, abs=0.05)


def test_preparation_depends_on_the_samples_alone_and_uses_no_global_random_numbers(monkeypatch):
    monkeypatch.setattr(random_convolutions, "_MOST_KEPT", 8)
    series = draw(40, 3, 30)
    state = torch.get_rng_state()
    first = prepared(series, features=84 * 2)
    second = RandomConvolutions([3, 30], features=84 * 2)
    second.prepare(iter([[part] for part in series.split([1, 17, 2, 20])]))
    assert torch.equal(first.biases, second.biases)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.prepared
    other = prepared(series, features=84 * 2, seed=1)
    assert not torch.equal(other.biases, first.biases)
    assert not torch.equal(other.channels, first.channels)


def test_buffers_of_one_size_carry_everything():
    series = draw(6, 4, 30)
    module = prepared(series, features=84 * 3, seed=3)
    other = RandomConvolutions([4, 30], features=84 * 3)
    assert not other.prepared
    assert other(series).shape == module(series).shape
    other.load_state_dict(module.state_dict())
    assert other.prepared
    assert torch.equal(other(series), module(series))
    assert not list(module.parameters())


def test_each_kernel_sums_over_some_channels_and_at_most_nine():
    module = RandomConvolutions([20, 30])
    counts = module.channels.sum(1)
    assert counts.min() == 1
    assert counts.max() == 9
    series = draw(2, 20, 30)
    # without its channels, a convolution is zero
    module.channels.zero_()
    assert module(series).count_nonzero() == 0


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_sample_has_the_same_features_in_any_batch(count, monkeypatch):
    series = draw(5, 40)
    module = prepared(series, features=84 * 8, pool=POOLS, difference=True)
    whole = module(series)
    # one sample at a time
    monkeypatch.setattr(random_convolutions, "_COMPARISONS_ON_CPU", 1)
    torch.testing.assert_close(module(series[:count]), whole[:count])


def test_the_type_of_the_module_is_that_of_the_features():
    series = draw(4, 40)
    module = prepared(series, features=84)
    single = module(series.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(module.double()(series.double()), single.double(), rtol=0, atol=0.03)
    halves = module.bfloat16()(series.bfloat16())
    assert halves.dtype == torch.bfloat16
    assert halves.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(prepared(series, features=84)(series), single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_shape": [9]}, r"^in_shape: 9 positions are fewer than 10.*Pad the series"),
        ({"in_shape": [40, 9]}, r"^in_shape: 9 positions are fewer than 10.*'layout: steps'.*'length: N'"),
        ({"in_shape": [9, 40], "layout": "steps"}, r"^in_shape: 9 positions are fewer than 10.*'layout: channels'"),
        ({"length": 9}, r"^length: 9 is not a number at least 10"),
        ({"layout": "step"}, r"^layout: unknown value 'step'. Did you mean 'steps'"),
        ({"in_shape": [2, 3, 40]}, r"^in_shape: \[2, 3, 40\] is not \[L\] or \[C, L\]"),
        ({"in_shape": [0, 40]}, r"^in_shape: 0 is not a number at least 1"),
        ({"features": 0}, r"^features: 0 is not a number at least 1"),
        ({"pool": []}, r"^pool: .*empty.*'share', 'mean', 'index', 'stretch'"),
        ({"pool": ["mena"]}, r"^pool: unknown pool 'mena'. Did you mean 'mean'\?"),
    ],
)
def test_an_impossible_argument_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RandomConvolutions(**{"in_shape": [40], **options})


def test_an_input_of_another_form_is_refused():
    module = RandomConvolutions([2, 40], features=84)
    with pytest.raises(ConfigError, match=r"^values: .*\(3, 5, 40\).* made for \(B, 2, L\)"):
        module(draw(3, 5, 40))
    with pytest.raises(ConfigError, match=r"^mask: the shape is \(3, 39\); \(3, 40\) is needed"):
        module(draw(3, 2, 40), torch.ones(3, 39))
    with pytest.raises(ConfigError, match=r"^values: no training sample"):
        module.prepare([[torch.full((3, 2, 40), NAN)]])


@pytest.mark.parametrize("series", [draw(4, 30), draw(4, 30, 30), {"values": draw(4, 30), "mask": torch.ones(4, 30)}])
def test_a_part_of_a_network_infers_the_shape_of_its_series(series):
    network = build({"x": {"module": "RandomConvolutions", "args": {"features": 84}}}, {"x": series})
    given = series["values"] if isinstance(series, dict) else series
    assert network.parts["x"].channels.shape == (84, given.shape[1] if given.ndim == 3 else 1)
    assert sizes_of([series])["in_shape"] == list(given.shape[1:])


def test_steps_first_are_the_same_series_turned():
    series, mask = draw(4, 3, 40), torch.ones(4, 40, dtype=torch.bool)
    mask[:, 30:] = False
    options = {"features": 84 * 4, "pool": POOLS, "difference": True}
    turned = RandomConvolutions([40, 3], layout="steps", **options)
    expected = RandomConvolutions([3, 40], **options)
    turned.prepare([[{"values": series.mT, "mask": mask}]])
    expected.prepare([[series, mask]])
    assert torch.equal(turned.biases, expected.biases)
    assert torch.equal(turned(series.mT, mask), expected(series, mask))
    one = RandomConvolutions([40], layout="steps", features=84)
    assert torch.equal(one(series[:, 0]), one(series[:, :1].mT))
    with pytest.raises(ConfigError, match=r"^values: .*\(4, 3, 40\).* made for \(B, L, 3\).*'layout'"):
        turned(series)


def test_dilations_are_those_of_the_stated_length():
    stated = RandomConvolutions([12], length=300, features=84 * 8)
    assert stated._blocks == RandomConvolutions([300], features=84 * 8)._blocks
    assert stated(draw(2, 12)).isfinite().all()
    short = RandomConvolutions([5, 2], layout="steps", length=60, features=84)
    assert short(draw(2, 60, 2)).shape == short(draw(2, 5, 2)).shape


def test_a_single_step_is_a_series_with_padding():
    for difference in (False, True):
        module = RandomConvolutions([1, 2], layout="steps", length=20, features=168, difference=difference)
        one, mask = draw(2, 1, 2), torch.ones(2, 1, dtype=torch.bool)
        padded = functional.pad(one, (0, 0, 0, 1)), functional.pad(mask, (0, 1))
        assert torch.equal(module(one, mask), module(*padded))


def test_a_table_whose_first_rows_lack_their_series_plans(folder, capsys):
    rows = [{"label": "ab"[row % 2], "age": row, "curve": "" if row < 40 else f"{row}.npy"} for row in range(60)]
    for row in rows[40:]:
        numpy.save(row["curve"], numpy.random.default_rng(row["age"]).random((15, 2)))
    write_rows("rows.csv", rows)
    parts = {
        "curve": {"module": "RandomConvolutions", "args": {"layout": "steps", "length": 15, "features": 84}},
        "table": {"module": "MLP"},
    }
    inputs = {"curve": {"series": "curve"}, "table": {"numeric": ["age"]}}
    data = {"path": "rows.csv", "inputs": inputs, "target": "label", "workers": 0}
    model = {"init.parts": parts, "init.num_classes": 2}
    config = changed({**model, "data": {"class_path": "ManifestDataModule", "init_args": data}})
    assert command("plan", config=config) == 0, capsys.readouterr().err


def test_series_of_a_manifest_are_read_with_their_steps_first(tmp_path):
    data = ManifestDataModule(
        str(make_manifest(tmp_path, rows=20, missing=0)),
        inputs={"curve": {"series": "curve"}},
        target="label",
        batch_size=4,
        workers=0,
    )
    data.setup("fit")
    batches = list(data.train_dataloader())
    part = {"module": "RandomConvolutions", "args": {"layout": "steps", "length": 20, "features": 84}}
    network = build({"curve": part}, batches[0])
    network.prepare(lambda: batches)
    module = network.parts["curve"]
    assert module.prepared
    assert module.in_channels == 2
    series, mask = batches[0]["curve"].values()
    alone = [module(one[real].unsqueeze(0)) for one, real in zip(series, mask, strict=True)]
    assert not mask.all()
    torch.testing.assert_close(network.features(batches[0])["curve"], torch.cat(alone))


@pytest.mark.parametrize("pool", [pytest.param(["share"], marks=pytest.mark.exhaustive), POOLS])
@pytest.mark.parametrize("with_mask", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_an_exported_network_answers_for_any_number_of_samples(with_mask, pool):
    def batch(count: int) -> dict:
        series = draw(count, 2, 20, seed=count)
        mask = torch.arange(20) < torch.arange(12, 12 + count).unsqueeze(1)
        return {"x": {"values": series, "mask": mask} if with_mask else series}

    # two dilations: the program has a part of its own for each
    args = {"features": 84 * 4, "pool": pool, "difference": True}
    network = build({"x": {"module": "RandomConvolutions", "args": args}}, batch(2))
    network.prepare(lambda: [batch(6)])
    plain = plain_network(network)
    program = torch.export.load(io.BytesIO(exported_program(plain, batch(5)))).module()
    for count in (1, 3, 7):
        with torch.no_grad():
            torch.testing.assert_close(program(batch(count)), plain(batch(count)), rtol=1e-4, atol=1e-5)
