"""Datasets and the hub: fetching them ahead of time, pushing splits with a card. The token is never shown."""

import os
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.common.manifests import check_manifest
from elkflow.config.data import SPLITS
from elkflow.publish.hub import token


def push_dataset(folder: Path, repo: str, card: str) -> dict[str, str]:
    """Put a dataset's three split files, manifest and card into the private dataset repository `repo` in one commit.

    Returns:
        repo, commit and url of what was pushed.

    Raises:
        UserError: no token, files that do not match their manifest, or the hub says no.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token())
    check_manifest(folder / "manifest.json")
    files: dict[str, Any] = {f"data/{name}.parquet": str(folder / f"{name}.parquet") for name in SPLITS}
    files |= {"manifest.json": str(folder / "manifest.json"), "README.md": card.encode()}
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        done = api.create_commit(
            repo, additions, commit_message="Splits for probe, policy and evaluation", repo_type="dataset"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"the hub refused {repo}: {str(error).strip().splitlines()[0]}") from None
    return {"repo": repo, "commit": done.oid, "url": done.commit_url}


def card(name: str, licence: str | None, manifest: Path) -> str:
    """A dataset card: what the hub reads at its head, then source, splits and how they were made."""
    content = read_json(manifest)
    settings, facts = content["settings"], content["facts"]
    mixed = f"the datasets {', '.join(settings['mixture'])}" if settings.get("mixture") else None
    source = (
        mixed or settings["hub"] or settings["path"] or "questions about countries, generated from a table of facts"
    )
    head = [f"license: {licence}"] if licence and licence not in ("unknown", "other") else []
    head += ["configs:", "- config_name: default", "  data_files:"]
    for split in SPLITS:
        head += [f"  - split: {split}", f"    path: data/{split}.parquet"]
    rows = [
        f"| {split} | {entry['rows']} | {entry['groups']} | "
        + ", ".join(f"{label}: {count}" for label, count in entry["labels"].items())
        + f" | `{content['outputs'][split]['sha256'][:16]}` |"
        for split, entry in facts["splits"].items()
    ]
    removed = ", ".join(f"{reason}: {count}" for reason, count in facts.get("removed", {}).items()) or "nothing"
    body = [
        f"# {name}",
        "",
        "Splits for a truth probe (`train`), a policy trained on its reward (`ppo`) and the evaluation of both",
        "(`val`). No group of rows is in two of them.",
        "",
        f"- Source: {source}",
        f"- Licence of the source: {licence or 'not stated'}",
        f"- Recipe: {settings.get('split') or 'all rows of each, in turn'}",
        f"- Left out: {removed}",
        "",
        "| split | rows | groups | labels | sha256 |",
        "|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(["---", *head, "---", *body, ""])
