"""The blocks of the policy, from token ids to last hidden states, on the fastest path that keeps the model's results.

Blocks below the lowest trained one never change: `run_frozen_blocks` runs them once, and every later pass goes on from
its output. Sequences that begin alike go through all blocks as one prefix tree (see `layout`). `choose_forward_path`
asks the model itself which of this it allows. Everything else in PPO uses four methods: `run_frozen_blocks`,
`hidden_states`, and, to sample several tokens where a cache is right, `read_prompts` and `read_next`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from elkflow.batching.layout import LONGEST, Layout, packed, padded
from elkflow.batching.only_at import outputs_only_at
from elkflow.batching.tree_attention import windowed_attention
from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings

logger = logging.getLogger(__name__)
NOT_ACCEPTED = (TypeError, ValueError, IndexError, AttributeError, RuntimeError)
"""What architectures raise that do not know a way of being called."""


@dataclass(frozen=True)
class FrozenBlocksOutput:
    """What the frozen blocks leave of a batch of sequences, for the trained blocks to go on from."""

    layout: Layout
    states: Tensor | None
    """Hidden states below the lowest trained block; None if the model runs as a whole."""
    calls: tuple[tuple[tuple, dict[str, Any]], ...]
    """Further arguments of every trained block (position embeddings, masks), as the model itself passes them."""


Memory = dict[tuple[tuple[int, ...], ...], FrozenBlocksOutput]
"""Outputs of the frozen blocks by the token ids of their batches."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that were read, for tokens to be sampled after them."""

    rows: Sequence[Sequence[int]]
    """Token ids."""
    layout: Layout
    cache: DynamicCache | None
    """Their keys and values; None where a cache would change what is sampled."""


class Trunk:
    """The blocks of a causal language model and the norm behind them."""

    def __init__(self, model: PreTrainedModel | PeftModel, base: PreTrainedModel, first: int, settings: PPOSettings):
        """Args:
            model: `base`, or an adapter around it.
            base: before any weight was converted to float32.
            first: index of the lowest block that is trained.

        Raises:
            UserError: the blocks cannot be found.
        """
        config = base.config.get_text_config()
        self.model, self.base = model, base
        self.compute = next(p.dtype for p in base.parameters() if p.dtype.is_floating_point)
        """The dtype of the matrix products."""
        self.stack, self.blocks = find_blocks(base, config.num_hidden_layers)
        self.trained, self.norm = self.blocks[first:], final_norm(self.stack)
        self.checkpointing = settings.gradient_checkpointing
        window = getattr(config, "sliding_window", None) or LONGEST
        self.longest = LONGEST if window >= LONGEST and not settings.lora.dropout else 0
        """Tokens of the longest sequence in a prefix tree; 0 for padded lines. Sequences that share a tree would share
        their dropout."""
        self.split = settings.train != "full"
        """Whether frozen blocks run apart from the trained ones."""
        self.cached = True
        """Whether tokens are sampled with a cache; without one, everything is read again for every token."""
        self.memory: Memory | None = None

    @property
    def device(self) -> torch.device:
        return self.base.get_output_embeddings().weight.device

    def run_frozen_blocks(self, rows: Sequence[Sequence[int]]) -> FrozenBlocksOutput:
        """Run the blocks below the trained ones. rows: token ids of B sequences of any length."""
        key = tuple(map(tuple, rows))
        if self.memory is not None and key in self.memory:
            return self.memory[key]
        layout = self.make_layout(rows)
        output = FrozenBlocksOutput(layout, None, ())
        if self.split:
            with torch.no_grad(), _recording(self.trained) as calls:
                self._run(layout)
            output = FrozenBlocksOutput(layout, calls[0][0][0], tuple((args[1:], kwargs) for args, kwargs in calls))
        if self.memory is not None:
            self.memory[key] = output
        return output

    @contextmanager
    def remembering(self, memory: Memory) -> Iterator[None]:
        """Within, `run_frozen_blocks` keeps its outputs in `memory`, and takes those of the same batches from there."""
        self.memory = memory
        try:
            yield
        finally:
            self.memory = None

    def hidden_states(self, frozen: FrozenBlocksOutput, positions: Tensor) -> Tensor:
        """Last hidden states, after the final norm, at positions [B, T] -> [B, T, D]."""
        layout, hidden = frozen.layout, frozen.states
        places = layout.places(positions)
        if hidden is None:
            return self._run(layout).flatten(0, 1)[places]
        recompute = self.checkpointing and torch.is_grad_enabled()
        with self.forward_context(layout):
            options: dict[str, Any] = {"use_reentrant": False}
            options["context_fn"] = lambda: (nullcontext(), self.forward_context(layout))
            for block, (args, kwargs) in zip(self.trained, frozen.calls, strict=True):
                if recompute:
                    out = checkpoint(block, hidden, *args, **options, **kwargs)
                else:
                    out = block(hidden, *args, **kwargs)
                hidden = out[0] if isinstance(out, tuple) else out
            return self.norm(hidden.flatten(0, 1)[places])

    def read_prompts(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Prompts]:
        """Last hidden states at the ends of B prompts [B, 1, D], and what `read_next` goes on from."""
        layout = self.make_layout(rows)
        ends = layout.lengths[:, None] - 1
        if not self.cached:
            return self.hidden_states(self.run_frozen_blocks(rows), ends), Prompts(rows, layout, None)
        # nothing of a prefix tree may be dropped from the cache, though it is longer than a sliding window
        cache = DynamicCache() if layout.packed else DynamicCache(config=self.base.config)
        states = self._run(layout, input_ids=layout.ids, past_key_values=cache, use_cache=True, **layout.inputs)
        return states.flatten(0, 1)[layout.places(ends)], Prompts(rows, layout, cache)

    def read_next(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Last hidden states [B, 1, D] at the last of the tokens [B, t] after the prompts; the others were read."""
        if prompts.cache is None:
            return self.read_prompts([[*row, *new] for row, new in zip(prompts.rows, tokens.tolist(), strict=True)])[0]
        layout = prompts.layout
        states = self._run(layout, past_key_values=prompts.cache, use_cache=True, **layout.following(tokens))
        return states[0, :, None] if layout.packed else states

    def make_layout(self, rows: Sequence[Sequence[int]]) -> Layout:
        """Sequences of token ids, laid out as suits this model."""
        together = len(rows) > 1 and max(map(len, rows)) <= self.longest
        return (packed if together else padded)(rows, self.device)

    def _run(self, layout: Layout, **inputs: Any) -> Tensor:
        """Last hidden states of a whole pass over a layout, or over other `inputs` that follow it."""
        with self.forward_context(layout):
            given = inputs or {"input_ids": layout.ids, "use_cache": False} | layout.inputs
            return self.stack(**given).last_hidden_state

    @contextmanager
    def forward_context(self, layout: Layout | None = None) -> Iterator[None]:
        """Precision and attention of every pass.

        Trained weights stay in float32 while the work is done in the model's own dtype. An adapter's weights are cast
        for that, not its inputs, as peft would: those are many times larger. On a CPU the backward pass of fused
        attention takes as long as half of a block's matrix products, so there attention is written out.
        """
        lora = self.model is not self.base
        half = self.compute == torch.bfloat16 or (self.compute == torch.float16 and not lora)
        plain = self.device.type == "cpu" and torch.is_grad_enabled()
        with (
            disable_input_dtype_casting(self.model) if half and lora else nullcontext(),
            torch.autocast(self.device.type, self.compute if half else torch.bfloat16, enabled=half),
            sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
            windowed_attention(self.base) if layout and layout.packed else nullcontext(),
        ):
            yield

    @torch.no_grad()
    def choose_forward_path(self, rows: Sequence[Sequence[int]], logits: Callable[[Tensor], Tensor]) -> None:
        """Give up prefix trees, and then running the trained blocks by themselves, if that changes the model's logits.

        What is chosen holds for sequences as long as these: beyond a sliding window a path may be wrong that is right
        within it.

        Args:
            rows: two sequences of different length.
            logits: the output layer.

        Raises:
            UserError: the logits differ even without either.
        """
        last = torch.tensor([[len(row) - 1] for row in rows], device=self.device)
        expected, tolerance = self._plain_logits(rows)
        difference = torch.tensor(torch.inf)
        for split, longest in dict.fromkeys(((self.split, self.longest), (self.split, 0), (False, 0))):
            self.split, self.longest = split, longest
            try:
                found = logits(self.hidden_states(self.run_frozen_blocks(rows), last))
            except NOT_ACCEPTED as error:
                logger.info("slower forward path: this architecture does not accept the faster one (%s)", error)
                continue
            difference = (found - expected).abs().max()
            if difference <= tolerance:
                return
            logger.info("slower forward path: the faster one changes logits by %.3g", difference)
        raise UserError(
            f"policy: {type(self.base).__name__} treats its last hidden states in an unknown way: its logits differ by"
            f" up to {difference:.3g}, rounding explains {tolerance:.3g}; choose another policy"
        )

    @torch.no_grad()
    def choose_sampling(self, rows: Sequence[Sequence[int]], tokens: int, logits: Callable[[Tensor], Tensor]) -> None:
        """Sample with a cache only if the tokens after prompts of different lengths get the logits they get alone.

        Caches that hold more than keys with their positions (convolutions, recurrent states, sliding windows) take the
        padding behind a prompt for a part of it.

        Args:
            rows: two prompts, of which one is as long as any that will come.
            tokens: how many are sampled after them.
            logits: the output layer.
        """
        if not self.cached:
            return
        follow = torch.tensor([[row[0]] * tokens for row in rows], device=self.device)
        whole = [[*row, *[row[0]] * tokens] for row in rows]
        expected, tolerance = self._plain_logits(whole, tokens)
        try:
            states, read = self.read_prompts(rows)
            found = [logits(states)]
            for count in range(1, tokens):
                found.append(logits(self.read_next(read, follow[:, :count])))
        except NOT_ACCEPTED as error:
            logger.info("sampling without a cache: this architecture does not accept one (%s)", error)
            self.cached = False
            return
        difference = (torch.cat(found, dim=1) - expected[:, -tokens - 1 : -1]).abs().max()
        if not difference <= tolerance:  # nor if it is not a number
            self.cached = False
            logger.info("sampling without a cache: with one, logits change by %.3g", difference)

    def _plain_logits(self, rows: Sequence[Sequence[int]], count: int = 0) -> tuple[Tensor, Tensor]:
        """Logits at the last 1 + `count` tokens of every row, read alone [B, 1 + count, V], and what rounding explains.

        That is measured: how far they move when each row is read twice in one batch, which nothing but rounding tells
        from reading it once.
        """
        read = []
        for copies in (1, 2):
            for row in rows:
                where = torch.tensor([[0, place] for place in range(len(row) - 1 - count, len(row))])
                with self.forward_context(), outputs_only_at(self.base, where):
                    read.append(self.base(input_ids=padded([row] * copies, self.device).ids, use_cache=False).logits)
        alone, twice = (torch.cat(read[start : start + len(rows)]).float() for start in (0, len(rows)))
        least = (1e-4 if self.compute == torch.float32 else 3e-2) * alone.abs().max().clamp(min=1)
        return alone, torch.maximum(least, 4 * (alone - twice).abs().max())


def find_blocks(model: nn.Module, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the blocks one after another, and the list of them.

    Raises:
        UserError: no module has a list of `count` modules.
    """
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, child
    raise UserError(f"policy: {type(model).__name__} is not a causal language model with a list of {count} blocks")


def final_norm(stack: nn.Module) -> nn.Module:
    """The norm behind the last block, by the names that models give it; the identity if there is none."""
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if isinstance(module := getattr(stack, name, None), nn.Module):
            return module
    return nn.Identity()


@contextmanager
def _recording(blocks: nn.ModuleList | Sequence[nn.Module]) -> Iterator[list[tuple[tuple, dict[str, Any]]]]:
    """Within, these blocks do nothing but record how they are called."""
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        calls.append((args, kwargs))
        return args[0]

    forward: Callable = record
    for block in blocks:
        block.forward = forward
    try:
        yield calls
    finally:
        for block in blocks:
            del block.forward
