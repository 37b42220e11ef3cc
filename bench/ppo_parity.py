"""Reference values of TRL 0.11.4's PPOTrainer.step on a tiny model, for tests/unit/ppo/test_parity.py.

    python bench/ppo_parity.py [--output tests/unit/ppo/parity.json]

Runs itself again in the peer's environment (`.venv-peers/`, made if need be). What the two do differently by choice is
set equal: no dropout before the value head, whole batches as minibatches, no early stopping.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "trl", "transformers", "peft", "accelerate")


def reference(case: dict[str, Any]) -> dict[str, Any]:
    """One PPO step: advantages, returns, losses, KL coefficient and parameters after it."""
    import torch
    from peft import LoraConfig
    from tiny_model import BATCH, CLIP, CONFIG, KL, LORA, RATE, VALUE_CLIP, batch, fill, plain
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(CONFIG["vocab_size"])}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", eos_token="w3")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        LlamaForCausalLM(LlamaConfig(**CONFIG)), peft_config=LoraConfig(**LORA), summary_dropout_prob=0.0
    )
    fill(model)
    config = PPOConfig(
        learning_rate=RATE,
        batch_size=BATCH,
        mini_batch_size=BATCH,
        ppo_epochs=case["ppo_epochs"],
        adap_kl_ctrl=case["adaptive"],
        vf_coef=case["vf_coef"],
        gamma=case["gamma"],
        lam=case["lam"],
        cliprange=CLIP,
        cliprange_value=VALUE_CLIP,
        max_grad_norm=case["max_grad_norm"],
        whiten_rewards=case.get("whiten", False),
        early_stopping=False,
        **KL,
    )
    trainer = PPOTrainer(config, model, None, tokenizer)
    seen: dict[str, list] = {"advantages": [], "policy_loss": [], "value_loss": []}
    loss, advantages = trainer.loss, trainer.compute_advantages

    def watched_loss(*given: Any) -> Any:
        policy, value, stats = loss(*given)
        seen["policy_loss"].append(float(policy.detach()))
        seen["value_loss"].append(float(value.detach()) / case["vf_coef"])
        return policy, value, stats

    def watched_advantages(values: Any, rewards: Any, mask: Any) -> Any:
        found = advantages(values, rewards, mask)
        inside = [row.bool() for row in mask]
        for name, tensor in (
            ("values", found[0]),
            ("advantages", found[1]),
            ("returns", found[2]),
            ("rewards", rewards),
        ):
            seen[name] = [row[where].tolist() for row, where in zip(tensor, inside, strict=True)]
        return found

    trainer.loss, trainer.compute_advantages = watched_loss, watched_advantages
    prompts, responses, scores = batch(ragged=not case.get("whiten"))
    stats = trainer.step(
        [torch.tensor(row) for row in prompts],
        [torch.tensor(row) for row in responses],
        [torch.tensor(score) for score in scores],
    )
    parameters = {plain(n): p.detach().flatten().tolist() for n, p in model.named_parameters() if p.requires_grad}
    return {
        **seen,
        "kl": float(stats["objective/kl"]),
        "kl_coefficient": trainer.kl_ctl.value,
        "parameters": parameters,
    }


def rounded(value: Any) -> Any:
    """Seven decimals are enough for a tolerance of 1e-4."""
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tests/unit/ppo/parity.json"))
    parser.add_argument("--in-peer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.in_peer:
        import trl_environment

        subprocess.run([trl_environment.python(), __file__, "--in-peer", "--output", given.output], check=True)
        return
    from importlib.metadata import version

    from tiny_model import CASES

    made: dict[str, Any] = {"made_by": "bench/ppo_parity.py", "versions": {name: version(name) for name in VERSIONS}}
    made["cases"] = {name: rounded(reference(case)) for name, case in CASES.items()}
    given.output.write_text(json.dumps(made, indent=None, separators=(",", ":")) + "\n")
    print(f"{given.output}: {len(CASES)} cases", file=sys.stderr)


if __name__ == "__main__":
    main()
