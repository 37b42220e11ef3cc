"""A tiny checkpoint for the evaluation's tests."""

import pytest
import torch
from tiny import save_tiny_model
from tiny_evaluation import SENTENCES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("checkpoint"), texts=SENTENCES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of tiny matrix products only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
