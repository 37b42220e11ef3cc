"""Hidden states with a planted truth direction, in the files the workflow passes around."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import score_answers
import torch
import train_probe
from safetensors.torch import save_file

from elkflow.common.files import read_json, read_table, write_table

CONVENTION = "hidden_states: 0 embeddings, i output of block i, last after the final norm"


def pair_states(labels, *, layers=3, width=16, truth=2.0, distractor=0.0, noise=1.0, seed=0, layer=1):
    """States [L, N, 2, D] of N pairs.

    On `layer` the member with the right answer is moved by +truth along the first axis, the other by −truth. On every
    layer a feature of the question unrelated to truth moves the pair's members by ±distractor along the second axis.
    """
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    shared = rng.normal(size=(layers, len(labels), 1, width))
    states = shared + noise * rng.normal(size=(layers, len(labels), 2, width)) + 3.0 * np.array([[0.0], [1.0]])
    other = rng.choice([-1, 1], size=len(labels))
    member = np.array([-1, 1])
    states[layer, :, :, 0] += truth * (2 * labels - 1)[:, None] * member
    states[:, :, :, 1] += distractor * other[:, None] * member
    return torch.tensor(states, dtype=torch.float32)


def labels_of(rows, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(rows) % 2)


@dataclass
class Split:
    """Paths of one split."""

    rows: Path
    prompts: list[Path]
    states: list[Path]
    labels: np.ndarray


def write_split(folder, name, labels, states, *, zero_shot=None, wordings=("plain",), metadata=None, group_size=4):
    """Write rows, prompts and states (the same, or [V, L, N, 2, D] for several wordings); all ids start with `name`."""
    count = len(labels)
    ids = [f"{name}-{row}" for row in range(count)]
    groups = [f"{name}-group-{row // group_size}" for row in range(count)]
    rng = np.random.default_rng(7)
    words = rng.choice(["red", "green", "blue", "stone", "river", "cloud", "tree"], size=(count, 10))
    sentence, question = [" ".join(row[:6]) for row in words], [" ".join(row[6:]) for row in words]
    table = pd.DataFrame({"id": ids, "country": groups, "sentence": sentence, "question": question, "label": labels})
    rows = folder / "data" / f"{name}.parquet"
    write_table(table, rows)
    states = states if states.dim() == 5 else states[None].repeat(len(wordings), 1, 1, 1, 1)
    prompts, files = [], []
    for wording, values in zip(wordings, states, strict=True):
        prompt = [f"{wording}: {first} {second} ?" for first, second in zip(sentence, question, strict=True)]
        prompts.append(folder / "prompts" / wording / f"{name}.parquet")
        answers = [["No", "Yes"]] * count
        write_table(
            pd.DataFrame({"id": ids, "group": groups, "prompt": prompt, "answers": answers, "label": labels}),
            prompts[-1],
        )
        files.append(folder / "hiddens" / wording / f"{name}.safetensors")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        odds = torch.zeros(count) if zero_shot is None else torch.as_tensor(zero_shot)
        tensors = {f"layers.{layer}": values[layer].contiguous() for layer in range(len(values))}
        tensors["answer_logprobs"] = torch.stack([-odds / 2, odds / 2], -1).float()
        save_file(tensors, files[-1], {"layers": CONVENTION, "position": "last", "model": "abc", **(metadata or {})})
    return Split(rows, prompts, files, np.asarray(labels))


BASE = {"model": "tiny", "dataset": "made_up", "wording": "plain", "draws": 5, "gate": {"margin": 0.0}}


def train(folder, splits, paths=None, **changes):
    """Run the script; return its output folder."""
    first, second = splits
    arguments = {
        "--settings": [json.dumps(BASE | changes)],
        "--train-rows": [first.rows],
        "--val-rows": [second.rows],
        "--train-prompts": first.prompts,
        "--val-prompts": second.prompts,
        "--train-states": first.states,
        "--val-states": second.states,
        "--lineage": [first.rows],
        "--output": [folder / "probe"],
    }
    arguments |= {f"--{name.replace('_', '-')}": files for name, files in (paths or {}).items()}
    train_probe.main([str(word) for option, values in arguments.items() for word in (option, *values)])
    return folder / "probe"


def made(folder, *, sizes=(240, 120), wordings=("plain",), **options):
    """A train and a val split with a planted truth."""
    splits = []
    for seed, (name, size) in enumerate(zip(("train", "val"), sizes, strict=True)):
        labels = labels_of(size, seed)
        states = torch.stack([pair_states(labels, seed=10 * seed + v, **options) for v in range(len(wordings))])
        splits.append(write_split(folder, name, labels, states, wordings=wordings))
    return splits


def score(folder, probe, split):
    manifest = folder / "rewards.manifest.json"
    score_answers.main(
        [
            *["--probe", str(probe), "--prompts", *map(str, split.prompts), "--states", *map(str, split.states)],
            *["--lineage", str(probe / "manifest.json"), "--rewards", str(folder / "rewards.parquet")],
            *["--manifest", str(manifest)],
        ]
    )
    return read_table(folder / "rewards.parquet").to_pandas(), read_json(manifest)


def edited(path: Path, change) -> None:
    table = read_table(path).to_pandas()
    change(table).to_parquet(path)
