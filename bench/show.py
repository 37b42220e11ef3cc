"""Print the speed table of the README from the files that the benchmarks wrote.

    PYTHONPATH=workflow/scripts python bench/show.py [--folder results/bench]

Files that are missing are left out. "Of the limit" is the part of the time that the matrix products alone would take.
"""

import argparse
from pathlib import Path
from typing import Any

from elkflow.errors import UserError
from elkflow.files import read_json
from elkflow.tables import plain

Row = list[str]


def extraction(found: dict[str, Any]) -> list[Row]:
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


def probes(found: dict[str, Any]) -> list[Row]:
    """Seconds for all layers of each method."""
    return [
        [
            f"{method} probes, {found['layers']} layers",
            f"{found[method]['batched_seconds']:.1f} s",
            f"{found[method]['one_by_one_seconds']:.1f}",
            f"{found[method]['ratio']:.1f}",
            "",
        ]
        for method in ("logistic", "ccs")
    ]


def ppo(found: dict[str, Any]) -> list[Row]:
    """Seconds a step at each dtype, against the peer's float32."""
    ours, peer = (found["seconds_per_step"][side] for side in ("ours", "peer"))
    rows = [
        [
            f"PPO step, {dtype}",
            f"{seconds:.2f} s",
            f"{peer['float32']:.2f}",
            f"{found['ratio_fp32' if dtype == 'float32' else 'ratio_best']:.1f}",
            f"{found['matmul_share'][dtype]:.0%}",
        ]
        for dtype, seconds in ours.items()
    ]
    if "ratio_to_quality" in found:
        rows.append(["PPO to the same accuracy", "", "", f"{found['ratio_to_quality']:.1f}", ""])
    return rows


def data(found: dict[str, Any]) -> list[Row]:
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
    for part in (extraction, probes, ppo, data):
        if (path := folder / f"{part.__name__}.json").is_file():
            rows += part(read_json(path))
    if len(rows) == 1:
        raise UserError(f"{folder}: no results of benchmarks; `make bench` writes them")
    print(plain(rows))


if __name__ == "__main__":
    main()
