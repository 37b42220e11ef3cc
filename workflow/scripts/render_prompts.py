"""Turn the questions of a dataset into prompts for one model, in one wording."""

from dataclasses import dataclass
from pathlib import Path

from elkflow.common.cli import parse, run, timed
from elkflow.common.manifests import check_manifest, write_manifest
from elkflow.config.data import SPLITS, ChatSettings, RenderSettings
from elkflow.models.tokens import load_tokenizer
from elkflow.prompts.render_prompts import render_prompts


@dataclass(frozen=True)
class Arguments:
    """Render prompts."""

    settings: RenderSettings
    chat: ChatSettings
    checkpoint: Path
    checkpoint_manifest: Path
    data: Path
    templates: list[Path]
    folder: Path


def main(argv: list[str] | None = None) -> None:
    """Write train.parquet, ppo.parquet, val.parquet and manifest.json into the folder."""
    arguments = parse(Arguments, argv)
    for manifest in (arguments.data / "manifest.json", arguments.checkpoint_manifest):
        check_manifest(manifest)
    tokenizer = load_tokenizer(arguments.checkpoint, trust_remote_code=arguments.chat.trust_remote_code)
    splits = {name: arguments.data / f"{name}.parquet" for name in SPLITS}
    with timed("render"):
        facts = render_prompts(
            arguments.settings, arguments.chat, arguments.checkpoint, tokenizer, splits, arguments.folder
        )
    write_manifest(
        arguments.folder / "manifest.json",
        outputs={name: arguments.folder / f"{name}.parquet" for name in SPLITS},
        inputs={"data": arguments.data / "manifest.json", "model": arguments.checkpoint_manifest}
        | {path.name: path for path in arguments.templates},
        settings={"prompts": arguments.settings.model_dump(), "chat": arguments.chat.model_dump()},
        seed=arguments.settings.seeds["train"],
        **facts,
    )


if __name__ == "__main__":
    run(main)
