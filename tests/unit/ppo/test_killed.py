"""A run killed at random moments, again and again, ends bit for bit like one that was left alone."""

import random
import signal
import time
from pathlib import Path

import tiny_trainer
import torch
from forking import started
from tiny_trainer import metrics, table, weights

KILLS = 14
SETTINGS = {"steps": 60, "batch_size": 8, "checkpoint_every": 2, "evaluate_every": 3, "lora": {"dropout": 0.1}}
SETTINGS |= {"kl": {"control": "adaptive", "horizon": 50}, "minibatch_size": 4, "schedule": "linear", "warmup": 5}


def slowly(prompts, responses):
    """The usual reward, after a while: kills shall fall into steps as well as between them."""
    time.sleep(0.03)
    return table(tiny_trainer.questions())(prompts, responses)


def child(folder: Path):
    made = tiny_trainer.trainer(folder, reward=slowly, **SETTINGS)
    made.train()
    torch.save(weights(made), folder / "final.pt")  # only once all is done


def reached(folder: Path) -> int:
    return max((int(step.name[5:]) for step in folder.glob("step-??????")), default=-1)


def test_random_kills_change_nothing(tmp_path):
    whole = started(child, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    folder, draw, fell = tmp_path / "killed", random.Random(7), []
    while len(fell) < KILLS:
        process, before = started(child, folder), reached(folder)
        if len(fell) % 3:  # every third may fall before it has found its way back
            while process.is_alive() and reached(folder) == before:
                time.sleep(0.005)
        process.join(draw.uniform(0, 0.15))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        fell.append(reached(folder))
    assert len(fell) >= 10 and len(set(fell)) >= 7, f"too few kills, or all on the same steps: {fell}"
    last = started(child, folder)
    last.join()
    assert last.exitcode == 0
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert (folder / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    a, b = (torch.load(place / "final.pt") for place in (folder, tmp_path / "whole"))
    assert all(torch.equal(a[name], b[name]) for name in b) and len(a) == len(b) > 4
