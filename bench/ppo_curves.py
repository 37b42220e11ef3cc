"""Whether our PPO and TRL 0.11.4's learn alike: mean reward over seeds, step by step, on the model of tiny_model.py.

    python bench/ppo_curves.py [--seeds 16] [--steps 30] [--output results/bench/ppo_speed.json]

Both sides sample for themselves, with their own random numbers, so single curves differ and only their means can be
compared. Prompts, first weights, hyperparameters and reward (the share of a response's words from the upper half of the
vocabulary) are the same. Adds `learning_curve` to the output file: both means, and the difference of the mean reward
over all steps with a 95 % interval (Welch). The peer runs in `.venv-peers/`, made if need be.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny_model import CONFIG, fill
from tiny_model import LORA as Q_AND_V
from tokenizers import Tokenizer, models

Curve = list[float]
BATCH, MINIBATCH, LENGTH, EPOCHS, RATE, KL = 16, 4, 2, 4, 0.01, 0.05
PROMPTS = 64
LORA = Q_AND_V | {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
"""On q and v alone a model as small as this one can hardly learn the task."""


def prompts() -> list[list[int]]:
    """Token ids of 3 to 10 words."""
    generator = torch.Generator().manual_seed(6)
    lengths = torch.randint(3, 11, (PROMPTS,), generator=generator).tolist()
    return [torch.randint(4, CONFIG["vocab_size"], (length,), generator=generator).tolist() for length in lengths]


def reward(response: str) -> float:
    """Of a response such as `w30 w7`: the share of its words from the upper half."""
    words = [int(word[1:]) for word in response.split()]
    return sum(word >= CONFIG["vocab_size"] // 2 for word in words) / len(words) if words else 0.0


def words() -> Any:
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(CONFIG["vocab_size"])}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", eos_token="w3")


def start(model: torch.nn.Module) -> None:
    """The same first weights on both sides: an adapter and a value head that do nothing yet."""
    fill(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "value_head" in name or "v_head" in name:
                parameter.zero_()


def peers_curve(seed: int, steps: int) -> Curve:
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    tokenizer, asked = words(), prompts()
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        LlamaForCausalLM(LlamaConfig(**CONFIG)), peft_config=LoraConfig(**LORA)
    )
    start(model)
    config = PPOConfig(
        seed=seed,
        learning_rate=RATE,
        batch_size=BATCH,
        mini_batch_size=MINIBATCH,
        ppo_epochs=EPOCHS,
        init_kl_coef=KL,
        adap_kl_ctrl=False,
    )
    trainer, curve = PPOTrainer(config, model, None, tokenizer), []
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(PROMPTS, generator=order)[:BATCH].tolist()
        queries = [torch.tensor(asked[row]) for row in rows]
        responses = trainer.generate(
            queries, batch_size=BATCH, return_prompt=False, max_new_tokens=LENGTH, do_sample=True, top_k=0, top_p=1.0
        )
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        scores = [torch.tensor(reward(text)) for text in texts]
        trainer.step(queries, responses, scores)
        curve.append(float(torch.stack(scores).mean()))
    return curve


def our_curve(seed: int, steps: int) -> Curve:
    from transformers import LlamaConfig, LlamaForCausalLM

    from elkflow.config.ppo import PPOSettings
    from elkflow.ppo.policy import Policy
    from elkflow.ppo.questions import Questions
    from elkflow.ppo.session import Session
    from elkflow.ppo.trainer import Trainer

    settings = PPOSettings(
        steps=steps,
        learning_rate=RATE,
        batch_size=BATCH,
        minibatch_size=MINIBATCH,
        ppo_epochs=EPOCHS,
        value_coefficient=0.1,
        max_new_tokens=LENGTH,
        max_gradient_norm=None,
        evaluate_rows=1,
        evaluate_every=steps,
        checkpoint_every=steps,
        sentinel=None,
        kl={"coefficient": KL},
        lora={"rank": LORA["r"], "alpha": LORA["lora_alpha"], "targets": LORA["target_modules"]},
    )
    policy = Policy(LlamaForCausalLM(LlamaConfig(**CONFIG)).eval(), settings)
    start(policy)
    asked, names = prompts(), [str(row) for row in range(PROMPTS)]
    questions = Questions(names, names, [["w4", "w5"]] * PROMPTS, [0] * PROMPTS, asked, names)

    def rewards(_: Any, responses: list[str]) -> torch.Tensor:
        return torch.tensor([reward(text) for text in responses])

    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            policy, words(), questions, rewards, questions, rewards, settings, seed, Path(folder), "bench"
        )
        session.start()
        Trainer(session).train()
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row["reward"] for row in rows[1:]]


def compared(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, Any]:
    """Means over seeds [seeds, steps], and whether they differ by more than seeds do."""
    from scipy.stats import ttest_ind

    of_each = ttest_ind(ours.mean(1), theirs.mean(1), equal_var=False)
    low, high = of_each.confidence_interval(0.95)
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    apart = (ours.mean(0) - theirs.mean(0)).abs() > 1.96 * error
    return {
        "ours": ours.mean(0).tolist(),
        "peer": theirs.mean(0).tolist(),
        "seeds": len(ours),
        "difference": float(ours.mean() - theirs.mean()),
        "low": float(low),
        "high": float(high),
        "p_value": float(of_each.pvalue),
        "steps_apart": int(apart.sum()),
        "steps_apart_by_chance": 0.05 * ours.shape[1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("results/bench/ppo_speed.json"))
    parser.add_argument("--in-peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.in_peer:
        answers = os.fdopen(os.dup(1), "w")  # libraries print to where they like
        os.dup2(2, 1)
        print(json.dumps([peers_curve(seed, given.steps) for seed in range(given.seeds)]), file=answers, flush=True)
        return
    import trl_environment

    from elkflow.common.files import read_json, write_json

    words_of_command = [trl_environment.python(), __file__, "--in-peer", "--seeds", given.seeds, "--steps", given.steps]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(map(str, words_of_command), stdout=subprocess.PIPE, text=True, check=True, env=clean)
    theirs = torch.tensor(json.loads(done.stdout))
    ours = torch.tensor([our_curve(seed, given.steps) for seed in range(given.seeds)])
    found = compared(ours, theirs)
    write_json(given.output, (read_json(given.output) if given.output.is_file() else {}) | {"learning_curve": found})
    print(f"{'step':>6}{'ours':>9}{'TRL':>9}")
    for step in range(0, given.steps, max(1, given.steps // 10)):
        print(f"{step + 1:>6}{found['ours'][step]:>9.3f}{found['peer'][step]:>9.3f}")
    print(
        f"mean reward over all steps, ours less TRL's: {found['difference']:+.4f}"
        f" [{found['low']:+.4f}, {found['high']:+.4f}], {given.seeds} seeds, p = {found['p_value']:.2f};"
        f" {found['steps_apart']} of {given.steps} steps differ at the 5 % level"
    )


if __name__ == "__main__":
    main()
