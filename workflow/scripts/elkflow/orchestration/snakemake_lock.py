"""Snakemake's lock, made to die with the run that holds it.

Snakemake locks a folder with plain files, which a killed run leaves behind: starting again then asks for `--unlock`. An
operating system's lock vanishes with its process, so holding one beside them tells a live run from a dead one.
"""

import contextlib
import fcntl
import time
from pathlib import Path
from typing import IO

SETTLED = 5.0
"""Seconds that a run may take between writing Snakemake's lock and taking this one."""
_held: list[IO[str]] = []


def hold(state: Path = Path(".snakemake")) -> None:
    """Mark this process as the run at work in the folder; call it when the first job is about to start."""
    handle = (state / "running").open("a")
    _held.append(handle)
    with contextlib.suppress(OSError):  # a file system without locks: Snakemake's own lock is all there is
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def drop_stale(state: Path = Path(".snakemake")) -> list[str]:
    """Remove Snakemake's lock files if the run that wrote them is dead; return their names."""
    locks = sorted((state / "locks").glob("*.lock"))
    if not locks:
        return []
    youngest = max((lock.stat().st_mtime for lock in locks if lock.exists()), default=0.0)
    time.sleep(min(max(youngest + SETTLED - time.time(), 0.0), SETTLED))
    with (state / "running").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return []
        for lock in locks:
            lock.unlink(missing_ok=True)
    return [lock.name for lock in locks]
