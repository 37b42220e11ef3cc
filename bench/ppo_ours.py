"""Our trainer on the job of bench/ppo_speed.py: one step for every line read (bench/ppo_trl.py is the peer)."""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from elkflow.common.memory import keep_freed_memory
from elkflow.config.ppo import PPOSettings
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import read_questions, table_rewards
from elkflow.ppo.session import Session
from elkflow.ppo.trainer import SAMPLED_AT_ONCE, Trainer

FOREVER = 10**6


def settings(given: dict[str, Any], minibatch_size: int, **changes: Any) -> PPOSettings:
    """The job's hyperparameters as ours, with nothing around the steps: no evaluation, no checkpoints."""
    quiet = {"evaluate_every": FOREVER, "checkpoint_every": FOREVER, "evaluate_rows": 1, "sentinel": None}
    return PPOSettings.model_validate(
        quiet
        | {
            "steps": FOREVER,
            "learning_rate": given["learning_rate"],
            "batch_size": given["batch_size"],
            "minibatch_size": minibatch_size,
            "ppo_epochs": given["ppo_epochs"],
            "value_coefficient": given["value_coefficient"],
            "target_kl": 1.5 * given["target_kl"],  # where TRL stops
            "max_new_tokens": given["max_new_tokens"],
            "kl": {"coefficient": given["kl"], "control": "adaptive"},
            "lora": {"rank": given["rank"], "alpha": given["alpha"], "targets": given["targets"]},
        }
        | changes
    )


class Ours:
    """A trainer whose steps are asked for one by one."""

    def __init__(self, job: dict[str, Any], folder: Path):
        given = job["settings"]
        chosen = settings(given, job["minibatch_size"])
        tokenizer = load_tokenizer(job["checkpoint"])
        questions = read_questions(Path(job["prompts"]), tokenizer, chosen.max_new_tokens, FOREVER)
        rewards = table_rewards(Path(job["table"]), questions, chosen.invalid_reward)
        policy = Policy(load_model(job["checkpoint"], dtype=job["dtype"]), chosen, given["seed"])
        self.job, self.parts = job, {}
        session = Session(
            policy, tokenizer, questions, rewards, questions, rewards, chosen, given["seed"], folder, "bench"
        )
        keep_freed_memory()  # as every script of the workflow does
        session.start()
        self.trainer = Trainer(session)
        for name in ("roll_out", "update"):
            setattr(self.trainer, name, self.timed(name, getattr(self.trainer, name)))
        session.record = self.keep
        self.resident = psutil.Process().memory_info().rss

    def timed(self, name: str, work: Callable) -> Callable:
        def watched(*given: Any) -> Any:
            start = time.perf_counter()
            result = work(*given)
            self.parts[name] = time.perf_counter() - start
            return result

        return watched

    def keep(self, _: Any, metrics: dict[str, float], seconds: float) -> None:
        self.metrics = metrics

    def step(self, rows: list[int]) -> dict[str, Any]:
        """A whole step; which prompts it takes, the trainer knows by itself."""
        start = time.perf_counter()
        self.trainer.step()
        seconds = time.perf_counter() - start
        size, epochs = self.job["minibatch_size"], self.job["settings"]["ppo_epochs"]
        once = [self.products(self.tokens(part)) for part in cut(rows, max(size, SAMPLED_AT_ONCE))]
        each = [self.products(self.tokens(part)) for part in cut(rows, size)]
        sampled, forward, backward = (
            sum(one[0] for one in once),
            sum(one[0] for one in each),
            sum(one[1] for one in each),
        )
        return {
            "seconds": seconds,
            "parts": self.parts,
            "updates": self.metrics["updates"],
            "tokens": sum(self.tokens(part) for part in cut(rows, size)),
            "limit": 2 * sampled + (epochs - 1) * forward + epochs * backward,
        }

    def products(self, tokens: int) -> tuple[float, float]:
        """Seconds of the blocks' matrix products for so many tokens, forward and (for activations alone) backward."""
        policy, weights = self.trainer.policy, self.weights()
        given = {width: torch.randn(tokens, width, dtype=policy.trunk.compute) for w in weights for width in w.shape}
        with torch.no_grad():
            times = [time.perf_counter()]
            for weight in weights:
                torch.matmul(given[weight.shape[1]], weight.t())
            times.append(time.perf_counter())
            for weight in weights:
                torch.matmul(given[weight.shape[0]], weight)
            times.append(time.perf_counter())
        return times[1] - times[0], times[2] - times[1]

    def weights(self) -> list[torch.Tensor]:
        """The blocks' matrices: two FLOPs per number, token and pass."""
        return [p for n, p in self.trainer.policy.trunk.blocks.named_parameters() if p.dim() == 2 and "lora" not in n]

    def memory(self, rows: list[int]) -> dict[str, float]:
        """Peak of the process, and what came on top of model and libraries for each token, block and unit of width."""
        peak, config = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, self.trainer.policy.base.config
        each = self.tokens(rows[: self.job["minibatch_size"]]) * config.num_hidden_layers * config.hidden_size
        return {"peak_memory_mb": peak / 1024**2, "activation_bytes": (peak - self.resident) / each}

    def tokens(self, rows: list[int]) -> int:
        """Tokens in a pass over these prompts: common beginnings count once, and the last token of a response, which
        is not read, does not count."""
        prompts = [self.trainer.session.questions.tokens[row] for row in rows]
        trie = len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))})
        return trie + len(rows) * (self.job["settings"]["max_new_tokens"] - 1)


def cut(rows: list[int], size: int) -> list[list[int]]:
    """Parts of so many rows."""
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # libraries print to where they like
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(job, Path(folder))
        for line in sys.stdin:
            rows = json.loads(line)["rows"]
            done = ours.step(rows) | ours.memory(rows) | {"weights": sum(w.numel() for w in ours.weights())}
            print(json.dumps(done), file=answers, flush=True)


if __name__ == "__main__":
    main()
