"""The policy: one copy of a causal language model that is policy, reference and critic at once.

The reference is the policy with its adapter off (or its trained weights swapped for the old ones); the critic is a
linear map of the trunk's last hidden state. Blocks below the lowest trained one never change, so they run once a
rollout and what they leave is kept; the output layer runs only where a response token is predicted. Sequences that open
alike run through all of it as one trie (see `layout`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from elkflow.batching.layout import LONGEST, Layout, packed, padded
from elkflow.batching.only_at import _only_at
from elkflow.batching.tree_attention import windowed_attention
from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings
from elkflow.ppo import fast_norms

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """What the frozen blocks leave of a batch of sequences, for the trained blocks to go on from."""

    layout: Layout
    states: Tensor | None
    """The lines' hidden states under the lowest trained block; None if everything is trained."""
    calls: tuple[tuple[tuple, dict[str, Any]], ...]
    """Further arguments of every trained block (position embeddings, masks), as the model itself passes them."""


class Policy(nn.Module):
    """A causal language model with trainable parts and a value head."""

    def __init__(self, model: PreTrainedModel, settings: PPOSettings, seed: int = 0):
        """Freeze the model, then make trainable what the settings say.

        Args:
            model: as loaded, in eval mode; it is changed in place.
            seed: of the adapter's first weights.

        Raises:
            UserError: the settings do not fit the model, or its parts cannot be told apart.
        """
        super().__init__()
        self.compute = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
        count = model.config.get_text_config().num_hidden_layers
        self.first = 0 if settings.layers == "all" else count - settings.layers
        if self.first < 0:
            raise UserError(f"ppo.layers: the policy has {count} blocks, fewer than {settings.layers}")
        model.requires_grad_(False)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # a kernel for 4-bit weights that stops gradients
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        torch.manual_seed(seed)
        if settings.train == "lora":
            self.model: PreTrainedModel | PeftModel = get_peft_model(model, lora_config(model, settings, self.first))
        else:
            self.model = model
            if getattr(model, "is_quantized", False):
                raise UserError(f"ppo.train: {settings.train!r} needs weights that are not quantised; use lora")
        self.base = model
        self.trunk, self.blocks = find_trunk(model, count)
        self.norm = final_norm(self.trunk)
        if settings.train == "layers":
            for module in (*self.blocks[self.first :], self.norm):
                module.float().requires_grad_(True)
        elif settings.train == "full":
            self.model.float().requires_grad_(True)
        fast_norms.quicken(model)
        self.checkpointing = settings.gradient_checkpointing
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.reference = None if settings.train == "lora" else {n: p.detach().clone() for n, p in self.trained(False)}
        window = getattr(model.config.get_text_config(), "sliding_window", None) or LONGEST
        self.longest = LONGEST if window >= LONGEST and not settings.lora.dropout else 0
        """Tokens of the longest sequence in a trie; 0 with dropout, which would be the same for all that share."""
        self.split = settings.train != "full"
        self._simplify()

    @property
    def device(self) -> torch.device:
        return self.base.get_output_embeddings().weight.device

    def trained(self, value_head: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of all that is trained."""
        yield from ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if value_head:
            yield from ((f"value_head.{name}", p) for name, p in self.value_head.named_parameters())

    # forward passes

    def lay(self, rows: Sequence[Sequence[int]]) -> Layout:
        """Sequences of token ids as the lines that suit this model."""
        together = len(rows) > 1 and max(map(len, rows)) <= self.longest
        return (packed if together else padded)(rows, self.device)

    def run(self, layout: Layout, **inputs: Any) -> Tensor:
        """The whole trunk on a layout's lines, or on other `inputs` that follow them: last hidden states."""
        given = inputs or {"input_ids": layout.ids, "use_cache": False} | layout.inputs
        with self._computing(layout.packed):
            return self.trunk(**given).last_hidden_state

    def read_prompts(self, layout: Layout, cache: Cache) -> Tensor:
        """Fill a cache with a layout's lines; their last hidden states [B, 1, D]."""
        places = layout.places(layout.lengths[:, None] - 1)
        with _only_at(self.blocks[-1], places):
            lines = self.run(layout, input_ids=layout.ids, past_key_values=cache, use_cache=True, **layout.inputs)
        return lines.flatten(0, 1)[places]

    def freeze(self, rows: Sequence[Sequence[int]]) -> Frozen:
        """Run the blocks below the trained ones on token ids. rows: B sequences of any length."""
        layout = self.lay(rows)
        if not self.split:
            return Frozen(layout, None, ())
        with torch.no_grad(), _recording(self.blocks[self.first :]) as calls:
            self.run(layout)
        states = calls[0][0][0]
        return Frozen(layout, states, tuple((args[1:], kwargs) for args, kwargs in calls))

    def states(self, frozen: Frozen, positions: Tensor) -> Tensor:
        """Last hidden states, after the final norm, at positions [B, T] -> [B, T, D]."""
        layout, hidden = frozen.layout, frozen.states
        places = layout.places(positions)
        keep = self.checkpointing and torch.is_grad_enabled()
        narrow = nullcontext() if keep else _only_at(self.blocks[-1], places)
        if hidden is None:
            with narrow:
                return self.run(layout).flatten(0, 1)[places]
        with self._computing(layout.packed), narrow:
            again: dict[str, Any] = {"use_reentrant": False}
            again["context_fn"] = lambda: (nullcontext(), self._computing(layout.packed))
            for block, (args, kwargs) in zip(self.blocks[self.first :], frozen.calls, strict=True):
                out = checkpoint(block, hidden, *args, **again, **kwargs) if keep else block(hidden, *args, **kwargs)
                hidden = out[0] if isinstance(out, tuple) else out
            return self.norm(hidden.flatten(0, 1)[places])

    def logits(self, states: Tensor) -> Tensor:
        """Output layer [..., D] -> [..., V], float32."""
        head = self.base.get_output_embeddings()
        logits = head(states.to(head.weight.dtype if head.weight.dtype.is_floating_point else states.dtype)).float()
        config = self.base.config.get_text_config()
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def forward(self, frozen: Frozen, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits [B, T, V] and values [B, T] at positions [B, T], both float32."""
        return self.read(self.states(frozen, positions))

    def read(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits [..., V] and values [...] of last hidden states [..., D]."""
        return self.logits(states), self.value_head(states.float())[..., 0]

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within, the model is what it was before training; no gradients."""
        with torch.no_grad():
            if self.reference is None:
                with self.model.disable_adapter():  # type: ignore[operator]
                    yield
                return
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def _swap(self) -> None:
        assert self.reference is not None
        for name, parameter in self.trained(False):
            self.reference[name], parameter.data = parameter.data, self.reference[name]

    @contextmanager
    def _computing(self, in_trie: bool = False) -> Iterator[None]:
        """The precision and the attention of every pass.

        Weights that are trained stay in float32 while the work is done in the model's own dtype; an adapter's weights
        are cast for that, not its inputs, as peft would: those are many times larger. On a CPU the backward pass of
        fused attention takes as long as half of a block's matrix products, so there attention is written out.
        """
        lora = self.reference is None
        half = self.compute == torch.bfloat16 or (self.compute == torch.float16 and not lora)
        plain = self.device.type == "cpu" and torch.is_grad_enabled()
        with (
            disable_input_dtype_casting(self.model) if half and lora else nullcontext(),
            torch.autocast(self.device.type, self.compute if half else torch.bfloat16, enabled=half),
            sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
            windowed_attention(self.base) if in_trie else nullcontext(),
        ):
            yield

    @torch.no_grad()
    def _simplify(self) -> None:
        """Do without what changes the model's own logits: tries, or blocks run one by one.

        Raises:
            UserError: it is neither.
        """
        size = self.base.config.get_text_config().vocab_size
        rows = [[(7 * i + 3) % size for i in range(12)], [(7 * i + 3 + i // 6) % size for i in range(9)]]
        last = torch.tensor([[11], [8]], device=self.device)
        with self._computing():
            whole = [
                self.base(input_ids=padded([row], self.device).ids, use_cache=False).logits[:, -1:] for row in rows
            ]
        wanted = torch.cat(whole).float()
        tolerance = (1e-4 if self.compute == torch.float32 else 3e-2) * wanted.abs().max().clamp(min=1)
        for split, longest in dict.fromkeys(((self.split, self.longest), (self.split, 0), (False, 0))):
            self.split, self.longest = split, longest
            try:
                difference = (self(self.freeze(rows), last)[0] - wanted).abs().max()
            except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
                logger.info("simpler passes: this architecture takes no parts of its own (%s)", error)
                continue
            if difference <= tolerance:
                return
            logger.info("simpler passes: parts of the model give other results (by %.3g)", difference)
        raise UserError(f"policy: {type(self.base).__name__} treats its last hidden states in a way not known here")


def lora_config(model: PreTrainedModel, settings: PPOSettings, first: int) -> LoraConfig:
    """LoRA on the named modules of every block from `first` on.

    Raises:
        UserError: no module has such a name.
    """
    lora, count = settings.lora, model.config.get_text_config().num_hidden_layers
    linear = {name.split(".")[-1] for name, module in model.named_modules() if _is_linear(module)}
    linear -= {name.split(".")[-1] for name, module in model.named_modules() if module is model.get_output_embeddings()}
    targets = sorted(linear) if lora.targets == "all-linear" else list(lora.targets)
    if unknown := sorted(set(targets) - linear):
        raise UserError(f"ppo.lora.targets: the policy has no {unknown[0]!r}; it has {', '.join(sorted(linear))}")
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=list(range(first, count)) if first else None,
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Linear8bitLt", "Linear4bit")


def find_trunk(model: nn.Module, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the blocks one after another, and their list.

    Raises:
        UserError: no module has a list of `count` modules.
    """
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, child
    raise UserError(f"policy: {type(model).__name__} is not a causal language model with a list of {count} blocks")


def final_norm(trunk: nn.Module) -> nn.Module:
    """The norm behind the last block, by the names that models give it; nothing, if there is none."""
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if isinstance(module := getattr(trunk, name, None), nn.Module):
            return module
    return nn.Identity()


@contextmanager
def _recording(blocks: nn.ModuleList | Sequence[nn.Module]) -> Iterator[list[tuple[tuple, dict[str, Any]]]]:
    """Within, these blocks do nothing but note how they are called."""
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def note(*args: Any, **kwargs: Any) -> Tensor:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        calls.append((args, kwargs))
        return args[0]

    forward: Callable = note
    for block in blocks:
        block.forward = forward
    try:
        yield calls
    finally:
        for block in blocks:
            del block.forward
