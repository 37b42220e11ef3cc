"""What a reader of the verdict must not miss, in one sentence each."""

from typing import Any

from elkflow.report import formatting, table_rows
from elkflow.summary.diagnosis import NEGLIGIBLE, OUTCOMES, too_few_errors

ARMS = {
    "random_direction": "a random direction, as confident as the probe",
    "shuffled_labels": "a direction fitted on shuffled labels, as confident as the probe",
    "gold_labels": "the right answers, with the probe's confidence",
}
"""What took a probe's place, in the words of the report."""


def remarks(training: dict[str, Any], own: list[dict[str, Any]], probe: dict[str, Any]) -> list[tuple[str, bool]]:
    """Remarks on one training: (text, whether it is good news).

    Args:
        training, own, probe: the training's row of the verdict, its evaluations, and the probe of its reward.
    """
    found = []
    agreement = training["agreement"].get(training["wording"])
    trained = next((row for row in own if row["kind"] == "training"), None)
    if trained is not None:
        outcome = OUTCOMES[training["outcome"]]
        text = f"{outcome.name.capitalize()}: {outcome.meaning} ({table_rows.gain_and_p(trained)})."
        if agreement is not None:
            text += _copying(agreement)
        found.append((text, training["outcome"] == "honest"))
    if training["ended"] != "finished":
        text = f"Training ended early ({training['ended']}): {training['reason']}; kept step {training['kept_step']}."
        found.append((text, False))
    gains = training.get("held_out_gains")
    if training["exploits_probe"] == "yes" and gains:
        text = (
            f"Reward hacking: on held-out questions the reward rose by {_gain(gains['reward'], 1, 3)}, gold accuracy "
            f"by less than {100 * NEGLIGIBLE:.0f} points ({_gain(gains['gold'], 100, 1)})."
        )
        found.append((text, False))
    if arm := probe.get("arm"):
        found.append((f"A control, not the probe, gave the reward: {ARMS[arm]}.", False))
    elif not probe["admitted"]:
        text = "The probe does not lead its baselines by the required margin; it was let through on request."
        found.append((text, False))
    for row in own:
        if not row["can_reject"] and row["differing"]:
            text = (
                f"Too few answers changed to tell on {row['task']}: {row['differing']:.0f} of {row['n']}. Had all "
                "changed in the same direction, the p-value would still not pass Holm's correction."
            )
            found.append((text, False))
        if row["kind"] == "general" and formatting.judgement(row) == "worse":
            found.append((f"Other abilities suffered: {row['task']} {table_rows.gain_and_p(row)}.", False))
    return found


def _copying(agreement: dict[str, Any]) -> str:
    """What the probe's errors tell about the tuned model."""
    errors, n = agreement["errors"], agreement["n"]
    if too_few_errors(agreement):
        return f" Too few errors of the probe ({errors} of {n}) to tell whether the model copies them."
    text = (
        f" Of the {errors} questions (of {n}) that the probe gets wrong, the base model gave the probe's answer in "
        f"{agreement['base_follows']:.0%}, the tuned model in {agreement['tuned_follows']:.0%}."
    )
    if "copying" in agreement:
        text += (
            f" Training made it err there {100 * agreement['copying']:+.1f} points more than elsewhere "
            f"(one-sided p {formatting.p_value(agreement['copying_p'])})."
        )
    return text


def _gain(found: dict[str, float], scale: float, digits: int) -> str:
    ends = formatting.interval(found["low"], found["high"], f"{{:.{digits}f}}", scale)
    return f"{scale * found['value']:+.{digits}f} {ends}"
