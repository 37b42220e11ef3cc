"""TRL 0.11.4's PPOTrainer, used as in the thesis: one step for every line read. Runs in the peer's environment.

bench/ppo_speed.py starts it and talks to it in JSON, an object a line: first the job, then requests. Every request is
answered with how long its work took.
"""

import json
import os
import resource
import string
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

VERSIONS = ("torch", "trl", "transformers", "peft", "accelerate")


def readable(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as this old transformers can read it: two names in its JSON files are younger."""
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "config.json": lambda config: config | {"rope_theta": config["rope_parameters"]["rope_theta"]},
        "tokenizer_config.json": lambda config: config | {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for name, change in changes.items():
        content = change(json.loads((checkpoint / name).read_text()))
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(content))
    return folder


class Peer:
    """The thesis's loop: generate, score, `PPOTrainer.step`."""

    def __init__(self, job: dict[str, Any], folder: Path):
        import torch
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

        self.job, self.folder, given = job, folder, job["settings"]
        torch.manual_seed(given["seed"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        lora = LoraConfig(
            r=given["rank"], lora_alpha=given["alpha"], target_modules=given["targets"], task_type="CAUSAL_LM"
        )
        model = AutoModelForCausalLMWithValueHead.from_pretrained(
            str(folder), peft_config=lora, torch_dtype=getattr(torch, job["dtype"])
        )
        config = PPOConfig(
            seed=given["seed"],
            learning_rate=given["learning_rate"],
            batch_size=given["batch_size"],
            mini_batch_size=job["minibatch_size"],
            ppo_epochs=given["ppo_epochs"],
            init_kl_coef=given["kl"],
            adap_kl_ctrl=True,
            vf_coef=given["value_coefficient"],
            early_stopping=True,
            target_kl=given["target_kl"],
        )
        self.trainer = PPOTrainer(config, model, None, self.tokenizer)
        self.updates = 0
        train = self.trainer.train_minibatch

        def counted(*values: Any) -> Any:
            self.updates += 1
            return train(*values)

        self.trainer.train_minibatch = counted

    def step(self, rows: list[int]) -> dict[str, Any]:
        """A whole step on these prompts."""
        import torch

        given, job = self.job["settings"], self.job
        self.updates, start = 0, time.perf_counter()
        queries = [torch.tensor(job["tokens"][row]) for row in rows]
        responses = self.trainer.generate(
            queries,
            batch_size=len(rows),
            return_prompt=False,
            max_new_tokens=given["max_new_tokens"],
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        generated = time.perf_counter()
        texts = [self.tokenizer.decode(response, skip_special_tokens=True) for response in responses]
        kept = [text.strip().rstrip(string.punctuation + string.whitespace) for text in texts]
        scores = [job["rewards"][row].get(text, -1.0) for row, text in zip(rows, kept, strict=True)]
        stats = self.trainer.step(queries, responses, [torch.tensor(score) for score in scores])
        end = time.perf_counter()
        parts = {"generate": generated - start, "forward": stats["time/ppo/forward_pass"]}
        parts |= {"update": stats["time/ppo/optimize_step"]}
        return {"seconds": end - start, "parts": parts, "updates": self.updates}

    def online_reward(self, rows: list[int]) -> dict[str, Any]:
        """The frozen model over both answers of every prompt in one batch, and the probe on it: what a step without a
        table adds."""
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModel

        if not hasattr(self, "frozen"):
            self.frozen = AutoModel.from_pretrained(self.folder, torch_dtype=getattr(torch, self.job["dtype"])).eval()
            self.probe = load_file(self.job["probe"])
        start = time.perf_counter()
        texts = [self.job["tokens"][row] + answer for row in rows for answer in self.job["answers"]]
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, text in enumerate(texts):
            ids[at, : len(text)], mask[at, : len(text)] = torch.tensor(text), 1
        with torch.inference_mode():
            states = self.frozen(ids, attention_mask=mask, output_hidden_states=True).hidden_states[self.job["layer"]]
        last = states[torch.arange(len(texts)), mask.sum(1) - 1].float().view(len(rows), 2, -1)
        normal = (last - self.probe["mean"][0]) / self.probe["scale"][0]
        odds = ((normal[:, 1] - normal[:, 0]) * self.probe["weight"]).sum(-1) + self.probe["bias"]
        rewards = torch.stack([torch.sigmoid(-odds), torch.sigmoid(odds)], dim=1)
        return {"seconds": time.perf_counter() - start, "rewards": rewards.tolist()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # libraries print to where they like
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as name:
        peer = Peer(job, readable(Path(job["checkpoint"]), Path(name)))
        for line in sys.stdin:
            request = json.loads(line)
            done = peer.step(request["rows"]) if request["do"] == "step" else peer.online_reward(request["rows"])
            done["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            done["versions"] = {name: version(name) for name in VERSIONS}
            print(json.dumps(done), file=answers, flush=True)


if __name__ == "__main__":
    main()
