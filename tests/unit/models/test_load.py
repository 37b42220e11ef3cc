"""Text to token ids, and what a checkpoint folder is taken for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from elkflow.common.errors import UserError
from elkflow.models.load import compute_dtype, load_model, model_kind
from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer, special_tokens


def metaspace_tokenizer(decoder=True):
    """Like sentencepiece it puts a space before every text; Llama's opens with BOS, T5's closes with EOS."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "Yes", "▁Yes", "No", "▁No", ":", "▁:", "▁is", "▁it", "?"]
    core = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    core.post_processor = TemplateProcessing(
        single="<s> $A" if decoder else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>" if decoder else None, eos_token="</s>"
    )


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def test_opening_token_is_added_once():
    tokenizer = metaspace_tokenizer()
    assert special_tokens(tokenizer) == ([1], [])
    assert tokens(tokenizer, encode_prompt(tokenizer, "is it?")) == ["<s>", "▁is", "▁it", "?"]
    assert encode_prompt(tokenizer, "<s>is it?").count(1) == 1


def test_prompts_are_not_closed():
    tokenizer = metaspace_tokenizer(decoder=False)
    assert special_tokens(tokenizer) == ([], [2])
    assert tokens(tokenizer, encode_prompt(tokenizer, "is it?")) == ["▁is", "▁it", "?"]


def test_chat_text_gets_nothing_that_the_tokenizer_does_not_add():
    tokenizer = tiny_tokenizer()
    assert special_tokens(tokenizer) == ([], [])
    assert encode_prompt(tokenizer, "is paris") == tokenizer("is paris", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("decoder", "answer", "expected"),
    [
        (True, "Yes", ["Yes"]),
        (True, " Yes", ["▁Yes"]),
        (False, "Yes", ["▁Yes"]),
    ],
)
def test_answers_continue_the_prompt_as_written(decoder, answer, expected):
    tokenizer = metaspace_tokenizer(decoder)
    assert tokens(tokenizer, encode_answer(tokenizer, answer)) == expected


def test_answer_is_where_the_whole_text_would_have_it():
    tokenizer = metaspace_tokenizer()
    for answer in ("Yes", " Yes", " No"):
        whole = tokenizer("is it?" + answer)["input_ids"]
        assert encode_prompt(tokenizer, "is it?") + encode_answer(tokenizer, answer) == whole


def test_padding_token_falls_back_to_the_end_token(tmp_path):
    tokenizer = metaspace_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.pad_token, loaded.pad_token_id) == ("</s>", 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "decoder"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "decoder"),
        ({"architectures": ["LlamaModel"], "model_type": "llama"}, "decoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["DebertaV2ForMaskedLM"], "model_type": "deberta-v2"}, "encoder"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "mistral"}, "decoder"),
    ],
)
def test_kinds(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_kind(tmp_path) == expected


def test_what_is_no_text_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"], "model_type": "vit"}')
    with pytest.raises(UserError, match="ViTModel is not a text model"):
        model_kind(tmp_path)


def test_loaded_models_are_ready_to_read(tmp_path):
    save_tiny_model(tmp_path, layers=1)
    model = load_model(tmp_path, dtype="bfloat16")
    assert model.dtype == torch.bfloat16 and not model.training


def test_unreadable_folders_are_named(tmp_path):
    save_tiny_model(tmp_path, layers=1)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_checkpoint_without_some_weights_is_refused(tmp_path):
    save_tiny_model(tmp_path, layers=1)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights, first model.layers.0.mlp.up_proj.weight"):
        load_model(tmp_path)


def test_dtype_named_is_dtype_used():
    assert compute_dtype("float16") == torch.float16
    assert compute_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
