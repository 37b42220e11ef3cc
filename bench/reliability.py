"""Does training end well on every seed, and under other roundings? The quickstart's run again and again.

    PYTHONPATH=workflow/scripts python bench/reliability.py [--seeds 0 1 2] [--roundings "" float32 "1 thread"] …

After `make run`, whose model, prompts and reward tables it uses. Every run trains as the `train_ppo` rule does and then
answers all `val` questions greedily; the table has its gain over the untrained model, in points. With `--rows train`
answers are to the probe's training questions instead, which no verdict reports: rows to choose settings on, by `--ppo`
(JSON that is merged into the run's `ppo` section). Runs that were finished are not repeated.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
import yaml
from snakemake.utils import update_config

from elkflow.common.files import read_json, write_json
from elkflow.common.memory import keep_freed_memory
from elkflow.config.config import Config
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import read_questions, table_rewards
from elkflow.ppo.session import Session
from elkflow.ppo.train_ppo import train_session

ROUNDINGS = {"": {}, "float32": {"dtype": "float32"}, "1 thread": {"threads": 1}}
"""What computes the same in other roundings: as configured, another precision, another order of sums."""


def train(results: Path, config: Config, name: str, seed: int, rounding: str, rows: str, folder: Path) -> dict:
    """One run from the quickstart's files; accuracies before and after, in per cent, seconds, and how it ended."""
    run, options = config.runs[name], ROUNDINGS[rounding]
    torch.set_num_threads(options.get("threads", torch.get_num_threads()))
    checkpoint = results / "models" / run.policy / "checkpoint"
    prompts = results / "prompts" / run.policy / run.dataset / run.wording
    tables = results / "rewards" / run.probe / run.dataset
    tokenizer = load_tokenizer(checkpoint)
    tokens, context = run.ppo.max_new_tokens, read_json(checkpoint / "config.json")["max_position_embeddings"]
    asked, held_out = (
        read_questions(prompts / f"{part}.parquet", tokenizer, tokens, context) for part in ("ppo", rows)
    )
    rewards = table_rewards(tables / "ppo.parquet", asked, run.ppo.invalid_reward)

    def unknown(prompts: list[str], responses: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts))

    known = table_rewards(tables / "val.parquet", held_out, run.ppo.invalid_reward) if rows == "val" else unknown
    loading = config.models[run.policy].loading() | {key: options[key] for key in ("dtype",) if key in options}
    settings = run.ppo.model_copy(update={"evaluate_rows": 400, "evaluate_every": 10**6, "keep": "last"})
    started = time.monotonic()
    policy = Policy(load_model(checkpoint, **loading), settings, seed)
    session = Session(policy, tokenizer, asked, rewards, held_out, known, settings, seed, folder, "reliability")
    session.start()
    done = train_session(session, run.algorithm)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before, after = (100 * steps[at]["held_out_accuracy"] for at in (0, -1))
    return {
        "seed": seed,
        "rounding": rounding or "as configured",
        "base": before,
        "tuned": after,
        "gain": after - before,
        "seconds": sum(step["seconds"] for step in steps[1:]),
        "seconds_with_loading": time.monotonic() - started,
        "outcome": done.outcome,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--config", type=Path, default=Path("config/config.yaml"))
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(10)))
    parser.add_argument("--roundings", nargs="*", default=[""], choices=list(ROUNDINGS))
    parser.add_argument("--rows", choices=["val", "train"], default="val")
    parser.add_argument("--ppo", type=json.loads, default={}, help="JSON merged into the run's ppo section")
    parser.add_argument("--algorithm", default=None)
    parser.add_argument("--output", type=Path, default=Path("results/bench/reliability"))
    given = parser.parse_args()
    keep_freed_memory()
    raw = yaml.safe_load(given.config.read_text(encoding="utf-8"))
    section = raw["runs"][given.run]
    update_config(section["ppo"], given.ppo)
    section["algorithm"] = given.algorithm or section.get("algorithm", "ppo")
    config = Config.load(raw)
    key = hashlib.sha256(json.dumps([section, given.rows], sort_keys=True).encode()).hexdigest()[:12]
    print(f"{'seed':>4}  {'rounding':14}{'base':>7}{'tuned':>8}{'gain':>8}{'seconds':>9}  outcome")
    rows = []
    for rounding in given.roundings:
        for seed in given.seeds:
            folder = given.output / key / f"seed{seed}{rounding and '-' + rounding.replace(' ', '-')}"
            if not (folder / "found.json").is_file():
                found = train(given.results, config, given.run, seed, rounding, given.rows, folder)
                write_json(folder / "found.json", found)
            row = read_json(folder / "found.json")
            rows.append(row)
            print(
                f"{row['seed']:>4}  {row['rounding']:14}{row['base']:>5.1f} %{row['tuned']:>6.1f} %{row['gain']:>+8.1f}"
                f"{row['seconds']:>9.0f}  {row['outcome']}",
                flush=True,
            )
    gains = [row["gain"] for row in rows]
    spread = f"mean {sum(gains) / len(gains):+.1f}, least {min(gains):+.1f}, most {max(gains):+.1f} points"
    print(f"{len(gains)} runs: {spread}, slowest {max(row['seconds'] for row in rows):.0f} s")


if __name__ == "__main__":
    main()
