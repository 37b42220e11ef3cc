"""PPO for language models: roll out, score, estimate advantages, update, watch, save. `Trainer.train` is the loop.

Every process samples and updates its share of each minibatch; the small tensors of a rollout are gathered, so that all
processes see the same advantages, and gradients are summed by hand. One process or many, whole minibatches or
accumulated ones: the update is the same. All randomness follows from (seed, step): a run can stop and go on anywhere.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
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
from elkflow.ppo import checkpoints, gradients, objective, schedule
from elkflow.ppo.collapse_watch import Sentinel
from elkflow.ppo.finite import check_rows
from elkflow.ppo.policy import Frozen, Policy
from elkflow.ppo.questions import Questions, Rewards
from elkflow.ppo.rollout import (
    Answers,
    Chunk,
    Rollout,
    Sampling,
    collect,
    end_tokens,
    generate,
    response_mask,
    response_text,
)
from elkflow.ppo.session import Progress
from elkflow.ppo.step_log import Records
from elkflow.ppo.step_metrics import UPDATE_FIGURES, gold_accuracy, means, rollout_figures

logger = logging.getLogger(__name__)

SAMPLED_AT_ONCE = 16
"""Responses, where the parts that are updated at a time are smaller."""


class Trainer:
    """One run of PPO. Attributes are what a checkpoint must bring back."""

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
            fingerprint: of all that decides the run; checkpoints with another one are not used.
            stopping: asked after every step; True makes training save and end.

        Raises:
            UserError: amounts do not fit each other.
        """
        self.policy, self.tokenizer, self.settings, self.seed = policy, tokenizer, settings, seed
        self.questions, self.rewards = questions, rewards
        self.held_out, self.held_out_rewards = held_out, held_out_rewards
        self.folder, self.fingerprint, self.stopping = folder, fingerprint, stopping
        self.accelerator = accelerator or Accelerator(cpu=policy.device.type == "cpu")
        self.steps = schedule.total_steps(settings, len(questions))
        self.minibatch = settings.minibatch_size or settings.batch_size
        if self.minibatch % (self.accelerator.num_processes * settings.accumulation):
            raise UserError(
                f"ppo.minibatch_size: {self.minibatch} rows cannot be shared by {self.accelerator.num_processes}"
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
        self.controller = objective.KLController(kl.coefficient, kl.control, kl.target, kl.horizon, kl.final)
        self.sentinel = Sentinel(settings.sentinel) if settings.sentinel else None
        self.records = Records(folder, self.accelerator.is_main_process)
        self.progress = Progress()
        self.watched: list[tuple[list[int], Frozen | None]] = []

    def train(self) -> Progress:
        """Train from where `start` found it until done, collapsed or told to stop; the policy then holds the weights to
        keep."""
        bar = progress(range(self.progress.step, self.steps), "PPO", self.steps - self.progress.step)
        for _ in bar:
            if self.progress.outcome != "running":
                break
            self.step()
        while self.progress.outcome == "running":  # steps repeated after a collapse
            self.step()
        if self.progress.outcome != "interrupted":
            self.load_weights(checkpoints.load(checkpoints.folder_of(self.folder, self.progress.kept))[0])
        return self.progress

    def step(self) -> None:
        """One rollout and the updates on it."""
        start, settings, step = time.monotonic(), self.settings, self.progress.step
        torch.manual_seed(schedule.mixed(self.seed, step, self.accelerator.process_index))  # dropout
        batch = self.roll_out(step)

        penalties = self.controller.coefficient * objective.kl(batch.logprobs, batch.reference, settings.kl.estimator)
        rewards = objective.token_rewards(batch.scores - settings.reward_baseline, penalties, batch.mask)
        if settings.whiten_rewards:
            rewards = objective.whiten(rewards, batch.mask, keep_mean=True)
        advantages, returns = objective.advantages(
            rewards, batch.values, batch.mask, settings.gamma, settings.gae_lambda
        )
        if settings.whiten_advantages:
            advantages = objective.whiten(advantages, batch.mask)

        rate = settings.learning_rate * self.progress.rate * schedule.rate(step, self.steps, settings)
        figures = rollout_figures(batch, self.questions)
        figures |= {"return": float(objective.masked_mean(returns, batch.mask)), "learning_rate": rate}
        figures["kl_coefficient"] = self.controller.coefficient
        try:
            check_rows(batch.numbers(), [self.questions.ids[row] for row in batch.rows])
            figures |= self.update(batch, advantages, returns, rate)
        except FloatingPointError as error:
            collapse: str | None = str(error)
            self.optimizer.zero_grad()
        else:
            self.controller.update(figures["kl_k1"], len(batch.rows), self.steps - step - 1)
            collapse = self.sentinel.judge(figures) if self.sentinel else None
        self.progress = replace(self.progress, step=step + 1)
        figures["gold_accuracy"] = gold_accuracy(batch, self.questions)  # for the record: nothing below acts on it
        if not collapse and (self.progress.step % settings.evaluate_every == 0 or self.progress.step == self.steps):
            figures |= self.evaluate()
        tokens = sum(len(self.questions.tokens[row]) for row in batch.rows) + int(batch.mask.sum())
        seconds = time.monotonic() - start
        self.record(batch, figures | {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds})
        self.conclude(figures, collapse)

    def roll_out(self, step: int) -> Rollout:
        """Sample a response to every prompt of the step's batch, score it, and gather what all processes need."""
        settings, count = self.settings, self.settings.batch_size
        rows = schedule.batch_rows(len(self.questions), count, step, self.seed)
        generator = torch.Generator().manual_seed(schedule.mixed(self.seed, step))
        uniform = torch.rand(count, settings.max_new_tokens, generator=generator, dtype=torch.float64)
        each, accelerator = settings.accumulation, self.accelerator
        lengths = [len(self.questions.tokens[row]) for row in rows]
        parts = schedule.parts(lengths, self.minibatch, each, accelerator.process_index, accelerator.num_processes)
        # weights at the first update are those that sampled
        keep_graph = self.minibatch == count and each == 1 and not settings.lora.dropout
        self.policy.eval()
        chunks: list[Chunk] = []
        for several in schedule.bundles(parts, SAMPLED_AT_ONCE):
            part = [i for one in several for i in one]
            prompts = [self.questions.tokens[rows[i]] for i in part]
            chunk = collect(self.policy, part, prompts, uniform[part], self.sampling, self.ends, keep_graph)
            chunks += [chunk] if len(several) == 1 else chunk.divided(self.policy, [len(one) for one in several])
        minibatches = [chunks[at : at + each] for at in range(0, len(chunks), each)]
        mine = [i for chunk in chunks for i in chunk.rows]
        responses = [text for chunk in chunks for text in self.texts(chunk.tokens, chunk.mask)]
        scores = torch.as_tensor(self.rewards([self.questions.prompts[rows[i]] for i in mine], responses))
        texts = dict(pair for part in gather_object([list(zip(mine, responses, strict=True))]) for pair in part)
        order = accelerator.gather(torch.tensor(mine, device=accelerator.device)).cpu().argsort()

        def gathered(values: Tensor) -> Tensor:
            return accelerator.gather(values.to(accelerator.device)).cpu()[order]

        names = ("mask", "logprobs", "reference", "values", "entropy")
        together = {name: gathered(torch.cat([getattr(chunk, name) for chunk in chunks])) for name in names}
        answers = [texts[i] for i in range(count)]
        return Rollout(rows, answers, gathered(scores.float()), minibatches, **together)

    def update(self, batch: Rollout, advantages: Tensor, returns: Tensor, rate: float) -> dict[str, float]:
        """Optimise on a rollout for its epochs, or until the policy has moved too far from where it sampled.

        Returns:
            Means over the optimiser's steps.

        Raises:
            FloatingPointError: a gradient is not finite; that step is not made.
        """
        settings, device = self.settings, self.policy.device
        ids = [self.questions.ids[row] for row in batch.rows]
        self.policy.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        made: list[dict[str, float]] = []
        for epoch in range(settings.ppo_epochs):
            order = torch.Generator().manual_seed(schedule.mixed(self.seed, batch.rows[0], epoch))
            for index in torch.randperm(len(batch.minibatches), generator=order).tolist():
                count = batch.mask[index * self.minibatch : (index + 1) * self.minibatch].sum().to(device)
                sums = torch.zeros(len(UPDATE_FIGURES), device=device)
                for chunk in batch.minibatches[index]:
                    loss, terms = self.losses(chunk, advantages[chunk.rows].to(device), returns[chunk.rows].to(device))
                    (loss / count).backward()
                    sums += terms / count
                    chunk.graph = None
                figures = dict(zip(UPDATE_FIGURES, self.accelerator.reduce(sums).tolist(), strict=True))
                if settings.target_kl is not None and figures["update_kl"] > settings.target_kl:
                    self.optimizer.zero_grad()
                    return means(made)
                names = ids[index * self.minibatch : (index + 1) * self.minibatch]
                figures["gradient_norm"] = gradients.reduce(
                    self.trained, self.accelerator, settings.max_gradient_norm, names
                )
                self.optimizer.step()
                self.optimizer.zero_grad()
                made.append(figures)
        return means(made)

    def losses(self, chunk: Chunk, advantages: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk's loss, summed over its tokens, and the sums that become UPDATE_FIGURES."""
        settings, mask = self.settings, chunk.mask
        if chunk.graph:
            logprobs, values, entropy = chunk.graph
            entropy = entropy if settings.entropy_coefficient else chunk.entropy
        else:
            logits, values = self.policy(chunk.frozen, chunk.positions)
            logprobs = objective.token_logprobs(logits, chunk.tokens, settings.temperature)
            entropy = objective.entropy(logits, settings.temperature) if settings.entropy_coefficient else chunk.entropy
        policy_loss, clipped = objective.policy_losses(logprobs, chunk.logprobs, advantages, settings.clip)
        value_loss, value_clipped = objective.value_losses(values, chunk.values, returns, settings.value_clip)
        moved = (
            objective.kl(chunk.logprobs, logprobs, "k1").detach(),
            objective.kl(logprobs, chunk.logprobs, "k3").detach(),
        )
        loss = policy_loss + settings.value_coefficient * value_loss - settings.entropy_coefficient * entropy
        terms = (policy_loss, value_loss, clipped.float(), value_clipped.float(), moved[1])
        return objective.masked_sum(loss, mask), torch.stack(
            [objective.masked_sum(term.detach(), mask) for term in terms]
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Greedy answers to held-out prompts: their mean reward and, for the log alone, how many are right."""
        self.policy.eval()
        totals = torch.zeros(4)
        for rows, frozen in self.watched:
            if frozen is None:
                prompts = [self.held_out.tokens[row] for row in rows]
                tokens, _ = generate(self.policy, prompts, None, self.sampling, self.ends)
            else:
                last = torch.tensor([[len(self.held_out.tokens[row]) - 1] for row in rows], device=self.policy.device)
                tokens = self.policy.logits(self.policy.states(frozen, last)).argmax(-1)
            answers = self.texts(tokens, response_mask(tokens, self.ends))
            scores = torch.as_tensor(self.held_out_rewards([self.held_out.prompts[row] for row in rows], answers))
            valid = [text in self.held_out.answers[row] for text, row in zip(answers, rows, strict=True)]
            right = [
                text == self.held_out.answers[row][self.held_out.labels[row]]
                for text, row in zip(answers, rows, strict=True)
            ]
            totals += torch.tensor([len(rows), float(scores.sum()), sum(valid), sum(right)])
        count, *sums = self.accelerator.reduce(totals.to(self.accelerator.device)).tolist()
        names = ("held_out_reward", "held_out_valid", "held_out_accuracy")
        return {name: value / count for name, value in zip(names, sums, strict=True)}

    def start(self) -> None:
        """Go on from the newest checkpoint, or begin with one."""
        count = min(self.settings.evaluate_rows, len(self.held_out))
        mine = range(self.accelerator.process_index, count, self.accelerator.num_processes)
        ordered = sorted(mine, key=lambda row: len(self.held_out.tokens[row]))
        for at in range(0, len(ordered), self.settings.evaluate_batch):
            rows = ordered[at : at + self.settings.evaluate_batch]
            one_token = self.sampling.max_new_tokens == 1  # then what lies below the trained blocks is run once for all
            frozen = self.policy.freeze([self.held_out.tokens[row] for row in rows]) if one_token else None
            self.watched.append((rows, frozen))
        found = checkpoints.newest(self.folder, self.fingerprint)
        if found:
            self.restore(*found)
            logger.info("going on after step %d", self.progress.step)
            return
        self.begin()

    def begin(self) -> None:
        """Clear the folder and write the checkpoint of step 0."""
        if self.accelerator.is_main_process:
            checkpoints.clear(self.folder)
        self.accelerator.wait_for_everyone()
        self.progress = Progress()
        figures = self.evaluate()
        self.progress = replace(self.progress, kept_reward=figures["held_out_reward"])
        self.records.metrics({"step": 0} | figures)
        self.save()

    def record(self, batch: Answers, figures: dict[str, float]) -> None:
        """Add a step to metrics, samples, trackers and the log."""
        step = self.progress.step
        self.records.metrics({"step": step} | figures)
        self.accelerator.log(figures, step=step)
        if step % self.settings.sample_every == 0 or step == 1:
            self.records.samples(
                {
                    "step": step,
                    "id": self.questions.ids[batch.rows[i]],
                    "prompt": self.questions.prompts[batch.rows[i]],
                    "response": batch.responses[i],
                    "reward": float(batch.scores[i]),
                }
                for i in range(min(self.settings.sample_rows, len(batch.rows)))
            )
        if self.accelerator.is_main_process:
            shown = ("reward", "gold_accuracy", "valid", "yes_rate", "kl_k3", "held_out_reward", "held_out_accuracy")
            values = ", ".join(f"{name} {figures[name]:.3f}" for name in shown if name in figures)
            logger.info("step %d of %d: %s (%.1f s)", step, self.steps, values, figures["seconds"])

    def conclude(self, figures: dict[str, float], collapse: str | None, may_lower: bool = True) -> None:
        """Decide whether to go on, and write a checkpoint where one is due."""
        now, settings = self.progress, self.settings
        if collapse:
            return self.fall_back(collapse, may_lower)
        well = not self.sentinel or self.sentinel.healthy()
        reward = figures.get("held_out_reward")
        if (
            reward is not None
            and well
            and (settings.keep == "last" or now.kept_reward is None or reward > now.kept_reward)
        ):
            now = replace(now, kept=now.step, kept_reward=reward)
        told = bool(sum(gather_object([self.stopping()])))
        if now.step == self.steps:
            now = replace(now, outcome="finished")
        elif told:
            now = replace(now, outcome="interrupted")
        self.progress = now
        if now.outcome != "running" or now.kept == now.step or now.step % settings.checkpoint_every == 0:
            self.progress = replace(now, healthy=now.step if well else now.healthy)
            self.save()

    def fall_back(self, reason: str, may_lower: bool) -> None:
        """After a collapse: back to the last good checkpoint, to stop there or to go on more slowly, once."""
        collapsed, now = self.progress.step, self.progress
        if self.accelerator.is_main_process:
            logger.warning("collapsed at step %d: %s", collapsed, reason)
        wanted = may_lower and self.settings.sentinel and self.settings.sentinel.action == "lower_rate"
        if wanted and now.rate == 1:
            self.restore(*checkpoints.load(checkpoints.folder_of(self.folder, now.healthy)))
            reason = f"learning rate lowered after a collapse at step {collapsed}: {reason}"
            self.progress = replace(self.progress, rate=0.1, reason=reason)
        else:
            kept = now.kept if self.settings.keep == "best" else now.healthy
            reason = f"collapsed at step {collapsed}: {reason}"
            self.progress = replace(now, outcome="collapsed", reason=reason, kept=kept)
        self.save()

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.accelerator.is_main_process:
            random_tensors, random_state = checkpoints.random_states()
            tensors: dict[str, Tensor] = {f"policy.{name}": parameter for name, parameter in self.policy.trained()}
            tensors |= checkpoints.optimizer_tensors(self.optimizer) | random_tensors
            state: dict[str, Any] = {"fingerprint": self.fingerprint, "progress": asdict(self.progress)}
            state |= {"kl_coefficient": self.controller.coefficient, "random": random_state}
            state["sentinel"] = self.sentinel.state() if self.sentinel else None
            checkpoints.save(self.folder, self.progress.step, tensors, state)
            needed = {self.progress.kept, self.progress.healthy}
            checkpoints.prune(self.folder, self.settings.keep_checkpoints, needed)
        self.accelerator.wait_for_everyone()

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Undo `save`; records of later steps go."""
        self.load_weights(tensors)
        checkpoints.restore_optimizer(self.optimizer, tensors)
        checkpoints.restore_random_states(tensors, state["random"])
        self.controller.coefficient = state["kl_coefficient"]
        if self.sentinel:
            self.sentinel.restore(state["sentinel"])
        self.progress = Progress(**state["progress"])
        if self.progress.outcome == "interrupted":
            self.progress = replace(self.progress, outcome="running")
        self.records.truncate(self.progress.step)

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put a checkpoint's trained weights into the policy."""
        with torch.no_grad():
            for name, parameter in self.policy.trained():
                parameter.copy_(tensors[f"policy.{name}"])

    def texts(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Responses as they are scored."""
        rows = [row[: int(n)] for row, n in zip(tokens.tolist(), mask.sum(1).tolist(), strict=True)]
        found = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [response_text(text, self.settings.strip_punctuation) for text in found]
