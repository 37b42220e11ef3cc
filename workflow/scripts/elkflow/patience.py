"""A Slurm controller that does not answer: keep watching the jobs.

When every status query of a round fails, Slurm's executor (2.8.0) neither reports its jobs nor keeps them: it forgets
them, and Snakemake waits for ever. An empty answer instead tells it that Slurm does not show the jobs yet.
"""

from collections.abc import Awaitable, Callable
from typing import Any

Query = Callable[..., Awaitable[tuple[dict[str, str] | None, float | None]]]


def keep_watching(plugin: Any) -> None:
    """Make the plugin's status query answer "nothing known" where it would answer nothing at all."""
    query: Query = plugin.query_job_status

    async def patient(command: str, logger: Any) -> tuple[dict[str, str], float]:
        states, seconds = await query(command, logger)
        return (states or {}, seconds or 0.0)

    plugin.query_job_status = patient
