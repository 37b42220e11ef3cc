"""Hidden states of a tiny model: as extracted, and by plain forward passes to compare them with."""

import random

import torch
from safetensors.torch import load_file
from tiny import WORDS, tiny_llama, tiny_tokenizer

from elkflow.hiddens.extract_hiddens import extract_hiddens
from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.tokens import encode_answer, encode_prompt

TOKENIZER = tiny_tokenizer()

MODEL = tiny_llama(len(TOKENIZER))

YES_NO = ["No", "Yes"]


def sentences(count, seed=0, longest=12):
    """Random prompts, some with a shared prefix, some repeated."""
    rng = random.Random(seed)
    openings = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(max(1, count // 3))]
    return [f"{rng.choice(openings)} {' '.join(rng.choices(WORDS, k=rng.randint(0, 3)))}".strip() for _ in range(count)]


def plainly(model, tokenizer, prompts, answers):
    """States [L, N, A, D] and log-probabilities [N, A], from one forward pass per text."""
    states, scores = [], []
    for prompt, texts in zip(prompts, answers, strict=True):
        for answer in texts:
            start, end = encode_prompt(tokenizer, prompt), encode_answer(tokenizer, answer)
            with torch.no_grad():
                outputs = model(torch.tensor([start + end]), output_hidden_states=True)
            states.append(torch.stack([layer[0, -1] for layer in outputs.hidden_states]))
            logprobs = outputs.logits[0].log_softmax(-1)
            scores.append(sum(logprobs[len(start) - 1 + i, token] for i, token in enumerate(end)))
    shape = (len(prompts), len(answers[0]))
    return torch.stack(states, 1).unflatten(1, shape), torch.stack(scores).view(shape)


def extracted(tmp_path, prompts, answers, model=MODEL, tokenizer=TOKENIZER, **options):
    """What `extract_hiddens` writes: states [L, N, A, D], log-probabilities [N, A], facts."""
    path = tmp_path / "states.safetensors"
    questions = tokenise_prompts(tokenizer, "decoder", prompts, answers)
    facts = extract_hiddens(
        model, "decoder", questions, path, names=[f"row {i}" for i in range(len(prompts))], **options
    )
    tensors = load_file(path)
    layers = [tensors[f"layers.{i}"] for i in range(len(tensors) - 1)]
    return torch.stack(layers), tensors["answer_logprobs"], facts
