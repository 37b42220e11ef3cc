"""A tiny model in the harness, questions for it, and scores worked out from a plain forward pass."""

import numpy as np
import pandas as pd
import torch

from elkflow.common.files import write_table
from elkflow.evaluation import harness_model
from elkflow.models.load import load_model
from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer

SENTENCES = ["paris is the capital of france", "rome is the capital of italy", "what is the answer"]
OPENING = "<|user|> does the sentence contain the answer to the question ?"
MIXED = [
    (f"{OPENING} {text}", f" {answer}") for text in SENTENCES for answer in ("Yes", "No", "is the capital of france")
]


def questions(count=24, seed=0):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(SENTENCES, size=1 + number % 3)) for number in range(count)]
    return pd.DataFrame(
        {
            "id": [f"q{number:02d}" for number in range(count)],
            "group": [f"g{number % 4}" for number in range(count)],
            "prompt": [f"{OPENING} {text} <|end|> <|assistant|>" for text in texts],
            "answers": [["No", "Yes"]] * count,
            "label": random.integers(0, 2, size=count),
        }
    )


def written(table, folder):
    write_table(table, folder / "val.parquet")
    return folder / "val.parquet"


def tiny_harness_model(checkpoint, **kwargs):
    model = load_model(checkpoint, dtype="float32")
    return harness_model.HarnessModel(model, load_tokenizer(checkpoint), **kwargs)


def by_hand(checkpoint, prompt, answer):
    """Log-probability of an answer from one plain forward pass over tokens(prompt) ++ tokens(answer)."""
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint, dtype="float32")
    opening, closing = encode_prompt(tokenizer, prompt), encode_answer(tokenizer, answer)
    with torch.inference_mode():
        logprobs = model(torch.tensor([opening + closing])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(opening) - 1 + place, token]) for place, token in enumerate(closing))


def requests_for(model, pairs):
    return [((context, answer), *model._encode_pair(context, answer)) for context, answer in pairs]


def tokens(model, prompt, answer):
    return encode_prompt(model.tokenizer, prompt), encode_answer(model.tokenizer, answer)
