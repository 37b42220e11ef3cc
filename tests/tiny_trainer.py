"""A trainer on a tiny model, and what its runs left."""

import json

import torch
from tiny import WORDS, tiny_llama, tiny_tokenizer

from elkflow.config.ppo import PPOSettings
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import Questions
from elkflow.ppo.session import Session
from elkflow.ppo.trainer import Trainer
from elkflow.rewards.lookup import TableRewards

TOKENIZER = tiny_tokenizer()


FAST = {"batch_size": 8, "evaluate_rows": 8, "checkpoint_every": 1, "evaluate_every": 2, "learning_rate": 0.02}


def questions(count=24, seed=0):
    """Prompts of different lengths; the answer to those that begin with `paris` is Yes."""
    generator = torch.Generator().manual_seed(seed)
    texts, labels = [], []
    for _ in range(count):
        label = int(torch.rand(1, generator=generator) < 0.5)
        length = int(torch.randint(2, 6, (1,), generator=generator))
        words = [WORDS[i] for i in torch.randint(0, 11, (length,), generator=generator).tolist()]
        texts.append(" ".join(["paris" if label else "rome", *words]))
        labels.append(label)
    tokens = [TOKENIZER(text)["input_ids"] for text in texts]
    return Questions(
        [f"q{i}" for i in range(count)], texts, [["No", "Yes"]] * count, labels, tokens, [f"q{i}" for i in range(count)]
    )


def table(asked):
    return TableRewards(asked.prompts, asked.answers, [[float(y == 0), float(y == 1)] for y in asked.labels])


def trainer(folder, seed=0, asked=None, stopping=lambda: False, fingerprint="one", reward=None, **settings):
    asked = asked or questions()
    torch.use_deterministic_algorithms(True)
    settings = PPOSettings.model_validate(FAST | {"steps": 4} | settings)
    policy = Policy(tiny_llama(len(TOKENIZER), seed=1), settings, seed)
    reward = reward or table(asked)
    session = Session(
        policy, TOKENIZER, asked, reward, asked, reward, settings, seed, folder, fingerprint, stopping=stopping
    )
    session.start()
    return Trainer(session)


def weights(made):
    return {name: parameter.detach().clone() for name, parameter in made.session.policy.trained()}


def metrics(folder):
    timing = ("seconds", "tokens_per_second")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


def same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=0, msg=name)
