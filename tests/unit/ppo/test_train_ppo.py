"""The training script from files to files: artefacts, SIGTERM, several processes, and mistakes told before any work."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import train_ppo
from forking import started
from launching import launched
from safetensors.torch import load_file
from tiny import save_tiny_model
from tiny_trainer import questions

from elkflow.common import manifests
from elkflow.common.errors import UserError
from elkflow.common.files import write_table

FAST = {"steps": 3, "batch_size": 8, "evaluate_rows": 8, "evaluate_every": 2, "checkpoint_every": 1}
SCRIPT = Path(train_ppo.__file__)


@pytest.fixture
def files(tmp_path):
    """A tiny checkpoint, prompts and reward tables."""
    save_tiny_model(tmp_path / "model")
    for split, seed in (("ppo", 0), ("val", 1)):
        asked = questions(24, seed)
        rows = {"id": [f"{split}{i}" for i in range(24)], "prompt": [f"{i} {t}" for i, t in enumerate(asked.prompts)]}
        write_table(
            pd.DataFrame(rows | {"answers": asked.answers, "label": asked.labels, "group": rows["id"]}),
            tmp_path / f"{split}.parquet",
        )
        rewards = [[1.0 - y, float(y)] for y in asked.labels]
        write_table(pd.DataFrame({"id": rows["id"], "rewards": rewards}), tmp_path / f"{split}.rewards.parquet")
    outputs = {"checkpoint": tmp_path / "model"}
    manifests.write_manifest(tmp_path / "manifest.json", outputs=outputs, inputs={}, settings={})
    return tmp_path


def arguments(files, settings=None, algorithm="ppo", reward="table", name="run", tracker="tensorboard"):
    out = files / name
    paths = {key: out / key for key in ("checkpoints", "adapter")}
    paths |= {"metrics": out / "metrics.jsonl", "samples": out / "samples.jsonl", "outcome": out / "outcome.json"}
    paths |= {"manifest": out / "manifest.json", "model": files / "model", "prompts": files / "ppo.parquet"}
    paths |= {"rewards": files / "ppo.rewards.parquet", "val-prompts": files / "val.parquet"}
    paths |= {"val-rewards": files / "val.rewards.parquet", "lineage": files / "manifest.json"}
    listed = [text for key, path in paths.items() for text in (f"--{key}", str(path))]
    model = json.dumps({"path": "x", "dtype": "float32"})
    chosen = ["--settings", json.dumps(FAST | (settings or {})), "--algorithm", algorithm, "--reward", reward]
    return [*listed, *chosen, "--trackers", tracker, "--model-settings", model, "--seed", "0"]


def test_everything_is_written(files):
    train_ppo.main(arguments(files))
    out = files / "run"
    found = {path.name for path in out.iterdir()}
    assert found == {"checkpoints", "adapter", "metrics.jsonl", "samples.jsonl", "outcome.json", "manifest.json"}
    assert {path.name for path in (out / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "value_head.safetensors",
    }  # fmt: skip
    assert manifests.check_manifest(out / "manifest.json")["facts"]["outcome"] == "finished"
    assert list((out / "checkpoints" / "trackers").glob("events*"))
    forbidden = (".pt", ".bin", ".pkl", ".pickle")
    assert not [path for path in out.rglob("*") if path.name.endswith(forbidden)]


def test_sigterm_saves_and_asks_to_be_tried_again(files):
    whole, cut = arguments(files, {"steps": 12}, name="whole"), arguments(files, {"steps": 12}, name="cut")
    first = started(train_ppo.main, cut)
    while not (files / "cut" / "checkpoints" / "step-000002").exists():
        assert first.is_alive()
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGTERM)
    first.join()
    assert first.exitcode == 75
    assert not (files / "cut" / "adapter").exists()
    for argv in (cut, whole):
        process = started(train_ppo.main, argv)
        process.join()
        assert process.exitcode == 0
    a, b = (load_file(files / name / "adapter" / "adapter_model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("amounts", [{"minibatch_size": 4}, {"max_new_tokens": 2, "accumulation": 2}], ids=str)
def test_two_processes_make_the_same_update(files, amounts):
    setting = amounts | {"max_gradient_norm": None, "keep": "last", "steps": 2}
    for processes in (1, 2):
        launched(processes, SCRIPT, *arguments(files, setting, name=f"of{processes}"))
    a, b = (load_file(files / f"of{n}" / "adapter" / "adapter_model.safetensors") for n in (1, 2))
    assert any(value.abs().max() > 1e-4 for key, value in a.items() if "lora_B" in key)
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=0, msg=key)
    rows = [(files / f"of{n}" / "metrics.jsonl").read_text().splitlines() for n in (1, 2)]
    for one, two in zip(*rows, strict=True):
        for key, value in json.loads(one).items():
            if key not in ("seconds", "tokens_per_second"):
                assert json.loads(two)[key] == pytest.approx(value, abs=1e-4), key


def spoil(files, column, change):
    table = pd.read_parquet(files / "ppo.parquet")
    table[column] = change(table[column])
    write_table(table, files / "ppo.parquet")


DAMAGE = {
    "a long answer": (
        lambda f: spoil(f, "answers", lambda c: [["No", "Yes rome"]] * len(c)),
        "ppo0: the answer 'Yes rome' is 2 tokens, ppo.max_new_tokens is 1",
    ),
    "a long prompt": (
        lambda f: spoil(f, "prompt", lambda c: ["paris " * 600] * len(c)),
        "ppo0: 600 tokens and the answer exceed the policy's context of 512",
    ),
    "other rows": (lambda f: spoil(f, "id", lambda c: "x" + c), ": 0 rewards for 2 answers"),
    "no rows": (lambda f: write_table(pd.read_parquet(f / "ppo.parquet")[:0], f / "ppo.parquet"), "has no rows"),
    "no rewards": (lambda f: (f / "ppo.rewards.parquet").unlink(), "ppo.rewards.parquet: no such file"),
    "no parquet": (lambda f: (f / "val.parquet").write_bytes(b"PAR1"), "val.parquet"),
}


def samples(files):
    return [json.loads(line) for line in (files / "run" / "samples.jsonl").read_text().splitlines()]


def test_answers_that_are_not_allowed_get_their_own_reward(files):
    train_ppo.main(arguments(files, {"invalid_reward": -3.5}))
    found = {row["response"] in ("Yes", "No"): set() for row in samples(files)}
    for row in samples(files):
        found[row["response"] in ("Yes", "No")].add(row["reward"])
    assert found[False] == {-3.5} and found.get(True, {0.0}) <= {0.0, 1.0}


def test_any_function_of_a_module_can_be_the_reward(files, monkeypatch):
    """Found in the working folder; called with the prompts and the answers, and its numbers are what is trained on."""
    (files / "my_rewards.py").write_text(
        "import torch\n\ndef longer(prompts, responses):\n"
        "    return torch.tensor([len(p) + len(r) / 8 for p, r in zip(prompts, responses)])\n"
    )
    monkeypatch.chdir(files)
    train_ppo.main(arguments(files, reward="my_rewards:longer"))
    assert all(row["reward"] == len(row["prompt"]) + len(row["response"]) / 8 for row in samples(files))
    facts = manifests.check_manifest(files / "run" / "manifest.json")["facts"]
    assert facts["reward"] == "my_rewards:longer"


def rows_of(files):
    return [json.loads(line) for line in (files / "run" / "metrics.jsonl").read_text().splitlines()][1:]


def test_tensorboard_shows_the_figures(files):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_ppo.main(arguments(files))
    events = EventAccumulator(str(files / "run" / "checkpoints" / "trackers"))
    events.Reload()
    for name in ("reward", "kl_k3", "gold_accuracy"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(row["step"], pytest.approx(row[name], abs=1e-6)) for row in rows_of(files)]


STAND_IN = """
import json

def note(*call):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\\n")

class Config:
    def update(self, values, allow_val_change):
        note("config", values)

class Run:
    def log(self, values, step):
        note("log", step, values)
    def finish(self):
        note("finish")

config = Config()
def init(project):
    note("init", project)
    return Run()
"""


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_other_trackers_are_given_the_figures(files, tracker):
    """Neither is in the lock: a package of the same interface stands in for it."""
    (files / f"{tracker}.py").write_text(STAND_IN)
    (files / f"{tracker}-1.dist-info").mkdir()  # accelerate asks for it
    (files / f"{tracker}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {tracker}\nVersion: 1\n")
    environment = os.environ | {"PYTHONPATH": str(files), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, *arguments(files, tracker=tracker)]
    subprocess.run(command, cwd=files, env=environment, check=True, capture_output=True)
    calls = [json.loads(line) for line in (files / "calls.jsonl").read_text().splitlines()]
    assert [call[0] for call in calls] == ["init", "config", "log", "log", "log", "finish"]
    for (_, step, values), row in zip(calls[2:5], rows_of(files), strict=True):
        assert step == row["step"] and values["reward"] == row["reward"]
    assert calls[1][1]["seed"] == 0 and "learning_rate" in calls[1][1]["settings"]


def test_an_epoch_of_nothing_is_an_error_before_the_model_is_loaded(files, never_loaded):
    with pytest.raises(UserError, match=r"ppo\.epochs: 0\.1 of 24 prompts is less than a batch of 8"):
        train_ppo.main(arguments(files, {"steps": None, "epochs": 0.1, "keep": "last"}))
    assert not (files / "run").exists()


@pytest.fixture
def never_loaded(monkeypatch):
    monkeypatch.setattr("elkflow.ppo.train_ppo.load_model", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.mark.parametrize("name", DAMAGE)
def test_mistakes_are_told_before_the_model_is_loaded(files, never_loaded, name):
    damage, message = DAMAGE[name]
    damage(files)
    with pytest.raises(UserError, match=message):
        train_ppo.main(arguments(files))
    assert not (files / "run").exists()


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named(files, never_loaded, monkeypatch, tracker):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == tracker else found(name, *rest))
    with pytest.raises(UserError, match=f"trackers: {tracker} is not installed in this environment"):
        train_ppo.main(arguments(files, tracker=tracker))
    assert not (files / "run").exists()
