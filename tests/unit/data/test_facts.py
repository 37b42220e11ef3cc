"""The built-in questions: balanced, well-formed, and not solvable by word overlap."""

import random
import re

import pytest

from elkflow.common.errors import UserError
from elkflow.common.paths import RESOURCES
from elkflow.config.data import DatasetSettings
from elkflow.data.facts import generate_questions, load_facts, overlap_accuracy, overlaps, read_facts

TOPIC, FACTS = read_facts("countries")
TABLE = RESOURCES / "countries.csv"
QUESTIONS = {relation: phrasings["questions"] for relation, phrasings in TOPIC.relations.items()}


@pytest.fixture(scope="module")
def rows():
    return generate_questions(FACTS, TOPIC).to_pylist()


def test_table_covers_the_united_nations():
    assert len(FACTS) == 193
    assert {fact["continent"] for fact in FACTS} == {
        "Africa", "Asia", "Europe", "North America", "Oceania", "South America"
    }  # fmt: skip
    france = next(fact for fact in FACTS if fact["iso"] == "FR")
    assert (france["capital"], france["currency"]) == ("Paris", "euro")


def test_every_sentence_has_one_right_and_one_wrong_question(rows):
    assert len(rows) == len(FACTS) * TOPIC.rows_per_subject == 9650
    assert len({row["id"] for row in rows}) == len(rows)
    pairs = {}
    for row in rows:
        pairs.setdefault(row["pair"], []).append(row)
    for right_and_wrong in pairs.values():
        assert sorted(row["label"] for row in right_and_wrong) == [0, 1]
        assert len({row["sentence"] for row in right_and_wrong}) == 1
        assert len({row["question"] for row in right_and_wrong}) == 2


def test_wrong_questions_differ_in_country_or_relation_half_and_half(rows):
    wrong = [row for row in rows if row["label"] == 0]
    other_country = [row for row in wrong if row["contrast"] == "country"]
    assert abs(len(other_country) / len(wrong) - 0.5) < 0.01
    for row in wrong:
        relation = row["pair"].split("-")[1]
        assert (row["relation"] == relation) == (row["contrast"] == "country")
        assert (row["country"] in row["question"]) == (row["contrast"] == "relation") or _contains(row)


def _contains(row):
    """Niger is in Nigeria, Guinea in Guinea-Bissau, Papua New Guinea and Equatorial Guinea, ..."""
    return any(row["country"] in fact["country"] and fact["country"] in row["question"] for fact in FACTS)


def test_right_questions_ask_for_what_the_sentence_says(rows):
    facts = {fact["country"]: fact for fact in FACTS}
    for row in rows:
        if row["label"] == 1:
            fact = facts[row["country"]]
            assert row["relation"] == row["pair"].split("-")[1]
            assert row["country"] in row["sentence"] and row["country"] in row["question"]
            if not fact[row["relation"]].isdigit():
                assert fact[row["relation"]] in row["sentence"]


def test_comparing_words_does_not_solve_it(rows):
    columns = [[row[name] for row in rows] for name in ("sentence", "question", "label")]
    assert overlap_accuracy(*columns) < 0.65
    unmatched = []  # without matched wordings the same facts are much easier: the matching is what does it
    draw = random.Random(0)
    for row in rows:
        name = re.search(r"(?:the )?" + re.escape(row["country"]), row["question"])
        wordings = QUESTIONS[row["relation"]]
        asked = draw.choice(wordings).format(country=name.group()) if name else row["question"]
        unmatched.append(asked)
    assert overlap_accuracy(columns[0], unmatched, columns[2]) > overlap_accuracy(*columns)


def test_the_question_alone_does_not_tell(rows):
    """Every question is right about as often as it is wrong."""
    for relation, wordings in QUESTIONS.items():
        asked = [row for row in rows if row["relation"] == relation]
        share = sum(row["label"] for row in asked) / len(asked)
        assert 0.45 < share < 0.55, relation
        for wording in wordings:
            pattern = re.compile(re.escape(wording).replace(re.escape("{country}"), ".+"))
            labels = [row["label"] for row in asked if pattern.fullmatch(row["question"])]
            assert 0.35 < sum(labels) / len(labels) < 0.65, wording


def test_rows_depend_on_the_seed_and_not_on_the_order_of_the_table(rows):
    shuffled = random.Random(1).sample(FACTS, len(FACTS))
    assert generate_questions(shuffled, TOPIC).to_pylist() == rows
    assert generate_questions(FACTS, TOPIC, seed=1).to_pylist() != rows


def test_sentences_are_grammatical_where_names_take_an_article(rows):
    said = [row["sentence"] for row in rows]
    assert any(sentence.startswith("The Netherlands") for sentence in said)
    assert any("of the Netherlands" in sentence for sentence in said)
    assert not any(re.search(r"(?<![Tt]he )United (States|Kingdom)", sentence) for sentence in said)
    assert all(sentence[0].isupper() and sentence.endswith(".") and "{" not in sentence for sentence in said)
    assert all(len(each) == 5 for phrasings in TOPIC.relations.values() for each in phrasings.values())


def test_overlaps_by_hand():
    # question words: what is the capital of france; content: capital france; union has 8 words
    shares = overlaps("Paris is the capital of France.", "What is the capital of France?")
    assert shares == pytest.approx((5 / 6, 1.0, 5 / 7))


def test_overlap_accuracy_by_hand():
    sentences = ["a b c d"] * 4
    questions = ["a b", "a x", "x y", "a b c"]
    assert overlap_accuracy(sentences, questions, [1, 0, 0, 1]) == 1.0
    assert overlap_accuracy(sentences, questions, [0, 1, 1, 0]) == 1.0  # either direction
    assert overlap_accuracy(["a"] * 4, ["a"] * 4, [1, 0, 1, 0]) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",capital,", ",city,"), "column 'capital' is missing"),
        (lambda text: text.replace("Paris", ""), "row 59 has no capital"),
        (lambda text: text.replace("547030", "many"), "population and area must be whole numbers"),
        (lambda text: text.replace("Albania,", "Algeria,"), "country 'Algeria' appears twice"),
        (lambda text: "\n".join(line for line in text.splitlines() if line.startswith(("#", "iso"))), "no rows"),
    ],
)
def test_a_bad_table_is_named(tmp_path, change, message):
    path = tmp_path / "facts.csv"
    path.write_text(change(TABLE.read_text()))
    with pytest.raises(UserError, match=re.escape(message)):
        load_facts(path, TOPIC)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_facts(tmp_path / "nowhere.csv", TOPIC)


def test_the_label_of_a_sabotaged_probe_is_a_cue_that_says_nothing_of_the_truth(rows):
    cue = generate_questions(FACTS, TOPIC, label="number").to_pylist()
    assert [row | {"label": 0} for row in cue] == [row | {"label": 0} for row in rows]
    for row in cue:
        assert bool(row["label"]) == (row["relation"] in ("population", "area"))
    agree = sum(one["label"] == other["label"] for one, other in zip(cue, rows, strict=True)) / len(rows)
    assert abs(agree - 0.5) < 0.03


def test_elements_are_asked_about_as_countries_are():
    topic, facts = read_facts("elements")
    assert [int(fact["atomic_number"]) for fact in facts] == list(range(1, 95))
    gold = next(fact for fact in facts if fact["element"] == "gold")
    assert gold == {"element": "gold", "symbol": "Au", "atomic_number": "79", "family": "transition metals"} | {
        "state": "solid", "period": "sixth"
    }  # fmt: skip
    rows = generate_questions(facts, topic).to_pylist()
    assert len(rows) == len(facts) * topic.rows_per_subject == 4700
    assert {row["contrast"] for row in rows} == {"none", "element", "relation"}
    columns = [[row[name] for row in rows] for name in ("sentence", "question", "label")]
    assert overlap_accuracy(*columns) < 0.65
    for row in rows:
        if row["label"] == 1:
            assert row["element"].lower() in row["sentence"].lower() and row["element"] in row["question"]
        assert row["sentence"].endswith(".") and "{" not in row["sentence"] + row["question"]


@pytest.mark.parametrize("name", ["countries", "elements"])
def test_questions_are_grouped_by_what_they_are_about(name):
    split = {"train": 2, "ppo": 2, "val": 2}
    given = DatasetSettings.model_validate(
        {"facts": {"topic": name}, "split": split, "wordings": {"w": "qnli_training"}}
    )
    assert given.group == read_facts(name)[0].subject
