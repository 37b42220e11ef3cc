"""Watches a run for collapse: invalid answers, the same answer to everything, or a policy far from its reference."""

import math
from collections.abc import Mapping
from typing import Any

from elkflow.config.ppo import SentinelSettings

OFTEN = 0.9
"""Share of questions to which the rewards may prefer an answer for "the same to everything" to be a collapse."""


class CollapseWatch:
    """Reads the metrics of every step and says when a run has collapsed.

    A single bad step is noise: a limit must be broken `window` steps in a row. Only NaN and infinity count at once.
    """

    def __init__(self, settings: SentinelSettings):
        self.settings = settings
        self.recent: list[float] = []
        """Rewards of the last `window` steps."""
        self.peak = -math.inf
        """Highest mean of `window` rewards in a row."""
        self.broken: dict[str, int] = {}
        """Steps in a row that each limit has been broken."""
        self.seen_valid = False
        """Whether the share of valid answers was ever above its limit; an untrained policy may have to learn them."""

    def judge(self, metrics: Mapping[str, float]) -> str | None:
        """Why the run has collapsed, in a sentence; None if it has not.

        Args:
            metrics: reward, valid, yes_rate, answer_entropy, kl_k3, and any others, of one step.
        """
        for name, value in metrics.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{name} is {value}"
        limits, window = self.settings, self.settings.window
        self.recent = [*self.recent, metrics["reward"]][-window:]
        mean = sum(self.recent) / len(self.recent)
        self.seen_valid |= limits.valid is not None and metrics["valid"] >= limits.valid
        checks = {
            "valid": limits.valid is not None and self.seen_valid and metrics["valid"] < limits.valid,
            "reward_drop": limits.reward_drop is not None and metrics["reward"] < self.peak - limits.reward_drop,
            "entropy": limits.entropy is not None and metrics["answer_entropy"] < limits.entropy,
            "one_answer": limits.one_answer is not None
            and metrics.get("one_answer", 0) >= limits.one_answer
            and metrics.get("preferred", 1) <= OFTEN,
            "kl": limits.kl is not None and metrics["kl_k3"] > limits.kl,
        }
        if len(self.recent) == window:
            self.peak = max(self.peak, mean)
        self.broken = {name: self.broken.get(name, 0) + 1 for name, bad in checks.items() if bad}
        for name, count in self.broken.items():
            if count >= (2 * window if name == "one_answer" else window):
                return self._explain(name, metrics)
        return None

    def healthy(self) -> bool:
        """Whether no limit is broken at the moment, so that this step is worth going back to."""
        return not self.broken

    def _explain(self, name: str, metrics: Mapping[str, float]) -> str:
        limits, steps = self.settings, f"for {self.settings.window} steps"
        return {
            "valid": f"less than {limits.valid} of the answers are valid ({metrics['valid']:.3f}) {steps}",
            "reward_drop": f"the reward ({metrics['reward']:.3f}) has been more than {limits.reward_drop} below its "
            f"peak ({self.peak:.3f}) {steps}",
            "entropy": f"the answers' entropy ({metrics['answer_entropy']:.3f}) is below {limits.entropy} {steps}",
            "one_answer": f"one answer is given to {metrics.get('one_answer', 0):.1%} of the questions for"
            f" {2 * limits.window} steps, though the rewards prefer it to {metrics.get('preferred', 1):.0%}",
            "kl": f"KL from the reference ({metrics['kl_k3']:.3f}) has been above {limits.kl} {steps}",
        }[name]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        peak = self.peak if math.isfinite(self.peak) else None
        return {"recent": self.recent, "peak": peak, "broken": self.broken, "seen_valid": self.seen_valid}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.recent, self.broken, self.seen_valid = list(state["recent"]), dict(state["broken"]), state["seen_valid"]
        self.peak = -math.inf if state["peak"] is None else state["peak"]
