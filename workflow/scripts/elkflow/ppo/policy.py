"""The policy: one copy of a causal language model that is policy, reference and critic at once.

The reference is the policy with its adapter off (or its trained weights swapped for the old ones); the critic is a
linear map of the last hidden state. How token ids become hidden states is `trunk`'s business; the output layer runs
only where a response token is predicted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from elkflow.batching.layout import LONGEST
from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings
from elkflow.ppo.trunk import FrozenBlocksOutput, Trunk


class Policy(nn.Module):
    """A causal language model with trainable parts and a value head."""

    def __init__(self, model: PreTrainedModel, settings: PPOSettings, seed: int = 0):
        """Freeze the model, then make trainable what the settings say.

        Args:
            model: as loaded, in eval mode; it is changed in place.
            seed: of the adapter's first weights.

        Raises:
            UserError: the settings do not fit the model, or its blocks cannot be found.
        """
        super().__init__()
        self.base = model
        config = model.config.get_text_config()
        first = 0 if settings.layers == "all" else config.num_hidden_layers - settings.layers
        if first < 0:
            blocks = config.num_hidden_layers
            raise UserError(f"ppo.layers: the policy has {blocks} blocks, fewer than {settings.layers}")
        model.requires_grad_(False)
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):  # a kernel for 4-bit weights that stops gradients
                module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        torch.manual_seed(seed)
        self.model: PreTrainedModel | PeftModel = model
        if settings.train == "lora":
            self.model = get_peft_model(model, lora_config(model, settings, first))
        elif getattr(model, "is_quantized", False):
            raise UserError(f"ppo.train: {settings.train!r} needs weights that are not quantised; use lora")
        self.trunk = Trunk(self.model, model, first, settings)
        if settings.train == "layers":
            for module in (*self.trunk.trained, self.trunk.norm):
                module.float().requires_grad_(True)
        elif settings.train == "full":
            model.float().requires_grad_(True)
        self.value_head = nn.Linear(config.hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.reference = None if settings.train == "lora" else {n: p.detach().clone() for n, p in self.trained(False)}
        size = config.vocab_size
        rows = [[(7 * i + 3) % size for i in range(12)], [(7 * i + 3 + i // 6) % size for i in range(9)]]
        self.check_forward_path(rows, settings.max_new_tokens)

    def check_forward_path(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        """Choose how sequences are read and sampled after, by what the model makes of the longest and shortest prompt.

        Prefix trees, which take sequences up to a length, are tried on the longest of those as well.

        Raises:
            UserError: see `Trunk.choose_forward_path`.
        """
        ordered = sorted(prompts, key=len)
        together = [row for row in ordered if len(row) + new_tokens <= LONGEST]
        for rows in (together, ordered) if 0 < len(together) < len(ordered) else (ordered,):
            self.trunk.choose_forward_path([rows[-1], rows[0]], self.logits)
            if new_tokens > 1:
                self.trunk.choose_sampling([rows[-1], rows[0]], new_tokens, self.logits)

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    def trained(self, value_head: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of all that is trained."""
        yield from ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        if value_head:
            yield from ((f"value_head.{name}", p) for name, p in self.value_head.named_parameters())

    def run_frozen_blocks(self, rows: Sequence[Sequence[int]]) -> FrozenBlocksOutput:
        """What `forward` goes on from. rows: token ids of B sequences of any length."""
        return self.trunk.run_frozen_blocks(rows)

    def forward(self, frozen: FrozenBlocksOutput, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits [B, T, V] and values [B, T] at positions [B, T] of the sequences, both float32."""
        states = self.trunk.hidden_states(frozen, positions)
        return self.logits(states), self.value_head(states.float())[..., 0]

    def logits(self, states: Tensor) -> Tensor:
        """Output layer: last hidden states [..., D] -> next-token logits [..., V], float32."""
        head = self.base.get_output_embeddings()
        logits = head(states.to(head.weight.dtype if head.weight.dtype.is_floating_point else states.dtype)).float()
        config = self.base.config.get_text_config()
        logits = logits * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        return torch.tanh(logits / cap) * cap if cap else logits

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
