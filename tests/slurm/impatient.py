"""Snakemake whose Slurm executor asks every two seconds. The profile is kind to a real controller; this one is idle."""

import signal
import sys

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda self: 2, lambda self, seconds: None)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; background jobs may ignore it
    sys.exit(main())
