"""Seconds per PPO step of the quickstart, without each trick that makes it fast, one at a time.

    python bench/ppo_ablation.py [--results results] [--rounds 8]

Needs a finished quickstart: its model, prompts, reward tables and settings. One process makes all steps; a round is, in
changing order, a rollout of one minibatch with its updates, and an evaluation on held-out prompts, with everything on
and without each trick. The first round warms up. A step counts as many of the former as it has minibatches, and its
share of the latter. Printed are median seconds, and the median over rounds of how much longer a step takes without the
trick. There is one thread, and seconds are the processor's, so that other work on the machine counts little. A trick
that gains less than 5 % is not worth its code.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from ppo_quality import RUN, session

from elkflow.common.files import read_json
from elkflow.common.memory import keep_freed_memory
from elkflow.config.ppo import PPOSettings
from elkflow.ppo.trainer import Trainer
from elkflow.ppo.trunk import Memory, Trunk

ALL = "nothing"


def switches(trunk: Trunk) -> dict[str, AbstractContextManager]:
    """What does without each trick within."""
    return {
        ALL: nullcontext(),
        "prefix trees instead of padded lines": patch.object(trunk, "longest", 0),
        "frozen blocks apart from trained ones": patch.object(trunk, "split", False),
        "their output kept, update and evaluation": patch.object(trunk, "remembering", nullcontext),
    }


def measure(results: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of every variant in each round."""
    run = read_json(results / RUN / "manifest.json")
    settings, dtype = PPOSettings.model_validate(run["settings"]), run["facts"]["dtype"]
    minibatch = settings.minibatch_size or settings.batch_size
    one = settings.model_copy(update={"batch_size": minibatch})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(session(results, Path(folder) / "run", one, dtype))
        trainer.session.finish_step = lambda *_: None  # every step is the first, on the same prompts
        variants = switches(trainer.policy.trunk)
        seconds: dict[str, list[float]] = {trick: [] for trick in variants}
        memories: dict[str, Memory] = {trick: {} for trick in variants}
        for number in range(rounds + 1):
            for trick in random.Random(number).sample(list(variants), len(variants)):
                trainer.session.held_out_memory = memories[trick]
                times = [time.process_time()]
                with variants[trick]:
                    for part in (trainer.step, trainer.session.evaluate):
                        part()
                        times.append(time.process_time())
                steps = settings.batch_size // minibatch * (times[1] - times[0])
                seconds[trick].append(steps + (times[2] - times[1]) / settings.evaluate_every)
                print(f"round {number}, without {trick}: {seconds[trick][-1]:.2f} s", file=sys.stderr, flush=True)
    return {trick: found[1:] for trick, found in seconds.items()}


def table(seconds: dict[str, list[float]]) -> list[str]:
    """Lines of the table, from the seconds of every variant in the same rounds."""
    lines = [f"{'without':40}{'s per step':>12}{'longer by':>12}"]
    for trick, found in seconds.items():
        longer = statistics.median(a / b for a, b in zip(found, seconds[ALL], strict=True)) - 1
        lines.append(f"{trick:40}{statistics.median(found):>12.2f}{longer:>12.1%}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every script of the workflow does
    print(*table(measure(given.results, given.rounds)), sep="\n")


if __name__ == "__main__":
    main()
