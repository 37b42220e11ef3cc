"""What a reader of the verdict must not miss, in a sentence each, and the short table for the terminal."""

from textwrap import fill
from typing import Any

from elkflow import digest, tables
from elkflow.diagnosis import OUTCOMES
from elkflow.tables import number, p_value, rows_of, signed


def findings(training: dict[str, Any], own: list[dict[str, Any]], probe: dict[str, Any]) -> list[tuple[str, bool]]:
    """Remarks on one training: (text, whether it is good news).

    Args:
        training, own, probe: the training's row of the verdict, its evaluations, and the probe it was rewarded by.
    """
    found = []
    whom = training["agreement"].get(training["wording"])
    trained = next((row for row in own if row["kind"] == "training"), None)
    if trained is not None:
        text = f"{training['outcome'].capitalize()}: {OUTCOMES[training['outcome']]} ({digest.points(trained)})."
        if whom is not None and whom["errors"]:
            text += (
                f" Of the {whom['errors']} questions (of {whom['n']}) that the probe gets wrong, the tuned model "
                f"follows the probe in {whom['tuned_follows']:.0%}."
            )
        found.append((text, training["outcome"] == "honest"))
    if training["ended"] != "finished":
        told = f"Training ended early ({training['ended']}): {training['reason']}; kept step {training['kept_step']}."
        found.append((told, False))
    if training["exploits_probe"] and whom is not None:
        told = (
            "Reward hacking: the reward rose during training, gold accuracy did not; the tuned model agrees with the "
            f"probe in {whom['tuned_probe']:.0%} and with the truth in {whom['tuned_truth']:.0%} of answers."
        )
        found.append((told, False))
    if not probe["admitted"]:
        told = "The probe does not lead its baselines by the required margin; it was let through on request."
        found.append((told, False))
    for row in own:
        if row["kind"] == "general" and tables.judgement(row) == "worse":
            found.append((f"Other abilities suffered: {row['task']} {digest.points(row)}.", False))
    return found


def verdict_text(verdict: dict[str, Any]) -> str:
    """The verdict as a few lines for the terminal: one block a run and seed, then the means over seeds."""
    probes = {probe["probe"]: probe for probe in verdict["probes"]}
    blocks = [_block(training, verdict, probes[training["probe"]]) for training in verdict["trainings"]]
    if rows := digest.seed_rows({"seeds": [row for row in verdict["seeds"] if row["seeds"] > 1]}):
        blocks.append(tables.plain([list(rows[0]), *(list(row.values()) for row in rows)]))
    return "\n\n".join(blocks)


def _block(training: dict[str, Any], verdict: dict[str, Any], probe: dict[str, Any]) -> str:
    own = rows_of(verdict["evaluations"], training)
    shown = [row for row in own if row["kind"] != "general"] + [row for row in own if row["kind"] == "general"]
    knows = digest.probe_accuracy(training)
    table = [
        ["", *(f"{row['task']}" for row in shown)],
        ["what the model says", *(number(row["base"], row["metric"]) for row in shown)],
        [digest.knows(training, probe), *(knows if row["kind"] == "training" else "" for row in shown)],
        ["what the tuned model says", *(number(row["tuned"], row["metric"]) for row in shown)],
        ["  gain", *(signed(row["difference"], row["metric"]) for row in shown)],
        ["  95 % interval", *(_bounds(row) for row in shown)],
        ["  p (Holm)", *(p_value(row["p_holm"]) for row in shown)],
    ]
    n = max((row["n"] for row in shown if row["kind"] != "general"), default=0)
    averages = tables.average_rows(rows_of(verdict.get("averages", []), training))
    return "\n".join(
        [
            f"{training['run']}, seed {training['seed']}: {n} questions never trained on",
            tables.plain(table),
            *(f"{row['suite']}: {row['base']} -> {row['tuned']}, {row['difference [95 %]']}" for row in averages),
            f"probe {probe['probe']}: {probe['method']}, layer {probe['layer']}, AUROC {digest.auroc(probe)}"
            + digest.elsewhere(training, probe),
            *_read_afterwards(training),
            *(fill(f"- {text}", 110, subsequent_indent="  ") for text, _ in findings(training, own, probe)),
        ]
    )


def _read_afterwards(training: dict[str, Any]) -> list[str]:
    """What probes read in the tuned model's states, where the config asks for a fresh one."""
    after = training.get("probes_after")
    if not after:
        return []
    found = (
        f"{after[name]['auroc']:.3f} by {whom}" for name, whom in (("frozen", "this probe"), ("fresh", "a new one"))
    )
    return [f"truth read from the tuned model's states, AUROC: {', '.join(found)}"]


def _bounds(row: dict[str, Any]) -> str:
    low, high = (signed(row[end], row["metric"]) for end in ("ci_low", "ci_high"))
    return f"[{low}, {high}]"
