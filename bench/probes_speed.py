"""Time to fit probes on all layers at once, and one at a time, with the same optimiser and tolerance.

    PYTHONPATH=workflow/scripts python bench/probes_speed.py [states.safetensors prompts.parquet] [--output file]

Without states it generates some: 31 layers of 1,200 contrast pairs, 576 wide, with a spectrum that decays like a
language model's. `batched` is what the workflow does; `one by one` fits each layer, penalty, fold and restart
separately, with logistic regressions still in the layer's principal axes, which are computed once; `in features` is the
same without those axes, as in elk. All run in turn on the same machine; the report compares their AUROC.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elkflow.common.files import write_json
from elkflow.common.memory import keep_freed_memory
from elkflow.common.metrics import auroc
from elkflow.config.probe import CcsSettings, LogisticSettings
from elkflow.probes import methods
from elkflow.probes.contrast_pairs import ContrastPairs, Normalisation, assign_folds

L2, FOLDS = LogisticSettings().l2, LogisticSettings().folds
RESTARTS, CCS_L2 = CcsSettings().restarts, CcsSettings().l2


def made_up(layers: int = 31, rows: int = 1200, width: int = 576) -> tuple[Tensor, np.ndarray]:
    """States [L, N, 2, D] of a weak truth direction among features of very different strength, and labels [N]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 2
    mixing = torch.linalg.qr(torch.randn(layers, width, width, generator=generator)).Q
    spectrum = torch.logspace(0.5, -1.5, width)
    states = torch.randn(layers, rows, 2, width, generator=generator) * spectrum
    states += torch.randn(layers, rows, 1, width, generator=generator) * spectrum
    sign = (2 * labels - 1)[None, :, None] * torch.tensor([-1, 1])
    states[..., width // 4] += 0.5 * sign
    return torch.einsum("lnad,lde->lnae", states, mixing), labels.numpy()


def logistic_batched(positive: Tensor, negative: Tensor, labels: Tensor, folds: Tensor) -> methods.Direction:
    return methods.logistic_path(positive - negative, labels, L2, folds)


def logistic_one_by_one(
    positive: Tensor, negative: Tensor, labels: Tensor, folds: Tensor, *, in_features: bool = False
) -> methods.Direction:
    """The same choice of penalty, with separate fits."""
    weights, biases = [], []
    for layer in range(len(positive)):
        x = positive[layer : layer + 1] - negative[layer : layer + 1]
        axes = None if in_features else methods.principal_axes(x)
        losses, fits = [], []
        for penalty in L2:
            held_out = 0.0
            for fold in range(int(folds.max()) + 1):
                inside = folds != fold
                weight, bias, _ = one_logistic(x, labels, penalty, inside, axes)
                z = x[0, ~inside] @ weight + bias
                held_out += float((torch.nn.functional.softplus(z) - labels[~inside] * z).sum())
            losses.append(held_out)
            fits.append(one_logistic(x, labels, penalty, torch.ones_like(folds, dtype=torch.bool), axes))
        weight, bias, _ = fits[int(np.argmin(losses))]
        weights.append(weight)
        biases.append(bias)
    return methods.Direction(torch.stack(weights), torch.stack(biases), {})


def one_logistic(
    x: Tensor, labels: Tensor, penalty: float, inside: Tensor, axes: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One penalty on the rows `inside`, in the layer's axes as in the batch, or (None) in the features themselves."""
    if axes is None:  # mean squares for which `logistic` scales by 1
        axes = torch.eye(x.shape[-1])[None], torch.full((1, x.shape[-1]), 4 * (1 - penalty))
    problem = x[:, inside], labels[inside], torch.tensor([penalty]), torch.ones(1, int(inside.sum()))
    weight, bias, value = methods.logistic(*problem, axes=axes)
    return weight[0, 0], bias[0, 0], value[0, 0]


def ccs_batched(positive: Tensor, negative: Tensor, labels: Tensor, folds: Tensor) -> methods.Direction:
    return methods.ccs(positive, negative, restarts=RESTARTS, l2=CCS_L2, seed=0)


def ccs_one_by_one(positive: Tensor, negative: Tensor, labels: Tensor, folds: Tensor) -> methods.Direction:
    weights, biases = [], []
    for layer in range(len(positive)):
        pair = positive[layer : layer + 1], negative[layer : layer + 1]
        found = [methods.ccs(*pair, restarts=1, l2=CCS_L2, seed=seed) for seed in range(RESTARTS)]
        best = min(found, key=lambda direction: float(direction.facts["loss"]))
        weights.append(best.weight[0])
        biases.append(best.bias[0])
    return methods.Direction(torch.stack(weights), torch.stack(biases), {})


def measured(fit: Callable[..., methods.Direction], *data: Tensor) -> tuple[float, np.ndarray]:
    """Seconds, and AUROC of each layer (of either sign)."""
    start = time.perf_counter()
    found = fit(*data)
    seconds = time.perf_counter() - start
    odds = torch.einsum("lnd,ld->ln", data[0] - data[1], found.weight).numpy()
    values = np.array([auroc(layer, data[2].numpy()) for layer in odds])
    return seconds, np.maximum(values, 1 - values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states", nargs="?", type=Path)
    parser.add_argument("prompts", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/bench/probes_speed.json"))
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    keep_freed_memory()  # as every script of the workflow does
    if given.states:
        pairs = ContrastPairs.read([given.prompts], [given.states])
        states, labels, groups = pairs.states(range(pairs.layers))[:, 0], pairs.labels, pairs.groups
    else:
        states, labels = made_up()
        groups = np.arange(len(labels)) // 8
    states = Normalisation.of(states[:, None], "full")(states[:, None])[:, 0]
    negative, positive = states[:, :, 0].contiguous(), states[:, :, 1].contiguous()
    data = (positive, negative, torch.as_tensor(labels), torch.as_tensor(assign_folds(groups, FOLDS, 0)))
    report: dict[str, object] = {
        "layers": len(states),
        "rows": len(labels),
        "width": states.shape[-1],
        "states": "extracted" if given.states else "made up",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    ways: dict[str, dict[str, Callable[..., methods.Direction]]] = {
        "logistic": {
            "batched": logistic_batched,
            "one_by_one": logistic_one_by_one,
            "in_features": partial(logistic_one_by_one, in_features=True),
        },
        "ccs": {"batched": ccs_batched, "one_by_one": ccs_one_by_one},
    }
    for name, fits in ways.items():
        rounds = [{way: measured(fit, *data) for way, fit in fits.items()} for _ in range(given.rounds)]
        took = {way: statistics.median(found[way][0] for found in rounds) for way in fits}
        reached = {way: values for way, (_, values) in rounds[-1].items()}
        report[name] = {
            "problems": len(states) * (len(L2) * (FOLDS + 1) if name == "logistic" else RESTARTS),
            **{f"{way}_seconds": seconds for way, seconds in took.items()},
            "ratio": took["one_by_one"] / took["batched"],
            "auroc_mean": float(reached["batched"].mean()),
            "auroc_largest_difference": max(
                float(np.abs(reached["batched"] - each).max()) for each in reached.values()
            ),
        }
        print(name, report[name])
    totals = [sum(report[name][f"{way}_seconds"] for name in ways) for way in ("one_by_one", "batched")]  # type: ignore[index]
    report["ratio"] = totals[0] / totals[1]
    print(f"ratio {report['ratio']:.1f}")
    write_json(given.output, report)


if __name__ == "__main__":
    main()
