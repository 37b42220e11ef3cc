"""Families of checkpoints, and loading of models."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model

from elkflow.common.errors import UserError
from elkflow.models.load import compute_dtype, load_model, model_kind
from elkflow.models.tokens import load_tokenizer


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
    with pytest.raises(UserError, match="ViTModel is not a supported text model"):
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
