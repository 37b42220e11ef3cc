"""Cost of splitting and rendering a million questions: rows per second, peak memory, and the growth of time with size.

    python bench/data_speed.py [--sizes 10000 100000 1000000] [--folder /tmp/elkflow-bench] [--output FILE]

Each size runs in its own process (so that peak memory is its own): QNLI-style rows in a parquet file of one row group,
grouped by sentence, are split and rendered for a chat model with a word-level tokenizer. A slope of 1 means that time
is proportional to rows. Wall time is meaningful only on an otherwise idle machine, CPU time always.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(ROOT / "tests")]


def make_source(path: Path, rows: int) -> None:
    """Write `rows` rows of about 150 characters, three per sentence."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.arange(rows)
    table = {
        "sentence": [f"The {n // 3}th river of the atlas runs for {n // 3 * 7 % 5003} miles." for n in numbers],
        "question": [f"How long is river {n // 3}, as seen in version {n} of the question?" for n in numbers],
        "label": numbers % 2,
    }
    pq.write_table(pa.table(table), path)


def clocks() -> tuple[float, float]:
    """Seconds of wall and of CPU time."""
    return time.monotonic(), time.process_time()


def slopes(found: list[dict[str, float]]) -> dict[str, float]:
    """Slope of log seconds over log rows, from the smallest to the largest size."""
    rows = math.log(found[-1]["rows"] / found[0]["rows"])
    return {key: math.log(found[-1][key] / found[0][key]) / rows for key in found[0] if key.endswith("_seconds")}


def run(rows: int, folder: Path) -> dict[str, float]:
    """Split and render `rows` rows; return seconds (wall and CPU) of each and peak memory in MB."""
    from tiny import tiny_tokenizer

    from elkflow.common.files import write_json
    from elkflow.config.data import SPLITS, ChatSettings, DatasetSettings
    from elkflow.data.split_dataset import split_dataset
    from elkflow.prompts.render_prompts import render_prompts

    source, checkpoint = folder / f"{rows}.parquet", folder / "checkpoint"
    tokenizer = tiny_tokenizer()
    write_json(checkpoint / "config.json", {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096})
    settings = DatasetSettings.model_validate(
        {
            "path": str(source),
            "group": "sentence",
            "split": {"train": rows // 10, "ppo": rows * 7 // 10, "val": rows // 20},
            "wordings": {"training": "qnli_training"},
        }
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = clocks()
    split_dataset(settings.questions(), folder / "data")
    middle = clocks()
    splits = {name: folder / "data" / f"{name}.parquet" for name in SPLITS}
    chat = ChatSettings(chat=True, system_prompt="")
    render_prompts(settings.rendering("training"), chat, checkpoint, tokenizer, splits, folder / "prompts")
    end = clocks()
    source.unlink()
    return {
        "rows": rows,
        "split_seconds": middle[0] - start[0],
        "split_cpu_seconds": middle[1] - start[1],
        "render_seconds": end[0] - middle[0],
        "render_cpu_seconds": end[1] - middle[1],
        "rss_before_mb": before / 1024,
        "rss_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/elkflow-bench"))
    parser.add_argument("--output", type=Path, default=Path("results/bench/data_speed.json"))
    parser.add_argument("--make", type=int, help="only write a source of this many rows")
    parser.add_argument("--one", type=int, help="only measure on a source of this many rows")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.make:
        make_source(arguments.folder / f"{arguments.make}.parquet", arguments.make)
        return
    if arguments.one:
        print(json.dumps(run(arguments.one, arguments.folder)))
        return
    print(f"{'rows':>9} {'split rows/s':>13} {'render rows/s':>14} {'peak MB':>8} {'of which imports':>17}")
    found = []
    for size in arguments.sizes:
        for what in ("--make", "--one"):  # separate processes, as peak memory includes making the source
            command = [sys.executable, __file__, what, str(size), "--folder", str(arguments.folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        one = found[-1]
        speeds = f"{size / one['split_seconds']:13,.0f} {size * 0.85 / one['render_seconds']:14,.0f}"
        print(f"{size:9,} {speeds} {one['rss_peak_mb']:8,.0f} {one['rss_before_mb']:17,.0f}", flush=True)
    rises = slopes(found) if len(found) > 1 else {}
    for key, rise in rises.items():
        print(f"log-log slope of {key.replace('_', ' ')}: {rise:.3f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"cores": os.cpu_count(), "sizes": found, "slopes": rises}
    arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
