"""Which row goes to which split: pure functions on arrays of labels and hashes, 64 bits a row each.

Rows are ordered by a hash of their content and the seed, never by where they stood in the source or by Python's
`hash()`: the same rows give the same splits in any order, process and platform. These arrays are all that grows with
the rows, so the functions take care of temporary ones: about 60 bytes a row at the most, the keys included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from elkflow.common.errors import UserError
from elkflow.config.data import SPLITS, SplitSettings

Size = int | str  # a number of rows, or "rest"


@dataclass(frozen=True)
class RowKeys:
    """What the dealing needs to know of N rows. All arrays have shape [N]."""

    label: np.ndarray
    """Whole numbers from 0."""
    content: np.ndarray
    """uint64 hash of the whole row."""
    group: np.ndarray
    """uint64: equal means never in two splits."""
    text: np.ndarray | None = None
    """uint64 hash of the normalised text: equal means near-duplicates."""
    pair: np.ndarray | None = None
    """uint64: rows of one pair."""

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Assignment:
    """Row numbers of each split (val counts in the val source where there is one), and how many rows were left out."""

    rows: dict[str, np.ndarray]
    removed: dict[str, int] = field(default_factory=dict)


def assign_rows(train: RowKeys, val: RowKeys | None, split: SplitSettings, labels: int) -> Assignment:
    """Deal rows to train, ppo and val by the settings' recipe.

    Args:
        train: keys of the rows of the train source.
        val: keys of the val source; None: val is taken out of the train source too.
        labels: number of labels.

    Raises:
        UserError: there are not enough rows; the message says how many there are.
    """
    if split.recipe == "thesis":
        assert val is not None  # the settings see to it
        return assign_like_thesis(len(train), len(val), split)
    return assign_by_group(train, val, split, labels)


def assign_like_thesis(train: int, val: int, split: SplitSettings) -> Assignment:
    """The published procedure, to the row: shuffle, take N, `train_test_split`; val shuffled with its own seed.

    It is spelt out in NumPy as `datasets` does it (a test compares the two): a permutation for the shuffle, and another
    for the split, of which the test part comes first.
    """
    shuffled = np.random.default_rng(split.seed).permutation(train)[: split.take]
    count = len(shuffled)
    wanted = {"train": split.train, "ppo": 1 if split.ppo == "rest" else split.ppo}
    if sum(wanted.values()) > count:
        asked = f"{split.train} + {split.ppo} rows are asked for"
        raise UserError(f"split.train + split.ppo: {asked}, but there are only {count}")
    if isinstance(split.val, int) and split.val > val:
        raise UserError(f"split.val: {split.val} rows are asked for, but there are only {val}")
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
    """Whole groups to each split in a seeded order, then exact numbers of rows of each label out of them.

    Near-duplicates go first (one of each text stays; the val source's own has precedence), then incomplete pairs, then
    train rows whose group is in the val source.
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
    """Rows of each split in a seeded order: [n] row numbers a split."""
    kept = np.flatnonzero(keep)
    if not len(kept):
        raise UserError(f"split.{sizes[0][0]}: no usable rows are left in its source")
    paired = keys.pair is not None
    stratified = split.balance and not paired
    # A unit is a pair (all members share one hash, so one member stands for it) or a row.
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
    if groups == len(units):  # nothing to keep together: every unit of every label can be used
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
        # By content, then row number: equal rows may change places without changing the file.
        chosen[name] = rows[np.argsort(scramble(keys.content[rows], split.seed + 2), kind="stable")]
    return chosen


def _assign_by_rank(
    order: np.ndarray, stratum: np.ndarray, strata: int, wanted: Sequence[np.ndarray | None]
) -> np.ndarray | None:
    """[units] number of each unit's split, or -1: the first of each stratum to the first split, and so on.

    None where the units do not suffice.
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
    """[units] number of each unit's split, or -1: whole runs of groups to each split, then as many units as are wanted.

    None where the groups do not suffice.
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
    """Indices of the chosen ones, by their order."""
    indices = np.flatnonzero(chosen)
    return indices[np.argsort(order[indices], kind="stable")]


def _group_bounds(counts: np.ndarray, wanted: Sequence[np.ndarray | None], even: bool) -> list[tuple[int, int]] | None:
    """First and one past the last group of each split, in the groups' order; None if the rows do not suffice.

    Args:
        counts: [groups + 1, strata], units in all groups before one.
        wanted: units of each stratum, a split; None: all that is left.
        even: give each split groups in proportion to its size, so that all groups are used; else as few as suffice.
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
    """[strata] units for `size` rows; where they do not divide evenly the first labels get one more."""
    if paired:
        return np.array([size // labels])
    return np.array([size // strata + (stratum < size % strata) for stratum in range(strata)])


def _shortage(counts: np.ndarray, sizes: Sequence[tuple[str, Size]], unit: int, groups: int, stratified: bool) -> str:
    asked = " + ".join(f"{size} {name}" for name, size in sizes)
    names = ", ".join(f"split.{name}" for name, _ in sizes)
    have = f"{int(counts.sum()) * unit} usable rows in {groups} groups"
    labelled = f" ({' / '.join(map(str, counts))} by label)" if stratified else ""
    return f"{names}: {asked} rows are asked for, more than {have}{labelled} can give"


def _first_of_each(keys: RowKeys, seed: int) -> np.ndarray:
    """[N] bool: of rows with the same normalised text, the one that comes first in the seeded order."""
    assert keys.text is not None
    order = np.argsort(keys.text)
    text = keys.text[order]
    repeated = np.zeros(len(order), bool)
    repeated[1:] = text[1:] == text[:-1]
    repeated[:-1] |= repeated[1:]
    rows = np.sort(order[repeated])  # few as a rule, and all that has to be looked at
    del order, text
    rows = rows[np.lexsort((scramble(keys.content[rows], seed), keys.text[rows]))]
    keep = np.ones(len(keys), bool)
    keep[rows[1:]] = keys.text[rows[1:]] != keys.text[rows[:-1]]
    return keep


def _whole_pairs(keys: RowKeys, keep: np.ndarray, labels: int) -> np.ndarray:
    """[N] bool: kept rows whose pair has exactly one kept row of each label."""
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
    """How many different values there are, and [N] int32 the rank of each among them.

    As `np.unique` with `return_inverse`, in a third of its memory.
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
    """[N] bool: values that are among the others. As `np.isin`, in a third of its memory."""
    others = np.sort(others)
    place = np.searchsorted(others, values)
    place[place == len(others)] = 0
    return others[place] == values


def scramble(values: np.ndarray, seed: int) -> np.ndarray:
    """Scramble 64-bit hashes with a seed: splitmix64's finaliser (Steele et al. 2014), a bijection for every seed."""
    x = values.astype(np.uint64)
    x += np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def connected_groups(*columns: np.ndarray) -> np.ndarray:
    """[N] one value a component: rows that share a value in any column, directly or through others, get the same.

    The value is the smallest of the first column's in the component, so it does not depend on the rows' order.
    """
    if len(columns) == 1:
        return columns[0]
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    nodes, first = _dense_ranks(columns[0])
    starts, ends = [], []
    for column in columns[1:]:  # a row is an edge from its first value to each of the others
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
