"""Download of hub datasets ahead of time, for machines without a network."""

from collections.abc import Mapping
from typing import Any

from elkflow.common.errors import UserError
from elkflow.config.data import QuestionSettings
from elkflow.data.sources import hub_commit, open_rows


def prefetch_datasets(datasets: Mapping[str, QuestionSettings]) -> dict[str, Any]:
    """Download all hub datasets into the cache of `datasets`; return id, revision, commit and row counts of each.

    Raises:
        UserError: a dataset cannot be downloaded; the message names it.
    """
    found: dict[str, Any] = {}
    for name, settings in datasets.items():
        if settings.hub is None:
            continue
        try:
            parts = open_rows(settings)
        except UserError as error:
            raise UserError(f"datasets.{name}: {error}") from None
        found[name] = {
            "id": settings.hub.id,
            "name": settings.hub.name,
            "revision": settings.hub.revision,
            "commit": hub_commit(parts["train"]),
            "rows": {part: len(rows) for part, rows in parts.items()},
        }
    return found
