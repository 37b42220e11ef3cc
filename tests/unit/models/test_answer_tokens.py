"""An answer's tokens are those that the whole text has behind the prompt, for every kind of tokenizer and markup."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from elkflow.models.tokens import encode_answer, encode_prompt, markup_tokens

TEXT = ["Is Paris the capital of France? Yes", "Reply Yes or No: No", "say Yes say No \n Yes No", "a: b: Yes : No"] * 20
NAMED, ADDED = "<|named|>", "<|added|>"


def tokenizer(kind, bos):
    split, trainer = pre_tokenizers.ByteLevel(add_prefix_space=False), trainers.BpeTrainer
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "unigram":
        made, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer
    if kind == "wordpiece":
        made, trainer = Tokenizer(models.WordPiece(unk_token="<unk>")), trainers.WordPieceTrainer
        split = pre_tokenizers.BertPreTokenizer()
    if kind in ("metaspace", "unigram"):
        split, made.decoder = pre_tokenizers.Metaspace(prepend_scheme="first", split=True), decoders.Metaspace()
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = split
    options = {"unk_token": "<unk>"} if kind == "unigram" else {}
    made.train_from_iterator(
        TEXT, trainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>", NAMED], show_progress=False, **options)
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=[NAMED],
    )  # fmt: skip
    wrapped.add_tokens([AddedToken(ADDED, special=True, normalized=False)])
    return wrapped


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", ["byte-level", "metaspace", "unigram", "wordpiece"])
@pytest.mark.parametrize("end", ["Reply Yes or No:", "Is Paris the capital of France?\n", f"say{NAMED}", f"say{ADDED}"])
def test_answers_have_the_tokens_of_the_whole_text(kind, bos, end):
    made = tokenizer(kind, bos)
    space = "" if end[-1].isspace() or end.endswith(markup_tokens(made)) else " "
    assert space == (" " if end.endswith(":") else "")
    for answer in ("Yes", "No"):
        whole = made(end + space + answer)["input_ids"]
        assert encode_prompt(made, end) + encode_answer(made, space + answer) == whole


def test_added_tokens_of_nothing_but_space_are_no_markup():
    made = tokenizer("byte-level", bos=False)
    made.add_tokens(["   "])
    assert ADDED in markup_tokens(made) and NAMED in markup_tokens(made) and "   " not in markup_tokens(made)
