"""Sending a tuned model to the hub: asked for by name, private unless told otherwise, token from the environment."""

import os
from pathlib import Path

from elkflow.common.errors import UserError


def push(merged: Path, card: Path, repo: str, private: bool = True) -> str:
    """Put a merged checkpoint and its card into repository `repo` in one commit; return the commit's address.

    The token is read from HF_TOKEN and nowhere else: not from the config, the command line or a stored login.

    Raises:
        UserError: no token, no checkpoint, or the hub says no.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("HF_TOKEN is not set: pushing needs a token with write access, from the environment")
    if not (merged / "config.json").is_file():
        raise UserError(f"{merged}: no checkpoint there; make it with `snakemake {merged}`")
    if not card.is_file():
        raise UserError(f"{card}: no model card; finish the workflow first")
    files = {path.relative_to(merged).as_posix(): path for path in sorted(merged.rglob("*")) if path.is_file()}
    files = {name: path for name, path in files.items() if not name.startswith(".")} | {"README.md": card}
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(
            repo,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()],
            commit_message="Tuned on a truth probe with elkflow",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"the hub refused {repo}: {str(error).strip().splitlines()[0]}") from None
    return done.commit_url
