"""Pages need no network, and no text can break them."""

import json
import re

from finished import sweep_table

from elkflow.report import charts
from elkflow.report.html import Page


def test_pages_need_no_network_and_break_on_no_text(tmp_path):
    page = Page("<b>&")
    page.text("</script><script>alert(1)</script>")
    page.table([{"a": "1 < 2", "b": "</td>"}])
    page.chart(charts.gains(sweep_table().assign(run="</script>")))
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in text and "1 &lt; 2" in text and "&lt;b&gt;&amp;" in text
    assert not re.search(r'(src|href)="https?://', text)
    spec = re.search(r'vegaEmbed\("#chart\d+", (.*), \{actions', text)[1]
    assert json.loads(spec)["datasets"]
