"""What is done before a run, and only before a run."""

from types import SimpleNamespace

import pytest

from elkflow.orchestration.run_start import before_run


class Workflow:
    """Stands in for Snakemake's."""

    def __init__(self):
        self.done = []

    def execute(self, executor_plugin, updated_files=None):
        self.done.append(("execute", updated_files))
        return True


@pytest.mark.parametrize(("dryrun", "prepared"), [(False, ["prepare"]), (True, [])])
def test_a_run_is_prepared_and_a_dry_run_is_not(dryrun, prepared):
    workflow = Workflow()
    before_run(workflow, lambda: workflow.done.append("prepare"))
    assert workflow.done == [], "reading the rules does nothing"
    plugin = SimpleNamespace(common_settings=SimpleNamespace(dryrun_exec=dryrun))
    assert workflow.execute(executor_plugin=plugin, updated_files=["x"]) is True
    assert workflow.done == [*prepared, ("execute", ["x"])]
