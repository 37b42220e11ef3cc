"""Read the hidden states of every question with each of its answers, at all layers of a model."""

import os
from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run, timed
from elkflow.common.files import read_json, read_table, sha256
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.model import ModelSettings
from elkflow.hiddens.extract_hiddens import extract_hiddens
from elkflow.hiddens.tokenise import check_lengths, tokenise_prompts
from elkflow.models.load import load_model, model_kind
from elkflow.models.tokens import load_tokenizer, special_tokens


@dataclass(frozen=True)
class Arguments:
    """Extract hidden states."""

    settings: ModelSettings
    checkpoint: Path
    model_manifest: Path
    prompts: Path
    states: Path
    manifest: Path


def main(argv: list[str] | None = None) -> None:
    """Check everything that can be checked without the model, then load it and stream its states to the file."""
    arguments = parse(Arguments, argv)
    settings, folder = arguments.settings, arguments.checkpoint
    check_against_manifests(folder, arguments.prompts)
    table = read_table(arguments.prompts, ["id", "prompt", "answers"])
    names = [f"{arguments.prompts}: {name}" for name in table["id"].to_pylist()]
    tokenizer, family = load_tokenizer(folder, settings.trust_remote_code), model_kind(folder)
    closing = special_tokens(tokenizer)[1]
    questions = tokenise_prompts(tokenizer, family, table["prompt"].to_pylist(), table["answers"].to_pylist())
    check_lengths(questions, folder, names, len(closing) if family == "encoder" else 0)
    with timed("model loaded"):
        model = load_model(folder, kind=family, **settings.loading())
    outputs = read_json(arguments.model_manifest)["outputs"].values()
    model_hash = next(entry["sha256"] for entry in outputs if entry["path"] == folder.name)
    with timed(f"states of {len(questions)} questions"):
        facts = extract_hiddens(
            model,
            family,
            questions,
            arguments.states,
            names=names,
            position=settings.position,
            closing=closing,
            metadata={"model": model_hash, "prompts": sha256(arguments.prompts)},
        )
    if int(os.environ.get("RANK", "0")) == 0:
        write_manifest(
            arguments.manifest,
            outputs={"states": arguments.states},
            inputs={"model": arguments.model_manifest, "prompts": arguments.prompts},
            settings=settings,
            **facts,
        )


if __name__ == "__main__":
    run(main)
