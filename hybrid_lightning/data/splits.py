"""Which rows of a manifest train, validate and test: pure functions of the table and a seed.

Rows are drawn from numpy's `RandomState`, whose numbers are the same in every version, never from the global state: all
processes find the same split, whatever else the seed of a run is.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybrid_lightning.data.spelling import key_of
from hybrid_lightning.data.table import Array, Table, rows_of
from hybrid_lightning.errors import ConfigError, at, check_keys, check_number, listing

SPLITS = ("train", "val", "test", "calibration")  # a row's split is the position in this list, int8
TRAIN, VAL, TEST, CALIBRATION = range(4)

_MOST_BINS, _ROWS_OF_BIN = 10, 20  # strata of numbers: at most so many, of about so many rows or more


class SplitRule:
    """How the rows of a manifest are split: by a column, by folds or by shares."""

    def __init__(
        self,
        column: str | None,
        fold: str | None,
        fractions: Mapping[str, Any] | None,
        stratify: bool,
        group_column: str | None,
        seed: int,
    ) -> None:
        check_number(seed, "data.split_seed", low=0, high=2**32 - 1)
        if column is not None and (fractions or fold):
            raise ConfigError("it decides the split; leave out 'fractions' and 'fold', or this.", "data.split_column")
        self.column = column
        self.group_column = group_column
        self.stratify = stratify
        self.seed = seed
        self.fold = None if fold is None else parse_fold(fold)
        self.fractions = parse_fractions(fractions, fold)

    def split(self, table: Table, strata: Array | None, labels: Array | None) -> Array:
        """The split of each row, `(rows,)`; `strata` and `labels` as in `split_by_fractions`."""
        groups = None if self.group_column is None else groups_of(table, self.group_column)
        if self.column is not None:
            split = split_from_column(table, self.column)
            if groups is not None:
                refuse_shared(split, table, groups, self.group_column)
            return split
        if strata is None or not self.stratify:
            strata = np.zeros(len(table), dtype=np.int64)
        if self.fold is not None:
            return split_by_fold(strata, self.fold, self.fractions, self.seed, groups, labels)
        return split_by_fractions(strata, self.fractions, self.seed, groups, labels)


def parse_fold(fold: str) -> tuple[int, int]:
    """``2/5`` → (2, 5), the second of five folds."""
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", str(fold))
    if not found:
        raise ConfigError(f"{fold!r} is not a fold and their number, such as 1/5, the first of five.", "data.fold")
    number, folds = int(found[1]), int(found[2])
    if folds < 2 or not 1 <= number <= folds:
        most = max(folds, 2)
        raise ConfigError(f"{fold!r} is impossible; the folds of {most} are 1/{most} to {most}/{most}.", "data.fold")
    return number, folds


def parse_fractions(fractions: Mapping[str, Any] | None, fold: str | None) -> dict[str, float]:
    """Shares of all rows, of val and test 0.15 each if left out; with folds, shares of the other folds and no test."""
    shares = {"val": 0.15, "test": 0.15, "calibration": 0.0}
    if fold is not None:
        del shares["test"]
    with at("data.fractions"):
        check_keys(fractions or {}, shares, kind="split" if fold is None else "split (the fold is the test split)")
        shares.update(fractions or {})
        for name, share in shares.items():
            check_number(share, name, low=0, high=1)
        if sum(shares.values()) >= 1:
            raise ConfigError(f"{shares} leave no rows to train on; together they are below 1.")
    return shares


def split_from_column(table: Table, column: str) -> Array:
    """The split of each row, `(rows,)`, from a column that holds names of `SPLITS` and nothing else."""
    with at("data.split_column"):
        table.require(column)
        codes = table.positions(column, SPLITS)
        wrong = np.flatnonzero(codes < 0)
        if len(wrong):
            others = table.names(column).take(wrong).fill_null("").unique().to_pylist()
            raise ConfigError(
                f"column {column!r} of {str(table.path)!r} holds {listing(others, 6)} ({rows_of(wrong)}). "
                f"Possible: {listing(SPLITS)}."
            )
        return codes.astype(np.int8)


def refuse_shared(split: Array, table: Table, groups: Array, group_column: str | None) -> None:
    """Raises `ConfigError` if rows of one value of a column are in several splits, with some of the values and rows."""
    pairs = np.unique(groups * len(SPLITS) + split)  # one number per group and split
    found, counts = np.unique(pairs // len(SPLITS), return_counts=True)
    shared = found[counts > 1]
    if not len(shared):
        return
    shown = []
    for group in shared[:3]:
        rows = np.flatnonzero(groups == group)
        name = table.texts(str(group_column))[int(rows[0])].as_py()
        shown.append(f"{name!r} ({places_of(rows, split)})")
    raise ConfigError(
        f"{len(shared)} values of {group_column!r} are in more than one split, such as {', '.join(shown)}. A "
        f"model would be tested on what it has seen. Correct the split column, or leave it out: then rows "
        f"of one value stay together.",
        "data.split_by",
    )


def groups_of(table: Table, column: str) -> Array:
    """Number of each row's value, `(rows,)`, in order of their first rows; other spellings of a value are the value."""
    with at("data.split_by"):
        advice = ", so nobody knows what these rows belong to. Give each a value, such as one of its own."
        table.require_filled(column, advice)
        names, places = table.coded(column)
        number_of_key: dict[str, int] = {}
        keys = map(key_of, names.to_pylist())
        numbers = [number_of_key.setdefault(key, len(number_of_key)) for key in keys]
        numbers_of_rows: Array = np.array(numbers, dtype=np.int64)[places]
        return numbers_of_rows


def places_of(rows: Array, split: Array) -> str:
    """Rows for a message, by their split: "train: rows 3, 8; val: row 7"."""
    places = []
    for code in np.unique(split[rows]):
        own = rows[split[rows] == code]
        places.append(f"{SPLITS[code]}: {rows_of(own, 3)}")
    return "; ".join(places)


def split_by_fractions(
    strata: Array, fractions: Mapping[str, float], seed: int, groups: Array | None = None, labels: Array | None = None
) -> Array:
    """A split of rows at random, with the same shares of each stratum; `strata` has the number of each row's.

    Without groups a share is exact to two rows, of all rows and of each stratum. With groups see `assign_groups`. A
    label of which no row would train gives one to the training split (with groups: a group).
    """
    # scikit-learn's train_test_split refuses strata of one row, and more strata than rows of a share: all 50 draws of
    # 200 rows in 64 combinations of labels, which are off by at most 1.5 rows of a combination here.
    val, test, calibration = fractions["val"], fractions["test"], fractions.get("calibration", 0.0)
    shares = [1 - val - test - calibration, val, test, calibration]
    if groups is None:
        split = _draw_rows(strata, shares, seed)
    else:
        split = assign_groups(groups, strata, shares, seed).astype(np.int8)
    return split if labels is None else with_all_labels(split, labels, seed, groups)


def split_by_fold(
    strata: Array,
    fold: tuple[int, int],
    fractions: Mapping[str, float],
    seed: int,
    groups: Array | None = None,
    labels: Array | None = None,
) -> Array:
    """One of several splits of which each row is in the test split of exactly one; arguments as `split_by_fractions`.

    The folds differ by at most one row, in all and in each stratum. With groups see `assign_groups`. The shares of val
    and calibration are of the rows of the other folds.
    """
    number, folds = fold
    count = len(strata)
    if groups is None:
        _refuse_empty_folds(count, "rows", folds)
        fold_of_row = np.empty(count, dtype=np.int64)
        # as even as scikit-learn's StratifiedKFold, which refuses strata that are all smaller than the folds are many
        fold_of_row[_by_stratum(strata, seed)] = np.arange(count) % folds
    else:
        _refuse_empty_folds(len(np.unique(groups)), "values of split_by", folds)
        fold_of_row = assign_groups(groups, strata, [1 / folds] * folds, seed)
    split = np.full(count, TEST, dtype=np.int8)
    rest = np.flatnonzero(fold_of_row != number - 1)
    groups = None if groups is None else groups[rest]
    labels = None if labels is None else labels[rest]
    split[rest] = split_by_fractions(strata[rest], {**fractions, "test": 0.0}, seed, groups, labels)
    return split


def _refuse_empty_folds(found: int, what: str, folds: int) -> None:
    if found < folds:
        raise ConfigError(f"{found} {what} cannot fill {folds} folds. Take fewer folds.", "data.fold")


def _by_stratum(strata: Array, seed: int) -> Array:
    """All rows, shuffled, then ordered by stratum."""
    shuffled = np.random.RandomState(seed).permutation(len(strata))
    by_stratum = np.argsort(strata[shuffled], kind="stable")
    order: Array = shuffled[by_stratum]
    return order


def _draw_rows(strata: Array, shares: list[float], seed: int) -> Array:
    """Takes every so many-th of the rows ordered by stratum, first for the test, then of the rest for the others."""
    order = _by_stratum(strata, seed)
    split = np.full(len(strata), TRAIN, dtype=np.int8)
    left = 1.0
    for code in (TEST, VAL, CALIBRATION):
        share = shares[code] / left
        left -= shares[code]
        # After n rows, n * share of them are taken, rounded. 1e-9: products that are a half but for their last bit.
        taken = np.floor(np.arange(len(order) + 1) * share + 0.5 + 1e-9)
        is_taken = np.diff(taken) > 0
        split[order[is_taken]] = code
        order = order[~is_taken]
    return split


def assign_groups(groups: Array, strata: Array, shares: list[float], seed: int) -> Array:
    """Deals whole groups out to parts, so that each part has about its share of each stratum; the part of each row.

    Greedy: from the largest group to the smallest, equals in random order, each goes to the part that has the least of
    the group's strata for its share, the group's own rows counted half (with a single stratum this is Sainte-Laguë's
    method); of equal parts to the emptiest. Large and small groups spread over all parts. A part is off its share by
    about the size of a group, so that a few groups that hold most rows cannot be dealt out well.
    """
    # scikit-learn's StratifiedGroupKFold deals 12 groups of 1 to 11 rows and 2 classes into 5 folds of which one is off
    # its size by 28 % (ours 13 %, means of 50 draws) and off the share of a class by 15 points (10), takes no shares
    # such as 0.15, and 33 s for a million rows in 100,000 groups (3 s).
    sizes = np.bincount(groups)
    if not sizes.all():  # numbered without gaps
        groups = (np.cumsum(sizes > 0) - 1)[groups]
        sizes = sizes[sizes > 0]
    totals = np.bincount(strata).astype(float)
    strata_of_group, rows_of_group = _rows_by_stratum(groups, strata, len(sizes), len(totals))

    parts = np.flatnonzero(np.array(shares) > 0)
    own_shares = np.array(shares)[parts, None]
    dealt = np.zeros((len(parts), len(totals)))  # rows of each stratum that a part has so far
    rows_of_part = np.zeros(len(parts))
    part_of_group = np.empty(len(sizes), dtype=np.int64)

    shuffled = np.random.RandomState(seed).permutation(len(sizes))
    largest_first = np.argsort(-sizes[shuffled], kind="stable")
    for group in shuffled[largest_first]:
        own_strata, own_rows = strata_of_group[group], rows_of_group[group]
        fill = (dealt[:, own_strata] + own_rows / 2) / own_shares
        # A row counts more in a rare stratum, where it is a larger part of all there are.
        cost = (fill * (own_rows / totals[own_strata])).sum(axis=1)
        fill_of_part = (rows_of_part + sizes[group] / 2) / own_shares[:, 0]
        # Of equal costs the least filled, or the first part gets the largest group of each stratum.
        best = int(np.lexsort((fill_of_part, cost))[0])
        dealt[best, own_strata] += own_rows
        rows_of_part[best] += sizes[group]
        part_of_group[group] = parts[best]
    return part_of_group[groups]


def _rows_by_stratum(
    groups: Array, strata: Array, number_of_groups: int, number_of_strata: int
) -> tuple[list[Array], list[Array]]:
    """Of each group, the strata that it has rows in, and the number of these rows."""
    # Lists, as a matrix of all groups and strata would be large and nearly empty.
    pairs_of_rows = groups * np.int64(number_of_strata)
    pairs_of_rows += strata
    pairs, counts = np.unique(pairs_of_rows, return_counts=True)
    group_of_pair, stratum_of_pair = np.divmod(pairs, number_of_strata)
    # Pairs are sorted, so those of a group stand together.
    starts = np.searchsorted(group_of_pair, np.arange(1, number_of_groups))
    return np.split(stratum_of_pair, starts), np.split(counts, starts)


def with_all_labels(split: Array, labels: Array, seed: int, groups: Array | None = None) -> Array:
    """The split, changed so that each label has a training row: one row, or the smallest of its groups, moves there.

    Labels are the class of each row `(rows,)`, or which labels it has `(rows, labels)`.
    """
    split = split.copy()
    for rows in _untrained(split, labels):
        if (split[rows] == TRAIN).any():  # since a group that came for another label
            continue
        if groups is None:
            split[np.random.RandomState(seed).choice(rows)] = TRAIN
        else:
            # A smaller group changes the shares less.
            smallest = min(np.unique(groups[rows]), key=lambda group: np.count_nonzero(groups == group))
            split[groups == smallest] = TRAIN
    return split


def _untrained(split: Array, labels: Array) -> list[Array]:
    """The rows of each label that no training row has."""
    training = labels[split == TRAIN]
    if labels.ndim == 1:
        return [np.flatnonzero(labels == label) for label in np.setdiff1d(labels, training)]
    is_trained = training.any(axis=0)
    lacking = labels.any(axis=0) & ~is_trained
    return [np.flatnonzero(column) for column in labels.T[lacking]]


def quantile_bins(values: Array) -> Array:
    """Strata of numbers, `(rows,)`: bins of equal counts; of columns `(rows, k)`, of the mean of their ranks."""
    import pandas

    columns = pandas.DataFrame(values.reshape(len(values), -1))
    ranks = columns.rank(method="first").mean(axis=1)
    bins = int(np.clip(len(values) // _ROWS_OF_BIN, 1, _MOST_BINS))
    # Ranks of the ranks, so that equal means do not make one bin larger than the others.
    places: Array = ranks.rank(method="first").to_numpy(dtype=np.int64) - 1
    return places * bins // max(len(values), 1)


def combinations_of(values: Array) -> Array:
    """Strata of rows of 0 and 1, `(rows, labels)`: one per combination, similar ones beside each other."""
    packed = np.packbits(values.astype(bool), axis=1)  # sorts faster than a column per label
    _, numbers = np.unique(packed, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)
