"""A step's updates, whatever its loss: epochs of minibatches in microbatches, on every process."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from elkflow.ppo import gradients, schedule
from elkflow.ppo.rollout import Answers
from elkflow.ppo.session import Session
from elkflow.ppo.step_metrics import means

Part = TypeVar("Part")
Losses = Callable[[Part], tuple[Tensor, dict[str, Tensor]]]
"""The loss of a microbatch and what is told of it, `update_kl` among it: sums over what its minibatch counts."""


def minibatches(microbatches: list[Part], accumulation: int) -> list[list[Part]]:
    """The same microbatches, those of a minibatch together."""
    return [microbatches[at : at + accumulation] for at in range(0, len(microbatches), accumulation)]


def finish(
    session: Session,
    answers: Answers,
    metrics: dict[str, float],
    started: float,
    update: Callable[[], dict[str, float]],
) -> None:
    """Make a step's updates, then finish it; a number that is none makes it a collapse.

    Args:
        metrics: of the rollout.
        started: time.monotonic() when the step began.
        update: raises FloatingPointError or returns the updates' metrics.
    """
    collapse = None
    try:
        metrics = metrics | update()
    except FloatingPointError as error:
        collapse = str(error)
        session.optimizer.zero_grad()
    else:
        left = session.steps - session.progress.step - 1
        session.kl_controller.update(metrics["kl_k1"], len(answers.rows), left)
    session.finish_step(answers, metrics, started, collapse)


def optimise(
    session: Session, rows: Sequence[int], minibatches: list[list[Part]], counts: Tensor, losses: Losses[Part]
) -> dict[str, float]:
    """Optimise on a rollout for its epochs, or until the policy has moved too far from where it sampled.

    Args:
        rows: questions of the rollout, minibatch after minibatch.
        minibatches: this process's share of each, in microbatches.
        counts: what each minibatch's sums are divided by [M], over all processes.

    Returns:
        Means over the optimiser's steps.

    Raises:
        FloatingPointError: a gradient is NaN or infinity; that step is not made.
    """
    settings, accelerator, size = session.settings, session.accelerator, session.minibatch
    session.policy.train()
    for group in session.optimizer.param_groups:
        group["lr"] = session.learning_rate
    updates: list[dict[str, float]] = []
    for epoch in range(settings.ppo_epochs):
        generator = torch.Generator().manual_seed(schedule.derive_seed(session.seed, rows[0], epoch))
        for index in torch.randperm(len(minibatches), generator=generator).tolist():
            sums: dict[str, Tensor] = {}
            for microbatch in minibatches[index]:
                loss, terms = losses(microbatch)
                (loss / counts[index]).backward()
                sums = {name: sums.get(name, 0) + term / counts[index] for name, term in terms.items()}
            found = accelerator.reduce(torch.stack(list(sums.values()))).tolist()
            metrics = dict(zip(sums, found, strict=True))
            if settings.target_kl is not None and metrics["update_kl"] > settings.target_kl:
                session.optimizer.zero_grad()
                return means(updates)
            asked = [session.questions.ids[row] for row in rows[index * size : (index + 1) * size]]
            norm = gradients.reduce(session.trained, accelerator, settings.max_gradient_norm, asked)
            session.optimizer.step()
            session.optimizer.zero_grad()
            updates.append(metrics | {"gradient_norm": norm})
    return means(updates)
