"""Scores that were computed already, found again by the model's content and the exact tokens that were asked.

The harness has a cache of its own, but its keys do not name the model (EleutherAI/lm-evaluation-harness#2715, #4063):
after training it would serve the untrained model's answers. Here a score is found only where the weights' hash, the
dtype, the code that scores, the libraries and every token of every request are the same. So adding a task to a suite
runs that task alone, and an evaluation that was killed goes on where it stopped.
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from elkflow.common.code_inputs import closure
from elkflow.common.errors import UserError
from elkflow.common.files import read_json, sha256, write_json
from elkflow.common.paths import PACKAGE

logger = logging.getLogger("elkflow")
BLOCK = 8192
"""Requests in one file: a killed evaluation loses at most so many."""
SCORING = PACKAGE / "evaluation" / "harness_model.py"
"""The module that computes scores: an edit to it, or to one that it imports, forgets them all."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "lm_eval")

Request = tuple[Any, list[int], list[int]]
Score = tuple[float, bool]


class Answers:
    """Scores of one subject, in files below `folder`.

    Args:
        subject: whatever decides its scores, as JSON: hashes of weights, dtype, device.
    """

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        code = [sha256(path) for path in sorted({SCORING, *closure(SCORING)})]
        libraries = [metadata.version(library) for library in LIBRARIES]
        self.folder = Path(folder) / _digest([json.dumps([subject, code, libraries], sort_keys=True).encode()])[:24]

    def get(self, requests: Sequence[Request]) -> list[Score] | None:
        """The scores of exactly these requests, in this order; None where they are not known, or damaged."""
        file = self._file(requests)
        if not file.is_file():
            return None
        try:
            kept = read_json(file)
            scores = [(float(score), bool(greedy)) for score, greedy in kept["scores"]]
            whole = kept["sha256"] == _hash_of(scores)
        except (UserError, LookupError, TypeError, ValueError):
            whole = False
        if not whole:
            logger.warning("%s: damaged; its questions are asked again", file)
        return scores if whole else None

    def put(self, requests: Sequence[Request], scores: Sequence[Score]) -> None:
        """Keep the scores of these requests."""
        write_json(self._file(requests), {"scores": [list(score) for score in scores], "sha256": _hash_of(scores)})

    def _file(self, requests: Sequence[Request]) -> Path:
        parts = (array("q", part).tobytes() for _, context, answer in requests for part in (context, answer))
        return self.folder / f"{_digest(parts)[:32]}.json"


def _hash_of(scores: Sequence[Score]) -> str:
    return _digest([json.dumps([[float(score), bool(greedy)] for score, greedy in scores]).encode()])


def _digest(parts: Iterable[bytes]) -> str:
    """Hash of a sequence of byte strings; their borders count."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
