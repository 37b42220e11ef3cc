"""From text to token ids."""

import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer, special_tokens


def metaspace_tokenizer(decoder=True):
    """Like SentencePiece it prepends a space to every text; Llama's starts with BOS, T5's ends with EOS."""
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
