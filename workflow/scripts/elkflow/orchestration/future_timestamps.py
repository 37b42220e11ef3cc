"""Results from the future, left by a clock that ran ahead."""

import contextlib
import os
import time
from pathlib import Path

MARGIN = 60.0
"""Seconds ahead that network file systems and their machines may differ."""


def settle(folder: Path) -> int:
    """Set times of files that lie in the future to now, and return how many did.

    Snakemake fails a job whose outputs are older than its inputs, so nothing could be made of such files until their
    time has come. What is rerun depends on contents, which stay as they are.
    """
    now, found = time.time(), 0
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(OSError):  # a file that just went, or another user's
            if path.lstat().st_mtime > now + MARGIN:
                os.utime(path, (now, now), follow_symlinks=False)
                found += 1
    return found
