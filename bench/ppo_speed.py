"""Seconds per PPO step: our trainer against TRL 0.11.4's PPOTrainer with the thesis's settings, in turns.

    python bench/ppo_speed.py [--results results] [--output results/bench/ppo_speed.json] [--rounds 3]

Needs the quickstart's model, prompts, probe and reward table. Every way runs in a process of its own that stays: TRL in
float32 and bfloat16 (in .venv-peers/, made if need be), ours in float32 and bfloat16. A round is a step of each, on the
same prompts; the first round warms up; what counts is the median of the rounds' ratios. Both sides look rewards up in
the same table.

Measured twice: with whole batches of the held-out wording (about 68 tokens per prompt), and, as `thesis`, with the
thesis's minibatches of one prompt on the wording that the quickstart trains on. There the peer's online reward is timed
too: a step without a table, as in the thesis, takes it `online_reward_seconds` more. Our table of all the prompts, once
for a whole run, takes `table_seconds`.

`matmul_share` is the part of our step that torch.matmul takes for the fewest products that the algorithm can do with at
these shapes: one forward pass to sample (with whole batches it could also serve the first update; ours runs it again),
one for the reference, one for every further epoch, and a backward pass for every epoch; two FLOPs per weight of the
blocks and token each. Tokens that several prompts of a pass begin with count once, as they are computed once:
`tokens_per_step` is their number.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trl_environment

from elkflow.common.files import read_json, read_table, write_json
from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer
from elkflow.ppo import schedule
from elkflow.rewards import probe_reward

THESIS = {
    "batch_size": 16,
    "max_new_tokens": 2,
    "ppo_epochs": 4,
    "learning_rate": 1e-5,
    "rank": 16,
    "alpha": 32,
    "targets": ["q_proj", "v_proj"],
    "kl": 0.2,
    "target_kl": 0.1,
    "value_coefficient": 1.0,
    "seed": 0,
}
"""Hyperparameters of either side. Of the thesis's none is missing but dropout, which TRL never applies: its forward
passes run in eval mode."""
WAYS = (("peer", "float32"), ("peer", "bfloat16"), ("ours", "float32"), ("ours", "bfloat16"))
HERE = Path(__file__).parent


class Worker:
    """A process that answers each line of JSON with one."""

    def __init__(self, side: str, job: dict[str, Any]):
        script = HERE / {"peer": "ppo_trl.py", "ours": "ppo_ours.py"}[side]
        python = trl_environment.python() if side == "peer" else sys.executable
        library = {} if side == "peer" else {"PYTHONPATH": str(HERE.parent / "workflow" / "scripts")}
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | library
        self.process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.send(job)

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            SystemExit: it has died.
        """
        assert self.process.stdout
        self.send(request)
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"{self.process.args}: ended with {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def job(results: Path, wording: str) -> dict[str, Any]:
    """What both sides need, from the quickstart's results."""
    paths = {
        "checkpoint": results / "models/smollm2/checkpoint",
        "prompts": results / f"prompts/smollm2/countries/{wording}/ppo.parquet",
        "table": results / "rewards/truth/countries/ppo.parquet",
        "probe": results / "probes/truth/probe.safetensors",
    }
    asked, table = read_table(paths["prompts"], ["id", "prompt", "answers"]).to_pylist(), read_table(paths["table"])
    tokenizer, values = load_tokenizer(paths["checkpoint"]), {row["id"]: row["rewards"] for row in table.to_pylist()}
    return {name: str(path.absolute()) for name, path in paths.items()} | {
        "settings": THESIS,
        "tokens": [encode_prompt(tokenizer, row["prompt"]) for row in asked],
        "rewards": [dict(zip(row["answers"], values[row["id"]], strict=True)) for row in asked],
        "answers": [encode_answer(tokenizer, text) for text in asked[0]["answers"]],
        "layer": read_json(results / "probes/truth/probe.json")["layer"],
    }


def measure(
    common: dict[str, Any], minibatch: int, rounds: int, ways: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """What every way answers, in turns, in all rounds but the first."""
    workers = {
        (side, dtype): Worker(side, common | {"dtype": dtype, "minibatch_size": minibatch}) for side, dtype in ways
    }
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, worker in workers.items():
            done = worker.ask({"do": "step", "rows": rows_of(common, number)})
            print(f"round {number}, minibatch {minibatch}, {way}: {done['seconds']:.2f} s", file=sys.stderr, flush=True)
            seen[way].append(done)
    for worker in workers.values():
        worker.end()
    expected = THESIS["ppo_epochs"] * THESIS["batch_size"] // minibatch
    for way, answers in seen.items():
        if {done["updates"] for done in answers} != {expected}:
            raise SystemExit(f"{way}: made {answers[0]['updates']} optimiser steps, not {expected}")
    return {way: answers[1:] for way, answers in seen.items()}


def rows_of(common: dict[str, Any], step: int) -> list[int]:
    """The prompts that our trainer takes at a step."""
    return schedule.batch_rows(len(common["tokens"]), THESIS["batch_size"], step, THESIS["seed"])


def online_reward(common: dict[str, Any], rounds: int) -> float:
    """Seconds that the peer's online reward of a batch takes.

    Raises:
        SystemExit: its rewards are not those of the table.
    """
    worker = Worker("peer", common | {"dtype": "float32", "minibatch_size": 1})
    answers = [worker.ask({"do": "online_reward", "rows": rows_of(common, step)}) for step in range(rounds + 1)]
    worker.end()
    for step, done in enumerate(answers):
        table = [list(common["rewards"][row].values()) for row in rows_of(common, step)]
        apart = statistics.mean(abs(a[1] - b[1]) for a, b in zip(done["rewards"], table, strict=True))
        print(f"the peer's online rewards differ from the table's by {apart:.3f} on average", file=sys.stderr)
        if apart > 0.1:  # the table's model ran in bfloat16
            raise SystemExit(f"the peer computes rewards {done['rewards']}, the table has {table}")
    return statistics.median(done["seconds"] for done in answers[1:])


def table_seconds(results: Path, prompts: list[str]) -> float:
    """Seconds that our reward table of all the prompts takes, with the model loaded."""
    score = probe_reward.load(results / "probes/truth", results / "models/smollm2/checkpoint")
    score.log_odds(prompts[:32])
    start = time.perf_counter()
    score.log_odds(prompts)
    return time.perf_counter() - start


def summary(seen: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over rounds, nested by side and dtype, and the ratios of either dtype to the peer's float32."""
    seconds = {way: [done["seconds"] for done in answers] for way, answers in seen.items()}
    peer = seconds["peer", "float32"]
    ratios = {
        dtype: statistics.median(a / b for a, b in zip(peer, seconds["ours", dtype], strict=True))
        for side, dtype in seen
        if side == "ours"
    }
    best = max(ratios, key=ratios.__getitem__)

    def nested(figure: Any) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for side, dtype in seen:
            found.setdefault(side, {})[dtype] = figure(seen[side, dtype])
        return found

    def median(name: str) -> Any:
        return lambda answers: statistics.median(done[name] for done in answers)

    def parts(answers: list[dict[str, Any]]) -> dict[str, float]:
        return {name: statistics.median(done["parts"][name] for done in answers) for name in answers[0]["parts"]}

    return {
        "seconds_per_step": nested(median("seconds")),
        "rounds": {f"{side} {dtype}": seconds[side, dtype] for side, dtype in seen},
        "parts": nested(parts),
        "ratio_fp32": ratios["float32"],
        "ratio_best": ratios[best],
        "best_dtype": best,
        "matmul_share": {
            dtype: statistics.median(done["limit"] / done["seconds"] for done in seen["ours", dtype])
            for dtype in ratios
        },
        "matmul_seconds": {dtype: statistics.median(done["limit"] for done in seen["ours", dtype]) for dtype in ratios},
        "activation_bytes": {dtype: seen["ours", dtype][-1]["activation_bytes"] for dtype in ratios},
        "peak_memory_mb": nested(lambda answers: answers[-1]["peak_memory_mb"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--output", type=Path, default=Path("results/bench/ppo_speed.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--thesis-rounds", type=int, default=1, help="of the thesis's minibatches of one prompt")
    given = parser.parse_args()
    import torch
    import transformers

    seen = measure(job(given.results, "held_out"), THESIS["batch_size"], given.rounds, WAYS)
    ours, theirs = seen["ours", "float32"][-1], seen["peer", "float32"][-1]
    passes = 2 * THESIS["ppo_epochs"] + 1
    tokens = statistics.mean(done["tokens"] for done in seen["ours", "float32"])
    both = zip(seen["peer", "bfloat16"], seen["ours", "bfloat16"], strict=True)
    report = summary(seen) | {
        "ratio_peers_bfloat16": statistics.median(a["seconds"] / b["seconds"] for a, b in both),
        "minibatch_size": THESIS["batch_size"],
        "reward": "the same table on both sides",
        "tokens_per_step": tokens,
        "flops_per_step": passes * tokens * 2 * ours["weights"],
        "hyperparameters": THESIS,
        "threads": torch.get_num_threads(),
        "versions": {
            "ours": {"torch": torch.__version__, "transformers": transformers.__version__},
            "peer": theirs["versions"],
        },
    }
    write_json(given.output, report)
    if given.thesis_rounds:
        thesis = job(given.results, "training")
        report["thesis"] = summary(measure(thesis, 1, given.thesis_rounds, [WAYS[0], *WAYS[2:]]))
        write_json(given.output, report)
        report["thesis"]["online_reward_seconds"] = online_reward(thesis, given.thesis_rounds)
        prompts = read_table(Path(thesis["prompts"]), ["prompt"])["prompt"].to_pylist()
        report["thesis"]["table_seconds"] = table_seconds(given.results, prompts)
        write_json(given.output, report)
    show(report)


def show(report: dict[str, Any]) -> None:
    """The results as a table."""
    for title, part in (("whole batches", report), ("minibatches of one prompt", report.get("thesis"))):
        if part:
            print(f"\n{title:32}{'s per step':>12}{'times TRL fp32':>16}{'of matmul limit':>17}{'peak MB':>9}")
            base = part["seconds_per_step"]["peer"]["float32"]
            for side, dtype in (way for way in WAYS if way[1] in part["seconds_per_step"][way[0]]):
                seconds, memory = part["seconds_per_step"][side][dtype], part["peak_memory_mb"][side][dtype]
                share = f"{part['matmul_share'][dtype]:.0%}" if side == "ours" else ""
                name = {"peer": "TRL 0.11.4", "ours": "this workflow"}[side]
                print(f"{name + ', ' + dtype:32}{seconds:>12.2f}{base / seconds:>16.2f}{share:>17}{memory:>9.0f}")


if __name__ == "__main__":
    main()
