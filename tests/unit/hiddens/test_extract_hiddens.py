"""Extraction: states must equal those of a plain forward pass over each text, whatever the layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import tiny_llama
from tiny_states import MODEL, TOKENIZER, YES_NO, extracted, plainly, sentences

from elkflow.common.errors import UserError
from elkflow.hiddens.extract_hiddens import LAYER_CONVENTION, extract_hiddens
from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.tokens import encode_answer, encode_prompt


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
