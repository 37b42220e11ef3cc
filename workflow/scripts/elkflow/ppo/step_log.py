"""The log of a run: one JSON object per line, truncated to the checkpoint's step when a run resumes."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class StepLog:
    """metrics.jsonl and samples.jsonl in a folder; only the main process writes."""

    def __init__(self, folder: Path, writes: bool = True):
        self.metrics_file, self.samples_file, self.writes = folder / "metrics.jsonl", folder / "samples.jsonl", writes

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append a step's metrics; NaN and infinity, which JSON does not have, become null."""
        self._append(self.metrics_file, [metrics])

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append prompts and responses."""
        self._append(self.samples_file, rows)

    def truncate(self, step: int) -> None:
        """Remove everything after `step`, and a line that was half-written when the run was killed."""
        if not self.writes:
            return
        for file in (self.metrics_file, self.samples_file):
            lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
            kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
            temporary = file.with_suffix(".tmp")
            temporary.write_bytes(b"".join(kept))
            os.replace(temporary, file)

    def _append(self, file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        if self.writes:
            with file.open("a", encoding="utf-8") as handle:
                for row in rows:
                    finite = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in row.items()}
                    handle.write(json.dumps(finite, ensure_ascii=False) + "\n")
