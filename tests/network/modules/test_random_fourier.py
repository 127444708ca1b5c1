import functools

import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.random_fourier import RandomFourierFeatures

RandomFourierFeatures = functools.partial(RandomFourierFeatures, seed=0)  # type: ignore[misc]  # so that two of them are equal

NAN = float("nan")


def numbers(rows=300, columns=3, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def table(rows=300):
    numeric = numbers(rows) * torch.tensor([1.0, 50.0, 0.01]) + torch.tensor([3.0, 0.0, -1.0])
    numeric[::7, 1] = NAN
    codes = torch.arange(rows).remainder(5).sub(1).unsqueeze(1)
    return {"numeric": numeric, "categorical": codes}


def cut(entry, size):
    if isinstance(entry, torch.Tensor):
        return [[part] for part in entry.split(size)]
    parts = [value.split(size) for value in entry.values()]
    return [[dict(zip(entry, values, strict=True))] for values in zip(*parts, strict=True)]


def prepared(entry, size=64, **options):
    net = RandomFourierFeatures(**options)
    net.prepare(iter(cut(entry, size)))
    return net


def kernel_error(features, seed):
    net = RandomFourierFeatures(3, features=features, bandwidth=2.0, standardize=False, seed=seed)
    rows = numbers(60)
    exact = torch.exp(-torch.cdist(rows, rows).square() / (2 * 2.0**2))
    product = net(rows) @ net(rows).T / features
    return (product - exact).square().mean().sqrt()


def test_mean_products_approach_the_gaussian_kernel_with_the_root_of_the_features():
    small = torch.stack([kernel_error(128, seed) for seed in range(10)]).mean()
    large = torch.stack([kernel_error(128 * 16, seed) for seed in range(10)]).mean()
    assert large < 0.02
    assert 3 < small / large < 5


def test_a_row_has_product_one_with_itself():
    features = RandomFourierFeatures(3, features=8)(numbers())
    torch.testing.assert_close(features.square().mean(dim=1), torch.ones(300))


def test_the_scale_and_place_of_columns_do_not_matter():
    rows = numbers()
    moved = rows * torch.tensor([1e-3, 7.0, 1e4]) + torch.tensor([5.0, -300.0, 0.0])
    features = prepared(rows, in_features=3)(rows)
    torch.testing.assert_close(prepared(moved, in_features=3)(moved), features, atol=1e-3, rtol=0)


def test_without_standardizing_they_do():
    rows = numbers()
    net = prepared(rows * 100, in_features=3, standardize=False)
    assert net.mean.tolist() == [0, 0, 0]
    assert net.bandwidth > 100


def test_the_bandwidth_is_the_median_distance_of_training_rows():
    rows = numbers(100)
    net = prepared(rows, in_features=3)
    scaled = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(net.bandwidth, torch.pdist(scaled).median())
    assert prepared(rows, in_features=3, bandwidth=0.7).bandwidth == torch.tensor(0.7)


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.ones(9, 3)])
def test_rows_that_are_all_alike_have_a_bandwidth_of_one(rows):
    assert prepared(rows, in_features=3).bandwidth == 1


def test_the_bandwidth_of_mostly_equal_rows_is_that_of_the_others():
    rows = torch.zeros(50, 1)
    rows[:3] = 1
    deviation = rows.std(correction=0)
    torch.testing.assert_close(prepared(rows, in_features=1).bandwidth, 1 / deviation)


def test_a_constant_column_counts_for_nothing():
    rows = numbers()
    rows[:, 1] = 1234.567
    net = prepared(rows, in_features=3)
    other = rows.clone()
    other[:, 1] = -9
    assert net.scale[1] == 0
    assert torch.equal(net(rows), net(other))


def test_preparing_is_the_same_for_any_batches_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    nets = [prepared(table(2100), size, in_features=3, categories=[4]) for size in (2100, 64, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    for net in nets[1:]:
        torch.testing.assert_close(net.state_dict(), nets[0].state_dict(), rtol=1e-6, atol=1e-6)
    assert torch.equal(
        nets[1](**table()),
        prepared(table(2100), 64, in_features=3, categories=[4])(**table()),
    )


def test_another_seed_gives_other_features():
    rows = numbers()
    assert not torch.equal(prepared(rows, in_features=3)(rows), prepared(rows, in_features=3, seed=1)(rows))


def test_a_saved_state_gives_equal_features_without_preparing():
    net = prepared(table(), in_features=3, categories=[4])
    rebuilt = RandomFourierFeatures(3, [4], seed=5)
    assert not rebuilt.prepared
    rebuilt.load_state_dict(net.state_dict())
    assert rebuilt.prepared
    assert torch.equal(rebuilt(**table()), net(**table()))


def test_nothing_is_trainable_and_sizes_are_known_before_preparing():
    net = RandomFourierFeatures(3, [4], features=10)
    shapes = {name: value.shape for name, value in net.state_dict().items()}
    assert list(net.parameters()) == []
    assert net(**table()).shape == (300, 10)
    net.prepare(cut(table(), 64))
    assert {name: value.shape for name, value in net.state_dict().items()} == shapes


@pytest.mark.parametrize("missing", [NAN, float("inf")])
def test_a_missing_number_is_neither_the_mean_nor_an_error(missing):
    net = prepared(numbers(), in_features=3)
    mean = net.mean.clone().unsqueeze(0)
    gap = mean.clone()
    gap[0, 1] = missing
    features = net(gap)
    assert features.isfinite().all()
    assert not torch.allclose(features, net(mean), atol=0.1)


def test_gaps_are_left_out_of_mean_and_deviation():
    net = prepared(torch.tensor([[1.0], [NAN], [3.0]]), size=2, in_features=1)
    assert net.mean.item() == 2
    assert net.scale.item() == 1


def test_unknown_and_missing_categories_are_alike():
    net = RandomFourierFeatures(categories=[3, 2])
    missing = net(categorical=torch.tensor([[-1, 0]]))
    assert torch.equal(net(categorical=torch.tensor([[3, 0]])), missing)
    assert not torch.equal(net(categorical=torch.tensor([[2, 0]])), missing)


def test_numbers_and_codes_may_come_as_two_inputs():
    entry = table()
    net = RandomFourierFeatures(3, [4])
    net.prepare([[entry["numeric"], entry["categorical"]]])
    same = prepared(entry, 300, in_features=3, categories=[4])
    assert torch.equal(net(entry["numeric"], entry["categorical"]), same(**entry))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_inputs_and_modules_of_any_precision_work(dtype):
    rows = numbers(20)
    net = prepared(rows, in_features=3)
    assert net(rows.to(dtype)).dtype == torch.float32
    exact = net(rows.to(dtype).float())
    net.to(dtype)
    net.prepare([[rows.to(dtype)]])
    torch.testing.assert_close(net(rows.to(dtype)).float(), exact, atol=0.3, rtol=0)


def test_autocast_does_not_round_the_angles():
    rows = numbers(20)
    net = prepared(rows, in_features=3)
    exact = net(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(rows), exact)


def test_batches_of_no_and_of_one_sample_work():
    net = prepared(numbers(), size=1, in_features=3)
    assert net(numbers(0)).shape == (0, 2048)
    assert net(numbers(1)).shape == (1, 2048)
    net.prepare([[numbers(0)], [numbers(5)]])


def test_it_is_exported_for_any_number_of_rows():
    net = prepared(numbers(), in_features=3)
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(net, (numbers(4),), dynamic_shapes=(rows,))
    torch.testing.assert_close(program.module()(numbers(9)), net(numbers(9)))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: RandomFourierFeatures(), r"categories: \[\] beside 0 numeric columns"),
        (lambda: RandomFourierFeatures(1, [0]), "at least one category"),
        (lambda: RandomFourierFeatures(1, features=3), "features: 3 is odd"),
        (lambda: RandomFourierFeatures(1, features=0), "features: 0 is not a number at least 2"),
        (lambda: RandomFourierFeatures(1, bandwidth=0), "bandwidth: 0 is not a number above 0"),
        (lambda: RandomFourierFeatures(2)(numbers()), "3 columns where in_features says 2"),
        (lambda: RandomFourierFeatures(3, [2])(numbers()), "0 columns where categories says 1"),
        (lambda: prepared(numbers(0), in_features=3), "no training sample"),
        (lambda: prepared(1 / torch.zeros(4, 3), in_features=3), r"infinite numbers in columns \[0, 1, 2\]"),
    ],
)
def test_what_cannot_be_is_refused(run, message):
    with pytest.raises(ConfigError, match=message):
        run()
