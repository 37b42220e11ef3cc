"""QNLI-style questions about countries or chemical elements: does this sentence contain the answer to this question?

Every sentence gets two questions, one that it answers and one that it does not. Half of the latter ask the same about
another subject, half something else about the same one. The wordings of the two are drawn together so that both
share about as many words with the sentence, and so that each wording is right as often as wrong: word overlap, or the
question alone, should not give the answer away.
"""

import csv
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import yaml

from elkflow.common.errors import UserError
from elkflow.common.paths import RESOURCES


@dataclass(frozen=True)
class Topic:
    """How the facts of a table are put into words: `workflow/resources/{topic}.yaml`."""

    subject: str
    """Column with what the facts are about; each is a group of questions."""
    key: str
    """Column with a short name of the subject, for ids."""
    numbers: list[str]
    """Columns of whole numbers, rounded in sentences; questions about them ask for a number."""
    relations: dict[str, dict[Literal["sentences", "questions"], list[str]]]
    """Column to the ways to state it and the ways to ask for it."""
    articles: dict[str, list[str]] = field(default_factory=dict)
    """Subjects that take "the": names in `plural`, and those that start with one of `prefixes`."""

    @classmethod
    def load(cls, name: str) -> "Topic":
        """A topic that ships with the workflow."""
        return cls(**yaml.safe_load((RESOURCES / f"{name}.yaml").read_text(encoding="utf-8")))

    @property
    def columns(self) -> list[str]:
        """Columns that the table must have."""
        return list(dict.fromkeys([self.key, self.subject, *self.relations]))

    @property
    def rows_per_subject(self) -> int:
        """Number of questions about each subject."""
        return 2 * sum(len(phrasings["sentences"]) for phrasings in self.relations.values())

    @property
    def schema(self) -> pa.Schema:
        """Columns of the questions."""
        texts = ("id", "pair", self.subject, "sentence", "question", "relation", "contrast")
        return pa.schema([(name, pa.string()) for name in texts] + [("label", pa.int64())])

    def named(self, subject: str) -> str:
        """The subject inside a sentence, with its article if it takes one."""
        prefixes = tuple(self.articles.get("prefixes", ()))
        takes_article = subject in self.articles.get("plural", ()) or (prefixes and subject.startswith(prefixes))
        return f"the {subject}" if takes_article else subject


STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about are as at by does do from has have how in is it its of on one some the to what where which with",
    )
)
OVERLAP_SHARPNESS = 6.0
"""How strictly the word overlaps of a pair's two questions are matched; 0: not at all."""
WORDING_BALANCE = 0.2
"""How strictly each wording is kept as often right as wrong: change in log-odds per past use in excess."""


def read_facts(name: str, table: str | None = None) -> tuple[Topic, list[dict[str, str]]]:
    """A topic and its facts, from one's own table or that which ships with the workflow; see `load_facts`."""
    topic = Topic.load(name)
    return topic, load_facts(Path(table) if table else RESOURCES / f"{name}.csv", topic)


def load_facts(path: Path, topic: Topic) -> list[dict[str, str]]:
    """Rows of a table of facts; lines that start with # are comments.

    Raises:
        UserError: the table is missing, lacks a column or a value, or names a subject twice.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None
    rows = list(csv.DictReader(lines))
    if not rows:
        raise UserError(f"{path}: no rows")
    if missing := [column for column in topic.columns if column not in rows[0]]:
        raise UserError(f"{path}: column {missing[0]!r} is missing")
    for number, row in enumerate(rows, start=1):
        if empty := [column for column in topic.columns if not (row[column] or "").strip()]:
            raise UserError(f"{path}: row {number} has no {empty[0]}")
        if not all(row[column].isdigit() for column in topic.numbers):
            raise UserError(f"{path}: row {number}: {' and '.join(topic.numbers)} must be whole numbers")
    for column in (topic.key, topic.subject):
        values = [row[column] for row in rows]
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{path}: {column} {twice[0]!r} appears twice")
    return rows


def generate_questions(facts: Sequence[dict[str, str]], topic: Topic, seed: int = 0, label: str = "truth") -> pa.Table:
    """Two questions for every subject, relation and phrasing of a sentence.

    The rows depend on the seed and the set of subjects, not on their order in the table.

    Args:
        label: `truth`, or `number`: whether the question asks for a number, a surface cue that is right half the time.

    Returns:
        Table of `topic.schema`, one row per question. `pair` joins the two of a sentence; `contrast` is what differs in
        the wrong one: the subject, or the relation.
    """
    about = topic.subject
    names = sorted(row[about] for row in facts)
    questions = {relation: phrasings["questions"] for relation, phrasings in topic.relations.items()}
    rows = []
    surplus = {relation: [0] * len(wordings) for relation, wordings in questions.items()}  # times right minus wrong
    for fact in sorted(facts, key=lambda row: row[about]):
        subject = topic.named(fact[about])
        values = fact | {about: subject} | {key: _rounded_number(int(fact[key])) for key in topic.numbers}
        slots = [
            (relation, i) for relation, phrasings in topic.relations.items() for i in range(len(phrasings["sentences"]))
        ]
        draw = random.Random(f"{seed}/{fact[about]}")
        contrasts = [about, "relation"] * math.ceil(len(slots) / 2)
        draw.shuffle(contrasts)
        for (relation, phrasing), contrast in zip(slots, contrasts, strict=False):
            sentence = _capitalised(topic.relations[relation]["sentences"][phrasing].format(**values))
            if contrast == about:
                other, asked = draw.choice([name for name in names if name != fact[about]]), relation
            else:
                other, asked = fact[about], draw.choice([name for name in questions if name != relation])
            right = [wording.format(**{about: subject}) for wording in questions[relation]]
            wrong = [wording.format(**{about: topic.named(other)}) for wording in questions[asked]]
            excess = [[w - r for r in surplus[relation]] for w in surplus[asked]]
            w, r = _matched_wordings(sentence, wrong, right, excess, draw)
            surplus[relation][r] += 1
            surplus[asked][w] -= 1
            pair = f"{fact[topic.key]}-{relation}-{phrasing}"
            for true, question in enumerate((wrong[w], right[r])):
                kind = "none" if true else contrast
                relation_asked = relation if true else asked
                marked = int(relation_asked in topic.numbers) if label == "number" else true
                row = (f"{pair}-{('no', 'yes')[true]}", pair, fact[about], sentence, question, relation_asked, kind)
                rows.append((*row, marked))
    columns, schema = list(zip(*rows, strict=True)), topic.schema
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _matched_wordings(
    sentence: str, wrong: list[str], right: list[str], excess: list[list[int]], draw: random.Random
) -> tuple[int, int]:
    """Draw indices of one of `wrong` and one of `right`, favouring equal word overlap with the sentence.

    Args:
        excess: [wrong, right]; the higher, the better the two compensate for earlier draws.
    """
    shares = [[overlaps(sentence, question) for question in questions] for questions in (wrong, right)]
    far = [[sum(abs(a - b) for a, b in zip(w, r, strict=True)) for r in shares[1]] for w in shares[0]]
    cells = [(w, r) for w in range(len(wrong)) for r in range(len(right))]
    weights = [math.exp(-OVERLAP_SHARPNESS * far[w][r] + WORDING_BALANCE * excess[w][r]) for w, r in cells]
    return draw.choices(cells, weights)[0]


def overlaps(sentence: str, question: str) -> tuple[float, float, float]:
    """Share of the question's words that are in the sentence, the same of content words, and their Jaccard index."""
    said, asked = (set(re.findall(r"[a-z0-9']+", text.lower())) for text in (sentence, question))
    content = asked - STOP_WORDS
    return (
        len(asked & said) / len(asked),
        len(content & said) / max(1, len(content)),
        len(asked & said) / len(asked | said),
    )


def overlap_accuracy(sentences: Sequence[str], questions: Sequence[str], labels: Sequence[int]) -> float:
    """Accuracy of the best threshold on the best of the three overlaps: what word overlap alone gives away.

    The threshold is chosen on the rows it is evaluated on, so this is an upper bound.
    """
    scores = np.array([overlaps(s, q) for s, q in zip(sentences, questions, strict=True)])
    truth = np.asarray(labels, dtype=float)
    best = max(truth.mean(), 1 - truth.mean())
    for score in scores.T:
        order = np.argsort(score, kind="stable")
        cut = np.flatnonzero(np.diff(score[order])) + 1
        positives = np.cumsum(truth[order])[cut - 1]
        right = (cut - positives + truth.sum() - positives) / len(truth)  # negatives below the cut, positives above
        if len(cut):
            best = max(best, right.max(), (1 - right).max())
    return float(best)


def _rounded_number(number: int) -> str:
    """67 million, 1.4 billion, 547 thousand, 26: rounded to two or three digits."""
    for unit, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= unit:
            return f"{number / unit:.{1 if number < 10 * unit else 0}f}".removesuffix(".0") + f" {word}"
    return str(number)


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


if __name__ == "__main__":
    for name in ("countries", "elements"):
        topic, facts = read_facts(name)
        table = generate_questions(facts, topic)
        columns = (table[column].to_pylist() for column in ("sentence", "question", "label"))
        found = overlap_accuracy(*columns)
        print(f"{name}: {table.num_rows} questions; best word-overlap threshold: {found:.3f} accuracy")
