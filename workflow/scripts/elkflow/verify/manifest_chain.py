"""The walk back: from the verdict through every manifest to the rows of the dataset."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table, sha256
from elkflow.common.manifests import settings_edited
from elkflow.common.paths import CHECKOUT
from elkflow.verify.split_counts import verify as verify_split

NOT_KEPT = ("hiddens", "hiddens_tuned")
"""Folders whose files are deleted once they are used; their manifests stay and still link both sides."""


def verify(results: Path) -> list[str]:
    """Follow every link from summary/manifest.json and every answered question to its row; return the artefacts found.

    Raises:
        UserError: listing each link that does not hold.
    """
    walk = Walk(results)
    walk.visit(results / "summary" / "manifest.json", "the summary")
    broken = walk.broken or [*walk.splits_that_do_not_count(), *rows_without_source(results)]
    if broken:
        raise UserError("the chain from the scores to the data is broken:\n  " + "\n  ".join(broken))
    return [os.path.relpath(path, results) for path in walk.visited]


class Walk:
    """Manifests seen so far, and what was wrong with them."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.visited: dict[Path, dict[str, Any]] = {}
        self.broken: list[str] = []

    def visit(self, manifest: Path, wanted_by: str) -> None:
        """Check a manifest's outputs and inputs, then the manifests behind its inputs."""
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
            self.broken.append(f"{name}: its settings were edited (their hash is not the one beside them)")
        for output in content["outputs"].values():
            self._compare(manifest, output, f"{name} describes")
        for each in content["inputs"].values():
            path = _resolved(manifest.parent / each["path"])
            self._compare(manifest, each, f"{name} was made from")
            if not path.exists():
                continue
            origin = path if _is_manifest(path) else origin_of(path)
            if origin is not None:
                self.visit(origin, name)
            elif self.results.resolve() in path.parents:
                self.broken.append(
                    f"{os.path.relpath(path, self.results)}, an input of {name}: no manifest describes it"
                )

    def splits_that_do_not_count(self) -> Iterator[str]:
        """Splits whose rows, labels or groups are not what their manifest says, or that share rows."""
        for manifest in self.visited:
            if manifest.parent.parent == _resolved(self.results / "data"):
                try:
                    verify_split(manifest)
                except UserError as error:
                    yield str(error)

    def _compare(self, manifest: Path, entry: dict[str, str], link: str) -> None:
        """Note whether a file is what the manifest says; files that are not kept may be missing."""
        path = _resolved(manifest.parent / entry["path"])
        name = os.path.relpath(path, self.results)
        if not path.exists() and "workflow" in path.parts:  # results were moved away from the checkout they came from
            path = CHECKOUT.joinpath(*path.parts[path.parts.index("workflow") :])
        if not path.exists():
            if name.split(os.sep)[0] not in NOT_KEPT or path.suffix == ".json":
                self.broken.append(f"{link} {name}, which is missing")
        elif sha256(path) != entry["sha256"]:
            self.broken.append(f"{link} {name} with hash {entry['sha256'][:12]}, but it is {sha256(path)[:12]} now")


def origin_of(path: Path) -> Path | None:
    """The manifest beside a file, or beside a folder above it, that lists it among its outputs."""
    for manifest in sorted(path.parent.glob("*.json")):
        if _is_manifest(manifest) and any(
            _resolved(manifest.parent / output["path"]) == path for output in read_json(manifest)["outputs"].values()
        ):
            return manifest
    return None


def _is_manifest(path: Path) -> bool:
    """Manifests go by several names (manifest.json, val.manifest.json, merged.json); their content tells."""
    if path.suffix != ".json" or not path.is_file():
        return False
    content = read_json(path)
    return isinstance(content, dict) and {"format", "outputs", "inputs"} <= set(content)


def _resolved(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def rows_without_source(results: Path) -> Iterator[str]:
    """Answered questions that are not rows of their prompts, and prompts that are not rows of the val split."""
    for samples in sorted(results.glob("evaluations/base/*/*/*/samples.parquet")):
        model, dataset = samples.parts[-4:-2]
        table = read_table(samples, ["task", "id", "label"]).to_pandas()
        for wording, answered in table.groupby("task"):
            prompts = results / "prompts" / model / dataset / str(wording) / "val.parquet"
            if not prompts.is_file():
                continue  # a task of the harness, with questions of its own
            asked = read_table(prompts).to_pandas()
            place = f"{os.path.relpath(samples, results)}, task {wording}"
            yield from _odd_one(place, prompts, answered, asked, results)
            if "question_id" not in asked:  # wordings about an answer ask each row twice, under other labels
                data = results / "data" / dataset / "val.parquet"
                rows = read_table(data, ["id", "label"]).to_pandas()
                yield from _odd_one(os.path.relpath(prompts, results), data, _as_in_data(asked, rows), rows, results)


def _as_in_data(asked: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Prompts with the labels of the data: answers may be in another order than labels, the same for a whole dataset.

    A prompt gets what the first of its dataset with the same label means, so that one against the others shows.
    """
    labels = dict(zip(rows["id"].astype(str), rows["label"], strict=True))
    members = asked["original_dataset"] if "original_dataset" in asked else [""] * len(asked)
    meant: dict[tuple[str, int], int] = {}
    found = [
        meant.setdefault((member, label), labels.get(str(key), label))
        for member, key, label in zip(members, asked["id"], asked["label"], strict=True)
    ]
    return asked.assign(label=found)


def _odd_one(place: str, source: Path, rows: pd.DataFrame, known: pd.DataFrame, results: Path) -> Iterator[str]:
    """The first of `rows` whose id and label are not in `known`."""
    labels = dict(zip(known["id"].astype(str), known["label"], strict=True))
    for key, label in zip(rows["id"].astype(str), rows["label"], strict=True):
        if labels.get(key) != label:
            yield f"{place}: question {key} (label {label}) is no row of {os.path.relpath(source, results)}"
            return
