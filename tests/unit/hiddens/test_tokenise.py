"""Prompts and answers as token ids, and rows that cannot be read."""

import pytest
from tiny_states import TOKENIZER, YES_NO

from elkflow.common.errors import UserError
from elkflow.hiddens.tokenise import check_lengths, tokenise_prompts


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
