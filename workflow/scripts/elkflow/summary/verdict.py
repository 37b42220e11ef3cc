"""The verdict: what the model says, what it knows and what the tuned model says, with a diagnosis of each training."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from elkflow.common.files import read_json
from elkflow.common.metrics import auroc
from elkflow.summary.comparison import between_runs, compare, groups_in, over_seeds, pair_samples, suite_averages
from elkflow.summary.diagnosis import classify_outcome, held_out_gains, is_reward_hacking, measure_agreement
from elkflow.summary.plan import Plan, Training
from elkflow.summary.results import (
    base_folder,
    read_groups,
    read_probe,
    read_rewards,
    read_steps,
    read_suite,
    reward_file,
    run_folder,
    tuned_folder,
    val_prompts,
)


def build_verdict(plan: Plan, results: Path) -> dict[str, Any]:
    """The verdict as plain JSON, with None for what cannot be known, such as an interval of a single group.

    Keys: `evaluations`, a row per run, seed and task (see `comparison.compare`); `averages`, a row per averaged suite
    (see `comparison.suite_averages`); `seeds`, the evaluations over seeds; `between`, runs against the first
    one like them (see `comparison.between_runs`); `probes`, each with its baselines;
    `trainings`, a row per run and seed with its diagnosis.
    """
    comparison, steps = compare(plan, results), read_steps(plan, results)
    trainings = []
    for training in plan.trainings():
        own = (
            table[(table["run"] == training.run) & (table["seed"] == training.seed)] for table in (comparison, steps)
        )
        trainings.append(training.model_dump() | diagnose(training, plan, results, *own))
    verdict = {
        "format": 1,
        "evaluations": comparison.to_dict("records"),
        "averages": suite_averages(plan, results).to_dict("records"),
        "seeds": over_seeds(plan, results, comparison).to_dict("records"),
        "between": between_runs(plan, results).to_dict("records"),
        "probes": [read_probe(results / "probes" / name, name) for name in plan.probes],
        "trainings": trainings,
    }
    return without_nan(verdict)


def without_nan(content: Any) -> Any:
    """JSON content with None for NaN and infinity."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def diagnose(
    training: Training, plan: Plan, results: Path, comparison: pd.DataFrame, steps: pd.DataFrame
) -> dict[str, Any]:
    """Diagnosis of one training: agreement with probe and truth, gains in reward and gold accuracy, outcome.

    Args:
        comparison, steps: the rows of this run and seed.
    """
    rewards = read_rewards(reward_file(results, training, "val.parquet"))
    labelled = rewards[rewards["label"] >= 0]
    agreements, gains = {}, None
    for suite, wordings in plan.suites.items():
        for wording in wordings:
            base, tuned = (read_suite(folder(results, training, suite))[1] for folder in (base_folder, tuned_folder))
            base, tuned = pair_samples(base, tuned, wording)
            groups = groups_in(tuned, read_groups(val_prompts(results, training, wording)))
            agreements[wording] = measure_agreement(base, tuned, rewards["choice"], groups)
            if wording == training.wording and agreements[wording] is not None:
                gains = held_out_gains(base, tuned, rewards["rewards"], groups)
    own = agreements.get(training.wording)
    trained = comparison[comparison["kind"] == "training"].to_dict("records")
    folder = run_folder(results, training)
    ended = read_json(folder / "outcome.json")
    probes = None
    if plan.fresh_probe:
        before = float(auroc(labelled["second"].to_numpy(), labelled["label"].to_numpy()))
        fitted = read_json(results / "probes" / training.probe / "probe.json")
        if fitted.get("arm") == "gold_labels":  # the rewards are not the probe's own reading
            before = fitted["metrics"]["auroc"]
        probes = read_json(folder / "fresh_probe.json") | {"before": before}
    outcome = None
    if trained:
        outcome = classify_outcome(trained[0], own, valid_at(steps, ended["kept"]), ended["outcome"], probes)
    return {
        "steps": int(steps["reward"].notna().sum()),
        "ended": ended["outcome"],
        "kept_step": ended["kept"],
        "kl": start_and_kept(steps, "kl_k3", ended["kept"])["kept"],
        "seconds": float(steps["seconds"].sum()),
        "reason": ended["reason"],
        "reward_trend": start_and_kept(steps, "reward", ended["kept"]),
        "gold_trend": start_and_kept(steps, "gold_of_allowed", ended["kept"]),
        "held_out_gains": gains,
        "gold_ceiling": read_json(reward_file(results, training, "ppo.manifest.json"))["facts"]["gold_ceiling"],
        "probe_accuracy": float((labelled["choice"] == labelled["label"]).mean()) if len(labelled) else None,
        "agreement": agreements,
        "probes_after": probes,
        "exploits_probe": is_reward_hacking(gains),
        "outcome": outcome,
    }


def valid_at(steps: pd.DataFrame, step: int) -> float:
    """Fraction of allowed answers at a step; 1 for the untrained policy of step 0, which has no rollout."""
    found = steps.loc[steps["step"] == step, "valid"]
    return float(found.iloc[0]) if len(found) else 1.0


def start_and_kept(steps: pd.DataFrame, metric: str, kept: int) -> dict[str, float | None]:
    """A metric of the rollouts at the first step and at the step whose weights were kept, to describe, not to test."""
    known = steps.dropna(subset=[metric]).sort_values("step")
    if not len(known):
        return {"start": None, "kept": None}
    upto = known[known["step"] <= kept]
    return {"start": float(known[metric].iloc[0]), "kept": float((upto if len(upto) else known[:1])[metric].iloc[-1])}
