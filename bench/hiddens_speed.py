"""Contrast pairs per second: this workflow's extraction against one text at a time, and against the matmul limit.

    python bench/hiddens_speed.py [--checkpoint …] [--prompts ….parquet] [--output results/bench/hiddens_speed.json]

All ways run in turn on the same model, rows, machine and threads; ratios are medians over rounds. `one by one` is elk's
way: one forward pass per text, in float32, with the logits of all positions. Ours is timed on every n-th of the batches
for all rows of the file. The limit is torch.matmul over the weights of the blocks at the shapes and dtype used, for the
tokens computed: `matmul_share` is its share of our time, and `ratio_at_limit` the ratio if nothing else took any time.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from elkflow.batching.prefix_tree import Line, PromptWithAnswers, batch_lines
from elkflow.common.files import read_table, write_json
from elkflow.common.memory import keep_freed_memory
from elkflow.hiddens.reader import BATCH_TOKENS, Reader, choose_layout
from elkflow.hiddens.tokenise import tokenise_prompts
from elkflow.models.load import compute_dtype, load_model
from elkflow.models.tokens import load_tokenizer
from elkflow.report.formatting import align


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def one_by_one(model: PreTrainedModel, questions: Sequence[PromptWithAnswers]) -> None:
    """One forward pass per prompt and answer, with all logits; states of the last token."""
    for question in questions:
        for answer in question.answers:
            outputs = model(torch.tensor([[*question.prompt, *answer]]), output_hidden_states=True)
            torch.stack([layer[0, -1] for layer in outputs.hidden_states])


def products(model: PreTrainedModel, batch: Sequence[Line]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and weights of the blocks' matrix products for the tokens of a batch."""
    weights = [w for name, w in model.base_model.named_parameters() if w.dim() == 2 and "embed" not in name]
    tokens = sum(len(line.ids) for line in batch)
    inputs = {w.shape[1]: torch.randn(tokens, w.shape[1], dtype=w.dtype) for w in weights}
    return [(inputs[w.shape[1]], w) for w in weights]


@torch.inference_mode()
def matmul_only(factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Compute these products and nothing else."""
    for given, weight in factors:
        torch.matmul(given, weight.t())


def plan(reader: Reader, questions: Sequence[PromptWithAnswers], sample: int) -> tuple[list[list[Line]], float]:
    """Evenly spaced batches of those for all questions, and the number of tokens computed per pair."""
    tokens = BATCH_TOKENS["cpu"]
    lines = reader.lines(questions, tokens)
    work = list(batch_lines(lines, tokens))
    step = max(1, len(work) // sample)
    return work[step // 2 :: step][:sample], sum(len(line.ids) for line in lines) / len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("results/models/smollm2/checkpoint"))
    prompts = Path("results/prompts/smollm2/countries/training/train.parquet")
    parser.add_argument("--prompts", type=Path, default=prompts)
    parser.add_argument("--output", type=Path, default=Path("results/bench/hiddens_speed.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=8, help="pairs per round, one by one")
    parser.add_argument("--batches", type=int, default=2, help="batches per round of ours")
    given = parser.parse_args()

    keep_freed_memory()  # as every script of the workflow does
    table = read_table(given.prompts, ["prompt", "answers"])
    tokenizer = load_tokenizer(given.checkpoint)
    questions = tokenise_prompts(tokenizer, "decoder", table["prompt"].to_pylist(), table["answers"].to_pylist())
    best = str(compute_dtype()).removeprefix("torch.")
    dtypes = list(dict.fromkeys(["float32", best]))
    models = {dtype: load_model(given.checkpoint, dtype=dtype, kind="decoder") for dtype in dtypes}
    readers = {dtype: choose_layout(Reader(model, "decoder"), questions) for dtype, model in models.items()}
    plans = {dtype: plan(reader, questions, given.batches) for dtype, reader in readers.items()}
    step = max(1, len(questions) // (given.pairs * given.rounds))
    chosen = questions[::step]

    rates: dict[str, list[float]] = {name: [] for name in ("one_by_one", *dtypes)}
    shares: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
    for number in range(given.rounds + 1):  # the first warms up
        alone = chosen[number % given.rounds :: given.rounds][: given.pairs]
        took = seconds(lambda alone=alone: one_by_one(models["float32"], alone))
        if number:
            rates["one_by_one"].append(len(alone) / took)
        for dtype in dtypes:
            work, _ = plans[dtype]
            pairs = sum(len(line.slots) for batch in work for line in batch) / 2
            took = seconds(lambda dtype=dtype, work=work: [readers[dtype].read(batch) for batch in work])
            factors = [pair for batch in work for pair in products(models[dtype], batch)]
            limit = seconds(lambda factors=factors: matmul_only(factors))
            if number:
                rates[dtype].append(pairs / took)
                shares[dtype].append(limit / took)

    ratios = {
        dtype: statistics.median(ours / theirs for ours, theirs in zip(rates[dtype], rates["one_by_one"], strict=True))
        for dtype in dtypes
    }
    report = {
        "pairs_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio_fp32": ratios["float32"],
        "ratio_best": ratios[best],
        "best_dtype": best,
        "ratio_at_limit": {dtype: ratios[dtype] / statistics.median(values) for dtype, values in shares.items()},
        "matmul_share": {dtype: statistics.median(values) for dtype, values in shares.items()},
        "layout": {dtype: "shared" if reader.shared else "plain" for dtype, reader in readers.items()},
        "pairs_in_file": len(questions),
        "tokens_a_pair": {
            "one_by_one": statistics.mean(sum(len(q.prompt) + len(a) for a in q.answers) for q in questions),
            "ours": plans[best][1],
        },
        "rounds": given.rounds,
        "model": given.checkpoint.as_posix(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.processor() or platform.machine(),
    }
    write_json(given.output, report)
    heads = ("way", "pairs/s", "ratio", "of matmul limit", "ratio at the limit")
    rows = [["one by one, fp32", f"{report['pairs_per_second']['one_by_one']:.1f}", "1.0", "", ""]]
    rows += [
        [
            f"this workflow, {dtype}",
            f"{report['pairs_per_second'][dtype]:.1f}",
            f"{ratios[dtype]:.1f}",
            f"{report['matmul_share'][dtype]:.0%}",
            f"{report['ratio_at_limit'][dtype]:.1f}",
        ]
        for dtype in dtypes
    ]
    print(align([heads, *rows]))


if __name__ == "__main__":
    main()
