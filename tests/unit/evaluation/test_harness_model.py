"""Log-probabilities by prefix trees and windows are those of the harness's own model."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tiny_evaluation import MIXED, OPENING, SENTENCES, by_hand, requests_for, tiny_harness_model
from transformers import AutoModelForCausalLM, MistralConfig

from elkflow.batching.prefix_tree import Line
from elkflow.common.errors import UserError
from elkflow.evaluation import harness_model, score_cache
from elkflow.hiddens.reader import Reader
from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer


def test_a_prompt_that_ends_in_a_space_keeps_it(checkpoint):
    """The harness moves trailing spaces into the answer, which training does not do."""
    model = tiny_harness_model(checkpoint)
    model.exact_prompts = True
    tokenizer = load_tokenizer(checkpoint)
    assert model._encode_pair("what is ", "Yes") == (
        encode_prompt(tokenizer, "what is "),
        encode_answer(tokenizer, "Yes"),
    )


LAYOUTS = {"windows": {}, "masked": {"windowed": False}, "plain": {"shared": False}}


def laid_out(model, layout):
    """The model made to lay its questions out like this."""
    model._readers = dict.fromkeys((True, False), (Reader(model.model, "decoder", **LAYOUTS[layout]), 10**6))
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
@pytest.mark.parametrize("pairs", [MIXED, [(text, " Yes") for text in SENTENCES], MIXED[:1]])
def test_it_agrees_with_the_harness_own_model(checkpoint, batch_size, pairs, layout):
    ours = laid_out(tiny_harness_model(checkpoint, batch_size=batch_size), layout)
    theirs = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=1)
    requests = requests_for(theirs, pairs)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    found = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_contexts_too_long_for_windows_are_laid_out_under_masks(checkpoint, monkeypatch):
    model = tiny_harness_model(checkpoint)
    short, long = requests_for(model, [("what is", " Yes")]), requests_for(model, MIXED)
    expected = model._loglikelihood_tokens(long)
    assert set(model._readers) == {True} and model._readers[True][0].windowed
    monkeypatch.setattr(harness_model, "LONGEST_IN_WINDOWS", len(short[0][1]) + len(short[0][2]))
    model._loglikelihood_tokens(short)
    assert set(model._readers) == {True}
    found = model._loglikelihood_tokens(long)
    assert model._readers[False][0].shared and not model._readers[False][0].windowed
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_runs_twice(checkpoint, monkeypatch, layout):
    model = tiny_harness_model(checkpoint)
    model.exact_prompts = True
    model._loglikelihood_tokens(requests_for(model, [("what is", "Yes")]))
    assert model._readers[True][0].windowed  # asked, it takes them
    laid_out(model, layout)
    pairs = [(f"{OPENING} {text}", answer) for text in SENTENCES for answer in ("Yes", "No")]
    requests = requests_for(model, pairs)
    prompts = {tuple(context) for _, context, _ in requests}
    opening = len(encode_prompt(model.tokenizer, OPENING))
    fed = []
    forward = model.model.forward

    def watched(input_ids, **extra):
        fed.append((input_ids.shape, extra.get("attention_mask")))
        return forward(input_ids, **extra)

    monkeypatch.setattr(model.model, "forward", watched)
    found = model._loglikelihood_tokens(requests)
    monkeypatch.undo()
    ((shape, mask),) = fed
    if layout != "plain":  # the opening once, then what differs; answers of one token cost nothing
        assert shape == (1, opening + sum(len(prompt) - opening for prompt in prompts))
        assert (mask is None) == (layout == "windows")
    else:
        assert shape == (3, max(map(len, prompts))) and mask is None
    for (score, _), (prompt, answer) in zip(found, pairs, strict=True):
        assert score == pytest.approx(by_hand(checkpoint, prompt, answer), abs=1e-4)


def test_auto_shrinks_the_batch_when_memory_runs_out(checkpoint, monkeypatch):
    model = tiny_harness_model(checkpoint, batch_size="auto")
    requests = requests_for(model, MIXED)
    expected = model._loglikelihood_tokens(requests)
    sizes = []
    pack = harness_model.batch_lines

    def cramped(lines, tokens):
        sizes.append(tokens)
        if tokens > 600:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return pack(lines, tokens)

    monkeypatch.setattr(harness_model, "batch_lines", cramped)
    assert model._loglikelihood_tokens(requests) == expected
    assert sizes[0] > 600 >= sizes[-1]


def test_an_answer_without_tokens_of_its_own_is_refused(checkpoint):
    model = tiny_harness_model(checkpoint)
    with pytest.raises(UserError, match="'Yes' has no tokens of its own after 'what is france'"):
        model._loglikelihood_tokens(requests_for(model, [("what is france", "Yes")]))


def test_batches_hold_few_logits(monkeypatch):
    monkeypatch.setattr(harness_model, "MOST_LOGITS", 12)
    lines = []
    for length, scored in ((9, 3), (9, 3), (8, 8), (5, 5), (4, 4), (20, 20)):
        line = Line()
        lines.append(line)
        line.answer(len(lines), line.append(list(range(length)))[-scored:])
    parts = list(harness_model.limit_logits(iter([lines])))
    assert [line for part in parts for line in part] == lines
    assert [len(part) for part in parts] == [2, 1, 2, 1]


def test_a_text_longer_than_the_context_is_scored_in_windows(checkpoint):
    model = tiny_harness_model(checkpoint, batch_size=4)
    tokens = model.tok_encode(" ".join(SENTENCES * 80))
    cuts = get_rolling_token_windows(tokens, model.prefix_token_id, max_seq_len=model.max_length, context_len=1)
    windows = [make_disjoint_window(window) for window in cuts]
    assert len(windows) == 3 and sum(len(scored) for _, scored in windows) == len(tokens)
    expected = 0.0
    for context, scored in windows:
        with torch.inference_mode():
            logprobs = model.model(torch.tensor([context + scored[:-1]])).logits[0].log_softmax(-1)
        expected += float(logprobs[len(context) - 1 :].gather(1, torch.tensor(scored)[:, None]).sum())
    request = [type("Request", (), {"args": (" ".join(SENTENCES * 80),)})]
    assert model.loglikelihood_rolling(request, disable_tqdm=True) == pytest.approx([expected], rel=1e-6)


def test_a_killed_evaluation_keeps_the_blocks_it_finished(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(harness_model, "BLOCK", 4)
    model = tiny_harness_model(checkpoint, cache=score_cache.ScoreCache(tmp_path, {}))
    requests = requests_for(model, MIXED)
    whole = model._loglikelihood_tokens(requests)
    assert len(list(tmp_path.rglob("*.json"))) == 3
    monkeypatch.setattr(model, "_score_all", None)  # nothing is left to compute
    assert model._loglikelihood_tokens(requests) == whole


def test_a_layout_that_short_texts_allow_is_tried_again_on_longer_ones(checkpoint):
    """A sliding window of 8 tokens is narrower than the longer texts, and invisible to the shorter ones."""
    ours = tiny_harness_model(checkpoint, batch_size=4)
    size = len(ours.tokenizer)
    config = MistralConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    ours = harness_model.HarnessModel(model, ours.tokenizer, batch_size=4)
    theirs = HFLM(pretrained=model, tokenizer=ours.tokenizer, batch_size=1)
    short = requests_for(theirs, [("what is", " Yes"), ("what is", " No")])
    long = requests_for(theirs, [(" ".join(SENTENCES[:2]), " Yes"), (" ".join(SENTENCES[:2]), " No")])
    assert len(long[0][1]) > 8 > len(short[0][1])
    for requests in (short, long, short):
        found, expected = (each._loglikelihood_tokens(requests, disable_tqdm=True) for each in (ours, theirs))
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
