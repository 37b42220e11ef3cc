"""Access to the hub: the token comes from the environment only and is never shown."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError, first_line


def hub_client() -> Any:
    """A client with the token in HF_TOKEN: not from the config, the command line or a stored login.

    Raises:
        UserError: HF_TOKEN is not set.
    """
    from huggingface_hub import HfApi

    if not (token := os.environ.get("HF_TOKEN")):
        raise UserError("HF_TOKEN is not set: pushing needs a token with write access, from the environment")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


def push_files(
    client: Any,
    repo: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    repo_type: str = "model",
    private: bool = True,
) -> Any:
    """Put files into a repository in one commit, creating the repository if needed; return the commit's facts.

    Args:
        client: see `hub_client`.
        files: path in the repository to a local file or to its content.
        private: visibility of a new repository.

    Raises:
        UserError: the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file))
        for name, file in files.items()
    ]
    try:
        client.create_repo(repo, repo_type=repo_type, private=private, exist_ok=True)
        return client.create_commit(repo, additions, commit_message=message, repo_type=repo_type)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"the hub refused {repo}: {first_line(error)}") from None
