"""What is done when a run starts, and only then."""

from collections.abc import Callable
from typing import Any


def before_run(workflow: Any, prepare: Callable[[], None]) -> None:
    """Call `prepare` when Snakemake turns to running jobs, before it looks at any file or locks the folder.

    The rules are read for `-n`, `--rulegraph`, `--lint`, `--report`, `--summary` and `--unlock`, too, where nothing may
    change on disk. Snakemake has no hook for the moment wanted (`onstart` comes after the lock), so this wraps the
    workflow's method that all runs go through.
    """
    execute = workflow.execute

    def prepared(executor_plugin: Any, **options: Any) -> Any:
        if not executor_plugin.common_settings.dryrun_exec:
            prepare()
        return execute(executor_plugin=executor_plugin, **options)

    workflow.execute = prepared
