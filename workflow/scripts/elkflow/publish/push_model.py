"""Pushing a tuned model and its card to the hub: only on request, private by default."""

from pathlib import Path

from elkflow.common.errors import UserError
from elkflow.publish.hub import hub_client, push_files


def push_model(merged: Path, card: Path, repo: str, private: bool = True) -> str:
    """Put a merged checkpoint and its card into repository `repo` in one commit; return the commit's address.

    Raises:
        UserError: there is no token, no checkpoint or no card, or the hub refuses.
    """
    client = hub_client()
    if not (merged / "config.json").is_file():
        raise UserError(f"{merged}: no checkpoint there; make it with `snakemake {merged}`")
    if not card.is_file():
        raise UserError(f"{card}: no model card; finish the workflow first")
    files = {path.relative_to(merged).as_posix(): path for path in sorted(merged.rglob("*")) if path.is_file()}
    files = {name: path for name, path in files.items() if not name.startswith(".")} | {"README.md": card}
    return push_files(client, repo, files, "Tuned on a truth probe with elkflow", private=private).commit_url
