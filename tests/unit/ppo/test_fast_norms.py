"""Norms that go over memory less often give what the models' own give."""

import pytest
import torch
from tiny import tiny_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from elkflow.ppo import fast_norms


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_are_those_of_the_models_own_norm(dtype, tolerance):
    torch.manual_seed(0)
    norm = LlamaRMSNorm(48, eps=1e-3).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.rand(48) + 0.5)
    states, upstream = torch.randn(2, 5, 48).to(dtype), torch.randn(2, 5, 48).to(dtype)
    states[0, 0] = 0  # where eps is all there is

    def result(made):
        given = states.clone().requires_grad_()
        out = made(given)
        out.backward(upstream)
        return out, given.grad

    wanted = result(norm)
    fast_norms.quicken(norm)
    for ours, theirs in zip(result(norm), wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_the_gradient_is_that_of_finite_differences():
    states = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64)

    def norm(given):
        return fast_norms.RMSNorm.apply(given.float(), weight.float(), 0.1).double()

    assert torch.autograd.gradcheck(norm, states, eps=1e-2, atol=1e-3, rtol=1e-2)


def test_a_norm_that_is_trained_keeps_its_own_forward():
    model = tiny_llama(60).requires_grad_(False)
    model.model.norm.requires_grad_(True)
    fast_norms.quicken(model)
    assert "forward" not in vars(model.model.norm)
    assert "forward" in vars(model.model.layers[0].input_layernorm)
