"""Small finished results, made once for each test module that uses them, and a hub on loopback."""

import pytest
from finished import PLAN, write_results
from hub_client import NEW, OLD, files
from hub_server import Hub

from elkflow.summary.verdict import build_verdict


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(folder)
    return folder


@pytest.fixture(scope="module")
def verdict(results):
    return build_verdict(PLAN, results)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Folder, splits and probe of one full run on planted states, with every method."""
    from planted import made, train

    folder = tmp_path_factory.mktemp("whole")
    splits = made(folder)
    methods = ["logistic", "mass_mean", "lda", "ccs", "vinc", "crc"]
    return folder, splits, train(folder, splits, methods=methods)


@pytest.fixture
def hub():
    """Two revisions of a dataset."""
    with Hub() as server:
        server.add("me/rows", files("old"), OLD)
        server.add("me/rows", files("new"), NEW)
        yield server
