import random
import tracemalloc

import numpy as np
import pyarrow
import pytest

from hybrid_lightning.data.splits import (
    combinations_of,
    groups_of,
    parse_fold,
    parse_fractions,
    quantile_bins,
    refuse_shared,
    split_by_fold,
    split_by_fractions,
    split_from_column,
)
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

SHARES = {"val": 0.2, "test": 0.3}
TRAIN, VAL, TEST, CALIBRATION = range(4)


def alike(rows: int) -> np.ndarray:
    """A single stratum."""
    return np.zeros(rows, dtype=np.int64)


def counts(split, strata):
    return np.array([[((split == code) & (strata == s)).sum() for s in np.unique(strata)] for code in range(3)])


def table(**columns):
    return Table(pyarrow.table(columns), "rows.csv")


def test_a_column_says_the_split():
    split = split_from_column(table(part=["val", "train", "test", "calibration"]), "part")
    assert split.tolist() == [VAL, TRAIN, TEST, CALIBRATION]


def test_other_values_of_the_split_column_are_listed():
    rows = table(part=["train", "Test", None, "valid", "test", None])
    message = r"data.split_column: column 'part' .* holds '', 'valid' \(rows 2, 3, 5\). Possible: 'train', "
    with pytest.raises(ConfigError, match=message):
        split_from_column(rows, "part")


def test_shares_are_exact_to_a_row_in_each_class_and_in_all():
    strata = np.repeat([0, 1, 2], [503, 77, 11])[np.random.default_rng(0).permutation(591)]
    split = split_by_fractions(strata, SHARES, seed=4)
    wanted = np.outer([0.5, 0.2, 0.3], np.bincount(strata))
    assert np.abs(counts(split, strata) - wanted).max() <= 1
    assert np.abs(np.bincount(split) - wanted.sum(axis=1)).max() <= 1


def test_without_strata_the_split_is_one_random_choice():
    split = split_by_fractions(alike(100), SHARES, seed=0)
    assert np.bincount(split).tolist() == [50, 20, 30]
    assert len(set(np.diff(np.flatnonzero(split == TEST)))) > 3  # scattered


def test_the_split_depends_on_its_seed_alone():
    def drawn(seed):
        split = split_by_fractions(alike(60), SHARES, seed, groups=np.arange(60) // 3)
        return "".join("-vt"[code] for code in split)

    np.random.seed(1)
    random.seed(1)
    first = drawn(0)
    np.random.seed(2)
    assert drawn(0) == first != drawn(1)
    assert first == "vvvttt------ttt------------vvv---ttt---vvvtttttt---ttt---vvv", (
        "a split that was drawn once stays as it is"
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_each_row_is_tested_by_exactly_one_fold(grouped):
    generator = np.random.default_rng(3)
    strata = generator.integers(0, 3, 103)
    groups = generator.integers(0, 40, 103) if grouped else None
    splits = [split_by_fold(strata, (fold, 5), {"val": 0.2}, 7, groups, labels=strata) for fold in range(1, 6)]
    assert (np.stack([split == TEST for split in splits]).sum(axis=0) == 1).all()
    sizes = [int((split == TEST).sum()) for split in splits]
    assert max(sizes) - min(sizes) <= (4 if grouped else 1)
    for split in splits:
        assert set(strata[split == TRAIN]) == {0, 1, 2}
        assert abs((split == VAL).sum() - 0.2 * (split != TEST).sum()) <= (4 if grouped else 1)
        if groups is not None:
            assert all(len(set(split[groups == group])) == 1 for group in np.unique(groups))
        else:
            spread = [counts(each, strata)[TEST] for each in splits]
            assert np.ptp(spread, axis=0).max() <= 1


def test_groups_stay_together_and_shares_hold_as_well_as_groups_allow():
    generator = np.random.default_rng(0)
    groups = generator.permutation(np.repeat(np.arange(200), generator.integers(1, 12, 200)))
    strata = generator.integers(0, 2, 200)[groups]  # a patient has one diagnosis
    split = split_by_fractions(strata, SHARES, 0, groups)
    assert all(len(set(split[groups == group])) == 1 for group in range(200))
    shares = counts(split, strata) / np.bincount(strata)
    assert np.abs(shares - np.array([[0.5], [0.2], [0.3]])).max() < 0.01
    sizes = np.bincount(groups)
    large = {code: (sizes[np.unique(groups[split == code])] > 8).mean() for code in (TRAIN, VAL, TEST)}
    assert max(large.values()) - min(large.values()) < 0.15, "large groups are not all in the training split"


def test_folds_of_groups_with_a_class_each_are_equally_long():
    groups = np.repeat(np.arange(50), 5)
    for seed in range(10):
        strata = np.random.default_rng(seed).integers(0, 10, 50)[groups]
        sizes = [(split_by_fold(strata, (fold, 5), {"val": 0.0}, seed, groups) == TEST).sum() for fold in range(1, 6)]
        assert max(sizes) - min(sizes) <= 10


def test_one_group_that_is_larger_than_a_share_trains():
    groups = np.array([0] * 60 + list(range(1, 41)))
    split = split_by_fractions(alike(100), {"val": 0.15, "test": 0.15}, 0, groups=groups)
    assert set(split[:60]) == {TRAIN}
    assert np.bincount(split).tolist() == [70, 15, 15]


def test_a_class_with_one_row_trains():
    strata = np.array([0] * 20 + list(range(1, 11)))
    for seed in range(5):
        split = split_by_fractions(strata, SHARES, seed, labels=strata)
        assert set(split[20:]) == {TRAIN}
        assert (split == TEST).any()


def test_a_label_that_one_group_has_trains():
    groups, labels = np.arange(40) // 2, np.zeros((40, 3))
    labels[:, 0], labels[6:8, 1] = 1, 1
    for seed in range(10):
        split = split_by_fractions(combinations_of(labels), SHARES, seed, groups, labels)
        assert set(split[6:8]) == {TRAIN}


def test_a_rare_combination_may_be_tested_if_its_labels_train():
    labels = np.random.default_rng(0).integers(0, 2, (200, 9))  # nearly every combination is the only one
    split = split_by_fractions(combinations_of(labels), SHARES, 0, labels=labels)
    assert np.bincount(split).tolist() == [100, 40, 60]
    shares = [labels[split == code].mean(axis=0) for code in range(3)]
    assert np.ptp(shares, axis=0)[0] < 0.05


def test_numbers_are_split_by_their_ranges():
    values = np.random.default_rng(0).exponential(size=400)
    bins = quantile_bins(values)
    assert np.bincount(bins).tolist() == [40] * 10
    assert (np.diff(bins[np.argsort(values)]) >= 0).all()
    assert quantile_bins(values[:50]).max() == 1
    assert quantile_bins(values[:5]).max() == 0
    pairs = np.stack([values, -3 * values], axis=1)
    assert np.bincount(quantile_bins(pairs)).tolist() == [40] * 10


def test_rows_of_one_value_in_two_splits_are_named():
    rows = table(patient=["a", "b", "a", "c", "b", "c"])
    split = np.array([TRAIN, TRAIN, TEST, VAL, TRAIN, VAL])
    message = r"data.split_by: 1 values of 'patient' .* such as 'a' \(train: row 0; test: row 2\)"
    with pytest.raises(ConfigError, match=message):
        refuse_shared(split, rows, groups_of(rows, "patient"), "patient")
    refuse_shared(np.zeros(6, dtype=int), rows, groups_of(rows, "patient"), "patient")


def test_a_row_without_a_group_is_refused():
    with pytest.raises(ConfigError, match=r"data.split_by: column 'patient' .* is empty in row 1, so nobody"):
        groups_of(table(patient=["a", " ", "b"]), "patient")


@pytest.mark.parametrize("fold", ["2", "0/5", "6/5", "1/1", "a/b", "-1/5"])
def test_an_impossible_fold_is_refused(fold):
    with pytest.raises(ConfigError, match=r"^data.fold: "):
        parse_fold(fold)
    assert parse_fold("2/5") == (2, 5)


@pytest.mark.parametrize(
    ("fractions", "fold", "message"),
    [
        ({"train": 0.5}, None, "unknown split 'train'"),
        ({"test": 0.2}, "1/5", "the fold is the test split"),
        ({"val": 0.6, "test": 0.4}, None, "leave no rows to train on"),
        ({"val": -0.1}, None, "val: -0.1 is not a number"),
        ({"val": True}, None, "val: True is not a number"),
        ({"val": "0.1"}, None, "val: '0.1' is not a number"),
    ],
)
def test_impossible_shares_are_refused(fractions, fold, message):
    with pytest.raises(ConfigError, match=f"^data.fractions.*{message}"):
        parse_fractions(fractions, fold)


def test_left_out_shares_have_a_value():
    assert parse_fractions(None, None) == {"val": 0.15, "test": 0.15, "calibration": 0.0}
    assert parse_fractions({"val": 0}, None) == {"val": 0.0, "test": 0.15, "calibration": 0.0}
    assert parse_fractions(None, "1/5") == {"val": 0.15, "calibration": 0.0}


@pytest.mark.parametrize("grouped", [False, True])
def test_calibration_rows_are_taken_from_the_training_rows_alone(grouped):
    strata = np.random.default_rng(0).integers(0, 3, 400)
    groups = np.arange(400) // 2 if grouped else None
    without = split_by_fractions(strata, SHARES, 3, groups)
    split = split_by_fractions(strata, {**SHARES, "calibration": 0.25}, 3, groups)
    assert np.bincount(split, minlength=4).tolist() == [100, 80, 120, 100]
    if grouped:
        assert all(len(set(split[groups == group])) == 1 for group in range(200))
    else:
        changed = split != without
        assert set(without[changed]) == {TRAIN}
        assert set(split[changed]) == {CALIBRATION}


def test_calibration_rows_of_a_fold_are_none_of_its_test_rows():
    strata = np.arange(200) % 2
    without = split_by_fold(strata, (2, 5), {"val": 0.25}, 0)
    split = split_by_fold(strata, (2, 5), {"val": 0.25, "calibration": 0.5}, 0)
    assert ((split == TEST) == (without == TEST)).all()
    assert np.bincount(split).tolist() == [40, 40, 40, 80]


def test_fewer_rows_or_groups_than_folds_are_refused():
    with pytest.raises(ConfigError, match="3 rows cannot fill 5 folds"):
        split_by_fold(alike(3), (1, 5), {"val": 0.0}, 0)
    with pytest.raises(ConfigError, match="2 values of split_by cannot fill 3 folds"):
        split_by_fold(alike(8), (1, 3), {"val": 0.0}, 0, groups=np.arange(8) % 2)


def test_no_row_is_lost_when_nothing_is_held_out():
    assert set(split_by_fractions(alike(7), {"val": 0.0, "test": 0.0}, 0)) == {TRAIN}
    assert set(split_by_fractions(alike(7), {"val": 0.0, "test": 0.0}, 0, groups=np.arange(7))) == {TRAIN}


def test_no_python_object_per_row():
    rows = table(patient=[f"p{index // 5}" for index in range(100_000)])
    tracemalloc.start()
    groups_of(rows, "patient")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_other_spellings_of_a_group_are_the_group():
    rows = table(patient=["p1", " p1", "P1", "7", "7.0", "07", "x"])
    assert groups_of(rows, "patient").tolist() == [0, 0, 0, 1, 1, 1, 2]
