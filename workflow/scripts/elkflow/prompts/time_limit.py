"""A limit on the work that foreign text, such as a template, may give this process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DEFAULT_SECONDS = 5.0


class TookTooLongError(Exception):
    """The body of `time_limit` ran out of time."""


@contextmanager
def time_limit(seconds: float = DEFAULT_SECONDS) -> Iterator[None]:
    """Raise TookTooLongError inside the body after so many seconds of this process's CPU time.

    Waiting for a core does not count, so a busy machine refuses nothing that an idle one takes. Works in the main
    thread, where signals arrive, and between Python's own steps: a single long operation of C code is not interrupted.
    In other threads there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TookTooLongError(f"not done after {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
