"""Following manifests from the verdict back to the rows of the dataset."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table, sha256
from elkflow.common.manifests import settings_edited
from elkflow.common.paths import CHECKOUT
from elkflow.verify.split_counts import verify_split

TEMPORARY = ("hiddens", "hiddens_tuned")
"""Folders whose files are deleted after use; their manifests stay and still link both sides."""


def verify_chain(results: Path) -> list[str]:
    """Follow every link from summary/manifest.json, and every answered question to its row; return the artefacts found.

    Raises:
        UserError: lists the broken links.
    """
    walk = ManifestWalk(results)
    walk.visit(results / "summary" / "manifest.json", "the summary")
    broken = walk.broken or [*walk.wrong_splits(), *unmatched_rows(results)]
    if broken:
        raise UserError("the chain from the scores to the data is broken:\n  " + "\n  ".join(broken))
    return [os.path.relpath(path, results) for path in walk.visited]


class ManifestWalk:
    """Manifests visited so far, and the broken links found."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.visited: dict[Path, dict[str, Any]] = {}
        self.broken: list[str] = []

    def visit(self, manifest: Path, wanted_by: str) -> None:
        """Check a manifest's outputs and inputs, then the manifests of its inputs."""
        manifest = _resolved(manifest)
        if manifest in self.visited:
            return
        name = os.path.relpath(manifest, self.results)
        try:
            content = read_json(manifest)
        except UserError as error:
            self.broken.append(f"{name}, which {wanted_by} was made from: {error}")
            return
        self.visited[manifest] = content
        if settings_edited(content):
            self.broken.append(f"{name}: its settings were edited (they do not match their hash)")
        for output in content["outputs"].values():
            self._compare(manifest, output, f"{name} describes")
        for each in content["inputs"].values():
            path = _resolved(manifest.parent / each["path"])
            self._compare(manifest, each, f"{name} was made from")
            if not path.exists():
                continue
            source = path if _is_manifest(path) else manifest_of(path)
            if source is not None:
                self.visit(source, name)
            elif self.results.resolve() in path.parents:
                self.broken.append(
                    f"{os.path.relpath(path, self.results)}, an input of {name}: no manifest describes it"
                )

    def wrong_splits(self) -> Iterator[str]:
        """Splits that share rows, or whose rows, labels or groups are not as in their manifest."""
        for manifest in self.visited:
            if manifest.parent.parent == _resolved(self.results / "data"):
                try:
                    verify_split(manifest)
                except UserError as error:
                    yield str(error)

    def _compare(self, manifest: Path, entry: dict[str, str], link: str) -> None:
        """Note a file that differs from the manifest's entry; temporary files may be missing."""
        path = _resolved(manifest.parent / entry["path"])
        name = os.path.relpath(path, self.results)
        if not path.exists() and "workflow" in path.parts:  # results were moved away from their checkout
            path = CHECKOUT.joinpath(*path.parts[path.parts.index("workflow") :])
        if not path.exists():
            if name.split(os.sep)[0] not in TEMPORARY or path.suffix == ".json":
                self.broken.append(f"{link} {name}, which is missing")
        elif sha256(path) != entry["sha256"]:
            self.broken.append(f"{link} {name} with hash {entry['sha256'][:12]}, but it is {sha256(path)[:12]} now")


def manifest_of(path: Path) -> Path | None:
    """The manifest beside a file that lists it among its outputs."""
    for manifest in sorted(path.parent.glob("*.json")):
        if _is_manifest(manifest) and any(
            _resolved(manifest.parent / output["path"]) == path for output in read_json(manifest)["outputs"].values()
        ):
            return manifest
    return None


def _is_manifest(path: Path) -> bool:
    """Recognised by content, as manifests have several names (manifest.json, val.manifest.json, merged.json)."""
    if path.suffix != ".json" or not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and {"format", "outputs", "inputs"} <= set(content)


def _resolved(path: Path) -> Path:
    """Absolute and normalised, with symlinks kept."""
    return Path(os.path.normpath(path.absolute()))


def unmatched_rows(results: Path) -> Iterator[str]:
    """Answered questions that are no rows of their prompts, and prompts that are no rows of the val split."""
    for samples in sorted(results.glob("evaluations/base/*/*/*/samples.parquet")):
        model, dataset = samples.parts[-4:-2]
        table = read_table(samples, ["task", "id", "label"]).to_pandas()
        for wording, answered in table.groupby("task"):
            prompts = results / "prompts" / model / dataset / str(wording) / "val.parquet"
            if not prompts.is_file():
                continue  # a harness task, with questions of its own
            asked = read_table(prompts).to_pandas()
            place = f"{os.path.relpath(samples, results)}, task {wording}"
            yield from _first_unmatched(place, prompts, answered, asked, results)
            if "question_id" not in asked:  # wordings about an answer ask each row once per answer, with other labels
                data = results / "data" / dataset / "val.parquet"
                rows = read_table(data, ["id", "label"]).to_pandas()
                yield from _first_unmatched(
                    os.path.relpath(prompts, results), data, _with_data_labels(asked, rows), rows, results
                )


def _with_data_labels(asked: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Prompts with the labels of the data: within a dataset, answers may be ordered differently from labels.

    Each prompt label is mapped as in the first prompt of its dataset that has it, so that a deviating row shows.
    """
    labels = dict(zip(rows["id"].astype(str), rows["label"], strict=True))
    members = asked["original_dataset"] if "original_dataset" in asked else [""] * len(asked)
    mapping: dict[tuple[str, int], int] = {}
    found = [
        mapping.setdefault((member, label), labels.get(str(key), label))
        for member, key, label in zip(members, asked["id"], asked["label"], strict=True)
    ]
    return asked.assign(label=found)


def _first_unmatched(place: str, source: Path, rows: pd.DataFrame, known: pd.DataFrame, results: Path) -> Iterator[str]:
    """The first of `rows` whose id and label are not in `known`."""
    labels = dict(zip(known["id"].astype(str), known["label"], strict=True))
    for key, label in zip(rows["id"].astype(str), rows["label"], strict=True):
        if labels.get(key) != label:
            yield f"{place}: question {key} (label {label}) is no row of {os.path.relpath(source, results)}"
            return
