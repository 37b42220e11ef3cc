"""The model behind lm-evaluation-harness: its HFLM, computing only what its callers read."""

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from elkflow.cli import progress
from elkflow.errors import UserError
from elkflow.models import encode_answer, encode_prompt

MOST_LOGIT_ROWS = 4096
"""Rows of the vocabulary's logits held at once: about 400 MB in bfloat16 at 49k entries."""

SHORTEST_PREFIX = 8
"""Shared tokens below which the cache costs more than it saves."""

Request = tuple[Any, list[int], list[int]]


class HarnessModel(HFLM):
    """HFLM of a loaded model. What differs from the parent, for decoders:

    - the output layer runs at the positions that are scored, not at all of them;
    - batches are filled with inputs of similar length, each distinct input runs once, and answers of one token
      share it (the parent does the last two as well);
    - tokens that all inputs begin with (chat markup, instructions, worked examples) run once and are shared as a
      key-value cache;
    - log-probabilities are computed in float32 whatever the model's dtype;
    - `exact_prompts` makes a request's tokens those of training: tokens(prompt) ++ tokens(answer);
    - under `accelerate launch` processes split the questions on the CPU too.
    """

    exact_prompts = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | str = 32,
        seq2seq: bool = False,
    ) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # the parent warns about every argument it now ignores
        super().__init__(
            pretrained=model,  # type: ignore[arg-type]
            tokenizer=tokenizer,  # type: ignore[arg-type]
            backend="seq2seq" if seq2seq else "causal",
            batch_size=batch_size,
            max_batch_size=64,
            softmax_dtype="float32",
        )
        state = PartialState()
        if state.num_processes > 1:
            self.accelerator = state
            self._rank, self._world_size = state.process_index, state.num_processes
        parameters = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in parameters
        self._shares = "past_key_values" in parameters

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate a tensor of every process; scalars become a vector."""
        if self.world_size == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not self.exact_prompts:
            return super()._encode_pair(context, continuation)
        return encode_prompt(self.tokenizer, context), encode_answer(self.tokenizer, continuation)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation and whether it is the greedy one, in the order of `requests`."""
        if self.backend != "causal":
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        wanted: dict[tuple[int, ...], list[int]] = {}  # tokens to run -> requests they answer
        for index, (text, context, continuation) in enumerate(requests):
            if not continuation:
                raise UserError(f"the answer {text[1]!r} has no tokens of its own after {text[0][-40:]!r}")
            wanted.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(index)
        inputs = sorted(wanted, key=lambda tokens: (-len(tokens), tokens))
        spans = [max(len(requests[index][2]) for index in wanted[tokens]) for tokens in inputs]
        prefix = self._prefix(inputs, spans)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        batches = list(_batches(inputs, spans, override_bs or self._fitting_batch(requests)))
        for batch, columns in progress(batches, "scoring"):
            logits = self._logits(batch, columns, prefix)
            place = {column: position for position, column in enumerate(columns)}
            for row, tokens in enumerate(batch):
                for index in wanted[tokens]:
                    answer = torch.tensor(requests[index][2], device=logits.device)
                    first = place[len(tokens) - len(answer)]
                    scores = logits[row, first : first + len(answer)].float()  # [K, V]
                    chosen = scores.gather(1, answer[:, None])[:, 0] - scores.logsumexp(dim=1)
                    greedy = bool(torch.equal(scores.argmax(dim=1), answer))
                    answers[index] = (float(chosen.sum()), greedy)
        return answers

    def _fitting_batch(self, requests: list[Request]) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        if self.device.type == "cpu":
            return 32  # main memory does not run out at this size, and larger batches gain nothing on a CPU
        longest = max(range(len(requests)), key=lambda index: len(requests[index][1]) + len(requests[index][2]))
        return self._detect_batch_size(requests, longest)

    @torch.inference_mode()
    def _prefix(self, inputs: list[tuple[int, ...]], spans: list[int]) -> DynamicCache | None:
        """Keys and values of the tokens that all inputs begin with; None where sharing them would gain nothing.

        One prefix for the whole call, so that an answer does not depend on the batch its question fell into.
        """
        unscored = min((len(tokens) - span for tokens, span in zip(inputs, spans, strict=True)), default=0)
        length = min(_common(inputs), unscored) if len(inputs) > 1 else 0
        if length < SHORTEST_PREFIX or not self._shares:
            return None
        cache = DynamicCache()
        ids = torch.tensor([inputs[0][:length]], device=self.device)
        self.model(ids, past_key_values=cache, use_cache=True, **({"logits_to_keep": 1} if self._keeps else {}))
        return cache

    @torch.inference_mode()
    def _logits(self, batch: list[tuple[int, ...]], columns: list[int], prefix: DynamicCache | None) -> torch.Tensor:
        """Logits of right-padded inputs at `columns` only, [B, len(columns), V].

        No attention mask is needed: padding stands to the right, where causal attention never looks.
        """
        shared = prefix.get_seq_length() if prefix is not None else 0
        ids = torch.zeros((len(batch), len(batch[0]) - shared), dtype=torch.long)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens) - shared] = torch.tensor(tokens[shared:])
        extra: dict[str, Any] = {"use_cache": False}
        if prefix is not None:
            cache = copy.deepcopy(prefix)  # the model appends to it
            cache.batch_repeat_interleave(len(batch))
            extra = {"past_key_values": cache, "use_cache": True}
        kept = torch.tensor([column - shared for column in columns], device=self.device)
        if self._keeps:
            return self.model(ids.to(self.device), logits_to_keep=kept, **extra).logits
        return self.model(ids.to(self.device), **extra).logits[:, kept]


def _batches(
    inputs: list[tuple[int, ...]], spans: list[int], size: int
) -> Iterator[tuple[list[tuple[int, ...]], list[int]]]:
    """Cut inputs, longest first, into batches of at most `size` rows and `MOST_LOGIT_ROWS` scored positions.

    Yields the batch and the positions to be scored (the union over its rows: few, as lengths are similar).
    """
    start = 0
    while start < len(inputs):
        rows = min(size, len(inputs) - start)
        while True:
            batch = inputs[start : start + rows]
            columns = set[int]()
            for tokens, span in zip(batch, spans[start : start + rows], strict=True):
                columns.update(range(len(tokens) - span, len(tokens)))
            if rows == 1 or rows * len(columns) <= MOST_LOGIT_ROWS:
                break
            rows //= 2
        yield batch, sorted(columns)
        start += rows


def _common(inputs: list[tuple[int, ...]]) -> int:
    """Length of the longest prefix of all inputs (that of the first and last in lexical order)."""
    low, high = min(inputs, default=()), max(inputs, default=())
    limit = min(len(low), len(high))
    return next((position for position in range(limit) if low[position] != high[position]), limit)
