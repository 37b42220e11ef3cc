"""Processes that tests may kill, forked from a server that has done the slow imports once."""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from unittest.mock import patch

CONTEXT = multiprocessing.get_context("forkserver")


def started(target, *arguments) -> BaseProcess:
    """A process that runs `target(*arguments)` on one thread."""
    CONTEXT.set_forkserver_preload(["test_trainer", "train_ppo"])
    process = CONTEXT.Process(target=alone, args=(target, *arguments))
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # before 3.13 the server finds no test modules
        process.start()
    return process


def alone(target, *arguments):
    import torch

    torch.set_num_threads(1)
    target(*arguments)
