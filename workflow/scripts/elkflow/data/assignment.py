"""Assignment of rows to splits: pure functions on arrays of labels and 64-bit hashes.

Rows are ordered by a hash of their content and the seed, never by their position in the source or by Python's `hash()`:
the same rows give the same splits in any order, process and platform. Only these arrays grow with the number of rows,
so temporary ones are kept few: memory peaks at about 60 bytes per row, keys included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from elkflow.common.errors import UserError
from elkflow.config.data import SPLITS, SplitSettings

Size = int | str
"""A number of rows, or "rest"."""


@dataclass(frozen=True)
class RowKeys:
    """What determines the splits of N rows. All arrays have shape [N]."""

    label: np.ndarray
    """Integers from 0."""
    content: np.ndarray
    """uint64 hash of the whole row."""
    group: np.ndarray
    """uint64: rows with equal values never go to different splits."""
    text: np.ndarray | None = None
    """uint64 hash of the normalised text: rows with equal values are near-duplicates."""
    pair: np.ndarray | None = None
    """uint64: rows with equal values form a pair."""

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Assignment:
    """Row numbers of each split (val's refer to the val source if there is one), and numbers of rows left out."""

    rows: dict[str, np.ndarray]
    removed: dict[str, int] = field(default_factory=dict)


def assign_rows(train: RowKeys, val: RowKeys | None, split: SplitSettings, labels: int) -> Assignment:
    """Assign rows to train, ppo and val by the settings' recipe.

    Args:
        train: keys of the rows of the train source.
        val: keys of the val source; None: val is also taken from the train source.
        labels: number of labels.

    Raises:
        UserError: there are not enough rows; the message says how many there are.
    """
    if split.recipe == "thesis":
        assert val is not None  # the settings ensure it
        return assign_like_thesis(len(train), len(val), split)
    return assign_by_group(train, val, split, labels)


def assign_like_thesis(train: int, val: int, split: SplitSettings) -> Assignment:
    """The published procedure, row for row: shuffle, take N, `train_test_split`; val is shuffled with its own seed.

    Written in NumPy just as `datasets` does it (a test compares the two): one permutation for the shuffle and another
    for the split, whose test part comes first.
    """
    shuffled = np.random.default_rng(split.seed).permutation(train)[: split.take]
    count = len(shuffled)
    wanted = {"train": split.train, "ppo": 1 if split.ppo == "rest" else split.ppo}
    if sum(wanted.values()) > count:
        raise UserError(f"split.train + split.ppo: {split.train} + {split.ppo} rows, but there are only {count}")
    if isinstance(split.val, int) and split.val > val:
        raise UserError(f"split.val: {split.val} rows, but there are only {val}")
    second = np.random.default_rng(split.seed).permutation(count)
    rest = count - split.train
    ppo, chosen = shuffled[second[:rest]], shuffled[second[rest:]]
    last = np.random.default_rng(split.val_seed).permutation(val)
    rows = {
        "train": chosen,
        "ppo": ppo if split.ppo == "rest" else ppo[: split.ppo],
        "val": last if split.val == "rest" else last[: split.val],
    }
    return Assignment(rows)


def assign_by_group(train: RowKeys, val: RowKeys | None, split: SplitSettings, labels: int) -> Assignment:
    """Assign whole groups to each split in a seeded order, then take exact numbers of rows of each label from them.

    Removed first are near-duplicates (one row of each text stays, preferably the val source's), then incomplete pairs,
    then train rows whose group is in the val split of a val source.
    """
    removed: dict[str, int] = {}
    keep = np.ones(len(train), bool)
    keep_val = np.ones(0 if val is None else len(val), bool)
    if split.duplicates == "remove":
        keep = _first_of_each(train, split.seed)
        if val is not None:
            keep_val = _first_of_each(val, split.seed)
            assert train.text is not None and val.text is not None
            keep &= ~_is_in(train.text, val.text)
        removed["duplicates"] = int((~keep).sum() + (~keep_val).sum())
    if train.pair is not None:
        before = int(keep.sum() + keep_val.sum())
        keep = _whole_pairs(train, keep, labels)
        if val is not None:
            keep_val = _whole_pairs(val, keep_val, labels)
        removed["unpaired"] = before - int(keep.sum() + keep_val.sum())
    if val is None:
        sizes = [("val", split.val), ("train", split.train), ("ppo", split.ppo)]
        return Assignment(_assign_units(train, keep, sizes, split, labels), removed)
    rows = _assign_units(val, keep_val, [("val", split.val)], split, labels)
    leaking = keep & _is_in(train.group, val.group[rows["val"]])
    removed["groups_in_val"] = int(leaking.sum())
    rows |= _assign_units(train, keep & ~leaking, [("train", split.train), ("ppo", split.ppo)], split, labels)
    return Assignment({name: rows[name] for name in SPLITS}, removed)


def _assign_units(
    keys: RowKeys, keep: np.ndarray, sizes: Sequence[tuple[str, Size]], split: SplitSettings, labels: int
) -> dict[str, np.ndarray]:
    """Rows of each split in a seeded order: an array [n] of row numbers per split."""
    kept = np.flatnonzero(keep)
    if not len(kept):
        raise UserError(f"split.{sizes[0][0]}: no usable rows are left in its source")
    paired = keys.pair is not None
    stratified = split.balance and not paired
    # A unit is a row, or a pair, represented by one member (all share one hash).
    if paired:
        assert keys.pair is not None
        _, first = np.unique(keys.pair[kept], return_index=True)
        units, identity = kept[first], keys.pair
    else:
        units, identity = kept, keys.content
    strata = labels if stratified else 1
    stratum = keys.label[units] if stratified else np.zeros(len(units), np.int8)
    groups, group = _dense_ranks(scramble(keys.group[units], split.seed + 1))
    order = scramble(identity[units], split.seed)
    wanted = [None if size == "rest" else _quota(int(size), labels, strata, paired) for _, size in sizes]
    if groups == len(units):  # every unit is its own group: all units of every label can be used
        part = _assign_by_rank(order, stratum, strata, wanted)
    else:
        part = _assign_runs_of_groups(groups, group, order, stratum, strata, wanted)
    if part is None:
        raise UserError(_shortage(_count_strata(stratum, strata), sizes, labels if paired else 1, groups, stratified))
    chosen = {}
    for place, (name, _) in enumerate(sizes):
        rows = units[part == place]
        if paired:
            assert keys.pair is not None
            rows = kept[_is_in(keys.pair[kept], keys.pair[rows])]
        # By content, then row number: swapping equal rows in the source does not change the file.
        chosen[name] = rows[np.argsort(scramble(keys.content[rows], split.seed + 2), kind="stable")]
    return chosen


def _assign_by_rank(
    order: np.ndarray, stratum: np.ndarray, strata: int, wanted: Sequence[np.ndarray | None]
) -> np.ndarray | None:
    """[units] split number of each unit, or -1: the first units of each stratum go to the first split, and so on.

    None if there are too few units.
    """
    left, quotas = _count_strata(stratum, strata), []
    for quota in wanted:
        quotas.append(np.full(strata, left.min()) if quota is None else quota)
        left = left - quotas[-1]
        if (left < 0).any() or not quotas[-1].any():
            return None
    part = np.full(len(stratum), -1, np.int8)
    for value in range(strata):
        members = _sorted_indices(stratum == value, order)
        start = 0
        for place, quota in enumerate(quotas):
            part[members[start : start + quota[value]]] = place
            start += quota[value]
    return part


def _assign_runs_of_groups(
    groups: int,
    group: np.ndarray,
    order: np.ndarray,
    stratum: np.ndarray,
    strata: int,
    wanted: Sequence[np.ndarray | None],
) -> np.ndarray | None:
    """[units] split number of each unit, or -1: a run of whole groups for each split, then the wanted units from it.

    None if there are too few groups.
    """
    counts = np.zeros((groups + 1, strata), np.int64)
    for value in range(strata):
        counts[1:, value] = np.bincount(group[stratum == value], minlength=groups)
    np.cumsum(counts, axis=0, out=counts)
    bounds = _group_bounds(counts, wanted, even=True) or _group_bounds(counts, wanted, even=False)
    if bounds is None:
        return None
    part = np.full(len(group), -1, np.int8)
    for place, (quota, (start, end)) in enumerate(zip(wanted, bounds, strict=True)):
        inside = (group >= start) & (group < end)
        if quota is None:
            quota = np.full(strata, (counts[end] - counts[start]).min())
        for value in range(strata):
            part[_sorted_indices(inside & (stratum == value), order)[: quota[value]]] = place
    return part


def _sorted_indices(chosen: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Indices of the chosen units, sorted by `order`."""
    indices = np.flatnonzero(chosen)
    return indices[np.argsort(order[indices], kind="stable")]


def _group_bounds(counts: np.ndarray, wanted: Sequence[np.ndarray | None], even: bool) -> list[tuple[int, int]] | None:
    """First group of each split and the one after its last, in the groups' order; None if there are too few units.

    Args:
        counts: [groups + 1, strata], number of units in all groups before each.
        wanted: for each split, units of each stratum; None: all that are left.
        even: give each split a number of groups in proportion to its size, so that all are used; else as few as needed.
    """
    bounds, start, last = [], 0, len(counts) - 1
    for place, quota in enumerate(wanted):
        if quota is None:
            end = last
            if start >= last:
                return None
        else:
            enough = ((counts - counts[start]) >= quota).all(axis=1)
            if not enough.any():
                return None
            end = int(enough.argmax())
            later = sum(int(other.sum()) for other in wanted[place + 1 :] if other is not None)
            if even and all(other is not None for other in wanted):
                share = quota.sum() / (quota.sum() + later)
                end = max(
                    end,
                    int(
                        np.searchsorted(
                            counts.sum(axis=1) - counts[start].sum(), share * (counts[-1] - counts[start]).sum()
                        )
                    ),
                )
        bounds.append((start, end))
        start = end
    return bounds


def _quota(size: int, labels: int, strata: int, paired: bool) -> np.ndarray:
    """[strata] units for `size` rows; if they do not divide evenly, the first labels get one more."""
    if paired:
        return np.array([size // labels])
    return np.array([size // strata + (stratum < size % strata) for stratum in range(strata)])


def _shortage(counts: np.ndarray, sizes: Sequence[tuple[str, Size]], unit: int, groups: int, stratified: bool) -> str:
    wanted = " + ".join(f"{size} {name}" for name, size in sizes)
    names = ", ".join(f"split.{name}" for name, _ in sizes)
    have = f"{int(counts.sum()) * unit} usable rows in {groups} groups"
    labelled = f" ({' / '.join(map(str, counts))} by label)" if stratified else ""
    return f"{names}: {wanted} rows are more than {have}{labelled} can give"


def _first_of_each(keys: RowKeys, seed: int) -> np.ndarray:
    """[N] bool: of the rows with the same normalised text, the first in the seeded order."""
    assert keys.text is not None
    order = np.argsort(keys.text)
    text = keys.text[order]
    repeated = np.zeros(len(order), bool)
    repeated[1:] = text[1:] == text[:-1]
    repeated[:-1] |= repeated[1:]
    rows = np.sort(order[repeated])  # usually few; only these need sorting
    del order, text
    rows = rows[np.lexsort((scramble(keys.content[rows], seed), keys.text[rows]))]
    keep = np.ones(len(keys), bool)
    keep[rows[1:]] = keys.text[rows[1:]] != keys.text[rows[:-1]]
    return keep


def _whole_pairs(keys: RowKeys, keep: np.ndarray, labels: int) -> np.ndarray:
    """[N] bool: kept rows of pairs that have exactly one kept row of each label."""
    assert keys.pair is not None
    pairs, pair = _dense_ranks(keys.pair)
    whole = np.ones(pairs, bool)
    for label in range(labels):
        whole &= np.bincount(pair[keep & (keys.label == label)], minlength=pairs) == 1
    return keep & whole[pair]


def _count_strata(stratum: np.ndarray, strata: int) -> np.ndarray:
    """[strata] units of each stratum."""
    return np.array([np.count_nonzero(stratum == value) for value in range(strata)])


def _dense_ranks(values: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of distinct values, and [N] int32 the rank of each value among them.

    Like `np.unique` with `return_inverse`, in a third of the memory.
    """
    order = np.argsort(values)
    ordered = values[order]
    new = np.zeros(len(values), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    del ordered
    codes = np.empty(len(values), np.int32)
    codes[order] = np.cumsum(new, dtype=np.int32)
    return int(np.count_nonzero(new)) + 1, codes


def _is_in(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N] bool: whether each value is among the others. Like `np.isin`, in a third of the memory."""
    others = np.sort(others)
    place = np.searchsorted(others, values)
    place[place == len(others)] = 0
    return others[place] == values


def scramble(values: np.ndarray, seed: int) -> np.ndarray:
    """Scramble 64-bit hashes with a seed: splitmix64's finaliser (Steele et al. 2014), a bijection for each seed."""
    x = values.astype(np.uint64)
    x += np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def connected_groups(*columns: np.ndarray) -> np.ndarray:
    """[N] group of each row: rows that share a value in any column, directly or through other rows, get the same.

    A group's value is its smallest in the first column, so it does not depend on the order of rows.
    """
    if len(columns) == 1:
        return columns[0]
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    nodes, first = _dense_ranks(columns[0])
    starts, ends = [], []
    for column in columns[1:]:  # each row is an edge from its first value to each other one
        count, code = _dense_ranks(column)
        starts.append(first)
        ends.append(code + nodes)
        nodes += count
    edges = (np.concatenate(starts), np.concatenate(ends))
    graph = coo_matrix((np.ones(len(edges[0]), bool), edges), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    component = component[first]
    smallest = np.full(component.max() + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, component, columns[0])
    return smallest[component]
