import numpy as np
import pytest

from hybrid_lightning.data.rounding import as_float32, wide


@pytest.mark.parametrize(
    "numbers",
    [
        1.7e12 + 1000.0 * np.arange(20),
        1_700_000_000 + np.arange(20),
        1_700_000_000_000.0 + np.arange(20),
        np.int64(1) * np.arange(2**30, 2**30 + 9),
        1.7e12 + 1000.0 * np.arange(120).reshape(1, 4, 5, 6),
        np.stack([np.arange(20.0), 1e9 + 0.01 * np.arange(20)], axis=1),
    ],
    ids=["milliseconds", "seconds", "a millisecond each", "counter", "volume", "prices in one channel"],
)
def test_numbers_that_would_become_equal_are_refused(numbers):
    with pytest.raises(ValueError, match=r"large beside their differences, .* would make [\d.e+]+ and the one"):
        as_float32(numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        np.random.default_rng(0).standard_normal((50, 3)),
        np.full(9, 0.1) + 1e-17 * np.arange(9),
        np.full(9, 1e12),
        np.linspace(1e6, 2e6, 50),
        np.array([1.0]),
        np.float32(1.7e12) + np.zeros(3, np.float32),
        np.arange(300),
        np.array([np.nan, 1.0, np.nan]),
    ],
    ids=["usual", "noise", "constant", "large", "single", "float32", "whole", "gaps"],
)
def test_what_keeps_its_differences_is_only_rounded(numbers):
    rounded = as_float32(numbers)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, numbers, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("uint8", "float32"), ("int16", "float32"), ("float32", "float32"), ("int32", "float64"), ("float64", "float64")],
)
def test_what_float32_cannot_hold_stays_wide(dtype, wanted):
    assert wide(np.ones(2, dtype)).dtype == wanted
