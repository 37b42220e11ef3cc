"""Closed answer sets: values by hand, limits, and the optimum against a brute-force optimiser."""

import math

import pytest
import torch

from elkflow.ppo import closed_set

REFERENCE = torch.tensor([[0.6, 0.1, 0.3]]).log()
REWARDS = torch.tensor([[0.2, 0.9, -1.0]])


def test_the_remainder_is_what_the_answers_leave():
    found = closed_set.with_remainder(torch.tensor([[0.25, 0.5], [0.4, 0.6]]).log())
    assert found[0].exp().tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert found[1, 2].exp().item() == pytest.approx(closed_set.LEAST, rel=0.5) and found.isfinite().all()


def test_the_optimum_by_hand():
    """Weights 0.6 e^0.2, 0.1 e^0.9 and 0.3 e^-1 at coefficient 1."""
    weights = [0.6 * math.exp(0.2), 0.1 * math.exp(0.9), 0.3 * math.exp(-1.0)]
    found = closed_set.optimal_policy(REFERENCE, REWARDS, 1.0).exp()[0]
    assert found.tolist() == pytest.approx([weight / sum(weights) for weight in weights])


def test_the_optimum_is_what_a_brute_force_optimiser_finds():
    for coefficient in (0.1, 0.5, 3.0):
        logits = torch.zeros(1, 3, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

        def closure(logits=logits, optimizer=optimizer, coefficient=coefficient):
            optimizer.zero_grad()
            policy = logits.log_softmax(-1)
            objective = (policy.exp() * (REWARDS - coefficient * (policy - REFERENCE))).sum()
            (-objective).backward()
            return -objective

        optimizer.step(closure)
        found = closed_set.optimal_policy(REFERENCE, REWARDS, coefficient).exp()
        torch.testing.assert_close(found, logits.softmax(-1), atol=2e-3, rtol=0)


def test_limits_and_invariances_of_the_optimum():
    optimum = closed_set.optimal_policy
    assert optimum(REFERENCE, REWARDS, 1e-3).exp()[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    torch.testing.assert_close(optimum(REFERENCE, REWARDS, 1e6), REFERENCE, atol=1e-5, rtol=0)
    torch.testing.assert_close(optimum(REFERENCE, REWARDS + 5, 0.3), optimum(REFERENCE, REWARDS, 0.3))
    torch.testing.assert_close(optimum(REFERENCE, 10 * REWARDS, 3.0), optimum(REFERENCE, REWARDS, 0.3))


def test_the_preferred_answer_is_the_best_allowed_one():
    rewards = torch.tensor([[0.2, 0.9, 5.0], [0.4, 0.4, -1.0]])
    found = closed_set.preferred(rewards)
    assert found.exp().tolist() == [[0, 1, 0], pytest.approx([0.5, 0.5, 0])]
    policy = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.2, 0.6]]).log().requires_grad_()
    losses = closed_set.forward_kl(found, policy)
    assert losses.tolist() == pytest.approx([-math.log(0.1), math.log(0.5 / 0.2)], rel=1e-5)
    losses.sum().backward()
    assert policy.grad.tolist() == [[0, -1, 0], [-0.5, -0.5, 0]]


def test_dpo_by_hand():
    """Log-ratios log ½ and log 3 of the two answers: at β = ½ the better leads by ½ log 6, and σ is √6 / (1 + √6)."""
    policy = torch.tensor([[0.3, 0.3, 0.4]]).log()
    found = closed_set.dpo_losses(policy, REFERENCE, REWARDS, 0.5)
    assert found.item() == pytest.approx(-math.log(math.sqrt(6) / (1 + math.sqrt(6))), rel=1e-5)
    assert closed_set.dpo_losses(REFERENCE, REFERENCE, REWARDS, 0.5).item() == pytest.approx(math.log(2))
    assert closed_set.dpo_losses(policy, REFERENCE, torch.ones(1, 3), 0.5).item() == 0, "no preference, no pair"


def test_dpo_compares_the_best_answer_with_each_worse_one():
    reference = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    policy = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    tied = closed_set.dpo_losses(policy, reference, torch.tensor([[1.0, 1.0, 0.0, 9.0]]), 1.0).item()
    assert tied == pytest.approx(-math.log(2 / 3)), "the equal answer and anything else are no rivals"
    three = closed_set.dpo_losses(policy, reference, torch.tensor([[0.5, 1.0, 0.0, 9.0]]), 1.0).item()
    assert three == pytest.approx((-math.log(1 / 3) - math.log(1 / 2)) / 2)


def test_forward_kl_by_hand():
    target, policy = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert closed_set.forward_kl(target, policy).item() == pytest.approx(0.5 * math.log(2))
    assert closed_set.forward_kl(policy, policy).item() == 0
    assert closed_set.forward_kl(closed_set.balanced(policy), policy).item() == pytest.approx(0.5 * math.log(2))


def test_forward_kl_pulls_a_policy_out_of_one_answer_where_the_policy_gradient_vanishes():
    """At P(Yes) = e^-9 and a reward for Yes: the gradient of the log-odds."""
    target = closed_set.optimal_policy(torch.tensor([[0.5, 0.5, 1e-6]]).log(), torch.tensor([[0.0, 1.0, -1.0]]), 0.1)
    gradients = []
    for loss in ("forward KL", "policy gradient"):
        odds = torch.tensor([-9.0], requires_grad=True)
        logprobs = torch.stack([-torch.nn.functional.softplus(odds), -torch.nn.functional.softplus(-odds)], -1)
        policy = closed_set.with_remainder(logprobs)
        old = policy.detach()
        advantages = closed_set.expected_advantages(torch.tensor([[0.0, 1.0, -1.0]]), old, old, 0.0)
        found = (
            closed_set.forward_kl(target, policy)
            if loss == "forward KL"
            else closed_set.expected_policy_losses(policy, old, advantages, 0.2)[0]
        )
        found.sum().backward()
        gradients.append(-odds.grad.item())
    assert gradients[0] > 0.9 and 0 < gradients[1] < 1e-3


def test_expected_advantages_by_hand():
    """Rewards 0, 1, −1 at probabilities ½, ¼, ¼ are worth 0; KL terms are log 2 for the second against a reference."""
    old = torch.tensor([[0.5, 0.25, 0.25]]).log()
    rewards = torch.tensor([[0.0, 1.0, -1.0]])
    assert closed_set.expected_advantages(rewards, old, old, 0.7)[0].tolist() == pytest.approx([0, 1, -1])
    reference = torch.tensor([[0.5, 0.125, 0.375]]).log()
    penalties = [0.0, 0.1 * math.log(2), 0.1 * math.log(2 / 3)]
    mean = -0.25 * (penalties[1] + penalties[2])
    found = closed_set.expected_advantages(rewards, old, reference, 0.1)[0].tolist()
    assert found == pytest.approx([0 - mean, 1 - penalties[1] - mean, -1 - penalties[2] - mean])


def test_advantages_are_scaled_under_the_old_policy():
    old, advantages = torch.tensor([[0.5, 0.5, 1e-9]]).log(), torch.tensor([[3.0, -3.0, 50.0]])
    assert closed_set.scale_advantages(advantages, old)[0, :2].tolist() == pytest.approx([1, -1], abs=1e-4)


def test_the_expected_surrogate_is_the_mean_over_samples():
    generator = torch.Generator().manual_seed(0)
    old = torch.tensor([[0.5, 0.3, 0.2]]).log()
    new = torch.tensor([[0.3, 0.5, 0.2]]).log()
    advantages = torch.tensor([[-0.4, 0.9, -1.0]])
    expected, clipped = closed_set.expected_policy_losses(new, old, advantages, 0.2, 0.5)
    drawn = torch.multinomial(old.exp()[0], 200_000, replacement=True, generator=generator)
    ratio = (new - old).exp()[0, drawn]
    sampled = torch.maximum(-advantages[0, drawn] * ratio, -advantages[0, drawn] * ratio.clamp(0.8, 1.5))
    assert expected.item() == pytest.approx(sampled.mean().item(), abs=5e-3)
    assert clipped.item() == pytest.approx(0.8), "the first fell below 0.8, the second rose above 1.5"


def test_at_the_old_policy_the_gradient_is_the_exact_policy_gradient():
    logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    old = logits.log_softmax(-1).detach()
    rewards = torch.tensor([[0.2, 0.9, -1.0]])
    advantages = closed_set.expected_advantages(rewards, old, old, 0.0)
    closed_set.expected_policy_losses(logits.log_softmax(-1), old, advantages, 0.2)[0].sum().backward()
    ours, logits.grad = logits.grad.clone(), None
    (-(logits.softmax(-1) * rewards).sum()).backward()
    torch.testing.assert_close(ours, logits.grad)
