"""Prompts and answers as token ids, checked against what the model can read."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from elkflow.batching.prefix_tree import PromptWithAnswers
from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.models.load import ModelKind
from elkflow.models.tokens import encode_answer, encode_prompt, special_tokens


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerBase, kind: ModelKind, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[PromptWithAnswers]:
    """Prompts and answers as token ids, in the given order.

    An encoder-decoder's prompt ends with EOS, as its encoder expects.

    Raises:
        UserError: a prompt or an answer has no tokens, or prompts differ in their number of answers; names the row.
    """
    closing = special_tokens(tokenizer)[1] if kind == "encoder-decoder" else []
    known = {text: encode_answer(tokenizer, text) for texts in answers for text in texts}
    questions = []
    for row, (prompt, texts) in enumerate(zip(prompts, answers, strict=True)):
        question = PromptWithAnswers(row, encode_prompt(tokenizer, prompt) + closing, [known[text] for text in texts])
        if not question.prompt or not texts or not all(question.answers):
            raise UserError(f"row {row}: the prompt or an answer has no tokens")
        if len(texts) != len(answers[0]):
            raise UserError(f"row {row}: has {len(texts)} answers, but row 0 has {len(answers[0])}")
        questions.append(question)
    if not questions:
        raise UserError("there are no prompts to read states of")
    return questions


def check_lengths(questions: Sequence[PromptWithAnswers], folder: Path, names: Sequence[str], closing: int = 0) -> None:
    """Check that prompts and answers fit the model's context, before it is loaded.

    Args:
        folder: the checkpoint.
        names: what to call each row in messages.
        closing: number of tokens that follow an answer.

    Raises:
        UserError: one does not fit; names the row and both lengths.
    """
    config = read_json(folder / "config.json")
    limit = config.get("max_position_embeddings")
    if limit is None and not config.get("is_encoder_decoder"):  # T5's n_positions is no limit
        limit = config.get("n_positions")
    if not isinstance(limit, int) or limit <= 0:
        return
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):  # their positions start at 2
        limit -= 2
    for question in questions:
        length = len(question.prompt) + max(map(len, question.answers)) + closing
        if length > limit:
            raise UserError(f"{names[question.row]}: {length} tokens, but the model takes at most {limit}")
