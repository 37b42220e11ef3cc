"""Reward models: from (prompt, response) texts to the probability that the response is right."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elkflow.common.errors import UserError
from elkflow.common.files import sha256
from elkflow.probes import saved_probe
from elkflow.probes.saved_probe import Probe
from elkflow.rewards.lookup import TableRewards


class ProbeRewards:
    """Rewards computed: the frozen model reads the prompt, and the probe its hidden states.

    A probe fitted on questions answers for its two answers; any other response gets `invalid`. A probe fitted on
    questions about answers (is this text truthful?) answers for any response: its template is rendered around it.
    """

    def __init__(self, probe: Probe, model: Any, tokenizer: Any, kind: Any, invalid: float = -1.0) -> None:
        """Args:
            model, tokenizer, kind: as `elkflow.models.load` loads them.

        Raises:
            UserError: the model's layers are not the probe's, or the probe's answers differ from row to row.
        """
        # models and hiddens import transformers, which table look-ups do without
        from elkflow.hiddens.reader import Reader
        from elkflow.models.tokens import special_tokens

        config = model.config.get_text_config()
        if config.hidden_size != len(probe.weight):
            raise UserError(f"the probe reads states of width {len(probe.weight)}, the model has {config.hidden_size}")
        self.probe, self.tokenizer, self.kind, self.invalid = probe, tokenizer, kind, invalid
        closing = special_tokens(tokenizer)[1] if kind == "encoder" else []
        self.reader = Reader(model, kind, position=probe.facts["position"], closing=closing)
        self.checked = False  # whether the reader suits the model, which takes texts to find out
        self.about = _about(probe.facts, tokenizer)
        if probe.facts["answers"] is None:
            raise UserError("the probe was fitted on answers that differ from row to row; use its reward table")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Reward of each response [B] float32."""
        if self.about is not None:
            asked = [self.about(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
            return torch.sigmoid(self.log_odds(asked))
        unique = list(dict.fromkeys(prompts))
        answers = self.probe.facts["answers"]
        pairs = saved_probe.sigmoid_rewards(self.log_odds(unique)).tolist()
        table = TableRewards(unique, [answers] * len(unique), pairs, self.invalid)
        return table(prompts, responses)

    def log_odds(self, prompts: Sequence[str]) -> Tensor:
        """Log-odds [N] float32 of the probe's second answer to each prompt, given as the frozen model is to read it."""
        from elkflow.batching.prefix_tree import batch_lines
        from elkflow.hiddens.reader import BATCH_TOKENS, choose_layout
        from elkflow.hiddens.tokenise import tokenise_prompts

        questions = tokenise_prompts(self.tokenizer, self.kind, prompts, [self.probe.facts["answers"]] * len(prompts))
        states = torch.zeros(len(questions), 2, len(self.probe.weight))
        if not self.checked:
            self.reader, self.checked = choose_layout(self.reader, questions), True
        tokens = BATCH_TOKENS.get(self.reader.model.device.type, 8192)
        for lines in batch_lines(self.reader.lines(questions, tokens), tokens):
            read = self.reader.read(lines)
            if read.states.shape[0] != self.probe.facts["layers"]:
                raise UserError(
                    f"the model has {read.states.shape[0]} layers, the probe's {self.probe.facts['layers']}"
                )
            states.view(-1, states.shape[-1])[read.slots] = read.states[self.probe.layer].float()
        return self.probe.log_odds(states[None])


def load(folder: Path | str, model: Path | str | None = None, *, trust_remote_code: bool = False) -> ProbeRewards:
    """The reward model in `folder`, ready to be called: `load(folder)(prompts, responses)`.

    Args:
        folder: holds probe.safetensors and probe.json.
        model: checkpoint of the frozen model; unset: where probe.json says it was, seen from the folder.
        trust_remote_code: allow the checkpoint's own code; never taken from the folder.

    Raises:
        UserError: the folder does not hold a probe of this format, or the checkpoint is not the one it was fitted on.
    """
    from elkflow.models.load import load_model, model_kind
    from elkflow.models.tokens import load_tokenizer

    probe = saved_probe.load_probe(folder)
    stored = probe.facts["model"]
    checkpoint = Path(model) if model else Path(folder) / stored["path"]
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such checkpoint; the probe in {folder} needs the model {stored['name']!r}")
    if sha256(checkpoint) != stored["hash"]:
        raise UserError(f"{checkpoint}: not the checkpoint that the probe in {folder} was fitted on (other hash)")
    if len(probe.wordings) > 1:
        raise UserError(f"{folder}: its rewards average several wordings of a question; use its reward table")
    family = model_kind(checkpoint)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code)
    options = {key: stored["loading"][key] for key in ("dtype", "quantization", "device_map")}
    loaded = load_model(checkpoint, kind=family, trust_remote_code=trust_remote_code, **options)
    return ProbeRewards(probe, loaded, tokenizer, family)


def _about(facts: Mapping[str, Any], tokenizer: Any) -> Any:
    """For a wording about answers: a function from question and response to the full prompt.

    The template travels in probe.json, so that later edits of the template file cannot change what a reward means.
    """
    asked = facts.get("asked") or {}
    if not asked.get("about"):
        return None
    from elkflow.config.data import ChatSettings
    from elkflow.prompts.render_prompts import chat_wrapper
    from elkflow.prompts.templates import Template

    template = Template(**asked["template"])
    wrap = chat_wrapper(tokenizer, ChatSettings(**asked["chat"]), asked["wrapped"])

    def ask(question: str, response: str) -> str:
        answer = response.strip()
        text = question + ("" if question[-1:].isspace() else " ") + answer
        return wrap(template.render({"text": text, "question": question, "answer": answer, "label": 1})[0])

    return ask


def for_trl(rewards: Any) -> Any:
    """`rewards` as one of TRL's `reward_funcs` (GRPO, RLOO): called with keywords, answering with a list of floats.

    Conversational prompts and completions are reduced to the text of their last message.
    """

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        return rewards([_text(each) for each in prompts], [_text(each) for each in completions]).tolist()

    return reward


def _text(message: Any) -> str:
    return message if isinstance(message, str) else str(message[-1]["content"])
