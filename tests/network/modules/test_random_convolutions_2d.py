import functools

import pytest
import torch
from torch.nn import functional

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules import random_convolutions_2d
from hybrid_lightning.network.modules.random_convolutions_2d import RandomConvolutions2d

RandomConvolutions2d = functools.partial(RandomConvolutions2d, seed=0)  # type: ignore[misc]  # so that two of them are equal

SMALL = {"features": 240, "sizes": [3, 5], "scales": [1, 2], "grids": [1, 2], "thresholds": 2}


def pictures(count=30, channels=2, height=11, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, height, width, generator=generator)
    return functional.avg_pool2d(noise, 3, stride=1, padding=1)


def prepared(images, size=8, **options):
    net = RandomConvolutions2d(images.shape[1], **{**SMALL, **options})
    net.prepare([part] for part in images.split(size))
    return net


def by_hand(bank, images, pool):
    """Features of the whole image alone, one pixel after the other."""
    shrunk = bank.shrunk(images)
    windows = shrunk.unfold(2, bank.size, 1).unfold(3, bank.size, 1)
    maps = torch.einsum("bchwij,fcij->bfhw", windows, bank.filters)
    columns = []
    for bias in bank.biases:
        above = maps - bias[:, None, None]
        statistic = (above / 0.4).clamp(0, 1) if pool == "positive" else above.clamp(min=0)
        columns.append(statistic.mean(dim=(2, 3)))
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("filters", ["patches", "gaussian"])
@pytest.mark.parametrize("pool", ["positive", "mean"])
def test_features_are_what_the_docstring_says(filters, pool):
    images = pictures()
    net = prepared(images, filters=filters, pool=[pool], grids=[1])
    expected = torch.cat([by_hand(bank, images, pool) for bank in net.banks], dim=1)
    torch.testing.assert_close(net(images), expected, atol=1e-5, rtol=1e-5)


def test_cells_of_a_grid_see_their_part_of_the_image_alone():
    images = pictures(1, height=24, width=24)
    net = prepared(images, sizes=[3], scales=[1], grids=[2], thresholds=1)
    changed = images.clone()
    changed[..., :8, :8] += pictures(1, height=8, width=8, seed=1)
    [cells] = net(images).view(1, 4, -1)
    [other] = net(changed).view(1, 4, -1)
    assert not torch.equal(other[0], cells[0])
    torch.testing.assert_close(other[1:], cells[1:])


def test_cells_of_even_sides_have_the_mean_of_the_whole():
    images = pictures(height=12)
    net = prepared(images, scales=[1], sizes=[3], thresholds=1, grids=[1, 2])
    cells = net(images).view(len(images), 5, -1)
    torch.testing.assert_close(cells[:, 0], cells[:, 1:].mean(dim=1))


def test_thresholds_are_spread_quantiles_of_training_responses():
    images = pictures(200)
    [bank] = prepared(images, grids=[1], thresholds=3, scales=[1], sizes=[3], features=150).banks
    maps = functional.conv2d(bank.shrunk(images), bank.filters)
    above = maps.unsqueeze(1) > bank.biases[:, :, None, None]
    shares = above.float().mean(dim=(0, 3, 4)).flatten().sort(descending=True).values
    torch.testing.assert_close(shares, torch.linspace(1, 0, 150), atol=0.05, rtol=0)


@pytest.mark.parametrize("filters", ["patches", "gaussian"])
def test_filters_have_no_mean_and_responses_of_deviation_one(filters):
    images = pictures(200)
    for bank in prepared(images, filters=filters).banks:
        rows = bank.filters.flatten(1)
        torch.testing.assert_close(rows.mean(dim=1), torch.zeros(len(rows)), atol=1e-6, rtol=0)
        maps = functional.conv2d(bank.shrunk(images), bank.filters)
        deviation = maps.std(dim=(0, 2, 3))
        torch.testing.assert_close(deviation, torch.ones(len(rows)), atol=0.1, rtol=0)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.7])
def test_rounding_does_not_decide_about_flat_areas(level):
    images = pictures(height=24, width=24)
    images[..., :12, :] = level
    net = prepared(images, pool=["positive", "mean"])
    exact = prepared(images, pool=["positive", "mean"]).double()
    torch.testing.assert_close(net(images).double(), exact(images.double()), atol=2e-5, rtol=0)
    torch.testing.assert_close(net(images[:3]), net(images)[:3], atol=1e-5, rtol=0)


def test_brightness_counts_for_nothing():
    images = pictures()
    net = prepared(images, pool=["mean"])
    torch.testing.assert_close(net(images + 5), net(images), atol=1e-4, rtol=0)


def test_whitened_patches_are_not_noise_and_know_the_images():
    # stripes from top to bottom: a filter differs along a row and not along a column
    stripes = torch.randn(40, 1, 1, 20, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 20, -1)
    [bank] = prepared(stripes, sizes=[5], scales=[1], features=60).banks
    torch.testing.assert_close(bank.filters, bank.filters[:, :, :1].expand(-1, -1, 5, -1), atol=1e-3, rtol=0)


def test_preparing_is_the_same_for_any_batches_and_leaves_global_randomness_alone():
    images = pictures()
    before = torch.get_rng_state()
    states = [prepared(images, size).state_dict() for size in (30, 7, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())


def test_another_seed_gives_other_features():
    images = pictures()
    assert not torch.allclose(prepared(images)(images), prepared(images, seed=1)(images))


def test_a_saved_state_gives_equal_features_without_preparing():
    images = pictures()
    net = prepared(images)
    rebuilt = RandomConvolutions2d(2, **SMALL, seed=3)
    assert not rebuilt.prepared
    rebuilt.load_state_dict(net.state_dict())
    assert rebuilt.prepared
    assert torch.equal(rebuilt(images), net(images))


def test_nothing_is_trainable_and_sizes_are_known_before_preparing():
    net = RandomConvolutions2d(2, **SMALL)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    assert list(net.parameters()) == []
    assert net(pictures()).shape == (30, 240)
    net.prepare([[pictures()]])
    assert {name: value.shape for name, value in net.state_dict().items()} == shapes


@pytest.mark.parametrize(("limit", "pieces"), [(1, "filters"), (500, "samples")])
def test_features_do_not_depend_on_the_pieces_in_which_they_are_computed(monkeypatch, limit, pieces):
    images = pictures()
    net = prepared(images, pool=["positive", "mean"])
    whole = net(images)
    monkeypatch.setattr(random_convolutions_2d, "MAP_VALUES", limit)
    torch.testing.assert_close(net(images), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (1, 9), (40, 33)])
def test_images_of_any_size_work(height, width):
    net = prepared(pictures())
    images = pictures(4, height=height, width=width)
    assert net(images).shape == (4, 240)
    assert net(images).isfinite().all()
    net.prepare([[images], [pictures()]])
    assert net(images).isfinite().all()


def test_constant_images_give_finite_features():
    images = torch.full((5, 2, 9, 9), 0.3)
    net = prepared(images)
    assert net(images).isfinite().all()
    assert net(pictures()).isfinite().all()


def test_batches_of_no_and_of_one_sample_work():
    images = pictures()
    net = prepared(images)
    assert net(images[:0]).shape == (0, 240)
    torch.testing.assert_close(net(images[:1]), net(images)[:1], atol=1e-5, rtol=0)
    net.prepare([[images[:0]], [images[:1]]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_images_of_any_precision_work(dtype):
    images = (pictures().clamp(0, 1) * 255).round()
    net = prepared(images)
    features = net(images.to(dtype))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, net(images.to(dtype).float()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_modules_of_any_precision_work(dtype):
    images = pictures()
    net = prepared(images, pool=["mean"])
    exact = net(images)
    net.to(dtype)
    assert net(images).dtype == dtype
    torch.testing.assert_close(net(images).float(), exact, atol=0.1, rtol=0)
    net.prepare([[images.to(dtype)]])
    assert net(images).isfinite().all()


@pytest.mark.parametrize("pixel", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite_is_seen(pixel):
    images = pictures()
    net = prepared(images)
    images[3, 1, 2, 2] = pixel
    spoiled = net(images).isnan().all(dim=1)
    assert spoiled.nonzero().tolist() == [[3]]
    assert net(images).isnan().any(dim=1).sum() == 1
    with pytest.raises(ConfigError, match="pixels that are not finite"):
        net.prepare([[images]])


def test_it_is_exported_for_any_number_of_images():
    net = prepared(pictures())
    samples = {0: torch.export.Dim("samples")}
    program = torch.export.export(net, (pictures(4),), dynamic_shapes=(samples,))
    torch.testing.assert_close(program.module()(pictures()), net(pictures()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": "noise"}, r"filters: unknown value 'noise'. .*Possible: 'patches', 'gaussian'"),
        ({"pool": []}, "pool: the list is empty"),
        ({"pool": ["max"]}, "pool: unknown statistic 'max'"),
        ({"sizes": []}, "sizes: the list is empty"),
        ({"scales": [0]}, "scales: 0 is not a number at least 1"),
        ({"grids": [1.5]}, "grids: 1.5 is not a whole number"),
        ({"thresholds": 0}, "thresholds: 0 is not a number at least 1"),
        ({"features": 5}, "features: 5 is not a number at least 40"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RandomConvolutions2d(2, **{**SMALL, **options})


def test_images_that_do_not_fit_and_no_images_are_refused():
    net = RandomConvolutions2d(2, **SMALL)
    with pytest.raises(ConfigError, match=r"\(30, 3, 11, 8\) came, and in_channels says 2"):
        net(pictures(channels=3))
    with pytest.raises(ConfigError, match="no training sample"):
        net.prepare([[pictures()[:0]]])
