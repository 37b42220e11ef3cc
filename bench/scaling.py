"""An estimate, not a measurement: memory and time of a PPO step of 7B and 13B models on one and on eight GPUs.

    python bench/scaling.py [--measured results/bench/ppo.json] [--output results/bench/scaling.json]

Two constants are measured, by bench/ppo.py on a small model and a CPU: how many bytes of activations a step keeps for
each token, block and unit of width, and what part of the matrix products' own speed a whole step reaches. Everything
else is arithmetic on the models' shapes and the assumptions about the GPU below, which are its maker's figures and the
share of them that matrix products usually reach. Real runs will differ; orders of magnitude and the order of the rows
should not.

GPUs work side by side on a whole copy of the model each (data parallel), with the same number of prompts each, so eight
of them make a step on eight times the prompts. What they exchange, the adapter's gradients, is counted as well.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elkflow.files import read_json, write_json


@dataclass(frozen=True)
class Gpu:
    """Assumptions about a GPU (NVIDIA A100 80 GB, by its data sheet) and how it is used."""

    flops: float = 312e12
    """bfloat16, dense."""
    reached: float = 0.6
    """Part of it that matrix products of these sizes reach."""
    bandwidth: float = 2.0e12
    """Bytes a second of its memory."""
    link: float = 25e9
    """Bytes a second between GPUs of a node, through PCI express."""
    reserved: float = 1.5e9
    """Bytes of driver context, libraries and fragmentation."""


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    blocks: int
    width: int
    inner: int
    vocabulary: int

    @property
    def matrices(self) -> int:
        """Weights of the blocks' matrices."""
        return self.blocks * (4 * self.width**2 + 3 * self.width * self.inner)

    @property
    def embeddings(self) -> int:
        """Weights of embedding and output layer, which stay in 16 bits."""
        return 2 * self.vocabulary * self.width

    def adapter(self, rank: int) -> int:
        """LoRA on q and v."""
        return self.blocks * 2 * 2 * self.width * rank


MODELS = {"7B": Shape(32, 4096, 11_008, 32_000), "13B": Shape(40, 5120, 13_824, 32_000)}
BYTES = {"fp16": 2.0, "8-bit": 1.0 + 4 / 4096, "4-bit": 0.5 + 4 / 64}
"""A weight, with its scales: one float32 a row (LLM.int8) or for 64 weights (nf4)."""
FITS = (24, 40, 80)
"""Common sizes of GPU memory in GB."""


def memory(shape: Shape, bits: str, tokens: float, rank: int, activation: float, gpu: Gpu) -> dict[str, float]:
    """GB on each GPU: weights once, the adapter with gradients and two moments in float32, activations of one pass.

    Args:
        tokens: in a minibatch.
        activation: bytes for each token, block and unit of width.
    """
    parts = {
        "weights": shape.matrices * BYTES[bits] + shape.embeddings * 2.0,
        "adapter": shape.adapter(rank) * 16.0,
        "activations": activation * tokens * shape.blocks * shape.width,
        "reserved": gpu.reserved,
    }
    return {name: value / 1e9 for name, value in parts.items()} | {"memory_gb": sum(parts.values()) / 1e9}


def seconds(
    shape: Shape, bits: str, gpus: int, tokens: float, passes: int, rank: int, share: float, gpu: Gpu
) -> dict[str, float]:
    """Seconds of a step: products at the measured share of their speed, unpacking of quantised weights in every pass,
    and the exchange of gradients in every epoch.

    Args:
        tokens: of a GPU's prompts.
        passes: forward and backward passes in a step.
        share: part of the matrix products' own speed that a whole step reaches.
    """
    epochs = (passes - 1) // 2
    parts = {
        "products": passes * 2 * shape.matrices * tokens / (gpu.flops * gpu.reached * share),
        "unpacking": 0.0 if bits == "fp16" else passes * shape.matrices * (BYTES[bits] + 2 + 2) / gpu.bandwidth,
        "exchange": epochs * 2 * (gpus - 1) / gpus * shape.adapter(rank) * 4 / gpu.link,
    }
    return parts | {"seconds_per_step": sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=Path("results/bench/ppo.json"))
    parser.add_argument("--output", type=Path, default=Path("results/bench/scaling.json"))
    given = parser.parse_args()
    measured, gpu = read_json(given.measured), Gpu()
    settings = measured["hyperparameters"]
    batch, rank, tokens = settings["batch_size"], settings["rank"], measured["tokens_per_step"]
    passes, share = 2 * settings["ppo_epochs"] + 1, measured["matmul_share"]["bfloat16"]
    activation = measured["activation_bytes"]["bfloat16"]
    rows: list[dict[str, Any]] = []
    for model, shape in MODELS.items():
        for bits in BYTES:
            for gpus in (1, 8):
                needs = memory(shape, bits, tokens, rank, activation, gpu)
                takes = seconds(shape, bits, gpus, tokens, passes, rank, share, gpu)
                fits = next((size for size in FITS if needs["memory_gb"] <= size), None)
                rows.append({"model": model, "base": bits, "gpus": gpus, "prompts": batch * gpus, "fits_gb": fits})
                rows[-1] |= needs | takes
    report = {
        "label": "estimate",
        "measured": {"activation_bytes": activation, "share_of_products": share, "tokens_per_step": tokens},
        "assumed": asdict(gpu),
        "hyperparameters": settings,
        "rows": rows,
    }
    write_json(given.output, report)
    print(
        f"ESTIMATE from {activation:.0f} bytes of activations a token, block and unit of width and {share:.0%} of the"
    )
    print(f"products' speed (both measured), {tokens / batch:.0f} tokens a prompt, {batch} prompts a GPU, on {gpu}\n")
    print("| model | base | GPUs | prompts a step | GB a GPU | fits on | seconds a step | prompts a second |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        size = f"{row['fits_gb']} GB" if row["fits_gb"] else "none of these"
        print(
            f"| {row['model']} | {row['base']} | {row['gpus']} | {row['prompts']} | {row['memory_gb']:.1f} | {size} |"
            f" {row['seconds_per_step']:.2f} | {row['prompts'] / row['seconds_per_step']:.0f} |"
        )


if __name__ == "__main__":
    main()
