"""PPO's mathematics against numbers worked out by hand, and against what must hold for any numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from elkflow.ppo import objective

finite = st.floats(-5, 5, width=32)


def matrices(rows=3, columns=4):
    return st.lists(st.lists(finite, min_size=columns, max_size=columns), min_size=rows, max_size=rows).map(tensor)


masks = st.lists(st.integers(1, 4), min_size=3, max_size=3).map(
    lambda lengths: (torch.arange(4) < tensor(lengths)[:, None]).float()
)


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=tolerance, rtol=tolerance)


def test_logprobs_and_entropy_of_known_distributions():
    logits = tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0]])
    close(objective.token_logprobs(logits, tensor([1, 0])), tensor([math.log(0.75), math.log(0.5)]))
    close(objective.token_logprobs(logits, tensor([1, 0]), temperature=0.5)[0], math.log(0.9))
    close(objective.entropy(logits), tensor([-0.25 * math.log(0.25) - 0.75 * math.log(0.75), math.log(2)]))
    close(objective.entropy(logits, temperature=0.5)[0], -0.1 * math.log(0.1) - 0.9 * math.log(0.9))
    close(
        objective.token_logprobs(logits[:, None], tensor([[1], [0]]))[:, 0],
        objective.token_logprobs(logits, tensor([1, 0])),
    )
    close(objective.entropy(logits[:, None])[:, 0], objective.entropy(logits))


def test_masked_statistics_by_hand():
    values, mask = tensor([[1.0, 2.0, math.nan], [6.0, math.inf, math.nan]]), tensor([[1, 1, 0], [1, 0, 0]])
    close(objective.masked_mean(values, mask), 3.0)
    close(objective.masked_variance(values, mask), 7.0)  # (4 + 1 + 9) / 2
    close(objective.whiten(values, mask), tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / math.sqrt(7))
    close(objective.masked_mean(values, torch.zeros(2, 3)), 0.0)
    one, two = tensor([[1, 0, 0], [0, 0, 0]]), tensor([[1, 1, 0], [0, 0, 0]])
    close(torch.stack([objective.masked_mean(values, one), objective.masked_variance(values, one)]), tensor([1.0, 0.0]))
    close(torch.stack([objective.masked_mean(values, two), objective.masked_variance(values, two)]), tensor([1.5, 0.5]))


def test_whitening_can_keep_the_mean():
    values, mask = tensor([[1.0, 3.0]]), torch.ones(1, 2)
    close(objective.whiten(values, mask, keep_mean=True).mean(), 2.0)
    close(objective.masked_variance(objective.whiten(values, mask, keep_mean=True), mask), 1.0, 1e-5)


def test_kl_estimators_by_hand():
    p, q = tensor([math.log(0.5)]), tensor([math.log(0.25)])
    close(objective.kl(p, q, "k1"), tensor([math.log(2)]))
    close(objective.kl(p, q, "k2"), tensor([math.log(2) ** 2 / 2]))
    close(objective.kl(p, q, "k3"), tensor([0.5 - 1 + math.log(2)]))
    with pytest.raises(ValueError):
        objective.kl(p, q, "k4")


def test_estimators_have_the_right_mean():
    p, q = tensor([0.7, 0.2, 0.1]), tensor([0.3, 0.3, 0.4])
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        close((p * objective.kl(p.log(), q.log(), estimator)).sum(), exact)


@given(matrices(), matrices())
def test_k3_is_never_negative(p, q):
    assert (objective.kl(p, q, "k3") >= 0).all()


def test_the_score_falls_on_the_last_token():
    mask = tensor([[1, 1, 0], [1, 1, 1]])
    penalties = tensor([[0.1, 0.2, 9.0], [0.0, 0.0, 0.5]])
    expected = tensor([[-0.1, 0.8, 0.0], [0.0, 0.0, -2.5]])
    close(objective.token_rewards(tensor([1.0, -2.0]), penalties, mask), expected)


def test_advantages_by_hand():
    rewards, values, mask = tensor([[0.0, 1.0, 7.0]]), tensor([[0.5, 0.25, 9.0]]), tensor([[1, 1, 0]])
    result, returns = objective.advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    # errors: 0 + .5 * .25 - .5 = -.375 and 1 - .25 = .75; the first adds .25 of the second
    close(result, tensor([[-0.375 + 0.25 * 0.75, 0.75, 0.0]]))
    close(returns, tensor([[0.5 - 0.1875, 1.0, 0.0]]))


def test_advantages_of_one_token():
    result, returns = objective.advantages(tensor([[1.0]]), tensor([[0.25]]), torch.ones(1, 1), gamma=0.5, lam=0.5)
    close(torch.cat([result, returns]), tensor([[0.75], [1.0]]))


@given(matrices(), matrices(), masks)
def test_with_lambda_1_advantages_are_returns_minus_values(rewards, values, mask):
    result, _ = objective.advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = (rewards * mask).flip(1).cumsum(1).flip(1)
    close(result, (to_come - values) * mask, 1e-4)


@given(matrices(), matrices(), masks)
def test_with_lambda_0_advantages_are_one_step_errors(rewards, values, mask):
    result, _ = objective.advantages(rewards, values, mask, gamma=0.9, lam=0.0)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(3, 1)], dim=1)
    close(result, (rewards + 0.9 * following - values) * mask, 1e-4)


@given(matrices(), matrices(), masks, finite)
def test_nothing_leaks_from_under_the_mask(rewards, values, mask, junk):
    def results(rewards, values):
        found = objective.advantages(rewards, values, mask, 0.9, 0.8)
        return [
            *found,
            objective.whiten(rewards, mask),
            objective.masked_mean(values, mask),
            objective.masked_variance(values, mask),
        ]

    dirty = [torch.where(mask.bool(), x, junk) for x in (rewards, values)]
    clean = [torch.where(mask.bool(), x, math.nan) for x in (rewards, values)]
    for a, b in zip(results(*dirty), results(*clean), strict=True):
        assert torch.equal(a, b)


def test_policy_loss_by_hand():
    old = torch.zeros(4)
    new = tensor([1.5, 1.5, 0.5, 0.5]).log()
    losses, clipped = objective.policy_losses(new, old, tensor([1.0, -1.0, 1.0, -1.0]), clip=0.2)
    close(losses, tensor([-1.2, 1.5, -0.5, 0.8]))
    assert clipped.tolist() == [True, False, False, True]


@given(matrices(), matrices())
def test_at_ratio_1_the_gradient_is_plain_policy_gradient(logprobs, advantage):
    new = logprobs.clone().requires_grad_()
    objective.policy_losses(new, logprobs, advantage, clip=0.2)[0].sum().backward()
    close(new.grad, -advantage)


def test_beyond_the_clip_there_is_no_gradient():
    new = tensor([1.5]).log().requires_grad_()
    objective.policy_losses(new, torch.zeros(1), torch.ones(1), clip=0.2)[0].sum().backward()
    assert new.grad.item() == 0


def test_value_loss_by_hand():
    values, old, returns = tensor([1.0, 0.1]), tensor([0.0, 0.0]), tensor([2.0, 1.0])
    losses, clipped = objective.value_losses(values, old, returns, clip=0.2)
    close(losses, tensor([0.5 * 1.8**2, 0.5 * 0.9**2]))
    assert clipped.tolist() == [True, False]
    losses, clipped = objective.value_losses(values + 3, old + 3, returns + 3, clip=0.2)  # it is differences that count
    close(losses, tensor([0.5 * 1.8**2, 0.5 * 0.9**2]))
    losses, clipped = objective.value_losses(tensor([2.0]), tensor([3.0]), tensor([1.0]), clip=0.2)
    close(losses, tensor([0.5 * 1.8**2]))
    losses, clipped = objective.value_losses(values, old, returns, clip=None)
    close(losses, tensor([0.5, 0.405]))
    assert not clipped.any()


@settings(max_examples=50)
@given(st.floats(0.01, 100), st.integers(1, 512))
def test_the_adaptive_coefficient_moves_towards_the_target(observed, responses):
    controller = objective.KLController(0.2, "adaptive", target=6.0, horizon=10_000)
    controller.update(observed, responses, remaining=0)
    expected = 0.2 * (1 + max(-0.2, min(0.2, observed / 6 - 1)) * responses / 10_000)
    assert controller.coefficient == pytest.approx(expected)
    assert (controller.coefficient - 0.2) * (observed - 6) >= 0


def test_what_is_not_set_is_as_in_ziegler_et_al():
    controller = objective.KLController(0.2)
    assert (controller.target, controller.horizon, controller.final) == (6.0, 10_000, 0.0)


def test_fixed_and_linear_coefficients():
    fixed, linear = objective.KLController(0.2), objective.KLController(0.4, "linear", final=0.1)
    seen = []
    for remaining in (2, 1, 0):
        fixed.update(100, 64, remaining)
        linear.update(100, 64, remaining)
        seen.append(linear.coefficient)
    assert fixed.coefficient == 0.2
    assert seen == pytest.approx([0.3, 0.2, 0.1])
