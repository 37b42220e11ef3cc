"""The harness's HFLM, computing only what its callers read."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size, gather
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from elkflow.batching import tree_attention
from elkflow.batching.only_at import outputs_only_at
from elkflow.batching.prefix_tree import Line, PromptWithAnswers, batch_lines, join_lines, pad_right, tree_lines
from elkflow.batching.tree_attention import ancestor_mask, attention_windows
from elkflow.common.cli import progress
from elkflow.common.errors import UserError
from elkflow.evaluation.score_cache import BLOCK, Request, ScoreCache
from elkflow.hiddens.reader import BATCH_TOKENS, Reader, choose_layout
from elkflow.models.tokens import encode_answer, encode_prompt

MOST_LOGITS = 2048
"""Positions whose logits are held at once: 400 MB in float32 for a vocabulary of 49k."""
LONGEST_IN_WINDOWS = 1024
"""Longest input, in tokens, for windowed attention; beyond it, one pass under a mask is faster."""
ROLLING_WINDOWS = 64
"""Windows of long texts laid out together; the batch size is decided as for everything else."""

BatchSize = int | Literal["auto"]


class HarnessModel(HFLM):
    """HFLM of a loaded model. For decoders it differs from the parent:

    - the output layer runs only at the positions that are scored;
    - prefixes shared by neighbouring inputs (chat markup, instructions, few-shot examples, the question of several
      answers) run once, in prefix trees, unless the architecture does not accept such masks;
    - `auto` counts tokens, not rows, and shrinks the batch when memory runs out, instead of trying sizes beforehand;
    - log-probabilities are computed in float32 whatever the model's dtype;
    - `exact_prompts` makes a request's tokens those of training: tokens(prompt) ++ tokens(answer);
    - under `accelerate launch`, processes share the questions on CPUs too.
    """

    exact_prompts = False
    batch_size_per_gpu: BatchSize

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: BatchSize = "auto",
        seq2seq: bool = False,
        cache: ScoreCache | None = None,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(
            logging.ERROR
        )  # the parent warns about arguments it ignores for a loaded model
        super().__init__(
            pretrained=model,  # type: ignore[arg-type]
            tokenizer=tokenizer,  # type: ignore[arg-type]
            backend="seq2seq" if seq2seq else "causal",
            batch_size=batch_size,
            max_batch_size=64,
            softmax_dtype="float32",
        )
        accelerator = Accelerator(cpu=self.device.type == "cpu")
        if accelerator.num_processes > 1:  # the parent looks for other processes only when it loads the model
            self.accelerator = accelerator
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self._readers: dict[bool, tuple[Reader, int]] = {}  # with and without windows; tried up to so many tokens
        self._batch_size: BatchSize | None = None
        self._cache = cache

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensor of every process, concatenated; scalars become a vector."""
        return gather(tensor) if self.world_size > 1 else tensor

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.exact_prompts:
            return super()._encode_pair(context, continuation)
        return encode_prompt(self.tokenizer, context), encode_answer(self.tokenizer, continuation)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's context."""
        if self.backend != "causal":
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        self._batch_size, self.batch_size_per_gpu = (
            self.batch_size_per_gpu,
            ROLLING_WINDOWS,
        )  # the parent would try sizes
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.batch_size_per_gpu, self._batch_size = self._batch_size, None

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation and whether it is the greedy one, in the order of `requests`."""
        for text, _, continuation in requests:
            if not continuation:
                raise UserError(f"the answer {text[1]!r} has no tokens of its own after {text[0][-40:]!r}")
        scores: list[tuple[float, bool]] = []
        for start in range(0, len(requests), BLOCK):
            block = requests[start : start + BLOCK]
            known = self._cache.get(block) if self._cache else None
            if known is None:
                if self.backend == "causal":
                    known = self._score_all(block)
                else:
                    known = super()._loglikelihood_tokens(block, disable_tqdm=disable_tqdm, override_bs=override_bs)
                if self._cache:
                    self._cache.put(block, known)
            scores += known
        return scores

    def _score_all(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """What `_loglikelihood_tokens` returns, for a decoder."""
        questions = [self._question(row, request) for row, request in enumerate(requests)]
        longest = max((len(question.prompt) + len(question.answers[0]) for question in questions), default=0)
        windowed = longest <= LONGEST_IN_WINDOWS
        reader, checked = self._readers.get(windowed, (Reader(self.model, "decoder", windowed=windowed), 0))
        if longest > checked:  # beyond a sliding window a layout may be wrong that is right within it
            whole = [PromptWithAnswers(each.row, each.prompt, [requests[each.row][2]]) for each in questions]
            reader = choose_layout(reader, whole)
            self._readers[windowed] = (reader, longest)
        size = self._batch_size or self.batch_size_per_gpu

        def score(tokens: int) -> list[tuple[float, bool]]:
            scores = [(0.0, False)] * len(requests)
            if reader.windowed:
                lines = reader.lines(questions, min(tokens, MOST_LOGITS))
            elif reader.shared:
                lines = tree_lines(questions, self.config.hidden_size, max(512, 2 * longest))
            else:
                lines = unshared_lines(questions)
            for batch in progress(list(limit_logits(batch_lines(lines, tokens))), "scoring"):
                for slot, found in self._score(batch, requests, reader.windowed):
                    scores[slot] = found
            return scores

        if size != "auto":
            return score(int(size) * longest)
        return find_executable_batch_size(score, starting_batch_size=BATCH_TOKENS.get(self.device.type, 8192))()

    def _question(self, row: int, request: Request) -> PromptWithAnswers:
        """The tokens to feed: all but the last, whose probability is read at the one before it.

        Inputs too long for the model are truncated on the left, as in the parent.
        """
        _, context, continuation = request
        tokens = (context + continuation)[-(self.max_length + 1) :]
        return PromptWithAnswers(row, tokens[: -len(continuation)], [tokens[-len(continuation) : -1]])

    @torch.inference_mode()
    def _score(
        self, lines: Sequence[Line], requests: Sequence[Request], windowed: bool
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """One forward pass: slot and (log-probability, greedy) of every sequence in `lines`.

        Lines that are plain sequences need no mask: they are padded on the right, where causal attention does not look.
        """
        lines = [join_lines(lines)] if windowed else lines
        inputs: dict[str, Any] = {"input_ids": pad_right([line.ids for line in lines], 0), "use_cache": False}
        if windowed:
            inputs["position_ids"] = pad_right([line.depth for line in lines], 0)
            inputs["windows"] = tree_attention.additive_windows(*attention_windows(lines[0]), self.device)
        elif any(line.parent != list(range(-1, len(line.ids) - 1)) for line in lines):
            inputs["attention_mask"] = ancestor_mask(lines, self.model.dtype)
            inputs["position_ids"] = pad_right([line.depth for line in lines], 0)
        inputs = {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        tails = [
            (row, slot, tail)
            for row, line in enumerate(lines)
            for slot, tail in zip(line.slots, line.tails, strict=True)
        ]
        places = torch.tensor([(row, column) for row, _, tail in tails for column in tail])
        where, order = torch.unique(places, dim=0, return_inverse=True)
        with (
            outputs_only_at(self.model, where),
            tree_attention.windowed_attention(self.model) if windowed else nullcontext(),
        ):
            logits = self.model(**inputs).logits[0].float()  # [K, V]
        wanted = torch.tensor([token for _, slot, _ in tails for token in requests[slot][2]])
        order, wanted = order.to(logits.device), wanted.to(logits.device)
        chosen = (logits[order, wanted] - logits.logsumexp(dim=1)[order]).cpu()
        greedy = (logits.argmax(dim=1)[order] == wanted).cpu()
        start = 0
        for _, slot, tail in tails:
            end = start + len(tail)
            yield slot, (float(chosen[start:end].sum()), bool(greedy[start:end].all()))
            start = end


def unshared_lines(questions: Sequence[PromptWithAnswers]) -> list[Line]:
    """One line per distinct input, for architectures that do not accept trees; one-token answers still share a line."""
    lines: dict[tuple[int, ...], Line] = {}
    for question in questions:
        tokens = [*question.prompt, *question.answers[0]]
        line = lines.setdefault(tuple(tokens), Line())
        if not line.ids:
            line.append(tokens)
        line.answer(question.row, list(range(len(question.prompt) - 1, len(tokens))))
    return list(lines.values())


def limit_logits(packed: Iterator[list[Line]]) -> Iterator[list[Line]]:
    """Split batches that have more than `MOST_LOGITS` scored positions."""
    for batch in packed:
        part: list[Line] = []
        count = 0
        for line in batch:
            scored = len({column for tail in line.tails for column in tail})
            if part and count + scored > MOST_LOGITS:
                yield part
                part, count = [], 0
            part.append(line)
            count += scored
        yield part
