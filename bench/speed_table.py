"""Print the speed table of docs/results.md from the files that the benchmarks wrote.

    PYTHONPATH=workflow/scripts python bench/speed_table.py [--folder results/bench]

Files that are missing are left out. "Of the limit" is the part of the time that the matrix products alone would take.
"""

import argparse
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.report.formatting import align

Row = list[str]


def hiddens_speed(found: dict[str, Any]) -> list[Row]:
    """Contrast pairs a second at each dtype."""
    rates = found["pairs_per_second"]
    return [
        [
            f"hidden states, {dtype}",
            f"{rates[dtype]:.1f} pairs/s",
            f"{rates['one_by_one']:.1f}",
            f"{found['ratio_fp32' if dtype == 'float32' else 'ratio_best']:.1f}",
            f"{share:.0%}",
        ]
        for dtype, share in found["matmul_share"].items()
    ]


def probes_speed(found: dict[str, Any]) -> list[Row]:
    """Seconds for all layers of each method; usual for logistic regression are the features themselves."""
    return [
        [
            f"{method} probes, {found['layers']} layers",
            f"{found[method]['batched_seconds']:.1f} s",
            f"{found[method][f'{usual}_seconds']:.1f}",
            f"{found[method][f'{usual}_seconds'] / found[method]['batched_seconds']:.1f}",
            "",
        ]
        for method, usual in (("logistic", "in_features"), ("ccs", "one_by_one"))
    ]


def ppo_speed(found: dict[str, Any]) -> list[Row]:
    """Seconds a step at each dtype against the peer's float32, and to the accuracy that the peer's best run has."""
    rows = []
    for title, part in (("PPO step", found), ("the same, one prompt a minibatch", found.get("thesis", {}))):
        if "seconds_per_step" not in part:  # what bench/ppo_curves.py writes into the same file can be alone there
            continue
        peer = part["seconds_per_step"]["peer"]["float32"]
        rows += [
            [
                f"{title}, {dtype}",
                f"{took:.2f} s",
                f"{peer:.2f}",
                f"{peer / took:.1f}",
                f"{part['matmul_share'][dtype]:.0%}",
            ]
            for dtype, took in part["seconds_per_step"]["ours"].items()
        ]
    if quality := found.get("time_to_quality"):
        ours, peer = quality["ours"]["total_seconds"], quality["peer"]["seconds"]
        least = "at least " if quality["at_least"] else ""
        rows.append(["PPO to the same accuracy", f"{ours:.0f} s", f"{peer:.0f}", f"{least}{quality['ratio']:.1f}", ""])
    return rows


def data_speed(found: dict[str, Any]) -> list[Row]:
    """Rows a second at the largest size."""
    largest = found["sizes"][-1]
    count = largest["rows"]
    return [
        [f"split {count:,} rows", f"{largest['split_seconds']:.1f} s", "", "", ""],
        [f"render their prompts, {largest['rss_peak_mb']:,.0f} MB", f"{largest['render_seconds']:.1f} s", "", "", ""],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("results/bench"))
    folder = parser.parse_args().folder
    rows = [["", "this workflow", "the usual way", "times as fast", "of the limit"]]
    for part in (hiddens_speed, probes_speed, ppo_speed, data_speed):
        if (path := folder / f"{part.__name__}.json").is_file():
            rows += part(read_json(path))
    if len(rows) == 1:
        raise UserError(f"{folder}: no results of benchmarks; `make bench` writes them")
    print(align(rows))


if __name__ == "__main__":
    main()
