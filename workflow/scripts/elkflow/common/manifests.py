"""Manifests: what an artefact was made from, so that a score can be traced back to the rows it came from."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, sha256, write_json
from elkflow.common.paths import PACKAGE

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "lm_eval",
    "scikit-learn",
)


def write_manifest(
    path: Path,
    *,
    outputs: Mapping[str, Path],
    inputs: Mapping[str, Path],
    settings: Any = None,
    seed: int | None = None,
    **facts: Any,
) -> None:
    """Record outputs, inputs, settings and code. No timestamps: the same work gives the same manifest.

    Args:
        path: the manifest file; paths in it are relative to its folder.
        outputs: name to file or folder, hashed by content.
        inputs: name to file or folder; an artefact with a manifest may be given as its manifest.
        settings: the config section used (a pydantic model or plain JSON).
        facts: anything else worth recording (device, dtype, counts, ...).
    """
    folder = Path(path).parent
    if hasattr(settings, "model_dump"):
        settings = settings.model_dump(mode="json")
    write_json(
        path,
        {
            "format": 1,
            "outputs": {name: _entry(file, folder) for name, file in outputs.items()},
            "inputs": {name: _entry(file, folder) for name, file in inputs.items()},
            "settings": settings,
            "settings_sha256": settings_hash(settings),
            "seed": seed,
            "facts": facts,
            "code": {"commit": _commit(), "packages": _versions(), "python": platform.python_version()},
        },
    )


def settings_hash(settings: Any) -> str:
    """Hex digest of settings: equal for the same keys and values in any order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def settings_edited(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest's settings do not match their hash; manifests without a hash count as unedited."""
    return manifest.get("settings_sha256") not in (None, settings_hash(manifest.get("settings")))


def check_manifest(manifest: Path) -> dict[str, Any]:
    """Read a manifest and check that its outputs on disk have the recorded hashes.

    Raises:
        UserError: a file is missing or was changed, or the settings were edited; the message names the file.
    """
    content = _read(manifest)
    if settings_edited(content):
        raise UserError(f"{manifest}: its settings were edited (they do not match settings_sha256)")
    for entry in content["outputs"].values():
        _check_output(manifest, entry)
    return content


def check_against_manifests(*paths: Path) -> None:
    """Check input files and folders against the manifests next to them.

    The manifest of `x.parquet` is `x.manifest.json` or `manifest.json`; that of a folder may also be `folder.json`.
    Files that no manifest lists are not checked.

    Raises:
        UserError: as `check_manifest`.
    """
    for path in paths:
        names = [f"{path.stem}.manifest.json", "manifest.json", *([f"{path.name}.json"] if path.is_dir() else [])]
        for manifest in map(path.with_name, names):
            for entry in _read(manifest)["outputs"].values() if manifest.is_file() else ():
                if entry["path"] == path.name:
                    _check_output(manifest, entry)


def _read(manifest: Path) -> dict[str, Any]:
    content = read_json(manifest)
    entries = content.get("outputs") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all({"path", "sha256"} <= set(entry) for entry in entries.values()):
        raise UserError(f"{manifest}: damaged, not a manifest")
    return content


def _check_output(manifest: Path, entry: Mapping[str, str]) -> None:
    file = Path(manifest).parent / entry["path"]
    if not file.exists():
        raise UserError(f"{file}: missing, though {manifest} lists it")
    if sha256(file) != entry["sha256"]:
        raise UserError(f"{file}: damaged or changed since it was made (its hash differs from that in {manifest})")


def _entry(path: Path, folder: Path) -> dict[str, str]:
    return {"path": os.path.relpath(path, folder), "sha256": sha256(path)}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES if _installed(name)}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The checkout's commit, followed by `+` if files differ from it; None outside git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "."], cwd=PACKAGE, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.returncode else "")
