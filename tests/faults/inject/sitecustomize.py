"""Loaded by every Python process of a disturbed run (it stands on PYTHONPATH): carries out the fault in $ELKFLOW_FAULT.

The fault is JSON: script (the stage it happens in), call (`replace` or `fsync`: a file is about to be renamed into
place, or flushed), count (how manieth call), after (whether the call still happens), signal, once (a file that marks
it as done). $ELKFLOW_CLOCK shifts the clock by so many seconds.
"""

import json
import os
import sys
import time


def _arm(fault):
    real, calls = getattr(os, fault["call"]), 0

    def disturbed(*arguments, **options):
        nonlocal calls
        calls += 1
        due = calls == fault["count"] and not os.path.exists(fault["once"])
        if due:
            open(fault["once"], "w").close()
        if due and fault["after"]:
            real(*arguments, **options)
        if due:
            os.kill(os.getpid(), fault["signal"])
            time.sleep(60)  # a signal with a handler takes effect between two steps of Python
        return real(*arguments, **options)

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
