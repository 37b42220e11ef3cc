"""Dataset cards: where the rows come from, how they were split, and what the hub reads in the front matter."""

from pathlib import Path

from elkflow.common.files import read_json
from elkflow.config.data import SPLITS


def dataset_card(name: str, licence: str | None, manifest: Path) -> str:
    """The card of dataset `name` as Markdown with the hub's front matter.

    Args:
        licence: of the source, as the hub writes it.
        manifest: of the splits.
    """
    content = read_json(manifest)
    settings, facts = content["settings"], content["facts"]
    mixed = f"the datasets {', '.join(settings['mixture'])}" if settings.get("mixture") else None
    source = (
        mixed or settings["hub"] or settings["path"] or "questions about countries, generated from a table of facts"
    )
    head = [f"license: {licence}"] if licence and licence not in ("unknown", "other") else []
    head += ["configs:", "- config_name: default", "  data_files:"]
    for split in SPLITS:
        head += [f"  - split: {split}", f"    path: data/{split}.parquet"]
    rows = [
        f"| {split} | {entry['rows']} | {entry['groups']} | "
        + ", ".join(f"{label}: {count}" for label, count in entry["labels"].items())
        + f" | `{content['outputs'][split]['sha256'][:16]}` |"
        for split, entry in facts["splits"].items()
    ]
    removed = ", ".join(f"{reason}: {count}" for reason, count in facts.get("removed", {}).items()) or "nothing"
    body = [
        f"# {name}",
        "",
        "Splits for a truth probe (`train`), a policy trained on its reward (`ppo`) and the evaluation of both",
        "(`val`). No group of rows is in more than one split.",
        "",
        f"- Source: {source}",
        f"- Licence of the source: {licence or 'not stated'}",
        f"- Recipe: {settings.get('split') or 'all rows of each, in turn'}",
        f"- Left out: {removed}",
        "",
        "| split | rows | groups | labels | sha256 |",
        "|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(["---", *head, "---", *body, ""])
