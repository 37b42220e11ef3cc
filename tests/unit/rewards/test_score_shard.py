"""Shards of a reward table: every row once, whatever is scored with it."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elkflow.probes.saved_probe import Probe
from elkflow.rewards.score_shard import shard_rows


@given(total=st.integers(0, 10_000), shards=st.integers(1, 64))
def test_shards_cover_every_row_once_and_evenly(total, shards):
    cuts = [shard_rows(total, number, shards) for number in range(1, shards + 1)]
    assert cuts[0][0] == 0 and cuts[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    sizes = [last - first for first, last in cuts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 300),
    width=st.sampled_from([3, 32, 576, 2048]),
    shards=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_log_odds_of_a_row_do_not_depend_on_the_rows_scored_with_it(rows, width, shards, seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, rows, 2, width, generator=generator)
    mean, scale = torch.randn(1, 2, width, generator=generator), torch.rand(1, 2, width, generator=generator) + 0.5
    weight = torch.randn(width, generator=generator)
    probe = Probe(mean=mean, scale=scale, weight=weight, bias=torch.tensor(0.25), facts={})
    whole = probe.log_odds(states)
    cuts = (shard_rows(rows, number, shards) for number in range(1, shards + 1))
    pieces = torch.cat([probe.log_odds(states[:, first:last]) for first, last in cuts])
    assert torch.equal(whole, pieces)
    odds = ((states - mean[:, None]) / scale[:, None]).double()
    expected = (odds[:, :, 1] - odds[:, :, 0]) @ weight.double() + 0.25
    torch.testing.assert_close(whole.double(), expected[0], atol=1e-4, rtol=1e-4)
