"""Extraction from encoder-decoders and encoders, quantised models, several processes, and its memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import launched
from safetensors.torch import load_file
from tiny import save_tiny_model, tiny_llama, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from elkflow.hiddens.extract_hiddens import extract_hiddens
from elkflow.hiddens.reader import Reader
from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.load import load_model, model_kind
from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer, special_tokens

ROOT = Path(__file__).parents[3]
PROMPTS = ["what is the capital of italy", "is paris", "is paris in france question answer", "who"]
ANSWERS = [["No", "Yes"], ["rome", "paris france"], ["Yes", "No"], ["No question", "Yes"]]
NAMES = [f"row {index}" for index in range(len(PROMPTS))]


def closing_tokenizer(opening=False):
    """The tiny tokenizer with a closing token as in T5 or, with `opening`, an opening token too as in BERT."""
    tokenizer = tiny_tokenizer(chat=False)
    template = "<s> $A </s>" if opening else "$A </s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    if not opening:
        tokenizer.bos_token = None
    return tokenizer


def run(folder, model, family, tokenizer, position="last"):
    """Extract to a file; return states [L, N, A, D], log-probabilities or None, facts."""
    path = folder / f"{position}.safetensors"
    questions = tokenise_prompts(tokenizer, family, PROMPTS, ANSWERS)
    facts = extract_hiddens(
        model,
        family,
        questions,
        path,
        names=NAMES,
        position=position,
        closing=special_tokens(tokenizer)[1],
        batch_tokens=40,
    )
    tensors = load_file(path)
    scores = tensors.pop("answer_logprobs", None)
    return torch.stack([tensors[f"layers.{i}"] for i in range(len(tensors))]), scores, facts


def by_the_book(model, tokenizer, start):
    """Decoder states at the answer's last token and answer log-probabilities, one text at a time."""
    states, scores = [], []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        source = torch.tensor([tokenizer(prompt)["input_ids"]])
        for answer in answers:
            ids = encode_answer(tokenizer, answer)
            with torch.no_grad():
                outputs = model(
                    input_ids=source, decoder_input_ids=torch.tensor([[start, *ids]]), output_hidden_states=True
                )
            states.append(torch.stack([layer[0, -1] for layer in outputs.decoder_hidden_states]))
            scores.append(outputs.logits[0].log_softmax(-1)[range(len(ids)), ids].sum())
    return torch.stack(states, 1).unflatten(1, (len(PROMPTS), 2)), torch.stack(scores).view(-1, 2)


def tiny_t5(tokenizer):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=3,
        num_heads=2,
        decoder_start_token_id=1,
        pad_token_id=1,
        relative_attention_num_buckets=8,
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():  # biases large enough for a wrong distance to show
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.normal_()
    return model


def test_t5_reads_the_decoder_and_runs_the_encoder_once_a_question(tmp_path):
    tokenizer = closing_tokenizer()
    model = tiny_t5(tokenizer)
    encoded = []
    handle = model.encoder.register_forward_hook(lambda m, a, out: encoded.append(len(out.last_hidden_state)))
    states, scores, facts = run(tmp_path, model, "encoder-decoder", tokenizer)
    handle.remove()
    expected, expected_scores = by_the_book(model, tokenizer, 1)
    assert facts["layout"] == "shared"
    assert sum(encoded) < 3 * len(PROMPTS), "not once an answer"
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


def test_bart_counts_its_own_positions_and_gets_plain_batches(tmp_path):
    tokenizer = closing_tokenizer()
    torch.manual_seed(0)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            pad_token_id=1,
            decoder_start_token_id=3,
            init_std=0.5,
        )
    ).eval()
    states, scores, facts = run(tmp_path, model, "encoder-decoder", tokenizer)
    expected, expected_scores = by_the_book(model, tokenizer, 3)
    assert facts["layout"] == "plain"
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


def test_absolute_positions_are_given_to_decoders(tmp_path):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5)
    ).eval()
    states, _, facts = run(tmp_path, model, "decoder", tokenizer)
    assert facts["layout"] == "shared"
    for row, prompt in enumerate(PROMPTS):
        for index, answer in enumerate(ANSWERS[row]):
            ids = encode_prompt(tokenizer, prompt) + encode_answer(tokenizer, answer)
            with torch.no_grad():
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            torch.testing.assert_close(states[:, row, index], torch.stack(hidden)[:, 0, -1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("position", ["last", "first", "penultimate", "mean"])
def test_bert_reads_whole_texts(tmp_path, position):
    tokenizer = closing_tokenizer(opening=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    model = BertModel(config).eval()
    states, scores, facts = run(tmp_path, model, "encoder", tokenizer, position)
    assert scores is None and facts["layout"] == "plain"
    for row, prompt in enumerate(PROMPTS):
        for index, answer in enumerate(ANSWERS[row]):
            ids = tokenizer(f"{prompt} {answer}")["input_ids"]
            with torch.no_grad():
                hidden = torch.stack(model(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0]
            picked = {
                "last": hidden[:, -2],
                "first": hidden[:, 0],
                "penultimate": hidden[:, -3],
                "mean": hidden.mean(1),
            }
            torch.testing.assert_close(states[:, row, index], picked[position], rtol=1e-4, atol=1e-5)


def test_families_are_told_apart_and_loaded(tmp_path):
    tokenizer = closing_tokenizer()
    tiny_t5(tokenizer).save_pretrained(tmp_path / "t5")
    config = BertConfig(vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    save_tiny_model(tmp_path / "llama", layers=1)
    kinds = {"t5": "encoder-decoder", "bert": "encoder", "llama": "decoder"}
    assert {name: model_kind(tmp_path / name) for name in kinds} == kinds
    classes = {name: type(load_model(tmp_path / name, dtype="float32")).__name__ for name in kinds}
    assert classes == {"t5": "T5ForConditionalGeneration", "bert": "BertModel", "llama": "LlamaForCausalLM"}


@pytest.mark.parametrize("spread", ["auto", "balanced", "sequential"])
def test_device_maps_load_and_read_the_same(tmp_path, spread):
    """Without GPUs all layers are on one device, so this shows that the setting is accepted, not that it splits."""
    tokenizer = tiny_tokenizer()
    save_tiny_model(tmp_path / "model", layers=2)
    placed = load_model(tmp_path / "model", dtype="float32", device_map=spread)
    states, scores, facts = run(tmp_path, placed, "decoder", tokenizer)
    expected, expected_scores, _ = run(tmp_path, load_model(tmp_path / "model", dtype="float32"), "decoder", tokenizer)
    assert facts["layout"] == "shared"
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_models_are_read_as_they_compute(tmp_path, bits):
    tokenizer = tiny_tokenizer()
    save_tiny_model(tmp_path / "model", hidden=64, layers=2)
    model = load_model(tmp_path / "model", dtype="float32", quantization=bits)
    assert model.is_quantized
    assert any(
        "bnb" in type(module).__module__ or "bitsandbytes" in type(module).__module__ for module in model.modules()
    )
    questions = tokenise_prompts(tokenizer, "decoder", PROMPTS, ANSWERS)
    reader = Reader(model, "decoder")
    read = reader.read(reader.lines(questions))
    states = read.states[:, torch.tensor(read.slots).argsort()]
    plain = tiny_llama(len(tokenizer), hidden=64, layers=2)
    for row, prompt in enumerate(PROMPTS):
        ids = encode_prompt(tokenizer, prompt) + encode_answer(tokenizer, ANSWERS[row][0])
        with torch.no_grad():
            hidden = torch.stack(model(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0, -1]
            exact = torch.stack(plain(torch.tensor([ids]), output_hidden_states=True).hidden_states)[:, 0, -1]
        torch.testing.assert_close(states[:, 2 * row].float(), hidden.float(), rtol=0.02, atol=0.02)
        assert not torch.allclose(exact[-1], states[-1, 2 * row].float(), atol=1e-5), "nothing was quantised"


SHARD = """
import sys
from pathlib import Path
from elkflow.hiddens.extract_hiddens import extract_hiddens; from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.load import load_model; from elkflow.models.tokens import load_tokenizer
folder = Path(sys.argv[1])
prompts = ["what is the capital of italy", "is paris", "is paris in france question answer", "who"] * 5
questions = tokenise_prompts(load_tokenizer(folder), "decoder", prompts, [["No", "Yes"]] * 20)
model = load_model(folder, dtype="float32")
for tokens, name in ((16, "many"), (10000, "one")):  # many batches; one, so that a process has no work
    names, path = [str(i) for i in range(20)], folder / "out" / name
    extract_hiddens(model, "decoder", questions, path, names=names, batch_tokens=tokens)
"""


def test_two_processes_fill_one_file_with_the_same_states(tmp_path):
    save_tiny_model(tmp_path, layers=2)
    (tmp_path / "shard.py").write_text(SHARD)
    launched(2, tmp_path / "shard.py", tmp_path, PYTHONPATH=str(ROOT / "workflow" / "scripts"))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["many", "one"]
    tokenizer = load_tokenizer(tmp_path)
    questions = tokenise_prompts(tokenizer, "decoder", [PROMPTS[i % 4] for i in range(20)], [["No", "Yes"]] * 20)
    names = [str(index) for index in range(20)]
    extract_hiddens(load_model(tmp_path, dtype="float32"), "decoder", questions, tmp_path / "alone", names=names)
    alone = load_file(tmp_path / "alone")
    assert alone["layers.0"].shape == (20, 2, 32)
    for name in ("many", "one"):
        states = load_file(tmp_path / "out" / name)
        assert states.keys() == alone.keys()
        for key in alone:
            torch.testing.assert_close(states[key], alone[key], rtol=1e-4, atol=1e-5)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from elkflow.hiddens.extract_hiddens import extract_hiddens
from elkflow.models.load import load_model
from elkflow.batching.prefix_tree import PromptWithAnswers
model = load_model(sys.argv[1], dtype="float32")
torch.manual_seed(0)
peaks = []
for count in (64, 64, 2048):
    prompts = torch.randint(8, 20, (count, 12)).tolist()
    questions = [PromptWithAnswers(row, prompt, [[9], [8]]) for row, prompt in enumerate(prompts)]
    out = Path(sys.argv[2])
    extract_hiddens(model, "decoder", questions, out, names=["a"] * count, batch_tokens=512)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1], peaks[2], out.stat().st_size >> 20)
"""


def test_memory_does_not_grow_with_the_number_of_examples(tmp_path):
    save_tiny_model(tmp_path / "model", layers=8, hidden=256)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow" / "scripts"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, tmp_path / "model", tmp_path / "states.safetensors"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    few, many, written = map(int, done.stdout.split())
    assert written >= 30, "the file itself must be large for this test to say anything"
    assert many - few < written // 2, f"{many - few} MB more memory for {written} MB of states"
