"""A page of the report: text, tables and interactive charts in one HTML file that needs no network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from elkflow.common.files import write_text
from elkflow.common.paths import REPORT
from elkflow.report.charts import styled


@dataclass
class Page:
    """A page, built block by block."""

    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def charts(self) -> bool:
        """Whether the page has charts, and so needs the plotting library."""
        return any(block["kind"] == "chart" for block in self.blocks)

    def heading(self, text: str) -> None:
        self.blocks.append({"kind": "heading", "text": text})

    def text(self, text: str, lead: bool = False) -> None:
        self.blocks.append({"kind": "text", "text": text, "lead": lead})

    def flag(self, text: str, good: bool = False) -> None:
        """A highlighted remark."""
        self.blocks.append({"kind": "flag", "text": text, "good": good})

    def numbers(self, *numbers: tuple[str, str, str, str]) -> None:
        """Large numbers: (label, value, note, style of base | probe | tuned | gain)."""
        names = ("label", "value", "note", "style")
        self.blocks.append({"kind": "numbers", "numbers": [dict(zip(names, each, strict=True)) for each in numbers]})

    def table(self, rows: Sequence[dict[str, str]]) -> None:
        if rows:
            self.blocks.append({"kind": "table", "rows": rows})

    def chart(self, chart: Any) -> None:
        """An Altair chart."""
        spec = json.dumps(styled(chart).to_dict()).replace("<", "\\u003c")  # no name can end the script
        self.blocks.append({"kind": "chart", "spec": Markup(spec)})

    def save(self, path: Path) -> None:
        """Write the page as HTML."""
        environment = Environment(
            loader=FileSystemLoader(REPORT), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
        )
        bundle = Markup(_bundle()) if self.charts else ""
        write_text(path, environment.get_template("page.html").render(page=self, bundle=bundle))


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")  # type: ignore[call-arg]
