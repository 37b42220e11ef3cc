"""The single place where text becomes token ids."""

from datetime import datetime, tzinfo
from pathlib import Path

from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import chat_template_utils

from elkflow.common.errors import UserError, first_line


def load_tokenizer(folder: Path | str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer; without a padding token of its own it pads with the end token.

    Raises:
        UserError: the folder has no readable tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a readable tokenizer ({first_line(error)})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class StandingClock(datetime):
    """What chat templates that write today's date are told: one day, so that all stages and reruns see one prompt."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "StandingClock":
        return cls(2024, 7, 26, tzinfo=tz)  # Llama 3's own default


setattr(chat_template_utils, "datetime", StandingClock)  # noqa: B010  # transformers passes templates no other clock


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a prompt, without closing tokens, as an answer follows.

    The opening token (BOS, CLS) is added if the tokenizer adds one by default and the text does not already start with
    it, as a rendered chat template may.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    opening, _ = special_tokens(tokenizer)
    return ids if not opening or ids[:1] == opening else opening + ids


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of an answer that continues a prompt, exactly as written.

    SentencePiece tokenizers of decoders prepend a space to any text: "Yes" would become " Yes", and " Yes" two tokens.
    There the answer is encoded after a colon, which is then removed. In an encoder-decoder, whose tokenizer closes a
    text but does not open it, the answer starts the decoder's text, where the space is right.
    """
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    opening, closing = special_tokens(tokenizer)
    if ids and (opening or not closing) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁"):
        anchor = list(tokenizer(":", add_special_tokens=False)["input_ids"])
        joined = list(tokenizer(":" + text, add_special_tokens=False)["input_ids"])
        if joined[: len(anchor)] == anchor:
            return joined[len(anchor) :]
    return ids


def markup_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Tokens after which an answer follows without a space: the named special ones, and all that were added.

    Chat templates end in tokens that are added and have no name: Phi-4's `<|im_sep|>`, Command R's `<|CHATBOT_TOKEN|>`.
    """
    added = (str(token) for token in tokenizer.get_added_vocab())
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *(token for token in added if token.strip())]))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer adds by default before and after a text: (BOS or CLS, EOS or SEP), either may be empty."""
    around = list(tokenizer("")["input_ids"])
    opens = bool(around) and around[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id)
    return around[: int(opens)], around[int(opens) :]
