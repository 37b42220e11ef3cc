"""A limit on the CPU time of untrusted work, such as rendering a template."""

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
    """Raise TookTooLongError inside the body after `seconds` of this process's CPU time.

    Waiting for a core does not count, so the limit does not depend on how busy the machine is. Works only in the main
    thread, where signals are handled; other threads have no limit. A single long operation in C is not interrupted.
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
