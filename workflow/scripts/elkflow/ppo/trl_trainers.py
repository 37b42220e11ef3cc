"""RLOO and GRPO by TRL's own trainers, watched and recorded like our PPO so that a table can compare them.

Both sample a group of responses to every prompt and compare each with the others, in the place of a value head. A step
is a rollout of `batch_size` responses, to `batch_size / generations` prompts. TRL writes pickled checkpoints, so it is
told to write none: after a rollout's updates ours are written, and a run that was killed goes on from the newest. For
that, TRL is given what is left of the prompts in our order, our optimiser and schedule, and a random seed a rollout.
"""

import time
from dataclasses import replace
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
from elkflow.ppo import checkpoints, schedule
from elkflow.ppo.rollout import Answers, response_text
from elkflow.ppo.session import Progress
from elkflow.ppo.step_metrics import answer_figures, gold_accuracy
from elkflow.ppo.trainer import Trainer

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
        make_trainer(run, algorithm, Watch(run)).train()
    run.load_weights(checkpoints.load(checkpoints.folder_of(run.folder, run.progress.kept))[0])
    return run.progress


def make_trainer(run: Trainer, algorithm: str, watch: "Watch") -> RLOOTrainer | GRPOTrainer:
    """TRL's trainer with our settings, reward and the prompts of the steps to come."""
    settings, done = run.settings, run.progress.step
    processes = run.accelerator.num_processes
    check(settings)
    updates = settings.ppo_epochs * (settings.batch_size // run.minibatch)
    parts = settings.batch_size // run.minibatch * settings.accumulation
    common: dict[str, Any] = {
        "output_dir": str(run.folder / "trl"),
        "seed": run.seed,
        "max_steps": (run.steps - done) * updates,
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
    count = settings.batch_size // settings.generations
    rows = [row for step in range(done, run.steps) for row in schedule.batch_rows(len(asked), count, step, run.seed)]
    data = Dataset.from_dict({"prompt": [texts[row] for row in rows], "row": rows})
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate
    rate = LambdaLR(run.optimizer, lambda made: schedule.rate(done + made // updates, run.steps, settings))
    options: dict[str, Any] = {
        "model": run.policy.model,
        "reward_funcs": watch.reward,
        "train_dataset": data,
        "processing_class": run.tokenizer,
        "callbacks": [watch],
        "optimizers": (run.optimizer, rate),
    }
    trainer: RLOOTrainer | GRPOTrainer
    if algorithm == "rloo":
        trainer = RLOOTrainer(args=RLOOConfig(normalize_advantages=settings.whiten_advantages, **common), **options)
    else:
        scale = "group" if settings.whiten_advantages else "none"
        trainer = GRPOTrainer(args=GRPOConfig(scale_rewards=scale, **common), **options)
    if "ref" in run.policy.model.peft_config:  # type: ignore[operator]
        # TRL's reference is a copy of the adapter as it finds it, which after a restart is a trained one. Without that
        # copy its reference is ours: the model with its adapter off.
        run.policy.model.delete_adapter("ref")  # type: ignore[operator]
    return trainer


def check(settings: PPOSettings) -> None:
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

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Before an optimiser step, and before the rollout if it is its first: randomness follows from (seed, step)."""
        if not self.logs:
            step, process = self.run.progress.step, self.run.accelerator.process_index
            torch.manual_seed(schedule.mixed(self.run.seed, step, process))
        return control

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
        figures = answer_figures(answers, run.questions) | means
        figures["learning_rate"] = settings.learning_rate * schedule.rate(run.progress.step, run.steps, settings)
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
