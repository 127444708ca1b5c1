"""Which rows of a manifest train, validate and test: pure functions of the table and a seed.

Rows are drawn from numpy's `RandomState`, whose numbers are the same in every version, never from the global state: all
processes find the same split, whatever else the seed of a fit is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError, listing, unknown

SPLITS = ("train", "val", "test")
"""Names of the splits; a row's split is the position in this list, int8."""
TRAIN, VAL, TEST = range(3)
Array = np.ndarray[Any, Any]


def split_from_column(table: Table, column: str, where: str = "data.split_column") -> Array:
    """The split of each row, `(rows,)`, as a column says it.

    Raises:
        ConfigError: If there is no such column, or it holds anything but ``train``, ``val`` and ``test``.
    """
    import pyarrow
    import pyarrow.compute as compute

    table.require(column, where)
    texts = table.texts(column)
    codes = compute.index_in(texts, value_set=pyarrow.array(SPLITS, type=texts.type))
    wrong = np.flatnonzero(np.asarray(codes.is_null()))
    if len(wrong):
        others = [text for text in texts.unique().to_pylist() if text not in SPLITS]
        shown = listing(["" if text is None else text for text in others], 6)
        raise ConfigError(
            f"{where}: column {column!r} of {str(table.path)!r} holds {shown} ({rows_of(wrong)}). "
            f"Possible: {listing(SPLITS)}."
        )
    return np.asarray(codes).astype(np.int8)


def refuse_shared(split: Array, table: Table, split_by: str, where: str = "data.split_by") -> None:
    """Raises `ConfigError` if rows of one value of a column are in several splits, with some of the values and rows."""
    groups, names = groups_of(table, split_by, where)
    lowest = np.full(len(names), len(SPLITS), dtype=np.int8)
    highest = np.zeros(len(names), dtype=np.int8)
    np.minimum.at(lowest, groups, split)
    np.maximum.at(highest, groups, split)
    shared = np.flatnonzero(lowest != highest)
    if not len(shared):
        return
    shown = []
    for group in shared[:3]:
        rows = np.flatnonzero(groups == group)
        places = {SPLITS[code]: int(rows[split[rows] == code][0]) for code in np.unique(split[rows])}
        shown.append(f"{names[int(group)].as_py()!r} ({', '.join(f'{s}: row {row}' for s, row in places.items())})")
    raise ConfigError(
        f"{where}: {len(shared)} values of {split_by!r} are in more than one split, such as {'; '.join(shown)}. A "
        f"model would be tested on what it has seen. Correct the split column, or leave it out: then rows "
        f"of one value stay together."
    )


def groups_of(table: Table, column: str, where: str = "data.split_by") -> tuple[Array, Any]:
    """Number of each row's value `(rows,)` and the values, an Arrow array, in order of their first rows.

    Raises:
        ConfigError: If there is no such column, or a cell is empty.
    """
    table.require(column, where)
    empty = np.flatnonzero(table.empty(column))
    if len(empty):
        raise ConfigError(
            f"{where}: column {column!r} of {str(table.path)!r} is empty in {rows_of(empty)}, so nobody knows what "
            f"these rows belong to. Give each a value, such as one of its own."
        )
    encoded = table.texts(column).dictionary_encode()
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary


def parse_fold(fold: str, where: str = "data.fold") -> tuple[int, int]:
    """``2/5`` → (2, 5): the second of five folds.

    Raises:
        ConfigError: If it is something else.
    """
    number, slash, count = str(fold).partition("/")
    if not (slash and number.strip().isdigit() and count.strip().isdigit()):
        raise ConfigError(f"{where}: {fold!r} is not a fold and their number, such as 1/5, the first of five.")
    k, n = int(number), int(count)
    if n < 2 or not 1 <= k <= n:
        raise ConfigError(
            f"{where}: {fold!r} is impossible; the folds of {max(n, 2)} are 1/{max(n, 2)} to {max(n, 2)}/{max(n, 2)}."
        )
    return k, n


def parse_fractions(
    fractions: Mapping[str, Any] | None, fold: str | None, where: str = "data.fractions"
) -> dict[str, float]:
    """Shares of all rows for ``val`` and ``test``; 0.15 each if left out, ``val`` alone with folds, of the other folds.

    Raises:
        ConfigError: If a key or share is impossible.
    """
    possible = ("val", "test") if fold is None else ("val",)
    shares = dict.fromkeys(possible, 0.15)
    for name, share in (fractions or {}).items():
        if name not in possible:
            raise unknown(where, "split" if fold is None else "split (the fold is the test split)", str(name), possible)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ConfigError(f"{where}.{name}: {share!r} is not a share of the rows from 0 to below 1.")
        shares[name] = float(share)
    if sum(shares.values()) >= 1:
        raise ConfigError(f"{where}: {shares} leave no rows to train on; together they are below 1.")
    return shares


def split_by_fractions(
    count: int,
    fractions: Mapping[str, float],
    seed: int,
    strata: Array | None = None,
    groups: Array | None = None,
    labels: Array | None = None,
) -> Array:
    """A split at random, with the same shares of each stratum.

    Without groups a share is exact to one row, of all rows and of each stratum. With groups see `assign_groups`. A
    label of which no row would train gives one to the training split (with groups: a group).

    Args:
        count: Number of rows.
        fractions: Shares of ``val`` and ``test``; the rest trains.
        seed: Equal seeds give equal splits.
        strata: Number of each row's stratum, `(count,)`; None is a single one.
        groups: Number of each row's group, `(count,)`; rows of one group get one split.
        labels: Labels that have to be in the training split, see `with_all_labels`; None requires nothing.

    Returns:
        `(count,)`, positions in `SPLITS`.
    """
    strata = np.zeros(count, dtype=np.int64) if strata is None else strata
    shares = [1 - fractions["val"] - fractions["test"], fractions["val"], fractions["test"]]
    if groups is None:
        split = _systematic(strata, shares, np.random.RandomState(seed))
    else:
        split = assign_groups(groups, strata, shares, seed).astype(np.int8)
    return split if labels is None else with_all_labels(split, labels, seed, groups)


def split_by_fold(
    count: int,
    fold: tuple[int, int],
    val: float,
    seed: int,
    strata: Array | None = None,
    groups: Array | None = None,
    labels: Array | None = None,
) -> Array:
    """One of several splits of which each row is in the test split of exactly one.

    The folds differ by at most one row, all in all and in each stratum. With groups see `assign_groups`.

    Args:
        count: Number of rows.
        fold: Which is the test split, from 1, and the number of folds.
        val: Share of the other folds for validation.
        seed: Equal seeds give equal folds; it is the same for all of them.
        strata: Number of each row's stratum, `(count,)`; None is a single one.
        groups: Number of each row's group, `(count,)`; rows of one group are in one fold.
        labels: Labels that validation may not take from the training split, see `with_all_labels`.

    Returns:
        `(count,)`, positions in `SPLITS`.
    """
    strata = np.zeros(count, dtype=np.int64) if strata is None else strata
    folds = folds_of(fold[1], seed, strata, groups)
    split = np.where(folds == fold[0] - 1, TEST, TRAIN).astype(np.int8)
    rest = np.flatnonzero(split == TRAIN)
    inner = (None if each is None else each[rest] for each in (strata, groups, labels))
    split[rest] = split_by_fractions(len(rest), {"val": val, "test": 0.0}, seed, *inner)
    return split


def folds_of(number: int, seed: int, strata: Array, groups: Array | None = None) -> Array:
    """The fold of each row, `(rows,)`, from 0.

    Raises:
        ConfigError: If there are fewer rows, or groups, than folds.
    """
    found, what = (len(strata), "rows") if groups is None else (len(np.unique(groups)), "values of split_by")
    if found < number:
        raise ConfigError(f"data.fold: {found} {what} cannot fill {number} folds. Take fewer folds.")
    if groups is not None:
        return assign_groups(groups, strata, [1 / number] * number, seed)
    folds = np.empty(len(strata), dtype=np.int64)
    folds[_by_stratum(strata, np.random.RandomState(seed))] = np.arange(len(strata)) % number
    return folds


def _by_stratum(strata: Array, random: np.random.RandomState) -> Array:
    """All rows, shuffled, then ordered by stratum."""
    shuffled = random.permutation(len(strata))
    order: Array = shuffled[np.argsort(strata[shuffled], kind="stable")]
    return order


def _systematic(strata: Array, shares: list[float], random: np.random.RandomState) -> Array:
    """Takes every so many-th of the rows ordered by stratum, first for the test, then of the rest for validation."""
    order = _by_stratum(strata, random)
    split = np.full(len(strata), TRAIN, dtype=np.int8)
    for code, share in ((TEST, shares[TEST]), (VAL, shares[VAL] / (1 - shares[TEST]))):
        edges = np.floor(np.arange(len(order) + 1) * share + 0.5 + 1e-9)
        chosen = np.diff(edges) > 0
        split[order[chosen]] = code
        order = order[~chosen]
    return split


def assign_groups(groups: Array, strata: Array, shares: list[float], seed: int) -> Array:
    """Deals whole groups out to parts, so that each part has about its share of each stratum; the part of each row.

    Greedy: from the largest group to the smallest, equals in random order, each goes to the part that has the least of
    the group's strata for its share, the group's own rows counted half (with a single stratum this is Sainte-Laguë's
    method). Large and small groups spread over all parts. A part is off its share by about the size of a group, so that
    a few groups that hold most rows cannot be dealt out well.

    Args:
        groups: Number of each row's group.
        strata: Number of each row's stratum.
        shares: Of each part; sum to 1.
        seed: Of the order of equal groups.
    """
    _, groups = np.unique(groups, return_inverse=True)
    totals = np.bincount(strata).astype(float)
    pairs, counts = np.unique(groups * np.int64(len(totals)) + strata, return_counts=True)
    owners, owned = np.divmod(pairs, len(totals))
    sizes = np.bincount(groups)
    starts = np.searchsorted(owners, np.arange(len(sizes) + 1))
    parts = [index for index, share in enumerate(shares) if share > 0]
    weights = np.array([shares[part] for part in parts])[:, None]
    filled = np.zeros((len(parts), len(totals)))
    chosen = np.empty(len(sizes), dtype=np.int64)
    shuffled = np.random.RandomState(seed).permutation(len(sizes))
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        own = slice(starts[group], starts[group + 1])
        column, amount = owned[own], counts[own]
        cost = ((filled[:, column] + amount / 2) / weights * (amount / totals[column])).sum(axis=1)
        best = int(cost.argmin())
        filled[best, column] += amount
        chosen[group] = parts[best]
    return chosen[groups]


def with_all_labels(split: Array, labels: Array, seed: int, groups: Array | None = None) -> Array:
    """The split, changed so that each label has a training row: one row, or the smallest of its groups, moves there.

    Args:
        split: Of each row.
        labels: Number of each row's class `(rows,)`, or which labels it has `(rows, labels)`.
        seed: Of the choice of a row.
        groups: Number of each row's group.
    """
    split = split.copy()
    for rows in _untrained(split, labels):
        if (split[rows] == TRAIN).any():  # since a group that came for another label
            continue
        if groups is None:
            split[np.random.RandomState(seed).choice(rows)] = TRAIN
        else:
            members = np.unique(groups[rows])
            sizes = [(groups == member).sum() for member in members]
            split[groups == members[int(np.argmin(sizes))]] = TRAIN
    return split


def _untrained(split: Array, labels: Array) -> list[Array]:
    """The rows of each label that no training row has."""
    if labels.ndim == 1:
        return [np.flatnonzero(labels == label) for label in np.setdiff1d(labels, labels[split == TRAIN])]
    found = labels.astype(bool)
    lacking = found.any(axis=0) & ~found[split == TRAIN].any(axis=0)
    return [np.flatnonzero(found[:, label]) for label in np.flatnonzero(lacking)]


def quantile_bins(values: Array, most: int = 10, least: int = 20) -> Array:
    """Strata of numbers, `(rows,)`: bins of equal counts, at most `most` and with about `least` rows or more.

    Of several columns `(rows, k)`, the mean of their ranks is taken.
    """
    columns = values.reshape(len(values), -1)
    ranks = np.argsort(np.argsort(columns, axis=0, kind="stable"), axis=0, kind="stable").mean(axis=1)
    place = np.argsort(np.argsort(ranks, kind="stable"), kind="stable")
    bins = int(np.clip(len(values) // least, 1, most))
    return place * bins // max(len(values), 1)


def combinations_of(values: Array) -> Array:
    """Strata of rows of 0 and 1, `(rows, labels)`: one per combination, similar ones beside each other."""
    packed = np.packbits(values.astype(bool), axis=1)
    _, numbers = np.unique(packed, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)


def rows_of(rows: Iterable[Any], limit: int = 5) -> str:
    """Rows for a message: "rows 3, 8 and 2 more"."""
    rows = [int(row) for row in rows]
    shown = ", ".join(map(str, rows[:limit]))
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}" + (
        f" and {len(rows) - limit} more" if len(rows) > limit else ""
    )
