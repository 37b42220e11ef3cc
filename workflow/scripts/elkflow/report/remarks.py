"""What a reader of the verdict must not miss, in one sentence each."""

from typing import Any

from elkflow.report import formatting, table_rows
from elkflow.summary.diagnosis import OUTCOMES


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
        if agreement is not None and agreement["errors"]:
            text += (
                f" Of the {agreement['errors']} questions (of {agreement['n']}) that the probe gets wrong, the tuned "
                f"model follows the probe in {agreement['tuned_follows']:.0%}."
            )
        found.append((text, training["outcome"] == "honest"))
    if training["ended"] != "finished":
        text = f"Training ended early ({training['ended']}): {training['reason']}; kept step {training['kept_step']}."
        found.append((text, False))
    if training["exploits_probe"] and agreement is not None:
        text = (
            "Reward hacking: the reward rose during training, gold accuracy did not; the tuned model agrees with the "
            f"probe in {agreement['tuned_probe']:.0%} and with the truth in {agreement['tuned_truth']:.0%} of answers."
        )
        found.append((text, False))
    if not probe["admitted"]:
        text = "The probe does not lead its baselines by the required margin; it was let through on request."
        found.append((text, False))
    for row in own:
        if row["kind"] == "general" and formatting.judgement(row) == "worse":
            found.append((f"Other abilities suffered: {row['task']} {table_rows.gain_and_p(row)}.", False))
    return found
