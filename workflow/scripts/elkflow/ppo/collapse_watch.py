"""Watches a run's figures for collapse: invalid answers, the same one to everything, or a policy that runs off."""

import math
from collections.abc import Mapping
from typing import Any

from elkflow.config.ppo import SentinelSettings


class Sentinel:
    """Reads the figures of every step and says when a run has collapsed.

    A single bad step is noise: a limit must be broken `window` steps in a row. Only a non-finite figure counts at once.
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
        """Whether the share of valid answers was ever above its limit; an untrained policy may have to learn that."""

    def judge(self, figures: Mapping[str, float]) -> str | None:
        """Why the run has collapsed, in a sentence; None if it has not.

        Args:
            figures: reward, valid, yes_rate, answer_entropy, kl_k3, and any others, of one step.
        """
        for name, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"{name} is {value}"
        limits, window = self.settings, self.settings.window
        self.recent = [*self.recent, figures["reward"]][-window:]
        mean = sum(self.recent) / len(self.recent)
        self.seen_valid |= limits.valid is not None and figures["valid"] >= limits.valid
        checks = {
            "valid": limits.valid is not None and self.seen_valid and figures["valid"] < limits.valid,
            "reward_drop": limits.reward_drop is not None and figures["reward"] < self.peak - limits.reward_drop,
            "entropy": limits.entropy is not None and figures["answer_entropy"] < limits.entropy,
            "yes_rate": limits.yes_rate is not None
            and min(figures["yes_rate"], 1 - figures["yes_rate"]) < limits.yes_rate,
            "kl": limits.kl is not None and figures["kl_k3"] > limits.kl,
        }
        if len(self.recent) == window:
            self.peak = max(self.peak, mean)
        self.broken = {name: self.broken.get(name, 0) + 1 for name, bad in checks.items() if bad}
        for name, count in self.broken.items():
            if count >= window:
                return self._explain(name, figures)
        return None

    def healthy(self) -> bool:
        """Whether no limit is broken just now, so that this step is worth going back to."""
        return not self.broken

    def _explain(self, name: str, figures: Mapping[str, float]) -> str:
        limits, steps = self.settings, f"for {self.settings.window} steps"
        return {
            "valid": f"less than {limits.valid} of the answers are valid ({figures['valid']:.3f}) {steps}",
            "reward_drop": f"the reward ({figures['reward']:.3f}) has been more than {limits.reward_drop} below its "
            f"peak ({self.peak:.3f}) {steps}",
            "entropy": f"the answers' entropy ({figures['answer_entropy']:.3f}) is below {limits.entropy} {steps}",
            "yes_rate": f"nearly all answers are the same (yes-rate {figures['yes_rate']:.3f}) {steps}",
            "kl": f"KL from the reference ({figures['kl_k3']:.3f}) has been above {limits.kl} {steps}",
        }[name]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        peak = self.peak if math.isfinite(self.peak) else None
        return {"recent": self.recent, "peak": peak, "broken": self.broken, "seen_valid": self.seen_valid}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        self.recent, self.broken, self.seen_valid = list(state["recent"]), dict(state["broken"]), state["seen_valid"]
        self.peak = -math.inf if state["peak"] is None else state["peak"]
