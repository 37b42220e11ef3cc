"""Split files compared with their manifest."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from elkflow.common.errors import UserError
from elkflow.common.files import read_table, stream_table
from elkflow.common.manifests import check_manifest
from elkflow.config.data import SPLITS
from elkflow.data.row_hashes import hash_rows


def verify_split(manifest: Path) -> dict[str, Any]:
    """Recompute the hashes, rows, groups and labels in a split's manifest; no id or group may be in two files.

    Returns:
        The manifest.

    Raises:
        UserError: names the file and the first difference.
    """
    content = check_manifest(manifest)
    names = content["settings"].get("labels")  # a mixture has none: labels differ between its datasets
    seen: dict[str, dict[str, np.ndarray]] = {}
    for name in SPLITS:
        path = manifest.parent / content["outputs"][name]["path"]
        labels: Counter[int] = Counter()
        parts: dict[str, list[np.ndarray]] = {"id": [], "group": []}
        for table in stream_table(path, ["id", "group", "label"]):
            labels.update(dict(enumerate(np.bincount(table["label"].to_numpy()).tolist())))
            for column, each in parts.items():
                each.append(hash_rows([table[column]]))
        own = {column: np.concatenate([np.empty(0, np.uint64), *each]) for column, each in parts.items()}
        stated = content["facts"]["splits"][name]
        found = {
            "rows": len(own["id"]),
            "groups": len(np.unique(own["group"])),
            "labels": {key: labels[n] for n, key in enumerate(names or map(str, range(max(labels, default=-1) + 1)))},
        }
        if different := [key for key in found if found[key] != stated[key]]:
            raise UserError(
                f"{path}: {different[0]} are {found[different[0]]}, not {stated[different[0]]} as in {manifest}"
            )
        for before, others in seen.items():
            for column, hashes in others.items():
                shared = np.isin(own[column], hashes)
                if shared.any():
                    value = read_table(path, [column])[column][int(shared.argmax())].as_py()
                    raise UserError(f"{path}: {column} {value!r} is in {before} too")
        if len(np.unique(own["id"])) < len(own["id"]):
            raise UserError(f"{path}: an id appears twice")
        seen[name] = own
    return content
