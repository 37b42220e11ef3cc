"""The policy: one copy of a causal language model that is policy, reference and critic at once.

The reference is the policy with its adapter off (or its trained weights swapped for the old ones); the critic is a
linear map of the trunk's last hidden state. Blocks below the lowest trained one never change, so they run once a
rollout and what they leave is kept; the output layer runs only where a response token is predicted.
Prompts are padded on the right: causal attention never looks there, so no attention mask is needed.
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
from transformers import PreTrainedModel

from elkflow.errors import UserError
from elkflow.settings.ppo import PPOSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frozen:
    """What the frozen blocks leave of a batch of sequences, for the trained blocks to go on from."""

    ids: Tensor
    """[B, S], padded on the right."""
    states: Tensor | None
    """Hidden states under the lowest trained block [B, S, D]; None if everything is trained."""
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
        for (
            module
        ) in model.modules():  # bitsandbytes repacks 4-bit weights for a kernel that no gradient passes through
            if hasattr(module, "support_avx512bf16_for_cpu"):
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
        self.checkpointing = settings.gradient_checkpointing
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.reference = None if settings.train == "lora" else {n: p.detach().clone() for n, p in self.trained(False)}
        self.split = settings.train != "full" and self._splits_exactly()

    @property
    def device(self) -> torch.device:
        return self.base.get_output_embeddings().weight.device

    def trained(self, value_head: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of all that is trained."""
        yield from ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if value_head:
            yield from ((f"value_head.{name}", p) for name, p in self.value_head.named_parameters())

    # forward passes

    def freeze(self, rows: Sequence[Sequence[int]]) -> Frozen:
        """Run the blocks below the trained ones on token ids. rows: B sequences of any length."""
        ids = padded(rows, self.device)
        if not self.split:
            return Frozen(ids, None, ())
        with torch.no_grad(), _recording(self.blocks[self.first :]) as calls, self._computing():
            self.trunk(input_ids=ids, use_cache=False)
        states = calls[0][0][0]
        return Frozen(ids, states, tuple((args[1:], kwargs) for args, kwargs in calls))

    def states(self, frozen: Frozen, positions: Tensor) -> Tensor:
        """Last hidden states, after the final norm, at positions [B, T] -> [B, T, D]."""
        with self._computing():
            if frozen.states is None:
                hidden = self.trunk(input_ids=frozen.ids, use_cache=False).last_hidden_state
                return _gather(hidden, positions)
            hidden = frozen.states
            keep = self.checkpointing and torch.is_grad_enabled()
            again: dict[str, Any] = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self._computing())}
            for block, (args, kwargs) in zip(self.blocks[self.first :], frozen.calls, strict=True):
                out = checkpoint(block, hidden, *args, **again, **kwargs) if keep else block(hidden, *args, **kwargs)
                hidden = out[0] if isinstance(out, tuple) else out
            return self.norm(_gather(hidden, positions))

    def logits(self, states: Tensor) -> Tensor:
        """Output layer [..., D] -> [..., V], float32."""
        head = self.base.get_output_embeddings()
        logits = head(states.to(head.weight.dtype if head.weight.dtype.is_floating_point else states.dtype)).float()
        config = self.base.config.get_text_config()
        logits = logits * (getattr(config, "logit_scale", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def forward(self, frozen: Frozen, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits [B, T, V] and values [B, T] at positions [B, T], both float32."""
        states = self.states(frozen, positions)
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
    def _computing(self) -> Iterator[None]:
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
        ):
            yield

    @torch.no_grad()
    def _splits_exactly(self) -> bool:
        """Whether blocks, norm and output layer run one by one give the model's own logits."""
        vocabulary = self.base.config.get_text_config().vocab_size
        rows = [[(7 * i + 3) % vocabulary for i in range(length)] for length in (12, 9)]
        ids = padded(rows, self.device)
        with self._computing():
            whole = self.base(input_ids=ids, use_cache=False).logits.float()
        self.split = True
        positions = torch.arange(9, device=self.device).expand(2, 9)
        scale = whole.abs().max().clamp(min=1)
        tolerance = (1e-4 if self.compute == torch.float32 else 3e-2) * scale
        try:
            difference = (self(self.freeze(rows), positions)[0] - whole[:, :9]).abs().max()
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            difference = torch.tensor(float("inf"))
            logger.info("blocks cannot be run one by one (%s)", error)
        if difference <= tolerance:
            return True
        self.split = False
        if (self(self.freeze(rows), positions)[0] - whole[:, :9]).abs().max() > tolerance:
            raise UserError(f"policy: {type(self.base).__name__} treats its last hidden states in a way not known here")
        logger.info("every pass runs the whole model: its blocks alone give other results (by %.3g)", difference)
        return False


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


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids [B, S], zeros on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device)


def _gather(hidden: Tensor, positions: Tensor) -> Tensor:
    """hidden [B, S, D] at positions [B, T] -> [B, T, D]."""
    return hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))


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
