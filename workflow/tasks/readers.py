"""Datasets of the tasks beside this file, read from local files into memory (no cache that could go stale)."""

import csv
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

HERE = Path(__file__).parent
CHOICES = 4


def prompts(prompts: str = "", **_: Any) -> dict[str, datasets.Dataset]:
    """Rendered prompts with columns id, group, prompt, answers, label."""
    if not prompts:
        raise ValueError("elkflow_yes_no needs the prompts file: metadata {'prompts': 'path/to/val.parquet'}")
    columns = ["id", "prompt", "answers", "label"]
    return {"test": datasets.Dataset.from_dict(pq.read_table(prompts, columns=columns).to_pydict())}


def table(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Rows of a CSV file beside the task's YAML, which names it in `metadata: {file: ...}`."""
    with (HERE / file).open(encoding="utf-8", newline="") as rows:
        return {"test": datasets.Dataset.from_list(list(csv.DictReader(rows)))}


def cloze(**_: Any) -> dict[str, datasets.Dataset]:
    """Items of cloze.csv; the wrong choices are the answers of the next items of the same relation."""
    with (HERE / "cloze.csv").open(encoding="utf-8", newline="") as file:
        items = list(csv.DictReader(line for line in file if not line.startswith("#")))
    documents = []
    for position, item in enumerate(items):
        same = [other["answer"] for other in items if other["relation"] == item["relation"]]
        here = sum(1 for other in items[:position] if other["relation"] == item["relation"])
        following = dict.fromkeys(same[here + 1 :] + same[:here])
        wrong = [answer for answer in following if answer != item["answer"]][: CHOICES - 1]
        label = position % CHOICES
        choices = [*wrong[:label], item["answer"], *wrong[label:]]
        documents.append({"id": f"cloze-{position:03d}", "stem": item["stem"], "choices": choices, "label": label})
    return {"test": datasets.Dataset.from_list(documents)}


def prose(**_: Any) -> dict[str, datasets.Dataset]:
    """Passages of prose.txt, one per paragraph; lines that start with # name their sources."""
    lines = (HERE / "prose.txt").read_text(encoding="utf-8").splitlines()
    body = "\n".join(line for line in lines if not line.startswith("#"))
    passages = [" ".join(part.split()) for part in body.split("\n\n") if part.strip()]
    documents = [{"id": f"prose-{number:02d}", "text": passage} for number, passage in enumerate(passages)]
    return {"test": datasets.Dataset.from_list(documents)}
