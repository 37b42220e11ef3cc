"""A working folder for the whole workflow: a tiny random model that knows the words, and a few dozen rows."""

from pathlib import Path

import yaml
from tiny import save_tiny_model

from elkflow.data.facts import generate_questions, read_facts

ROOT = Path(__file__).resolve().parents[1]


def make_workspace(folder: Path) -> Path:
    """Write `model/` and `config.yaml` (the quickstart in miniature) into `folder`."""
    topic, facts = read_facts("countries")
    questions = generate_questions(facts, topic)
    words = {str(value) for row in questions.to_pylist() for value in row.values()}
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
    probe |= {"allow_weak_probe": True, "draws": 2}
    (run,) = config["runs"].values()
    run["ppo"] |= {"steps": 4, "batch_size": 8, "minibatch_size": 8, "layers": 2, "evaluate_rows": 8}
    return config


def write_config(path: Path, config: dict) -> None:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
