"""QNLI-style questions about countries: does this sentence contain the answer to this question?

Every sentence gets two questions, one that it answers and one that it does not. Half of the latter ask the same about
another country, half something else about the same country. The wordings of the two are drawn together so that both
share about as many words with the sentence, and so that each wording is right as often as wrong: word overlap, or the
question alone, should not give the answer away.
"""

import csv
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from elkflow.common.errors import UserError
from elkflow.common.paths import FACTS

COLUMNS = ("iso", "country", "capital", "currency", "continent", "population", "area")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "pair", "country", "sentence", "question", "relation", "contrast")]
    + [("label", pa.int64())]
)

SENTENCES = {
    "capital": (
        "{capital} is the capital of {country}.",
        "The capital city of {country} is called {capital}.",
        "{country} has its capital in {capital}.",
        "{country} is a country whose capital is {capital}.",
        "Travellers to the capital of {country} arrive in {capital}.",
    ),
    "currency": (
        "People in {country} pay with the {currency}.",
        "The currency of {country} is the {currency}.",
        "In the shops of {country}, prices are given in the {currency}.",
        "The {currency} is the money used in {country}.",
        "Wages in {country} are paid in the {currency}.",
    ),
    "continent": (
        "{country} lies in {continent}.",
        "{country} is one of the countries of {continent}.",
        "The continent of {country} is {continent}.",
        "On a map of the world, {country} is found in {continent}.",
        "{country} belongs to the continent of {continent}.",
    ),
    "population": (
        "About {population} people live in {country}.",
        "The population of {country} is about {population}.",
        "{country} has about {population} inhabitants.",
        "{country} is home to some {population} people.",
        "A census of {country} would count about {population} people.",
    ),
    "area": (
        "{country} covers about {area} square kilometres.",
        "The area of {country} is about {area} square kilometres.",
        "{country} has a surface of about {area} square kilometres.",
        "The land of {country} measures some {area} square kilometres.",
        "With its {area} square kilometres, {country} fills its place on the map.",
    ),
}
QUESTIONS = {
    "capital": (
        "What is the capital of {country}?",
        "Which city is the capital of {country}?",
        "What is the capital city of {country} called?",
        "In which city does {country} have its seat of government?",
        "From which city is {country} governed?",
    ),
    "currency": (
        "What is the currency of {country}?",
        "Which currency do people in {country} pay with?",
        "What money is used in {country}?",
        "In which currency are prices in {country} given?",
        "What kind of cash does one need in {country}?",
    ),
    "continent": (
        "On which continent is {country}?",
        "What is the continent of {country}?",
        "In which part of the world is {country} found?",
        "Which continent does {country} belong to?",
        "Where in the world does {country} lie?",
    ),
    "population": (
        "How many people live in {country}?",
        "What is the population of {country}?",
        "How many inhabitants does {country} have?",
        "How large is the population of {country}?",
        "How many people would a census of {country} count?",
    ),
    "area": (
        "What is the area of {country}?",
        "How big is {country}?",
        "How many square kilometres does {country} cover?",
        "How much land does {country} have?",
        "What surface does {country} cover on the map?",
    ),
}
NUMBER_RELATIONS = ("population", "area")
"""Relations whose questions ask for a number."""
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


def load_facts(path: Path = FACTS) -> list[dict[str, str]]:
    """Rows of the facts table; lines that start with # are comments.

    Raises:
        UserError: the table is missing, lacks a column or a value, or names a country twice.
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
    if missing := [column for column in COLUMNS if column not in rows[0]]:
        raise UserError(f"{path}: column {missing[0]!r} is missing")
    for number, row in enumerate(rows, start=1):
        if empty := [column for column in COLUMNS if not (row[column] or "").strip()]:
            raise UserError(f"{path}: row {number} has no {empty[0]}")
        if not (row["population"].isdigit() and row["area"].isdigit()):
            raise UserError(f"{path}: row {number}: population and area must be whole numbers")
    for column in ("iso", "country"):
        values = [row[column] for row in rows]
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"{path}: {column} {twice[0]!r} appears twice")
    return rows


def generate_questions(facts: Sequence[dict[str, str]], seed: int = 0, label: str = "truth") -> pa.Table:
    """Two questions for every country, relation and phrasing of a sentence.

    The rows depend on the seed and the set of countries, not on their order in the table.

    Args:
        label: `truth`, or `number`: whether the question asks for a number, a surface cue that is right half the time.

    Returns:
        Table of `SCHEMA`, one row per question. `pair` joins the two of a sentence; `contrast` is what differs in the
        wrong one.
    """
    names = sorted(row["country"] for row in facts)
    rows = []
    surplus = {relation: [0] * len(wordings) for relation, wordings in QUESTIONS.items()}  # times right minus wrong
    for fact in sorted(facts, key=lambda row: row["country"]):
        values = (
            fact
            | {"country": _with_article(fact["country"])}
            | {key: _rounded_number(int(fact[key])) for key in ("population", "area")}
        )
        slots = [(relation, phrasing) for relation in SENTENCES for phrasing in range(len(SENTENCES[relation]))]
        draw = random.Random(f"{seed}/{fact['country']}")
        contrasts = ["country", "relation"] * math.ceil(len(slots) / 2)
        draw.shuffle(contrasts)
        for (relation, phrasing), contrast in zip(slots, contrasts, strict=False):
            sentence = _capitalised(SENTENCES[relation][phrasing].format(**values))
            if contrast == "country":
                other, asked = draw.choice([name for name in names if name != fact["country"]]), relation
            else:
                other, asked = fact["country"], draw.choice([name for name in QUESTIONS if name != relation])
            right = [wording.format(country=_with_article(fact["country"])) for wording in QUESTIONS[relation]]
            wrong = [wording.format(country=_with_article(other)) for wording in QUESTIONS[asked]]
            excess = [[w - r for r in surplus[relation]] for w in surplus[asked]]
            w, r = _matched_wordings(sentence, wrong, right, excess, draw)
            surplus[relation][r] += 1
            surplus[asked][w] -= 1
            pair = f"{fact['iso']}-{relation}-{phrasing}"
            for true, question in enumerate((wrong[w], right[r])):
                about = relation if true else asked
                kind = "none" if true else contrast
                answer = ("no", "yes")[true]
                marked = int(about in NUMBER_RELATIONS) if label == "number" else true
                rows.append((f"{pair}-{answer}", pair, fact["country"], sentence, question, about, kind, marked))
    columns = list(zip(*rows, strict=True))
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def rows_per_country() -> int:
    """Number of questions about each country."""
    return 2 * sum(len(phrasings) for phrasings in SENTENCES.values())


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


def _with_article(country: str) -> str:
    """The country's name inside a sentence, with its article if it takes one."""
    plural = ("Bahamas", "Comoros", "Gambia", "Maldives", "Netherlands", "Philippines", "Seychelles")
    united = (
        "United ",
        "Central African",
        "Czech Rep",
        "Democratic Rep",
        "Dominican Rep",
        "Republic of",
        "Marshall I",
        "Solomon I",
    )
    return f"the {country}" if country in plural or country.startswith(united) else country


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


if __name__ == "__main__":
    table = generate_questions(load_facts())
    columns = (table[name].to_pylist() for name in ("sentence", "question", "label"))
    print(f"{table.num_rows} questions; best word-overlap threshold: {overlap_accuracy(*columns):.3f} accuracy")
