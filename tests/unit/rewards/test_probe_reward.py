"""Reward models computed on the fly give the rewards of the table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import CONVENTION, write_split
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table, sha256
from elkflow.hiddens.extract_hiddens import extract_hiddens
from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.load import load_model, model_kind
from elkflow.models.tokens import load_tokenizer
from elkflow.ppo.train_ppo import reward_source
from elkflow.probes import saved_probe
from elkflow.probes.contrast_pairs import ContrastPairs
from elkflow.rewards import probe_reward
from elkflow.rewards.score_answers import reward_table
from elkflow.rewards.score_shard import pair_log_odds

PROMPTS = [f"is {name} the capital of {country} ?" for name in ("paris", "rome") for country in ("france", "italy")]
ANSWERS = ["No", "Yes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny checkpoint, the states of four prompts, and a random probe on layer 2 in the workflow's folders."""
    folder = tmp_path_factory.mktemp("world")
    checkpoint = save_tiny_model(folder / "models" / "tiny" / "checkpoint", PROMPTS)
    labels = np.array([1, 0, 0, 1])
    split = write_split(folder, "val", labels, torch.zeros(5, 4, 2, 32), wordings=("plain",))
    read_table(split.prompts[0]).to_pandas().assign(prompt=PROMPTS).to_parquet(split.prompts[0])
    table = ContrastPairs.read(split.prompts, split.states)
    tokenizer, family = load_tokenizer(checkpoint), model_kind(checkpoint)
    questions = tokenise_prompts(tokenizer, family, table.prompts, [ANSWERS] * 4)
    model = load_model(checkpoint, dtype="float32")
    digest = sha256(checkpoint)
    extract_hiddens(model, family, questions, split.states[0], names=table.ids, metadata={"model": digest})
    generator = torch.Generator().manual_seed(0)
    facts = {
        "method": "logistic",
        "layer": 2,
        "layers": 5,
        "layer_convention": CONVENTION,
        "position": "last",
        "model": {
            "name": "tiny",
            "hash": digest,
            "path": "../../models/tiny/checkpoint",
            "loading": {"dtype": "float32", "quantization": None, "device_map": None},
        },
        "asked": None,
        "wordings": ["plain"],
        "answers": ANSWERS,
        "ensembling": "partial",
    }
    states = load_file(split.states[0])["layers.2"]  # a random model's states of all prompts are almost the same
    weight, bias = torch.randn(32, generator=generator) / 10, torch.tensor(0.3)
    probe = saved_probe.Probe(states.mean(0)[None], states.std(0)[None] + 1e-6, weight, bias, facts)
    saved_probe.save_probe(probe, folder / "probes" / "truth")
    return folder / "probes" / "truth", split, ContrastPairs.read(split.prompts, split.states)


def test_rewards_computed_on_the_fly_are_those_of_the_table(world):
    folder, _, pairs = world
    table, _ = reward_table(pairs, pair_log_odds(saved_probe.load_probe(folder), pairs))
    expected = np.stack(table.to_pandas()["rewards"])
    reward = probe_reward.load(folder)
    for index, answer in enumerate(ANSWERS):
        assert reward(pairs.prompts, [answer] * 4).numpy() == pytest.approx(expected[:, index], abs=5e-3)
    assert np.ptp(expected[:, 1]) > 0.01
    mixed = reward(pairs.prompts[:1] * 3, ["Yes", "banana", " No"])
    assert mixed.tolist() == pytest.approx([expected[0, 1], -1.0, expected[0, 0]], abs=5e-3)
    assert mixed.dtype == torch.float32


def test_a_run_can_be_rewarded_online(world, tmp_path, monkeypatch):
    """The module shown in docs/how-to.md, named in the config."""
    folder, _, pairs = world
    (tmp_path / "online.py").write_text(
        f"from elkflow.rewards.probe_reward import load\n\nprobe = load({str(folder)!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    reward = reward_source("online:probe", tmp_path / "none.parquet", None, -1.0)
    expected = probe_reward.load(folder)(pairs.prompts, ["Yes", "No", "maybe", "No"])
    assert torch.equal(reward(pairs.prompts, ["Yes", "No", "maybe", "No"]), expected)
    assert expected[2] == -1.0


def moved(folder: Path, target: Path, **changes) -> Path:
    """A copy of the reward model with a changed probe.json."""
    target.mkdir()
    facts = read_json(folder / "probe.json")
    facts["model"]["path"] = str((folder / facts["model"]["path"]).resolve())
    (target / "probe.json").write_text(json.dumps(facts | changes))
    (target / "probe.safetensors").write_bytes((folder / "probe.safetensors").read_bytes())
    return target


def test_a_question_about_answers_takes_any_response(world, tmp_path):
    """Question and response are rendered into the stored template, and the probe reads that text."""
    folder, *_ = world
    template = {
        "name": "truthful",
        "jinja": "is {{ text }} the answer ? ||| {{ label }}",
        "answer_choices": "No ||| Yes",
    }
    asked = {"template": template, "about": "plain", "wrapped": True, "chat": {"chat": True, "system_prompt": None}}
    reward = probe_reward.load(moved(folder, tmp_path / "about", asked=asked))
    found = reward(["the capital of france", "the capital of france"], ["paris", " rome "])
    texts = [
        f"<|user|> is the capital of france {name} the answer ? <|end|> <|assistant|> " for name in ("paris", "rome")
    ]
    direct = probe_reward.load(folder)
    assert found.numpy() == pytest.approx(torch.sigmoid(direct.log_odds(texts)).numpy(), abs=5e-3)
    assert found[0] != found[1]


def test_another_checkpoint_is_refused(world, tmp_path):
    folder, *_ = world
    other = save_tiny_model(tmp_path / "other", PROMPTS, seed=1)
    with pytest.raises(UserError, match=r"other: not the checkpoint that the probe in .* was fitted on"):
        probe_reward.load(folder, other)
    with pytest.raises(UserError, match=r"nowhere: no such checkpoint; the probe in .* needs the model 'tiny'"):
        probe_reward.load(folder, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": None}, "answers that differ from row to row"),
        ({"ensembling": "full", "wordings": ["plain", "other"]}, "average several wordings"),
        ({"format": 0}, "format 0, but this version reads format 1"),
        ({"layers": 9}, "the model has 5 layers, the probe's 9"),
    ],
)
def test_a_folder_that_cannot_score_texts_says_why(world, tmp_path, changes, message):
    folder, _, pairs = world
    target = moved(folder, tmp_path / "copy", **changes)
    if "wordings" in changes:
        numbers = load_file(target / "probe.safetensors")
        numbers |= {name: numbers[name].repeat(2, 1, 1) for name in ("mean", "scale")}
        save_file(numbers, target / "probe.safetensors")
    with pytest.raises(UserError, match=message):
        probe_reward.load(target)(pairs.prompts, ["Yes"] * 4)


def test_nothing_is_ever_unpickled(world, tmp_path):
    """A pickle in place of the probe is refused unread: its code does not run."""
    folder, *_ = world
    target = moved(folder, tmp_path / "copy")
    marker = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save(Harm(), target / "probe.safetensors")
    with pytest.raises(UserError, match=r"probe\.safetensors: not a readable probe"):
        probe_reward.load(target)
    assert not marker.exists()
