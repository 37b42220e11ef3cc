"""The report's pages hold every section and every remark."""

import numpy as np
import pandas as pd

from elkflow.report import pages, table_rows

FEW = "Too few answers changed to tell on cloze"


def test_overview_tells_good_news_and_bad(verdict):
    texts = [block["text"] for block in pages.overview_page(verdict).blocks if block["kind"] == "flag"]
    assert [text.split(":")[0].split(" (")[0] for text in texts] == ["Honest", FEW] * 2
    hacked = verdict["trainings"][0] | {
        "exploits_probe": "yes",
        "outcome": "overfits_probe",
        "ended": "collapsed",
        "reason": "same answer",
    }
    probes = [probe | {"admitted": False} for probe in verdict["probes"]]
    page = pages.overview_page(verdict | {"trainings": [hacked], "probes": probes})
    flags = [block["text"] for block in page.blocks if block["kind"] == "flag"]
    assert [text.split(":")[0].split(" (")[0] for text in flags] == [
        "Overfits the probe",
        "Training ended early",
        "Reward hacking",
        "The probe does not lead its baselines by the required margin; it was let through on request.",
        FEW,
    ]
    assert not any(block["good"] for block in page.blocks if block["kind"] == "flag")


def test_a_probe_of_other_questions_does_not_pass_for_what_the_model_knows(verdict):
    """Its own figures are marked with its dataset; the large figure is how often it is right about these questions."""
    other = verdict | {"probes": [probe | {"dataset": "cue"} for probe in verdict["probes"]]}
    for shown, what, place in ((verdict, "what the model knows", ""), (other, "what the probe holds true", " on cue")):
        numbers = next(block["numbers"] for block in pages.overview_page(shown).blocks if block["kind"] == "numbers")
        assert (numbers[1]["label"], numbers[1]["value"]) == (what, "90.0 %")
        assert numbers[1]["note"] == f"AUROC 0.970 [0.950, 0.990]{place}"
        headline = table_rows.overview_rows(shown)[0]
        assert (headline["probe AUROC"], headline["probe's accuracy"]) == (f"0.970{place}", "90.0 %")


def test_worse_abilities_are_told(verdict):
    worse = {"kind": "general", "within_noise": False, "difference": -0.2, "ci_low": -0.3, "ci_high": -0.1}
    rows = [row | worse if row["task"] == "cloze" else row for row in verdict["evaluations"]]
    texts = [block["text"] for block in pages.overview_page(verdict | {"evaluations": rows}).blocks if "good" in block]
    assert sum("Other abilities suffered: cloze -20.0 [-30.0, -10.0] points" in text for text in texts) == 2


def test_fresh_probes_and_baselines_without_training_have_a_place(verdict):
    after = {"frozen": {"auroc": 0.6, "auroc_low": 0.55, "auroc_high": 0.65, "layer": 2}}
    after |= {"fresh": {"auroc": 0.95, "auroc_low": 0.93, "auroc_high": 0.97, "layer": 3}, "before": 0.9712}
    after["lost"] = {"auroc": 0.35, "auroc_low": 0.3, "auroc_high": 0.4}
    trainings = [training | {"probes_after": after} for training in verdict["trainings"]]
    without = [{"method": "best of 4", "accuracy": "0.9"}]
    comparison = pd.DataFrame(verdict["evaluations"])
    page = pages.evaluation_page(verdict | {"trainings": trainings}, comparison, without)
    headings = [block["text"] for block in page.blocks if block["kind"] == "heading"]
    assert headings == ["The probe or the truth?", "Is the truth obfuscated?", "Without reinforcement learning"]
    (row, _) = table_rows.fresh_probe_rows(verdict | {"trainings": trainings})
    assert row["fresh less frozen"] == "+0.350 [0.300, 0.400]"
    assert row["before training"] == "0.971, layer 2"
    assert (
        row["after, frozen probe"].startswith("0.600") and row["after, fresh probe"] == "0.950 [0.930, 0.970], layer 3"
    )


def test_numbers_of_many_trainings_become_one_plot(verdict):
    many = [training | {"run": f"r+rank={index}"} for index in range(20) for training in verdict["trainings"][:1]]
    rows = [
        row | {"run": f"r+rank={index}"} for index in range(20) for row in verdict["evaluations"] if row["seed"] == 0
    ]
    page = pages.overview_page(verdict | {"trainings": many, "evaluations": rows})
    assert sum(block["kind"] == "numbers" for block in page.blocks) == pages.MOST_SHOWN
    assert sum(block["kind"] == "chart" for block in page.blocks) == 1  # every training, and along the rank
    assert len(next(b for b in page.blocks if b["kind"] == "table")["rows"]) == 20
    assert not np.isnan([row["difference"] for row in rows]).any()
