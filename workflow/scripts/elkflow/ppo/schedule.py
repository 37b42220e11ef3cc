"""What follows from (seed, step) alone: a batch's prompts and who processes them, random seeds, learning rate."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings


def total_steps(settings: PPOSettings, prompts: int) -> int:
    """Rollout batches in a run.

    Raises:
        UserError: `epochs` is less than one batch.
    """
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    steps = int(settings.epochs * prompts / settings.batch_size)
    if not steps:
        raise UserError(
            f"ppo.epochs: {settings.epochs} of {prompts} prompts is less than a batch of {settings.batch_size}"
        )
    return steps


def batch_rows(prompts: int, batch_size: int, step: int, seed: int, strata: Sequence[int] | None = None) -> list[int]:
    """Indices of a step's prompts: shuffled passes over all of them, one after another.

    Args:
        strata: a class of each prompt; every stretch of a pass then holds as many of each class as all prompts do, to
            within one. Without, the classes' shares differ from batch to batch by chance.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    passes = {number: _shuffled(prompts, seed, number, strata) for number in {p // prompts for p in places}}
    return [int(passes[place // prompts][place % prompts]) for place in places]


def _shuffled(prompts: int, seed: int, number: int, strata: Sequence[int] | None) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, number]).permutation(prompts)
    if strata is None:
        return order
    classes, place = np.asarray(strata)[order], np.empty(prompts)
    for each in np.unique(classes):
        members = np.flatnonzero(classes == each)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def parts(lengths: Sequence[int], minibatch: int, accumulation: int, process: int, processes: int) -> list[list[int]]:
    """One process's microbatches, as positions in the batch: its share of every minibatch, in `accumulation` parts.

    Args:
        lengths: of the batch's prompts; prompts of similar length are put together.
    """
    share = minibatch // processes
    size = share // accumulation
    found = []
    for first in range(process * share, len(lengths), minibatch):
        mine = sorted(range(first, first + share), key=lengths.__getitem__)
        found += [mine[at : at + size] for at in range(0, share, size)]
    return found


def merged(parts: Sequence[list[int]], rows: int) -> list[list[int]]:
    """Consecutive parts of equal size merged, to at most `rows` rows where that is more than a part."""
    count = max(1, rows // len(parts[0]))
    return [[row for part in parts[at : at + count] for row in part] for at in range(0, len(parts), count)]


def derive_seed(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def lr_factor(step: int, steps: int, settings: PPOSettings) -> float:
    """Factor on the learning rate at a step: a third in a warm start, linear warm-up, then as the schedule says."""
    if step < settings.warm_start:
        return 1 / 3
    step, steps = step - settings.warm_start, steps - settings.warm_start
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    if settings.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if settings.schedule == "cosine" else 1.0
