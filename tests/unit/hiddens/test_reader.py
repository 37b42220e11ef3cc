"""Readers of hidden states: every layout reads the same."""

import torch
from tiny_states import MODEL, TOKENIZER, YES_NO, sentences

from elkflow.hiddens.reader import Reader, choose_layout
from elkflow.hiddens.tokenise import tokenise_prompts


def test_attention_in_windows_and_under_a_mask_read_the_same():
    questions = tokenise_prompts(TOKENIZER, "decoder", sentences(30, seed=3), [YES_NO] * 30)
    chosen = choose_layout(Reader(MODEL, "decoder"), questions)
    masked = Reader(MODEL, "decoder", windowed=False)
    assert chosen.windowed and masked.shared
    found = []
    for one in (chosen, masked):
        read = one.read(one.lines(questions))
        order = torch.tensor(read.slots).argsort()
        found.append((read.states[:, order], read.logprobs[order]))
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
    assert MODEL.config._attn_implementation == "sdpa", "the model is left as it was"


def test_output_layer_sees_only_the_positions_that_are_scored():
    questions = tokenise_prompts(TOKENIZER, "decoder", ["what is the capital of italy"], [YES_NO])
    one = Reader(MODEL, "decoder")
    seen = []
    handle = MODEL.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    one.read(one.lines(questions))
    handle.remove()
    assert seen == [(1, 1, len(TOKENIZER))], "both answers follow the same prompt token"
