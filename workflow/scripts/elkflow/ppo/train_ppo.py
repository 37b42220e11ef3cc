"""A training run from files to files: what the rule train_ppo does."""

import hashlib
import importlib.util
import json
import logging
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from elkflow.common import code_inputs
from elkflow.common.cli import timed
from elkflow.common.errors import UserError
from elkflow.common.files import atomic, read_json, sha256, write_json
from elkflow.common.manifests import check_against_manifests, write_manifest
from elkflow.config.model import ModelSettings
from elkflow.config.ppo import PPOSettings
from elkflow.models.load import load_model, model_kind
from elkflow.models.tokens import load_tokenizer
from elkflow.ppo import schedule
from elkflow.ppo.closed_trainer import ClosedTrainer
from elkflow.ppo.policy import Policy
from elkflow.ppo.questions import Questions, Rewards, hold_back, read_questions, table_rewards
from elkflow.ppo.session import Progress, Session
from elkflow.ppo.trainer import Trainer
from elkflow.rewards import custom

RETRY = 75
"""Exit code of a run that was told to stop and can resume (EX_TEMPFAIL)."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """What a run reads."""

    model: Path
    prompts: Path
    rewards: Path
    val_prompts: Path
    val_rewards: Path
    lineage: list[Path]


def train_run(
    settings: PPOSettings,
    model_settings: ModelSettings,
    files: Files,
    *,
    algorithm: str,
    reward: str,
    trackers: list[str],
    seed: int,
    checkpoints: Path,
    outputs: Mapping[str, Path],
    manifest: Path,
) -> Progress:
    """Check the inputs, train, and write adapter, metrics, samples, outcome and manifest.

    Args:
        checkpoints: folder that is not an output, so that the workflow does not delete it when a run is killed.
        outputs: paths of `adapter` (folder), `metrics`, `samples` and `outcome`.

    Raises:
        UserError: something in the files or settings does not fit.
        SystemExit: with code RETRY, if the process was told to stop.
    """
    if model_kind(files.model) != "decoder":
        raise UserError(
            f"{files.model}: PPO needs a model that continues text, this one is an {model_kind(files.model)}"
        )
    tokenizer = load_tokenizer(files.model, model_settings.trust_remote_code)
    context = read_json(files.model / "config.json").get("max_position_embeddings") or 10**9
    questions, held_out = (
        read_questions(path, tokenizer, settings.max_new_tokens, context) for path in (files.prompts, files.val_prompts)
    )
    rewards = files.val_rewards
    if settings.keep == "best":  # the choice must not see the questions that the verdict reports on
        (questions, held_out), rewards = hold_back(questions, settings.evaluate_rows), files.rewards
    train_rewards, held_out_rewards = (
        reward_source(reward, path, asked, settings.invalid_reward)
        for path, asked in ((files.rewards, questions), (rewards, held_out))
    )
    schedule.total_steps(settings, len(questions))  # raises before the model is loaded
    check_trackers(trackers)
    check_against_manifests(files.model, files.prompts, files.rewards, files.val_prompts, files.val_rewards)
    stop = Stop()
    checkpoints.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), log_with=trackers or None, project_dir=checkpoints)
    with timed("model loaded"):
        policy = Policy(load_model(files.model, **model_settings.loading()), settings, seed)
    session = Session(
        policy,
        tokenizer,
        questions,
        train_rewards,
        held_out,
        held_out_rewards,
        settings,
        seed,
        checkpoints,
        fingerprint(settings, model_settings, files, algorithm, reward, seed),
        accelerator,
        stop.asked,
    )
    session.start()
    if trackers:
        accelerator.init_trackers("trackers", {"seed": seed, "settings": settings.model_dump_json()})
    outcome = train_session(session, algorithm)
    if outcome.outcome == "interrupted":
        accelerator.end_training()
        logger.info("told to stop: saved after step %d, and can resume from there", outcome.step)
        raise SystemExit(RETRY)
    if accelerator.is_main_process:
        save_policy(policy, tokenizer, outputs["adapter"])
        for name in ("metrics", "samples"):
            with atomic(outputs[name]) as temporary:
                shutil.copyfile(checkpoints / f"{name}.jsonl", temporary)
        facts = {key: value for key, value in asdict(outcome).items() if key != "healthy"}
        write_json(outputs["outcome"], facts)
        write_manifest(
            manifest,
            outputs=outputs,
            inputs={f"{path.parent.name}/{path.name}": path for path in files.lineage},
            settings=settings,
            seed=seed,
            algorithm=algorithm,
            reward=reward,
            device=policy.device.type,
            dtype=str(policy.trunk.compute).removeprefix("torch."),
            processes=accelerator.num_processes,
            **facts,
        )
        level = logging.INFO if outcome.outcome == "finished" else logging.WARNING
        logger.log(level, "%s; kept the weights of step %d. %s", outcome.outcome, outcome.kept, outcome.reason)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return outcome


def train_session(session: Session, algorithm: str) -> Progress:
    """Train by an `algorithm:` of the config from where `Session.start` found the run."""
    if algorithm in ("exact", "sft", "dpo") or (algorithm == "ppo" and session.settings.actions == "all"):
        return ClosedTrainer(session, algorithm).train()
    if algorithm == "ppo":
        return Trainer(session).train()
    from elkflow.ppo.trl_trainers import train_grouped  # TRL takes seconds to import

    return train_grouped(session, algorithm)


class Stop:
    """Remembers that the process was told to stop (SIGTERM: preemption, time limit)."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.received = True

    def asked(self) -> bool:
        return self.received


def fingerprint(
    settings: PPOSettings, model_settings: ModelSettings, files: Files, algorithm: str, reward: str, seed: int
) -> str:
    """Hash of everything that determines a run: settings, data, model and code."""
    code = [code_inputs.script_path("train_ppo"), *code_inputs.imports("train_ppo"), *custom.source_files(reward)]
    parts = {
        "settings": settings.model_dump(mode="json"),
        "model": model_settings.loading(),
        "run": [algorithm, reward, seed],
        "files": [sha256(path) for path in (files.prompts, files.rewards, files.val_prompts, files.val_rewards)],
        "lineage": [sha256(path) for path in files.lineage],
        "code": [sha256(path) for path in code],
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reward_source(name: str, table: Path, questions: Questions, invalid: float) -> Rewards:
    """The reward of `reward:` in the config: the table, or a function of the user's.

    Raises:
        UserError: the function cannot be imported.
    """
    if name == "table":
        return table_rewards(table, questions, invalid)
    return custom.load_function(name)


def check_trackers(trackers: list[str]) -> None:
    """Raises:
    UserError: a tracker is not installed.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed in this environment")


def save_policy(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what was trained: a peft adapter, or the trained weights themselves; and the value head beside it."""
    from safetensors.torch import save_file

    with atomic(folder) as temporary:
        temporary.mkdir()
        if policy.reference is None:
            policy.model.save_pretrained(str(temporary))
            (temporary / "README.md").unlink(missing_ok=True)  # a template for a model card, nothing filled in
            config = read_json(temporary / "adapter_config.json")  # peft keeps names in a set, of any order
            write_json(temporary / "adapter_config.json", config | {"target_modules": sorted(config["target_modules"])})
        else:
            weights = {name: p.detach().cpu().contiguous() for name, p in policy.trained(value_head=False)}
            save_file(weights, temporary / "weights.safetensors")
        save_file(
            {n: p.detach().cpu() for n, p in policy.value_head.named_parameters()}, temporary / "value_head.safetensors"
        )
