"""Pushing a dataset's splits and their card to the hub: only on request, always private."""

from pathlib import Path

from elkflow.common.manifests import check_manifest
from elkflow.config.data import SPLITS
from elkflow.publish.hub import hub_client, push_files


def push_dataset(folder: Path, repo: str, card: str) -> dict[str, str]:
    """Put a dataset's three split files, manifest and card into the private dataset repository `repo` in one commit.

    Returns:
        repo, commit and url of what was pushed.

    Raises:
        UserError: there is no token, a file does not match the manifest, or the hub refuses.
    """
    client = hub_client()
    check_manifest(folder / "manifest.json")
    files: dict[str, Path | bytes] = {f"data/{name}.parquet": folder / f"{name}.parquet" for name in SPLITS}
    files |= {"manifest.json": folder / "manifest.json", "README.md": card.encode()}
    commit = push_files(client, repo, files, "Splits for probe, policy and evaluation", repo_type="dataset")
    return {"repo": repo, "commit": commit.oid, "url": commit.commit_url}
