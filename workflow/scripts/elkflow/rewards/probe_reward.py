"""A probe as a reward model: from prompts and responses to the probability that each response is right."""

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
    """Rewards computed on the fly: the frozen model reads the prompt, the probe reads its hidden states.

    A probe fitted on questions scores its two answers; any other response gets `invalid`. A probe fitted on questions
    about answers (is this text truthful?) scores any response, which is rendered into the probe's template.
    """

    def __init__(self, probe: Probe, model: Any, tokenizer: Any, kind: Any, invalid: float = -1.0) -> None:
        """Args:
            model, tokenizer, kind: as `elkflow.models.load` loads them.

        Raises:
            UserError: the model's width is not the probe's, or the probe's answers differ from row to row.
        """
        # these import transformers, which table look-ups do without
        from elkflow.hiddens.reader import Reader
        from elkflow.models.tokens import special_tokens

        config = model.config.get_text_config()
        if config.hidden_size != len(probe.weight):
            raise UserError(f"the probe reads states of width {len(probe.weight)}, the model has {config.hidden_size}")
        self.probe, self.tokenizer, self.kind, self.invalid = probe, tokenizer, kind, invalid
        closing = special_tokens(tokenizer)[1] if kind == "encoder" else []
        self.reader = Reader(model, kind, position=probe.facts["position"], closing=closing)
        self.checked = 0  # tokens of the longest text that the reader was tried on: a choice holds up to there
        self.statement = _statement_renderer(probe.facts, tokenizer)
        if probe.facts["answers"] is None:
            raise UserError("the probe was fitted on answers that differ from row to row; use its reward table")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Rewards [B], float32."""
        if self.statement is not None:
            asked = [self.statement(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
            return torch.sigmoid(self.log_odds(asked))
        unique = list(dict.fromkeys(prompts))
        answers = self.probe.facts["answers"]
        pairs = saved_probe.sigmoid_rewards(self.log_odds(unique)).tolist()
        table = TableRewards(unique, [answers] * len(unique), pairs, self.invalid)
        return table(prompts, responses)

    def log_odds(self, prompts: Sequence[str]) -> Tensor:
        """Log-odds [N], float32, of the probe's second answer to each prompt, fed to the model unchanged."""
        from elkflow.batching.prefix_tree import batch_lines
        from elkflow.hiddens.reader import BATCH_TOKENS, choose_layout
        from elkflow.hiddens.tokenise import tokenise_prompts

        questions = tokenise_prompts(self.tokenizer, self.kind, prompts, [self.probe.facts["answers"]] * len(prompts))
        states = torch.zeros(len(questions), 2, len(self.probe.weight))
        longest = max((len(question.prompt) for question in questions), default=0)
        if longest > self.checked:
            self.reader, self.checked = choose_layout(self.reader, questions), longest
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
    """Load the reward model in `folder`; call it as `load(folder)(prompts, responses)`.

    Args:
        folder: with probe.safetensors and probe.json.
        model: checkpoint of the frozen model; by default the path in probe.json, relative to the folder.
        trust_remote_code: allow the checkpoint's own code; never read from the folder.

    Raises:
        UserError: the folder holds no probe of this format, or the checkpoint is not the one the probe was fitted on.
    """
    from elkflow.models.load import load_model, model_kind
    from elkflow.models.tokens import load_tokenizer

    probe = saved_probe.load_probe(folder)
    if probe.facts.get("arm") == "gold_labels":
        raise UserError(f"{folder}: its rewards are labels (`arm: gold_labels`); use its reward table")
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


def _statement_renderer(facts: Mapping[str, Any], tokenizer: Any) -> Any:
    """For a wording about answers, a function from question and response to the full prompt; None for others.

    The template is stored in probe.json, so that later edits to the template file cannot change the rewards.
    """
    asked = facts.get("asked") or {}
    if not asked.get("about"):
        return None
    from elkflow.config.data import ChatSettings
    from elkflow.prompts.render_prompts import chat_wrapper
    from elkflow.prompts.templates import Template

    template = Template(**asked["template"])
    wrap = chat_wrapper(tokenizer, ChatSettings(**asked["chat"]), asked["wrapped"])

    def render(question: str, response: str) -> str:
        answer = response.strip()
        text = question + ("" if question[-1:].isspace() else " ") + answer
        return wrap(template.render({"text": text, "question": question, "answer": answer, "label": 1})[0])

    return render
