"""RLOO and GRPO by TRL's own trainers, in the same session as our PPO, so that a table can compare them.

Both sample a group of responses to every prompt and compare each with the others, instead of using a value head. A step
is a rollout of `batch_size` responses, to `batch_size / generations` prompts. TRL's own checkpoints are pickled and so
switched off: the session writes ours after a rollout's updates, and a run that was killed resumes from the newest.
For that, TRL is given the remaining prompts in our order, our optimiser and schedule, and a random seed per rollout.
"""

import time
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from elkflow.common.errors import UserError
from elkflow.config.ppo import PPOSettings
from elkflow.ppo import schedule
from elkflow.ppo.rollout import Answers, response_text
from elkflow.ppo.session import Progress, Session
from elkflow.ppo.step_metrics import answer_metrics

NAMES = {
    "loss": "policy_loss",
    "grad_norm": "gradient_norm",
    "entropy": "entropy",
    "kl": "kl_k3",
    "clip_ratio/region_mean": "clip_fraction",
    "completions/mean_length": "response_tokens",
}
"""TRL's names of metrics to ours."""


def train_grouped(session: Session, algorithm: str) -> Progress:
    """Train by RLOO or GRPO from where `Session.start` found the run; the policy then holds the weights to keep.

    Raises:
        UserError: settings that TRL's trainers do not support.
    """
    if session.progress.outcome == "running":
        make_trainer(session, algorithm, SessionCallback(session)).train()
    session.load_kept_weights()
    return session.progress


def make_trainer(session: Session, algorithm: str, callback: "SessionCallback") -> RLOOTrainer | GRPOTrainer:
    """TRL's trainer with our settings, reward and the prompts of the steps to come."""
    settings, done = session.settings, session.progress.step
    processes = session.accelerator.num_processes
    check(settings)
    updates = settings.ppo_epochs * (settings.batch_size // session.minibatch)
    parts = settings.batch_size // session.minibatch * settings.accumulation
    common: dict[str, Any] = {
        "output_dir": str(session.folder / "trl"),
        "seed": session.seed,
        "max_steps": (session.steps - done) * updates,
        "shuffle_dataset": False,
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
        "use_cpu": session.policy.device.type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    asked = session.questions
    texts = [  # TRL lets the tokenizer add its opening token, which a chat template may have written already
        text if session.tokenizer(text)["input_ids"] == tokens else text.removeprefix(str(session.tokenizer.bos_token))
        for text, tokens in zip(asked.prompts, asked.tokens, strict=True)
    ]
    count = settings.batch_size // settings.generations
    rows = [
        row for step in range(done, session.steps) for row in schedule.batch_rows(len(asked), count, step, session.seed)
    ]
    data = Dataset.from_dict({"prompt": [texts[row] for row in rows], "row": rows})
    for group in session.optimizer.param_groups:
        group["lr"] = settings.learning_rate
    rate = LambdaLR(session.optimizer, lambda made: schedule.lr_factor(done + made // updates, session.steps, settings))
    options: dict[str, Any] = {
        "model": session.policy.model,
        "reward_funcs": callback.reward,
        "train_dataset": data,
        "processing_class": session.tokenizer,
        "callbacks": [callback],
        "optimizers": (session.optimizer, rate),
    }
    trainer: RLOOTrainer | GRPOTrainer
    if algorithm == "rloo":
        trainer = RLOOTrainer(args=RLOOConfig(normalize_advantages=settings.whiten_advantages, **common), **options)
    else:
        scale = "group" if settings.whiten_advantages else "none"
        trainer = GRPOTrainer(args=GRPOConfig(scale_rewards=scale, **common), **options)
    if "ref" in session.policy.model.peft_config:  # type: ignore[operator]
        # TRL's reference is a copy of the adapter as it finds it, which after a restart is a trained one. Without that
        # copy its reference is ours: the model with its adapter off.
        session.policy.model.delete_adapter("ref")  # type: ignore[operator]
    return trainer


def check(settings: PPOSettings) -> None:
    """Raises:
    UserError: settings that TRL's trainers do not support.
    """
    if settings.train != "lora" or settings.kl.control != "fixed":
        key = "ppo.train: rloo and grpo need lora" if settings.train != "lora" else "ppo.kl.control: only fixed"
        raise UserError(f"{key} (TRL's trainers support no other)")
    if settings.batch_size % settings.generations or settings.batch_size // settings.generations < 1:
        raise UserError(f"ppo.generations: {settings.generations} does not divide batch_size {settings.batch_size}")


class SessionCallback(TrainerCallback):
    """Scores responses for TRL, and ends a session's step after each rollout's updates."""

    def __init__(self, session: Session):
        self.session = session
        self.answers: Answers | None = None
        self.logs: list[dict[str, float]] = []
        self.started = time.monotonic()

    def reward(self, prompts: list[str], completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        """TRL's reward function: our reward of the responses as they are scored everywhere."""
        session = self.session
        texts = session.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        responses = [response_text(text, session.settings.strip_punctuation) for text in texts]
        scores = torch.as_tensor(session.rewards([session.questions.prompts[i] for i in row], responses)).float()
        parts = gather_object([(row, responses, scores.tolist())])
        rows, all_responses, all_scores = ([item for part in parts for item in part[i]] for i in range(3))
        self.answers = Answers(rows, all_responses, torch.tensor(all_scores))
        return scores.tolist()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Before an optimiser step, and before the rollout if it is its first: randomness follows from (seed, step)."""
        if not self.logs:
            step, process = self.session.progress.step, self.session.accelerator.process_index
            torch.manual_seed(schedule.derive_seed(self.session.seed, step, process))
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        """After an optimiser step; the last of a rollout ends the session's step."""
        session, settings = self.session, self.session.settings
        if not logs or "loss" not in logs or self.answers is None:
            return control
        self.logs.append({ours: float(logs[theirs]) for theirs, ours in NAMES.items() if theirs in logs})
        if len(self.logs) < settings.ppo_epochs * (settings.batch_size // session.minibatch):
            return control
        found = {name: [log[name] for log in self.logs if name in log] for name in NAMES.values()}
        means = {name: sum(values) / len(values) if values else 0.0 for name, values in found.items()}
        means["kl_k3"] *= means["response_tokens"]  # TRL's is a mean over tokens, ours a sum
        metrics = answer_metrics(self.answers, session.questions) | means
        metrics["learning_rate"] = session.learning_rate
        metrics |= {"updates": float(len(self.logs)), "kl_coefficient": settings.kl.coefficient}
        session.finish_step(self.answers, metrics, self.started, may_lower=False)
        session.policy.train()
        control.should_training_stop = session.progress.outcome != "running"
        self.logs, self.started = [], time.monotonic()
        return control
