"""RLOO and GRPO by TRL's own trainers, watched and recorded like our PPO so that a table can compare them.

Both sample a group of responses to every prompt and compare each with the others, in the place of a value head. A step
is a rollout of `batch_size` responses, to `batch_size / generations` prompts. TRL writes pickled checkpoints, so it is
told to write none: a run that was killed begins anew.
"""

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from elkflow import checkpoints
from elkflow.errors import UserError
from elkflow.figures import Answers, answer_figures, gold_accuracy
from elkflow.rollout import response_text
from elkflow.settings.ppo import PPOSettings
from elkflow.trainer import Progress, Trainer

logger = logging.getLogger(__name__)

NAMES = {
    "loss": "policy_loss",
    "grad_norm": "gradient_norm",
    "entropy": "entropy",
    "kl": "kl_k3",
    "clip_ratio/region_mean": "clip_fraction",
    "completions/mean_length": "response_tokens",
}
"""TRL's figures under our names."""


def train_grouped(run: Trainer, algorithm: str) -> Progress:
    """Train `run`'s policy by RLOO or GRPO; the policy then holds the weights to keep.

    Args:
        run: after `start()`; lends its policy, questions, records, held-out evaluation and collapse watch.

    Raises:
        UserError: settings that these algorithms have no use for.
    """
    if run.progress.outcome == "running":
        if run.progress.step:
            logger.info("%s cannot go on from a checkpoint; beginning anew", algorithm)
            run.begin()
        watch = Watch(run)
        trainer = make_trainer(run, algorithm, watch)
        trainer.train()
    run.load_weights(checkpoints.load(checkpoints.folder_of(run.folder, run.progress.kept))[0])
    return run.progress


def make_trainer(run: Trainer, algorithm: str, watch: "Watch") -> RLOOTrainer | GRPOTrainer:
    """TRL's trainer with our settings, prompts and reward."""
    settings = run.settings
    processes = run.accelerator.num_processes
    check(settings, processes)
    parts = settings.batch_size // run.minibatch * settings.accumulation
    common: dict[str, Any] = {
        "output_dir": str(run.folder / "trl"),
        "seed": run.seed,
        "max_steps": run.steps * settings.ppo_epochs * (settings.batch_size // run.minibatch),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup * settings.ppo_epochs,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_gradient_norm or 0.0,
        "per_device_train_batch_size": settings.batch_size // parts // processes,
        "gradient_accumulation_steps": settings.accumulation,
        "steps_per_generation": parts,
        "num_generations": settings.generations,
        "num_iterations": settings.ppo_epochs,
        "beta": settings.kl.coefficient,
        "epsilon": settings.clip,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "max_completion_length": settings.max_new_tokens,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": False,
        "use_cpu": run.policy.device.type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    asked = run.questions
    texts = [  # TRL lets the tokenizer add its opening token, which a chat template may have written already
        text if run.tokenizer(text)["input_ids"] == tokens else text.removeprefix(str(run.tokenizer.bos_token))
        for text, tokens in zip(asked.prompts, asked.tokens, strict=True)
    ]
    data = Dataset.from_dict({"prompt": texts, "row": list(range(len(asked)))})
    options: dict[str, Any] = {
        "model": run.policy.model,
        "reward_funcs": watch.reward,
        "train_dataset": data,
        "processing_class": run.tokenizer,
        "callbacks": [watch],
    }
    if algorithm == "rloo":
        return RLOOTrainer(args=RLOOConfig(normalize_advantages=settings.whiten_advantages, **common), **options)
    scale = "group" if settings.whiten_advantages else "none"
    return GRPOTrainer(args=GRPOConfig(scale_rewards=scale, **common), **options)


def check(settings: PPOSettings, processes: int) -> None:
    """Raises:
    UserError: settings that TRL's trainers cannot follow.
    """
    if settings.train != "lora" or settings.kl.control != "fixed":
        key = "ppo.train: rloo and grpo need lora" if settings.train != "lora" else "ppo.kl.control: only fixed"
        raise UserError(f"{key} (TRL's trainers know no other)")
    if settings.batch_size % settings.generations or settings.batch_size // settings.generations < 1:
        raise UserError(f"ppo.generations: {settings.generations} does not divide batch_size {settings.batch_size}")


class Watch(TrainerCallback):
    """Scores responses for TRL, and keeps the records of a run after every rollout."""

    def __init__(self, run: Trainer):
        self.run = run
        self.answers: Answers | None = None
        self.logs: list[dict[str, float]] = []
        self.started = time.monotonic()

    def reward(self, prompts: list[str], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """TRL's reward function: our reward of the responses as they are scored everywhere."""
        run = self.run
        texts = run.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        responses = [response_text(text, run.settings.strip_punctuation) for text in texts]
        scores = torch.as_tensor(run.rewards([run.questions.prompts[i] for i in row], responses)).float()
        parts = gather_object([(row, responses, scores.tolist())])
        rows, all_responses, all_scores = ([item for part in parts for item in part[i]] for i in range(3))
        self.answers = Answers(rows, all_responses, torch.tensor(all_scores))
        return scores.tolist()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """After an optimiser step; a rollout is done when all its steps are."""
        run, settings = self.run, self.run.settings
        if not logs or "loss" not in logs or self.answers is None:
            return control
        self.logs.append({ours: float(logs[theirs]) for theirs, ours in NAMES.items() if theirs in logs})
        if len(self.logs) < settings.ppo_epochs * (settings.batch_size // run.minibatch):
            return control
        seconds, answers = time.monotonic() - self.started, self.answers
        found = {name: [log[name] for log in self.logs if name in log] for name in NAMES.values()}
        means = {name: sum(values) / len(values) if values else 0.0 for name, values in found.items()}
        means["kl_k3"] *= means["response_tokens"]  # TRL's is a mean over tokens, ours a sum
        figures = answer_figures(answers, run.questions) | means | {"learning_rate": float(logs["learning_rate"])}
        figures |= {"updates": float(len(self.logs)), "kl_coefficient": settings.kl.coefficient}
        run.progress = replace(run.progress, step=run.progress.step + 1)
        collapse = run.sentinel.judge(figures) if run.sentinel else None
        figures["gold_accuracy"] = gold_accuracy(answers, run.questions)
        if not collapse and (run.progress.step % settings.evaluate_every == 0 or run.progress.step == run.steps):
            figures |= run.evaluate()
            run.policy.train()
        tokens = sum(len(run.questions.tokens[row]) for row in answers.rows) + len(answers.rows)
        run.record(answers, figures | {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds})
        run.conclude(figures, collapse, may_lower=False)
        control.should_training_stop = run.progress.outcome != "running"
        self.logs, self.started = [], time.monotonic()
        return control
