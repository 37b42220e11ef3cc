"""How long it takes to get good: to 0.85 held-out accuracy on the quickstart, and what RLOO and GRPO reach meanwhile.

    python bench/ppo_quality.py [--results results] [--output results/bench/ppo_speed.json] [--algorithms rloo grpo]

After `make run` and bench/ppo_speed.py, to whose output it adds:

`time_to_quality`, `ratio_to_quality`. Ours is read from the real run: seconds of its steps up to the first evaluation
at which accuracy is 0.85, and those of computing its reward table, which bench/ppo_speed.py measured. TRL's trainer
with the thesis's settings is not run that long: bench/ppo_parity.py shows that its updates are ours. So our trainer
runs with those settings for as many steps as ten times our seconds would allow TRL (at the seconds per step that
bench/ppo_speed.py measured, rewards online). If accuracy gets there, the ratio is that of the seconds; if not, it is
*at least* ten, and `at_least` is true. `--peer-steps` ends that sooner, at a smaller ratio.

`algorithms`. RLOO and GRPO of TRL's current trainers, with the quickstart's settings and as many rollouts; with
`--algorithm-steps` all three are compared as they were at that step.

Whatever was interrupted resumes from its checkpoints, which are kept beside the output file.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ppo_ours import settings as thesis_settings
from ppo_speed import THESIS

from elkflow.common.files import read_json, write_json
from elkflow.config.ppo import PPOSettings
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import read_questions, table_rewards
from elkflow.ppo.session import Session
from elkflow.ppo.trainer import Trainer

GOAL, TIMES = 0.85, 10
EVERY = 5
"""Steps of the thesis's settings from one evaluation to the next."""
RUN = "runs/quickstart/seed0"


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def first_good(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first evaluation that reaches the goal, with the seconds up to it."""
    seconds = 0.0
    for row in rows:
        seconds += row.get("seconds", 0.0)
        if row.get("held_out_accuracy", 0.0) >= GOAL:
            return {"step": row["step"], "accuracy": row["held_out_accuracy"], "seconds": seconds}
    return None


def session(results: Path, folder: Path, chosen: PPOSettings, dtype: str, limit: int | None = None) -> Session:
    """The quickstart's run with other settings, started or found again, to end after `limit` steps."""
    checkpoint = results / "models/smollm2/checkpoint"
    tokenizer = load_tokenizer(checkpoint)
    asked, rewards = {}, {}
    for split in ("ppo", "val"):
        prompts = results / f"prompts/smollm2/countries/training/{split}.parquet"
        asked[split] = read_questions(prompts, tokenizer, chosen.max_new_tokens, 8192)
        table = results / f"rewards/truth/countries/{split}.parquet"
        rewards[split] = table_rewards(table, asked[split], chosen.invalid_reward)
    mark = hashlib.sha256(f"{chosen.model_dump_json()} {dtype}".encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    made = Session(
        Policy(load_model(checkpoint, dtype=dtype), chosen),
        tokenizer,
        asked["ppo"],
        rewards["ppo"],
        asked["val"],
        rewards["val"],
        chosen,
        0,
        folder,
        mark,
    )
    if limit is not None:
        made.stopping = lambda: made.progress.step >= limit
    made.start()
    return made


def time_to_quality(
    results: Path, measured: dict[str, Any], folder: Path, dtype: str, limit: int | None
) -> dict[str, Any]:
    """Our seconds, the peer's, and what is known of their ratio."""
    ours = first_good(rows_of(results / RUN / "metrics.jsonl"))
    if ours is None:
        raise SystemExit(f"{results / RUN}: never reached {GOAL}")
    thesis = measured["thesis"]
    ours["table_seconds"] = thesis["table_seconds"]
    total = ours["seconds"] + ours["table_seconds"]
    peers_step = thesis["seconds_per_step"]["peer"]["float32"] + thesis["online_reward_seconds"]
    steps = EVERY * math.ceil(TIMES * total / peers_step / EVERY)
    steps = min(steps, limit or steps)
    chosen = thesis_settings(THESIS, 1, evaluate_every=EVERY, checkpoint_every=EVERY, evaluate_rows=128, keep="last")
    made = session(results, folder / "thesis", chosen, dtype, steps)
    if made.progress.step < steps:
        Trainer(made).train()
    rows = rows_of(folder / "thesis" / "metrics.jsonl")
    reached = first_good(rows)
    count = reached["step"] if reached else rows[-1]["step"]
    return {
        "goal": GOAL,
        "ours": ours | {"total_seconds": total},
        "peer": {
            "seconds_per_step": peers_step,
            "steps": count,
            "seconds": count * peers_step,
            "accuracy": {row["step"]: row["held_out_accuracy"] for row in rows if "held_out_accuracy" in row},
            "reached": reached is not None,
            "stood_in_for_by": f"our trainer with its settings, {dtype}",
        },
        "ratio": count * peers_step / total,
        "at_least": reached is None,
    }


def algorithms(results: Path, folder: Path, names: list[str], limit: int | None) -> dict[str, Any]:
    """Held-out figures and seconds at equal rollouts: our PPO from the real run, TRL's trainers run here."""
    from elkflow.ppo.trl_trainers import train_grouped

    run = read_json(results / RUN / "manifest.json")
    found = {"ppo": results / RUN / "metrics.jsonl"}
    settings, dtype = PPOSettings.model_validate(run["settings"]), run["facts"]["dtype"]
    for name in names:
        made = session(results, folder / name, settings, dtype, limit)
        if made.progress.step < (limit or made.steps):
            train_grouped(made, name)
        found[name] = folder / name / "metrics.jsonl"
    table = {}
    for name, file in found.items():
        rows = [row for row in rows_of(file) if limit is None or row["step"] <= limit]
        last = [row for row in rows if "held_out_reward" in row][-1]
        table[name] = {
            "steps": rows[-1]["step"],
            "rollouts": rows[-1]["step"] * settings.batch_size,
            "held_out_reward": last["held_out_reward"],
            "held_out_accuracy": last["held_out_accuracy"],
            "seconds": sum(row.get("seconds", 0.0) for row in rows),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, default=Path("results/bench/ppo_speed.json"))
    parser.add_argument("--algorithms", nargs="*", choices=["rloo", "grpo"], default=["rloo", "grpo"])
    parser.add_argument("--dtype", default="bfloat16", help="of the run with the thesis's settings")
    parser.add_argument("--peer-steps", type=int, help="at most so many steps of it")
    parser.add_argument("--algorithm-steps", type=int, help="at most so many steps of RLOO and GRPO")
    given = parser.parse_args()
    folder = given.output.parent / "quality"
    found = time_to_quality(given.results, read_json(given.output), folder, given.dtype, given.peer_steps)
    add(given.output, {"ratio_to_quality": found["ratio"], "time_to_quality": found})
    ours, peer = found["ours"], found["peer"]
    print(f"ours: {ours['accuracy']:.3f} after {ours['step']} steps, {ours['total_seconds']:.0f} s with the table")
    best = max(peer["accuracy"].values())
    print(f"TRL, thesis's settings: {best:.3f} at best within {peer['steps']} steps, {peer['seconds']:.0f} s")
    print(f"ratio to quality: {'at least ' if found['at_least'] else ''}{found['ratio']:.1f}")
    table = algorithms(given.results, folder, given.algorithms, given.algorithm_steps)
    add(given.output, {"algorithms": table})
    print(f"\n{'':8}{'rollouts':>10}{'reward':>9}{'accuracy':>10}{'seconds':>9}")
    for name, row in table.items():
        numbers = f"{row['held_out_reward']:>9.3f}{row['held_out_accuracy']:>10.3f}{row['seconds']:>9.0f}"
        print(f"{name:8}{row['rollouts']:>10}{numbers}")


def add(file: Path, results: dict[str, Any]) -> None:
    """Add to a JSON object in a file."""
    write_json(file, read_json(file) | results)


if __name__ == "__main__":
    main()
