"""Extraction: what is read must be what a plain forward over one text gives, however the work is laid out."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import WORDS, tiny_llama, tiny_tokenizer

from elkflow.batching.prefix_tree import PromptWithAnswers, batch_lines, join_lines, tree_lines
from elkflow.batching.tree_attention import attention_windows
from elkflow.common.errors import UserError
from elkflow.hiddens.extract_hiddens import LAYER_CONVENTION, extract_hiddens
from elkflow.hiddens.reader import Reader, choose_layout
from elkflow.hiddens.tokenise import check_lengths, tokenise_prompts
from elkflow.models.tokens import encode_answer, encode_prompt

TOKENIZER = tiny_tokenizer()
MODEL = tiny_llama(len(TOKENIZER))
YES_NO = ["No", "Yes"]


def sentences(count, seed=0, longest=12):
    """Random prompts, some of which open alike, some twice."""
    rng = random.Random(seed)
    openings = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(max(1, count // 3))]
    return [f"{rng.choice(openings)} {' '.join(rng.choices(WORDS, k=rng.randint(0, 3)))}".strip() for _ in range(count)]


def plainly(model, tokenizer, prompts, answers):
    """States [L, N, A, D] and log-probabilities [N, A], one text at a time, by the book."""
    states, scores = [], []
    for prompt, texts in zip(prompts, answers, strict=True):
        for answer in texts:
            start, end = encode_prompt(tokenizer, prompt), encode_answer(tokenizer, answer)
            with torch.no_grad():
                outputs = model(torch.tensor([start + end]), output_hidden_states=True)
            states.append(torch.stack([layer[0, -1] for layer in outputs.hidden_states]))
            logprobs = outputs.logits[0].log_softmax(-1)
            scores.append(sum(logprobs[len(start) - 1 + i, token] for i, token in enumerate(end)))
    shape = (len(prompts), len(answers[0]))
    return torch.stack(states, 1).unflatten(1, shape), torch.stack(scores).view(shape)


def extracted(tmp_path, prompts, answers, model=MODEL, tokenizer=TOKENIZER, **options):
    """What `extract` writes: states [L, N, A, D], log-probabilities [N, A], facts."""
    path = tmp_path / "states.safetensors"
    questions = tokenise_prompts(tokenizer, "decoder", prompts, answers)
    facts = extract_hiddens(
        model, "decoder", questions, path, names=[f"row {i}" for i in range(len(prompts))], **options
    )
    tensors = load_file(path)
    layers = [tensors[f"layers.{i}"] for i in range(len(tensors) - 1)]
    return torch.stack(layers), tensors["answer_logprobs"], facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("states")


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 9),
    tokens=st.sampled_from([1, 20, 64, 4096]),
    answers=st.sampled_from([YES_NO, ["Yes", "Yes rome italy"], ["No", "Yes", "who"], ["Yes"], ["Yes", "Yes"]]),
    side=st.sampled_from(["left", "right"]),
)
@hypothesis_settings(max_examples=25, deadline=None)
def test_extracted_states_equal_plain_forwards_whatever_the_layout(folder, seed, count, tokens, answers, side):
    prompts = sentences(count, seed)
    TOKENIZER.padding_side = side
    states, scores, facts = extracted(folder, prompts, [answers] * count, batch_tokens=tokens)
    expected, expected_scores = plainly(MODEL, TOKENIZER, prompts, [answers] * count)
    assert facts["layout"] == "shared"
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


def test_order_of_rows_is_that_of_the_file(tmp_path):
    prompts = sentences(8, seed=5)
    order = [3, 1, 7, 0, 2, 6, 4, 5]
    states, scores, _ = extracted(tmp_path, prompts, [YES_NO] * 8)
    mixed, mixed_scores, _ = extracted(tmp_path, [prompts[i] for i in order], [YES_NO] * 8)
    torch.testing.assert_close(mixed, states[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed_scores, scores[order], rtol=1e-4, atol=1e-4)


def test_answers_may_differ_from_row_to_row(tmp_path):
    prompts, answers = sentences(3, seed=1), [["No", "Yes"], ["paris", "rome italy"], ["Yes", "No"]]
    states, _, _ = extracted(tmp_path, prompts, answers)
    torch.testing.assert_close(states, plainly(MODEL, TOKENIZER, prompts, answers)[0], rtol=1e-4, atol=1e-5)


def test_layer_zero_is_the_embeddings_and_the_last_is_after_the_final_norm(tmp_path):
    states, _, _ = extracted(tmp_path, ["is paris"], [YES_NO])
    answer = torch.tensor(encode_answer(TOKENIZER, "Yes"))
    assert len(states) == MODEL.config.num_hidden_layers + 1
    torch.testing.assert_close(states[0, 0, 1], MODEL.model.embed_tokens(answer)[0])
    outputs = []
    handles = [block.register_forward_hook(lambda m, a, out: outputs.append(out)) for block in MODEL.model.layers]
    with torch.no_grad():
        MODEL(torch.tensor([encode_prompt(TOKENIZER, "is paris") + answer.tolist()]))
    for handle in handles:
        handle.remove()
    for index, output in enumerate(outputs[:-1], start=1):
        torch.testing.assert_close(states[index, 0, 1], output[0, -1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[-1, 0, 1], MODEL.model.norm(outputs[-1])[0, -1], rtol=1e-4, atol=1e-5)


def test_header_says_what_is_in_the_file(tmp_path):
    path = tmp_path / "states.safetensors"
    questions = tokenise_prompts(TOKENIZER, "decoder", ["is paris"], [YES_NO])
    extract_hiddens(MODEL, "decoder", questions, path, names=["a"], metadata={"model": "abc"})
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {
            "format": "1",
            "layers": LAYER_CONVENTION,
            "position": "last",
            "kind": "decoder",
            "model": "abc",
        }
        assert sorted(file.keys()) == ["answer_logprobs", *(f"layers.{i}" for i in range(5))]
        assert file.get_slice("layers.3").get_shape() == [1, 2, 32]


def test_shared_layout_computes_common_beginnings_once():
    opening = "what is the capital of italy " * 5
    questions = tokenise_prompts(TOKENIZER, "decoder", [opening + "rome", opening + "paris"], [YES_NO] * 2)
    lines = tree_lines(questions, width=512, longest=100)
    assert [len(line.ids) for line in lines] == [30 + 2 * (1 + 2)]
    assert lines[0].slots == [2, 3, 0, 1]
    narrow = tree_lines(questions, width=3, longest=100)
    assert len(narrow) == 2, "in a narrow model attention over a longer line costs more than it saves"


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=20),
    size=st.sampled_from([1, 3, 8, 64]),
)
@hypothesis_settings(max_examples=50, deadline=None)
def test_windows_show_every_token_its_ancestors_and_nothing_else(prompts, size):
    questions = [PromptWithAnswers(row, prompt, [[7], [8, 9]]) for row, prompt in enumerate(prompts)]
    line = join_lines(tree_lines(questions, math.inf, 40))
    columns, seen = attention_windows(line, size)
    assert seen.shape == (math.ceil(len(line.ids) / size), size, columns.shape[1])
    for node, parent in enumerate(line.parent):
        looks_at = columns[node // size][seen[node // size, node % size]].tolist()
        ancestors = [node]
        while parent >= 0:
            ancestors.append(parent)
            parent = line.parent[parent]
        assert sorted(looks_at) == sorted(ancestors)
    assert seen.any(-1).all(), "no softmax is over nothing"


def test_windows_are_narrow_however_long_the_line_is():
    opening = "what is the capital of italy " * 5
    questions = tokenise_prompts(
        TOKENIZER, "decoder", [f"{opening}{a} {b}" for a in WORDS for b in WORDS], [YES_NO] * 400
    )
    line = join_lines(tree_lines(questions, math.inf, 10_000))
    assert len(line.ids) > 1000 and attention_windows(line, 16)[0].shape[1] < 33 + 16 + 1


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


def test_batches_respect_their_budget_and_start_with_the_longest():
    questions = tokenise_prompts(TOKENIZER, "decoder", sentences(40), [YES_NO] * 40)
    lines = tree_lines(questions, width=8, longest=64)
    found = list(batch_lines(lines, 100))
    assert sum(map(len, found)) == len(lines)
    assert all(len(batch) == 1 or len(batch) * len(batch[0].ids) <= 100 for batch in found)
    lengths = [len(line.ids) for batch in found for line in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_output_layer_sees_only_the_positions_that_are_scored():
    questions = tokenise_prompts(TOKENIZER, "decoder", ["what is the capital of italy"], [YES_NO])
    one = Reader(MODEL, "decoder")
    seen = []
    handle = MODEL.lm_head.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    one.read(one.lines(questions))
    handle.remove()
    assert seen == [(1, 1, len(TOKENIZER))], "both answers follow the same prompt token"


def test_positions_within_a_long_answer(tmp_path):
    prompts, answers = ["is paris", "who is"], [["rome italy france", "No the capital of"]] * 2
    tokens = [[encode_prompt(TOKENIZER, p) + encode_answer(TOKENIZER, a) for a in answers[0]] for p in prompts]
    with torch.no_grad():
        full = [
            [torch.stack(MODEL(torch.tensor([t]), output_hidden_states=True).hidden_states)[:, 0] for t in row]
            for row in tokens
        ]
    starts = [
        [len(t) - len(encode_answer(TOKENIZER, a)) for t, a in zip(row, answers[0], strict=True)] for row in tokens
    ]
    wanted = {
        "last": lambda h, s: h[:, -1],
        "penultimate": lambda h, s: h[:, -2],
        "first": lambda h, s: h[:, s],
        "mean": lambda h, s: h[:, s:].mean(1),
    }
    for position, pick in wanted.items():
        states, _, _ = extracted(tmp_path, prompts, answers, position=position)
        for row in range(2):
            for answer in range(2):
                expected = pick(full[row][answer], starts[row][answer])
                torch.testing.assert_close(states[:, row, answer], expected, rtol=1e-4, atol=1e-5)


def test_model_that_ignores_the_mask_gets_plain_batches(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
        pad_token_id=1,
    )
    model = MistralForCausalLM(config).eval()
    prompts = ["what is the capital of italy question answer no yes", *sentences(5, longest=9)]
    states, scores, facts = extracted(tmp_path, prompts, [YES_NO] * 6, model=model)
    expected, expected_scores = plainly(model, TOKENIZER, prompts, [YES_NO] * 6)
    assert facts["layout"] == "plain"
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


def test_not_a_number_names_row_and_layer_and_leaves_no_file(tmp_path):
    model = tiny_llama(len(TOKENIZER))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    questions = tokenise_prompts(TOKENIZER, "decoder", ["is paris"], [YES_NO])
    with pytest.raises(UserError, match=r"the row: hidden states of layer 2 are not finite"):
        extract_hiddens(model, "decoder", questions, tmp_path / "s.safetensors", names=["the row"])
    assert list(tmp_path.iterdir()) == []


def test_prompt_longer_than_the_context_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4}')
    questions = tokenise_prompts(TOKENIZER, "decoder", ["is paris the", "is paris the capital of"], [YES_NO] * 2)
    with pytest.raises(UserError, match="long one: 6 tokens, but the model takes at most 4"):
        check_lengths(questions, tmp_path, ["short one", "long one"])


@pytest.mark.parametrize(
    ("prompts", "answers", "message"),
    [
        ([], [], "no prompts"),
        (["is paris", ""], [YES_NO] * 2, "row 1: the prompt or an answer has no tokens"),
        (["is paris"], [["Yes", ""]], "row 0"),
        (["is paris", "who"], [YES_NO, ["Yes"]], "row 1: has 1 answers, but row 0 has 2"),
    ],
)
def test_unusable_rows_are_named(prompts, answers, message):
    with pytest.raises(UserError, match=message):
        tokenise_prompts(TOKENIZER, "decoder", prompts, answers)
