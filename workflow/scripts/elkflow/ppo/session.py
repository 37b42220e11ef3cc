"""A training run, whatever its algorithm: checkpoints, records, evaluation on held-out prompts, the collapse watch.

An algorithm makes a rollout and updates from it, then calls `Session.finish_step`, until `steps_to_come` ends. With
`start` before and `load_kept_weights` after, a run can stop and resume anywhere and leaves the same files as any other.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from elkflow.common.cli import progress
from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings
from elkflow.ppo import checkpoints, schedule
from elkflow.ppo.collapse_watch import CollapseWatch
from elkflow.ppo.objective import KLController
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import Questions, Rewards, preferred_answers
from elkflow.ppo.rollout import Answers, Sampling, end_tokens, generate, response_mask, response_text
from elkflow.ppo.step_log import StepLog
from elkflow.ppo.step_metrics import gold_accuracy, preferred_share
from elkflow.ppo.trunk import Memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a run has come and what came of it; part of every checkpoint."""

    step: int = 0
    outcome: str = "running"
    """`running`, `interrupted`, `finished` or `collapsed`."""
    reason: str = ""
    """Of a collapse."""
    kept: int = 0
    """Step whose weights are the result."""
    kept_reward: float | None = None
    """Their mean reward on held-out prompts."""
    rate: float = 1.0
    """Factor on the learning rate, lowered after a collapse."""
    healthy: int = 0
    """The last checkpoint at which no limit of the collapse watch was broken."""


class Session:
    """One training run. Attributes are what an algorithm works with, and what a checkpoint restores."""

    def __init__(
        self,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        questions: Questions,
        rewards: Rewards,
        held_out: Questions,
        held_out_rewards: Rewards,
        settings: PPOSettings,
        seed: int,
        folder: Path,
        fingerprint: str,
        accelerator: Accelerator | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ):
        """Args:
            rewards, held_out_rewards: of the two sets of questions.
            folder: for checkpoints and the growing metrics.jsonl and samples.jsonl.
            fingerprint: of everything that determines the run; checkpoints with another one are not used.
            stopping: asked after every step; True makes training save and end.

        Raises:
            UserError: a minibatch cannot be divided among processes, or `epochs` is less than a batch.
        """
        self.policy, self.tokenizer, self.settings, self.seed = policy, tokenizer, settings, seed
        self.questions, self.rewards = questions, rewards
        self.held_out, self.held_out_rewards = held_out, held_out_rewards
        self.preferred = preferred_answers(questions, rewards)
        self.folder, self.fingerprint, self.stopping = folder, fingerprint, stopping
        self.accelerator = accelerator or Accelerator(cpu=policy.device.type == "cpu")
        self.steps = schedule.total_steps(settings, len(questions))
        self.minibatch = settings.minibatch_size or settings.batch_size
        if self.minibatch % (self.accelerator.num_processes * settings.accumulation):
            raise UserError(
                f"ppo.minibatch_size: {self.minibatch} rows cannot be divided among {self.accelerator.num_processes}"
                f" processes in {settings.accumulation} parts each"
            )
        self.sampling = Sampling(settings.temperature, settings.top_k, settings.top_p, settings.max_new_tokens)
        self.ends = end_tokens(policy, tokenizer)
        self.trained = list(policy.trained())
        self.optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self.trained],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        kl = settings.kl
        self.kl_controller = KLController(kl.coefficient, kl.control, kl.target, kl.horizon, kl.final)
        self.collapse_watch = CollapseWatch(settings.sentinel) if settings.sentinel else None
        self.step_log = StepLog(folder, self.accelerator.is_main_process)
        self.progress = Progress()
        self.held_out_batches: list[list[int]] = []
        self.held_out_memory: Memory = {}

    # what an algorithm calls

    def start(self) -> None:
        """Resume from the newest checkpoint, or begin with one."""
        count = min(self.settings.evaluate_rows, len(self.held_out))
        mine = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        ordered = sorted(mine, key=lambda row: len(self.held_out.tokens[row]))
        size = self.settings.evaluate_batch
        self.held_out_batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
        self.policy.check_forward_path([*self.questions.tokens, *self.held_out.tokens], self.settings.max_new_tokens)
        found = checkpoints.newest(self.folder, self.fingerprint)
        if found:
            self.restore(*found)
            logger.info("resuming after step %d", self.progress.step)
            return
        self.begin()

    def begin(self) -> None:
        """Clear the folder and write the checkpoint of step 0."""
        if self.accelerator.is_main_process:
            checkpoints.clear(self.folder)
        self.accelerator.wait_for_everyone()
        self.progress = Progress()
        metrics = self.evaluate()
        self.progress = replace(self.progress, kept_reward=metrics["held_out_reward"])
        self.step_log.metrics({"step": 0} | metrics)
        self.save()

    def run(self, step: Callable[[], None]) -> Progress:
        """Make steps until the run is over; the policy then holds the weights to keep."""
        for _ in self.steps_to_come():
            step()
        self.load_kept_weights()
        return self.progress

    def steps_to_come(self) -> Iterable[int]:
        """Steps to make, behind a progress bar, for as long as the run goes on; after a collapse some come again."""

        def running() -> Iterator[int]:
            while self.progress.outcome == "running":
                yield self.progress.step

        return progress(running(), "training", self.steps - self.progress.step)

    def parts(self, rows: list[int]) -> list[list[int]]:
        """This process's microbatches of a batch of questions, as positions in it."""
        lengths = [len(self.questions.tokens[row]) for row in rows]
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        return schedule.parts(lengths, self.minibatch, self.settings.accumulation, process, processes)

    def gatherer(self, mine: list[int]) -> Callable[[Tensor], Tensor]:
        """What gathers the rows of all processes [B, …] on the CPU, in the batch's order; `mine` are this one's."""
        accelerator = self.accelerator
        order = accelerator.gather(torch.tensor(mine, device=accelerator.device)).cpu().argsort()
        return lambda values: accelerator.gather(values.to(accelerator.device)).cpu()[order]

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        factor = schedule.lr_factor(self.progress.step, self.steps, self.settings)
        return self.settings.learning_rate * self.progress.rate * factor

    def finish_step(
        self,
        answers: Answers,
        metrics: dict[str, float],
        started: float,
        collapse: str | None = None,
        may_lower: bool = True,
    ) -> None:
        """Watch, evaluate and record a step; then decide whether to go on, and write a checkpoint where one is due.

        Args:
            metrics: of its rollout and updates, with at least those of `answer_metrics`, kl_k3 and response_tokens.
            started: time.monotonic() when it began.
            collapse: why its updates could not be made; the collapse watch judges all others.
            may_lower: whether the algorithm can repeat steps at a lower `learning_rate`.
        """
        settings = self.settings
        self.progress = replace(self.progress, step=self.progress.step + 1)
        if self.preferred:
            metrics = {"preferred": preferred_share(answers, self.questions, self.preferred)} | metrics
        if self.collapse_watch and not collapse:
            collapse = self.collapse_watch.judge(metrics)
        # for the record: nothing below acts on it
        metrics = metrics | {"gold_accuracy": gold_accuracy(answers, self.questions)}
        if not collapse and (self.progress.step % settings.evaluate_every == 0 or self.progress.step == self.steps):
            metrics |= self.evaluate()
        self.record(answers, metrics, time.monotonic() - started)
        if collapse:
            self.recover_from_collapse(collapse, may_lower)
        else:
            self.keep(metrics.get("held_out_reward"))

    def load_kept_weights(self) -> None:
        """At the end of a run: give the policy the weights to keep. An interrupted run leaves it as it is."""
        if self.progress.outcome != "interrupted":
            self.load_weights(checkpoints.load(checkpoints.folder_of(self.folder, self.progress.kept))[0])

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Responses [B, T] as they are scored."""
        rows = [row[: int(n)] for row, n in zip(tokens.tolist(), mask.sum(1).tolist(), strict=True)]
        found = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [response_text(text, self.settings.strip_punctuation) for text in found]

    # what becomes of a step

    def evaluate(self) -> dict[str, float]:
        """Greedy answers to held-out prompts: their mean reward and, for the log alone, how many are right."""
        self.policy.eval()
        totals = torch.zeros(4)
        for rows in self.held_out_batches:
            prompts = [self.held_out.tokens[row] for row in rows]
            with self.policy.trunk.remembering(self.held_out_memory):
                tokens = generate(self.policy, prompts, None, self.sampling, self.ends)
            answers = self.texts(tokens, response_mask(tokens, self.ends))
            scores = torch.as_tensor(self.held_out_rewards([self.held_out.prompts[row] for row in rows], answers))
            valid = [text in self.held_out.answers[row] for text, row in zip(answers, rows, strict=True)]
            right = gold_accuracy(Answers(rows, answers, scores), self.held_out) * len(rows)
            totals += torch.tensor([len(rows), float(scores.sum()), sum(valid), right])
        count, *sums = self.accelerator.reduce(totals.to(self.accelerator.device)).tolist()
        names = ("held_out_reward", "held_out_valid", "held_out_accuracy")
        return {name: value / count for name, value in zip(names, sums, strict=True)}

    def record(self, answers: Answers, metrics: dict[str, float], seconds: float) -> None:
        """Add a step to metrics, samples, trackers and the log."""
        step, asked = self.progress.step, self.questions
        read = sum(len(asked.tokens[row]) for row in answers.rows)
        tokens = read + round(metrics["response_tokens"] * len(answers.rows))
        metrics = metrics | {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        self.step_log.metrics({"step": step} | metrics)
        self.accelerator.log(metrics, step=step)
        if step % self.settings.sample_every == 0 or step == 1:
            self.step_log.samples(
                {
                    "step": step,
                    "id": asked.ids[answers.rows[i]],
                    "prompt": asked.prompts[answers.rows[i]],
                    "response": answers.responses[i],
                    "reward": float(answers.scores[i]),
                }
                for i in range(min(self.settings.sample_rows, len(answers.rows)))
            )
        if self.accelerator.is_main_process:
            shown = ("reward", "gold_accuracy", "valid", "yes_rate", "kl_k3", "held_out_reward", "held_out_accuracy")
            values = ", ".join(f"{name} {metrics[name]:.3f}" for name in shown if name in metrics)
            logger.info("step %d of %d: %s (%.1f s)", step, self.steps, values, seconds)

    def keep(self, reward: float | None) -> None:
        """Decide whether to keep this step's weights and whether to go on, and write a checkpoint where one is due.

        Args:
            reward: on held-out prompts, if they were evaluated.
        """
        now, settings = self.progress, self.settings
        healthy = not self.collapse_watch or self.collapse_watch.healthy()
        best = settings.keep == "last" or now.kept_reward is None or (reward is not None and reward > now.kept_reward)
        if reward is not None and healthy and best:
            now = replace(now, kept=now.step, kept_reward=reward)
        told_to_stop = bool(sum(gather_object([self.stopping()])))
        if now.step == self.steps:
            now = replace(now, outcome="finished")
        elif told_to_stop:
            now = replace(now, outcome="interrupted")
        self.progress = now
        if now.outcome != "running" or now.kept == now.step or now.step % settings.checkpoint_every == 0:
            self.progress = replace(now, healthy=now.step if healthy else now.healthy)
            self.save()

    def recover_from_collapse(self, reason: str, may_lower: bool) -> None:
        """Go back to the last good checkpoint, to stop there or, once, to go on at a lower learning rate."""
        collapsed, now = self.progress.step, self.progress
        if self.accelerator.is_main_process:
            logger.warning("collapsed at step %d: %s", collapsed, reason)
        lower = may_lower and self.settings.sentinel and self.settings.sentinel.action == "lower_rate"
        if lower and now.rate == 1:
            self.restore(*checkpoints.load(checkpoints.folder_of(self.folder, now.healthy)))
            reason = f"learning rate lowered after a collapse at step {collapsed}: {reason}"
            self.progress = replace(self.progress, rate=0.1, reason=reason)
        else:
            kept = now.kept if self.settings.keep == "best" else now.healthy
            reason = f"collapsed at step {collapsed}: {reason}"
            self.progress = replace(now, outcome="collapsed", reason=reason, kept=kept)
        self.save()

    # checkpoints

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.accelerator.is_main_process:
            random_tensors, random_state = checkpoints.random_states()
            tensors: dict[str, Tensor] = {f"policy.{name}": parameter for name, parameter in self.policy.trained()}
            tensors |= checkpoints.optimizer_tensors(self.optimizer) | random_tensors
            state: dict[str, Any] = {"fingerprint": self.fingerprint, "progress": asdict(self.progress)}
            state |= {"kl_coefficient": self.kl_controller.coefficient, "random": random_state}
            state["collapse_watch"] = self.collapse_watch.state() if self.collapse_watch else None
            checkpoints.save(self.folder, self.progress.step, tensors, state)
            needed = {self.progress.kept, self.progress.healthy}
            checkpoints.prune(self.folder, self.settings.keep_checkpoints, needed)
        self.accelerator.wait_for_everyone()

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Undo `save`; records of later steps are removed."""
        self.load_weights(tensors)
        checkpoints.restore_optimizer(self.optimizer, tensors)
        checkpoints.restore_random_states(tensors, state["random"])
        self.kl_controller.coefficient = state["kl_coefficient"]
        if self.collapse_watch:
            self.collapse_watch.restore(state["collapse_watch"])
        self.progress = Progress(**state["progress"])
        if self.progress.outcome == "interrupted":
            self.progress = replace(self.progress, outcome="running")
        self.step_log.truncate(self.progress.step)

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put a checkpoint's trained weights into the policy."""
        with torch.no_grad():
            for name, parameter in self.policy.trained():
                parameter.copy_(tensors[f"policy.{name}"])
