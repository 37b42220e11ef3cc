"""Cache of log-probabilities, keyed by the content of the model and the exact tokens of the requests.

The harness's own cache does not key on the model (EleutherAI/lm-evaluation-harness#2715, #4063): after training it
would serve the untrained model's scores. Here a score is found only where the weights' hash, the dtype, the scoring
code, the libraries and every token of every request are the same. Adding a task to a suite therefore runs that task
alone, and a killed evaluation resumes where it stopped.
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
"""Requests per file: the most that a killed evaluation loses."""
SCORING_MODULE = PACKAGE / "evaluation" / "harness_model.py"
"""The module that computes scores: an edit to it or to anything it imports invalidates the cache."""
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "lm_eval")

Request = tuple[Any, list[int], list[int]]
Score = tuple[float, bool]


class ScoreCache:
    """Scores of one model, in files below `folder`.

    Args:
        model: whatever decides its scores, as JSON: hashes of weights, dtype, device.
    """

    def __init__(self, folder: Path, model: Mapping[str, Any]) -> None:
        code = [sha256(path) for path in sorted({SCORING_MODULE, *closure(SCORING_MODULE)})]
        libraries = [metadata.version(library) for library in LIBRARIES]
        self.folder = Path(folder) / _digest([json.dumps([model, code, libraries], sort_keys=True).encode()])[:24]

    def get(self, requests: Sequence[Request]) -> list[Score] | None:
        """The scores of exactly these requests, in this order; None if they are not cached or damaged."""
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
            logger.warning("%s: damaged; its requests are scored again", file)
        return scores if whole else None

    def put(self, requests: Sequence[Request], scores: Sequence[Score]) -> None:
        """Store the scores of these requests."""
        write_json(self._file(requests), {"scores": [list(score) for score in scores], "sha256": _hash_of(scores)})

    def _file(self, requests: Sequence[Request]) -> Path:
        parts = (array("q", part).tobytes() for _, context, answer in requests for part in (context, answer))
        return self.folder / f"{_digest(parts)[:32]}.json"


def _hash_of(scores: Sequence[Score]) -> str:
    return _digest([json.dumps([[float(score), bool(greedy)] for score, greedy in scores]).encode()])


def _digest(parts: Iterable[bytes]) -> str:
    """Hash of a sequence of byte strings, including their boundaries."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()
