"""PPO for language models: roll out, score, estimate advantages, update. `Trainer.train` is the loop.

Every process samples and updates its share of each minibatch; the small tensors of a rollout are gathered, so that all
processes see the same advantages, and gradients are all-reduced. One process or many, whole minibatches or accumulated
ones: the update is the same. All randomness follows from (seed, step). What a run is besides, is in `session`.
"""

import time

import torch
from torch import Tensor

from elkflow.ppo import objective, schedule, updates
from elkflow.ppo.finite import check_rows
from elkflow.ppo.rollout import Microbatch, Rollout, collect, cut, read_by_model
from elkflow.ppo.session import Progress, Session
from elkflow.ppo.step_metrics import rollout_metrics

SAMPLED_AT_ONCE = 16
"""Responses sampled in one pass, where microbatches are smaller."""


class Trainer:
    """PPO on a session."""

    def __init__(self, session: Session):
        self.session, self.policy, self.settings = session, session.policy, session.settings

    def train(self) -> Progress:
        """Train from where `Session.start` found the run until it is over; the policy then holds the weights to
        keep."""
        return self.session.run(self.step)

    def step(self) -> None:
        """One rollout and the updates on it."""
        started, session, step = time.monotonic(), self.session, self.session.progress.step
        torch.manual_seed(schedule.derive_seed(session.seed, step, session.accelerator.process_index))  # dropout
        with self.policy.trunk.remembering({}):
            rollout = self.roll_out(step)
            minibatches = self.minibatches(rollout)
        advantages, returns = self.advantages(rollout)
        metrics = rollout_metrics(rollout, session.questions) | {
            "return": float(objective.masked_mean(returns, rollout.mask)),
            "learning_rate": session.learning_rate,
            "kl_coefficient": session.kl_controller.coefficient,
        }

        def update() -> dict[str, float]:
            check_rows(rollout.numbers(), [session.questions.ids[row] for row in rollout.rows])
            return self.update(rollout, minibatches, advantages, returns)

        updates.finish(session, rollout, metrics, started, update)

    def roll_out(self, step: int) -> Rollout:
        """Sample a response to every prompt of the step's batch, and score it."""
        session, asked = self.session, self.session.questions
        rows = schedule.batch_rows(len(asked), self.settings.batch_size, step, session.seed)
        prompts = [asked.tokens[row] for row in rows]
        generator = torch.Generator().manual_seed(schedule.derive_seed(session.seed, step))
        uniform = torch.rand(len(rows), self.settings.max_new_tokens, generator=generator, dtype=torch.float64)
        groups = schedule.merged(session.parts(rows), SAMPLED_AT_ONCE)
        self.policy.eval()
        sampled = [
            collect(self.policy, [prompts[i] for i in group], uniform[group], session.sampling, session.ends)
            for group in groups
        ]
        mine = [i for group in groups for i in group]
        gathered = session.gatherer(mine)
        tensors = {name: gathered(torch.cat([part[name] for part in sampled])) for name in sampled[0]}
        responses = session.texts(tensors["tokens"], tensors["mask"])
        scores = session.rewards([asked.prompts[rows[i]] for i in mine], [responses[i] for i in mine])
        token_ids, positions = read_by_model(prompts, tensors["tokens"], tensors["mask"])
        scores = gathered(torch.as_tensor(scores).float())
        return Rollout(rows, responses, scores, token_ids, positions, **tensors)

    def minibatches(self, rollout: Rollout) -> list[list[Microbatch]]:
        """This process's share of every minibatch, in microbatches."""
        microbatches = [cut(self.policy, rollout, part) for part in self.session.parts(rollout.rows)]
        return updates.minibatches(microbatches, self.settings.accumulation)

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages and returns [B, T] of a rollout, from its scores, values and KL penalty."""
        settings, mask = self.settings, rollout.mask
        kl = objective.kl(rollout.logprobs, rollout.reference, settings.kl.estimator)
        penalties = self.session.kl_controller.coefficient * kl
        rewards = objective.token_rewards(rollout.scores - settings.reward_baseline, penalties, mask)
        if settings.whiten_rewards:
            rewards = objective.whiten(rewards, mask, keep_mean=True)
        advantages, returns = objective.advantages(rewards, rollout.values, mask, settings.gamma, settings.gae_lambda)
        if settings.whiten_advantages:
            advantages = objective.whiten(advantages, mask)
        return advantages, returns

    def update(
        self, rollout: Rollout, minibatches: list[list[Microbatch]], advantages: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Optimise on a rollout for its epochs, or until the policy has moved too far from where it sampled.

        Returns:
            Means over the optimiser's steps.

        Raises:
            FloatingPointError: a gradient is NaN or infinity; that step is not made.
        """
        device = self.policy.device

        def losses(old: Microbatch) -> tuple[Tensor, dict[str, Tensor]]:
            return self.losses(old, advantages[old.rows].to(device), returns[old.rows].to(device))

        counts = rollout.mask.reshape(len(minibatches), -1).sum(1).to(device)
        return updates.optimise(self.session, rollout.rows, minibatches, counts, losses)

    def losses(self, microbatch: Microbatch, advantages: Tensor, returns: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A microbatch's loss and what is told of it, summed over its tokens."""
        settings, old = self.settings, microbatch
        logits, values = self.policy(old.frozen, old.positions)
        logprobs = objective.token_logprobs(logits, old.tokens, settings.temperature)
        policy_loss, clipped = objective.policy_losses(logprobs, old.logprobs, advantages, settings.clip)
        value_loss, value_clipped = objective.value_losses(values, old.values, returns, settings.value_clip)
        loss = policy_loss + settings.value_coefficient * value_loss
        if settings.entropy_coefficient:
            loss = loss - settings.entropy_coefficient * objective.entropy(logits, settings.temperature)
        terms = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "clip_fraction": clipped.float(),
            "value_clip_fraction": value_clipped.float(),
            "update_kl": objective.kl(logprobs, old.logprobs, "k3"),
        }
        sums = {name: objective.masked_sum(term.detach(), old.mask) for name, term in terms.items()}
        return objective.masked_sum(loss, old.mask), sums
