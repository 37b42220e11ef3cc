"""Loaded by every Python process of a disturbed run (it stands on PYTHONPATH): carries out the fault in $ELKFLOW_FAULT.

The fault is JSON: script (the stage it happens in), call (a function of `os` that is about to be called: `replace`,
`fsync`, `pwrite`, ...), file (a regular expression for the path it is about to touch), count (how manieth such call),
after (whether the call still happens), signal, once (a file that marks it as done). $ELKFLOW_CLOCK shifts the clock by
so many seconds.
"""

import contextlib
import json
import os
import re
import sys
import time


def _touched(arguments):
    """Paths that a call of `os` is about: names, or what open files are called."""
    for argument in arguments[:2]:
        if isinstance(argument, int):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/self/fd/{argument}")
        elif isinstance(argument, (str, os.PathLike)):
            yield os.path.abspath(argument)


def _arm(fault):
    real, calls = getattr(os, fault["call"]), 0

    def disturbed(*arguments, **options):
        nonlocal calls
        calls += any(re.search(fault["file"], path) for path in _touched(arguments))
        due = calls == fault["count"] and not os.path.exists(fault["once"])
        result = real(*arguments, **options) if not due or fault["after"] else None
        if due:
            open(fault["once"], "w").close()
            os.kill(os.getpid(), fault["signal"])
        return real(*arguments, **options) if due and not fault["after"] else result

    setattr(os, fault["call"], disturbed)


_fault = json.loads(os.environ.get("ELKFLOW_FAULT", "null"))
# At this early moment sys.argv is not set; the command line is.
_command = sys.orig_argv
if _fault and any(os.path.basename(part) == f"{_fault['script']}.py" for part in _command) and "launch" not in _command:
    _arm(_fault)

if _shift := float(os.environ.get("ELKFLOW_CLOCK", "0")):
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _shift
    time.time_ns = lambda: _time_ns() + int(_shift * 1e9)
