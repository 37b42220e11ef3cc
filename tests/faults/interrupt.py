"""Kill a piece of Python at a chosen line: the smallest unit at which a process can be said to have stopped."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

LIBRARY = str(Path(__file__).resolve().parents[2] / "workflow" / "scripts" / "elkflow")


def killed_at(line: int, work: Callable[[], object], signum: int = signal.SIGKILL) -> bool:
    """Run `work` in a forked process that gets `signum` just before its `line`-th line of library code.

    Returns:
        Whether it was killed; False: it finished before, so every line has been tried.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if not frame.f_code.co_filename.startswith(LIBRARY):
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signum)
            return trace

        status = 0
        try:
            sys.settrace(trace)
            work()
        except BaseException:  # whatever it was, the parent must hear of it, and pytest must not run on in here
            status = 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the interrupted work failed by itself"
    return False


def every_line(work: Callable[[], object], step: int = 1):
    """Yield after each kill of `work`, at its first line, its second, ... until it runs through unhurt."""
    line = 1
    while killed_at(line, work):
        yield line
        line += step
