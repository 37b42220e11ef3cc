"""Training on every allowed answer at once, where rewards are a table: PPO in expectation, and what needs no RL.

Nothing is sampled but the answers in the log. `actions: all` is PPO whose surrogate is the exact expectation over the
allowed answers, with the exact value of a prompt in the place of a critic. The rest are controls for PPO: `exact` fits
the policy to the closed-form optimum of the objective that PPO climbs (`closed_set.optimal_policy`) by forward KL,
`sft` to the answer with the highest reward, and `dpo` prefers that answer to the others.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from elkflow.common.errors import UserError
from elkflow.models.tokens import encode_answer
from elkflow.ppo import closed_set, schedule, updates
from elkflow.ppo.rollout import Answers
from elkflow.ppo.session import Progress, Session
from elkflow.ppo.step_metrics import answer_metrics
from elkflow.ppo.trunk import FrozenBlocksOutput

END = -1
"""Stands for any token that ends a response."""


@dataclass(frozen=True)
class Sequences:
    """The distinct sequences that the model reads for some prompts with all their answers."""

    rows: list[int]
    """Positions of the prompts in the batch."""
    frozen: FrozenBlocksOutput
    positions: Tensor
    """Where each answer token is predicted [U, T]."""
    index: Tensor
    """Which sequence holds each answer [B, A]."""
    tokens: Tensor
    """Of the answers [B, A, T], `END` for any end token."""
    mask: Tensor
    """[B, A, T]."""


class ClosedTrainer:
    """Training on a session whose questions have a closed set of answers with known rewards."""

    def __init__(self, session: Session, algorithm: str):
        """Args:
            algorithm: `ppo`, `exact`, `sft` or `dpo`.

        Raises:
            UserError: questions differ in their number of answers.
        """
        self.session, self.policy, self.settings, self.algorithm = session, session.policy, session.settings, algorithm
        asked = session.questions
        counts = {len(answers) for answers in asked.answers}
        if len(counts) > 1:
            raise UserError(f"ppo.actions: all needs as many answers for every question, these have {sorted(counts)}")
        self.count = counts.pop()
        known = {text: self.encode(text) for answers in asked.answers for text in answers}
        self.answers = [[known[text] for text in answers] for answers in asked.answers]
        columns = [
            torch.as_tensor(session.rewards(asked.prompts, [answers[i] for answers in asked.answers])).float()
            for i in range(self.count)
        ]
        invalid = torch.full((len(asked),), self.settings.invalid_reward)
        self.rewards = torch.stack([*columns, invalid], dim=1)
        """Of every question's allowed answers, and of anything else [N, A + 1]."""

    def encode(self, text: str) -> list[int]:
        """An answer's tokens, with `END` where it is shorter than a response may be."""
        tokens = encode_answer(self.session.tokenizer, text)
        return tokens if len(tokens) == self.settings.max_new_tokens else [*tokens, END]

    def train(self) -> Progress:
        """Train from where `Session.start` found the run until it is over; the policy then holds the weights to
        keep."""
        return self.session.run(self.step)

    def step(self) -> None:
        """Read the policy's probabilities of all answers to a batch of prompts, and update on their rewards."""
        started, session, step = time.monotonic(), self.session, self.session.progress.step
        torch.manual_seed(schedule.derive_seed(session.seed, step, session.accelerator.process_index))  # dropout
        size, preferred = self.settings.batch_size, session.preferred
        rows = schedule.batch_rows(len(session.questions), size, step, session.seed, preferred)
        microbatches = [self.read(rows, part) for part in session.parts(rows)]
        old, reference = self.probabilities(microbatches)
        rewards = self.rewards[rows]
        answers = self.draw(rows, old, step)
        worth = (old.exp() * rewards).sum(-1)
        kl = (old.exp() * (old - reference)).sum(-1)
        shares = old[:, : self.count].exp().mean(0)
        metrics = answer_metrics(answers, session.questions) | {
            "reward": float(worth.mean()),
            "one_answer": float(shares.max()),
            "entropy": float(-(old.exp() * old).sum(-1).mean()),
            "kl_k1": float(kl.mean()),
            "kl_k3": float(kl.mean()),
            "response_tokens": sum(len(self.answers[row][0]) for row in rows) / len(rows),
            "learning_rate": session.learning_rate,
            "kl_coefficient": session.kl_controller.coefficient,
        }
        update = partial(self.update, rows, microbatches, old, reference, rewards)
        updates.finish(session, answers, metrics, started, update)

    def read(self, rows: list[int], part: list[int]) -> Sequences:
        """The sequences of some prompts of a batch with all their answers; the frozen blocks have read them."""
        asked, device = self.session.questions, self.policy.device
        seen: dict[tuple[int, ...], int] = {}
        starts, index, longest = [], [], max(len(a) for i in part for a in self.answers[rows[i]])
        for i in part:
            prompt, mine = asked.tokens[rows[i]], []
            for answer in self.answers[rows[i]]:
                key = (*prompt, *answer[:-1])
                if key not in seen:
                    seen[key] = len(seen)
                    starts.append((len(prompt) - 1, len(answer)))
                mine.append(seen[key])
            index.append(mine)
        steps = torch.arange(longest)
        positions = torch.stack([start + steps.clamp(max=length - 1) for start, length in starts])
        answers = [[a + [0] * (longest - len(a)) for a in self.answers[rows[i]]] for i in part]
        mask = [[[1.0] * len(a) + [0.0] * (longest - len(a)) for a in self.answers[rows[i]]] for i in part]
        frozen = self.policy.run_frozen_blocks([list(key) for key in seen])
        tensors = (positions, torch.tensor(index), torch.tensor(answers), torch.tensor(mask))
        return Sequences(part, frozen, *(tensor.to(device) for tensor in tensors))

    def logprobs(self, read: Sequences) -> Tensor:
        """Log-probabilities of the allowed answers, and of anything else [B, A + 1]."""
        logits, _ = self.policy(read.frozen, read.positions)
        found = (logits / self.settings.temperature).log_softmax(-1)
        ends = found[..., sorted(self.session.ends)].logsumexp(-1)[read.index] if self.session.ends else None
        each = found[read.index].gather(-1, read.tokens.clamp(min=0)[..., None])[..., 0]
        if ends is not None:
            each = torch.where(read.tokens == END, ends, each)
        return closed_set.with_remainder((each * read.mask).sum(-1))

    @torch.no_grad()
    def probabilities(self, microbatches: list[Sequences]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of policy and reference [B, A + 1] of the whole batch, on the CPU, in its order."""
        self.policy.eval()
        gathered = self.session.gatherer([i for read in microbatches for i in read.rows])
        policy = torch.cat([self.logprobs(read) for read in microbatches])
        with self.policy.as_reference():
            reference = torch.cat([self.logprobs(read) for read in microbatches])
        return gathered(policy), gathered(reference)

    def draw(self, rows: list[int], old: Tensor, step: int) -> Answers:
        """One sampled outcome of every prompt, for the log; anything but an allowed answer is shown as nothing."""
        generator = torch.Generator().manual_seed(schedule.derive_seed(self.session.seed, step))
        uniform = torch.rand(len(rows), 1, generator=generator, dtype=torch.float64)
        total = old.double().exp().cumsum(-1)
        drawn = torch.searchsorted(total, uniform * total[:, -1:], right=True)[:, 0].clamp(max=self.count)
        texts = [[*self.session.questions.answers[row], ""][i] for row, i in zip(rows, drawn.tolist(), strict=True)]
        return Answers(rows, texts, self.rewards[rows].gather(1, drawn[:, None])[:, 0])

    def update(
        self, rows: list[int], microbatches: list[Sequences], old: Tensor, reference: Tensor, rewards: Tensor
    ) -> dict[str, float]:
        """Optimise for the step's epochs; means over the optimiser's steps.

        Raises:
            FloatingPointError: a gradient is NaN or infinity; that step is not made.
        """
        session, settings, device = self.session, self.settings, self.policy.device
        coefficient = session.kl_controller.coefficient
        warming = session.progress.step < settings.warm_start
        advantages = closed_set.expected_advantages(rewards, old, reference, coefficient)
        if settings.whiten_advantages:
            advantages = closed_set.scale_advantages(advantages, old)
        target = None  # to be fitted by forward KL
        if warming:
            target = closed_set.balanced(old)
        elif self.algorithm == "exact":
            target = closed_set.optimal_policy(reference, rewards, coefficient)
        elif self.algorithm == "sft":
            target = closed_set.preferred(rewards)

        def losses(read: Sequences) -> tuple[Tensor, dict[str, Tensor]]:
            part = read.rows
            logprobs, before = self.logprobs(read), old[part].to(device)
            clipped = torch.zeros(len(part), device=device)
            if target is not None:
                found = closed_set.forward_kl(target[part].to(device), logprobs)
            elif self.algorithm == "dpo":
                given = reference[part].to(device), rewards[part].to(device)
                found = closed_set.dpo_losses(logprobs, *given, coefficient)
            else:
                found, clipped = closed_set.expected_policy_losses(
                    logprobs, before, advantages[part].to(device), settings.clip, settings.clip_high
                )
                if settings.balance_coefficient:
                    balance = closed_set.forward_kl(closed_set.balanced(logprobs), logprobs)
                    found = found + settings.balance_coefficient * balance
            moved = closed_set.forward_kl(before, logprobs.detach())
            terms = {"policy_loss": found.detach(), "clip_fraction": clipped, "update_kl": moved}
            return found.sum(), {name: term.sum() for name, term in terms.items()}

        minibatches = updates.minibatches(microbatches, settings.accumulation)
        counts = torch.full((len(minibatches),), float(session.minibatch), device=device)
        return updates.optimise(session, rows, minibatches, counts, losses)
