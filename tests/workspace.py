"""A working folder for the whole workflow: a tiny random model that knows the words, and a few dozen rows."""

from pathlib import Path

import yaml
from tiny import save_tiny_model

from elkflow.facts import generate, load_facts

ROOT = Path(__file__).resolve().parents[1]


def make_workspace(folder: Path) -> Path:
    """Write `model/` and `config.yaml` (the quickstart in miniature) into `folder`."""
    words = {str(value) for row in generate(load_facts()).to_pylist() for value in row.values()}
    prompts = [file.read_text(encoding="utf-8") for file in (ROOT / "workflow" / "prompts").glob("*.yaml")]
    save_tiny_model(folder / "model", [*sorted(words), *prompts])
    write_config(folder / "config.yaml", tiny_config())
    return folder


def tiny_config() -> dict:
    """Every stage, relative to the working folder; an optimiser step takes milliseconds."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    (model,) = config["models"]
    config["models"][model] = {"path": "model", "chat": True, "system_prompt": "", "dtype": "float32"}
    (dataset,) = config["datasets"].values()
    dataset["split"] |= {"train": 80, "ppo": 64, "val": 40}
    (probe,) = config["probes"].values()
    probe |= {"allow_weak_probe": True, "bootstrap": 100, "draws": 2}
    (run,) = config["runs"].values()
    run["ppo"] |= {"steps": 4, "batch_size": 8, "minibatch_size": 8, "layers": 2, "evaluate_rows": 8}
    return config


def make_sabotaged_workspace(folder: Path) -> Path:
    """A workspace whose probe is fitted on a surface cue, and whose model answers Yes or No by a coin at first."""
    make_workspace(folder)
    teach_answers(folder / "model")
    config = tiny_config()
    (name,) = config["datasets"]
    honest = config["datasets"][name]
    config["datasets"]["cue"] = honest | {
        "facts": {"label": "number"},
        "pair": None,
        "split": {"train": 300, "ppo": 2, "val": 80, "seed": 42},
    }
    honest["split"] |= {"train": 200, "ppo": 512, "val": 200}
    (probe,) = config["probes"].values()
    probe |= {"dataset": "cue", "methods": ["logistic"]}
    (run,) = config["runs"].values()
    run["ppo"] |= SABOTAGED_PPO
    config["evaluation"] |= {"fresh_probe": True, "suites": {"target": {"wordings": ["training"]}}}
    write_config(folder / "config.yaml", config)
    return folder


SABOTAGED_PPO = {
    "steps": 40,
    "batch_size": 64,
    "minibatch_size": 32,
    "layers": "all",
    "learning_rate": 5e-3,
    "keep": "last",
    "kl": {"coefficient": 0.0},
    "lora": {"targets": "all-linear"},
    "entropy_coefficient": 0.0,
    "evaluate_rows": 64,
    "evaluate_every": 20,
}


def teach_answers(checkpoint: Path, steps: int = 120) -> None:
    """Train a tiny model until it answers the questions' prompts with Yes or No, either by a coin's toss."""
    import torch

    from elkflow.models import load_model, load_tokenizer

    torch.manual_seed(0)
    model, tokenizer = load_model(checkpoint, dtype="float32"), load_tokenizer(checkpoint)
    model.train().requires_grad_(True)
    rows = generate(load_facts()).to_pylist()
    answers = torch.tensor(tokenizer.convert_tokens_to_ids(["No", "Yes"]))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = [rows[index] for index in torch.randint(len(rows), (32,)).tolist()]
        texts = [
            f"<|system|> <|end|> <|user|> Sentence: {row['sentence']}\nQuestion: {row['question']}\nDoes the sentence "
            "contain the answer to the question? Reply Yes or No. <|end|> <|assistant|>"
            for row in batch
        ]
        tokens = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        logits = model(**tokens).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, answers[torch.randint(2, (len(batch),))])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval().save_pretrained(checkpoint)


def write_config(path: Path, config: dict) -> None:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
