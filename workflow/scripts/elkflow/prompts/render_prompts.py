"""From questions to prompts: templates are rendered, wrapped for chat, and checked against tokenizer and context."""

import hashlib
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from elkflow.common.errors import UserError
from elkflow.common.files import atomic, read_json, stream_table
from elkflow.config.data import ChatSettings, RenderSettings
from elkflow.models.load import model_kind
from elkflow.models.tokens import encode_answer, encode_prompt, markup_tokens
from elkflow.prompts.templates import Template, load_template
from elkflow.prompts.time_limit import TookTooLongError, time_limit

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("prompt", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("label", pa.int64()),
    ]
)
ABOUT_SCHEMA = SCHEMA.append(pa.field("question_id", pa.string())).append(pa.field("answer_index", pa.int64()))
CONTEXT_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TookTooLongError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
)
OPEN_THOUGHT = re.compile(r"<[\w:|]*think\w*\|?>(?!.*</[\w:|]*think)", re.DOTALL)
"""A tag that begins a model's reasoning, and is not closed."""
logger = logging.getLogger("elkflow")
PLACEHOLDER = "\ue001"  # replaces the question while the chat template's markup around it is determined


@dataclass(frozen=True)
class RenderedQuestion:
    """A rendered question: its text, the possible answers, and the index of the right one."""

    text: str
    answers: list[str]
    label: int


def render_prompts(
    settings: RenderSettings,
    chat: ChatSettings,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Path],
    folder: Path,
) -> dict[str, Any]:
    """Write `folder`/{split}.parquet for every split file; return facts for the manifest.

    Columns are those of `SCHEMA`; wordings about an answer have those of `ABOUT_SCHEMA`, one row per question and
    answer shown. Files appear only after all rows of all splits have been checked.

    Raises:
        UserError: a template does not fit the rows, an answer has several tokens, or a prompt exceeds the context.
    """
    template = load_template(settings.wording.template)
    inner = load_template(settings.wording.about) if settings.wording.about else None
    wrap = chat_wrapper(tokenizer, chat, chat.chat if settings.wording.chat is None else settings.wording.chat)
    check = _PromptChecks(tokenizer, checkpoint, settings)
    shared = _SharedPrompts(settings.shared)
    schema = ABOUT_SCHEMA if inner else SCHEMA
    facts: dict[str, Any] = {"template": template.name, "context": check.context, "splits": {}}
    with ExitStack() as files:
        for name, path in splits.items():
            temporary = files.enter_context(atomic(folder / f"{name}.parquet"))
            writer = files.enter_context(pq.ParquetWriter(temporary, schema))
            coin = random.Random(settings.seeds[name])
            dropped, labels = 0, [0, 0]
            for table in stream_table(path):
                rows = list(_render_rows(table.to_pylist(), template, inner, settings, coin, path))
                prompts = [wrap(question.text) for _, question in rows]
                kept = check.within_context(prompts, rows, path)
                dropped += len(rows) - len(kept)
                columns: dict[str, list[Any]] = {field: [] for field in schema.names}
                for index in kept:
                    row, question = rows[index]
                    shared.note(prompts[index], name, row["id"])
                    answers = [check.separator(prompts[index]) + answer for answer in question.answers]
                    check.one_token(answers, row["id"], path)
                    made = row | {"prompt": prompts[index], "answers": answers, "label": question.label}
                    labels += [0] * (question.label + 1 - len(labels))
                    labels[question.label] += 1
                    for field in schema.names:
                        columns[field].append(made[field])
                writer.write_table(pa.table(columns, schema=schema))
            if not sum(labels):
                raise UserError(f"{path}: no prompt fits the model's context of {check.context} tokens")
            facts["splits"][name] = {"rows": sum(labels), "labels": labels, "too_long": dropped}
    facts["shared_prompts"] = shared.count
    if shared.count:
        logger.warning("%d prompts stand in an earlier split as well, e.g. %s", shared.count, shared.example)
    return facts


def _render_rows(
    rows: Sequence[Mapping[str, Any]],
    template: Template,
    inner: Template | None,
    settings: RenderSettings,
    coin: random.Random,
    path: Path,
) -> Iterator[tuple[dict[str, Any], RenderedQuestion]]:
    """Ids and rendered questions. With `inner`, `template` asks about the text of its question and an answer."""
    for row in rows:
        keys = {"id": row["id"], "group": row["group"]}
        if inner is None:
            yield keys, render_question(template, row, settings.answers, f"{path}: {row['id']}")
            continue
        question = render_question(inner, row, settings.answers, f"{path}: {row['id']}")
        for index in choose_shown_answers(question, settings.wording.shown, coin):
            answer = question.answers[index]
            text = question.text + ("" if question.text[-1].isspace() else " ") + answer
            seen = {"text": text, "question": question.text, "answer": answer, "label": int(index == question.label)}
            name = f"{row['id']}#{index}"
            about_answer = render_question(template, seen, None, f"{path}: {name}")
            yield {"id": name, "group": row["group"], "question_id": row["id"], "answer_index": index}, about_answer


def choose_shown_answers(question: RenderedQuestion, which: str, coin: random.Random) -> list[int]:
    """Indices of the answers to show: every one or, as in the thesis, the right one or a wrong one at random.

    With two answers the coin is tossed once per row, as for the published counts.
    """
    if which == "every":
        return list(range(len(question.answers)))
    if coin.choice([True, False]):
        return [question.label]
    wrong = [index for index in range(len(question.answers)) if index != question.label]
    return wrong if len(wrong) == 1 else [coin.choice(wrong)]


def render_question(
    template: Template, row: Mapping[str, Any], order: Sequence[str] | None, where: str
) -> RenderedQuestion:
    """Render a template for a row.

    Args:
        order: the answers in the config's order; None: the template's order, which is that of the labels.
        where: file and row, for messages.

    Raises:
        UserError: the row lacks a column that the template uses, or its answers are not those of the config.
    """
    try:
        text, right, choices = template.render(row)
    except TEMPLATE_ERRORS as error:
        raise UserError(f"template {template.name!r}, {where}: {error}") from None
    if not text:
        raise UserError(f"template {template.name!r}, {where}: renders to nothing")
    choices = choices or (list(order) if order else None)
    if choices is None or len(choices) < 2:
        raise UserError(f"template {template.name!r} has no answer choices; give the dataset's `answers`")
    if order is not None and sorted(order) != sorted(choices):
        raise UserError(f"template {template.name!r} answers {choices}, but the dataset's `answers` are {list(order)}")
    answers = list(order) if order is not None else choices
    if right is None:
        if row["label"] >= len(choices):
            raise UserError(f"template {template.name!r}, {where}: label {row['label']} has no answer in {choices}")
        right = choices[row["label"]]
    if right not in answers:
        raise UserError(f"template {template.name!r}, {where}: the right answer {right!r} is not among {answers}")
    # Two answers may have the same text (PIQA has such rows): then the label decides.
    label = row.get("label")
    same = isinstance(label, int) and label < len(answers) and answers[label] == right
    return RenderedQuestion(text, answers, label if same else answers.index(right))  # type: ignore[arg-type]


def chat_wrapper(tokenizer: PreTrainedTokenizerBase, settings: ChatSettings, chat: bool) -> Callable[[str], str]:
    """A function from a question to the full prompt, wrapped in the tokenizer's chat template if `chat`.

    Raises:
        UserError: the tokenizer has no chat template, or its template refuses the turns, leaves one out, or opens a
            thought where the answer belongs.
    """
    if not chat:
        return lambda text: text
    arguments: dict[str, Any] = dict(settings.chat_arguments)
    as_parts = False  # of a turn's content, as some templates for images expect

    def turn(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}

    def whole(text: str) -> str:
        turns = [turn("user", text)]
        if settings.system_prompt is not None:
            turns.insert(0, turn("system", settings.system_prompt))
        try:
            with time_limit():
                return str(
                    tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **arguments)
                )
        except TEMPLATE_ERRORS as error:
            raise UserError(f"models: the tokenizer's chat template refuses its turns ({error})") from None

    if not tokenizer.chat_template:
        raise UserError("models: `chat: true`, but the model's tokenizer has no chat template")
    shown = whole(PLACEHOLDER)
    if PLACEHOLDER not in shown:
        as_parts = True
        shown = whole(PLACEHOLDER)
    if PLACEHOLDER not in shown:
        raise UserError("models: the tokenizer's chat template leaves out the question; set `chat: false`")
    if settings.system_prompt and settings.system_prompt.strip() not in shown:
        raise UserError("models: the tokenizer's chat template leaves out the system turn; remove `system_prompt`")
    if thought := OPEN_THOUGHT.search(shown):
        raise UserError(
            f"models: the tokenizer's chat template opens a thought ({thought[0]}) where the answer belongs; if it"
            " knows an argument for that, set it, as in `chat_arguments: {enable_thinking: false}`"
        )
    if "enable_thinking" in str(tokenizer.chat_template) and "enable_thinking" not in settings.chat_arguments:
        logger.warning(
            "models: the chat template knows `enable_thinking`: without `chat_arguments: {enable_thinking: false}`"
            " answers may be read where the model would think first"
        )
    before, _, after = shown.partition(PLACEHOLDER)
    # Rendering the template once and joining strings is fifty times as fast, unless the markup depends on the content.
    if whole("a question?\n{{ x }}") == f"{before}a question?\n{{{{ x }}}}{after}":
        return lambda text: before + text + after
    return whole


def context_length(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The model's context in tokens: the smallest value in its config and tokenizer; None if neither has one."""
    config = read_json(checkpoint / "config.json")
    given = [config[key] for key in CONTEXT_LENGTH_KEYS if isinstance(config.get(key), int)]
    if tokenizer.model_max_length < 10**9:  # transformers sets 10**30 if unknown
        given.append(tokenizer.model_max_length)
    return min(given) if given else None


class _SharedPrompts:
    """Prompts that stand in two splits: what was trained on must not be evaluated on."""

    def __init__(self, allowed: bool) -> None:
        self.allowed, self.count, self.example = allowed, 0, ""
        self.split_of: dict[bytes, str] = {}

    def note(self, prompt: str, split: str, row: str) -> None:
        """Raises:
        UserError: the prompt is in another split too, and that is not allowed.
        """
        before = self.split_of.setdefault(hashlib.blake2b(prompt.encode(), digest_size=12).digest(), split)
        if before == split:
            return
        self.count, self.example = self.count + 1, f"that of {row} in {split}, which {before} has too"
        if not self.allowed:
            raise UserError(
                f"{split}: {row}: {before} has a row with the same prompt; name what such rows share in the dataset's"
                " `group`, so that they stay in one split, or set `split.duplicates: keep`"
            )


class _PromptChecks:
    """Checks that prompts and answers suit a model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, checkpoint: Path, settings: RenderSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.context = context_length(checkpoint, tokenizer)
        self.encoder_decoder = model_kind(checkpoint) == "encoder-decoder"
        self.markup = markup_tokens(tokenizer)
        self.lengths: dict[str, int] = {}

    def separator(self, prompt: str) -> str:
        """The space between prompt and answer; empty after white space or markup, and in an encoder-decoder."""
        return "" if self.encoder_decoder or prompt[-1].isspace() or prompt.endswith(self.markup) else " "

    def one_token(self, answers: Sequence[str], row: str, path: Path) -> None:
        """Raise a UserError if answers must be one token and one of them is not."""
        for answer in answers if self.settings.one_token else ():
            if answer not in self.lengths:
                self.lengths[answer] = len(encode_answer(self.tokenizer, answer))
            if self.lengths[answer] != 1:
                raise UserError(
                    f"answer {answer!r} ({path}: {row}) is {self.lengths[answer]} tokens in this model, not"
                    " one; choose other answers, or set the dataset's `one_token: false`"
                )

    def within_context(
        self, prompts: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], RenderedQuestion]], path: Path
    ) -> list[int]:
        """Indices of the prompts that fit the context, with their longest answer.

        Raises:
            UserError: one does not fit, and the settings do not allow dropping it.
        """
        if self.context is None:
            return list(range(len(prompts)))
        kept = []
        for index, prompt in enumerate(prompts):
            longest = max(rows[index][1].answers, key=len)
            # A token covers at least about a byte, so short prompts fit without being tokenised.
            if 2 * (len(prompt.encode()) + len(longest.encode())) + 16 > self.context:
                tokens = len(encode_prompt(self.tokenizer, prompt)) + len(encode_answer(self.tokenizer, longest))
                if tokens > self.context:
                    if self.settings.too_long == "drop":
                        continue
                    raise UserError(
                        f"{path}: {rows[index][0]['id']}: prompt and answer have {tokens} tokens, more than the model's"
                        f" {self.context}; shorten the template, or set the dataset's `too_long: drop`"
                    )
            kept.append(index)
        return kept
