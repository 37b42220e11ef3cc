"""The report of a finished workflow in a real browser: every section and figure renders, nothing complains."""

import pytest
from browser import Browser, chromium

from .conftest import snakemake

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian: apt-get install chromium)")

CATEGORIES = ["0 Verdict", "1 Probe", "2 Training", "3 Evaluation", "4 Provenance"]
PAGES = {
    "overview": ["quickstart, seed 0", "Side by side"],
    "probe": ["AUROC by layer", "Reliability", "Rewards of right and wrong answers"],
    "training": ["Health"],
    "evaluation": ["The probe or the truth?"],
    "provenance": ["Packages"],
}
CHARTS = {"overview": 0, "probe": 3, "training": 2, "evaluation": 1, "provenance": 0}


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture(scope="module")
def report(finished):
    snakemake(finished, "--report", "report.html")
    return finished / "report.html"


@pytest.mark.parametrize("name", PAGES)
def test_each_page_shows_its_sections_and_charts(finished, browser, name):
    browser.errors.clear()
    browser.open(finished / "results" / "summary" / f"{name}.html")
    browser.wait("[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'))")
    headings = browser.run("[...document.querySelectorAll('h2')].map(heading => heading.innerText)")
    assert set(PAGES[name]) <= set(headings)
    assert browser.run("document.querySelectorAll('.chart svg').length") == CHARTS[name]
    for index in range(CHARTS[name]):  # a chart without marks is an empty frame
        marks = (
            f"document.querySelectorAll('.chart')[{index}].querySelectorAll('.mark-line path, .mark-rect path').length"
        )
        assert browser.run(marks) > 0
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.errors == []


def click(browser, selector, text):
    """Click the first element that matches and contains `text`."""
    script = f"[...document.querySelectorAll({selector!r})].find(each => each.innerText.includes({text!r}))"
    browser.wait(f"Boolean({script})")
    browser.run(f"{script}.click()")


def test_every_category_and_figure_opens(report, browser):
    browser.errors.clear()
    browser.open(report)
    browser.wait("document.body.innerText.includes('4 Provenance')")
    assert "know more than it says" in browser.run("document.body.innerText")
    shown = {"img": 0, "iframe": 0}
    for category in CATEGORIES:
        browser.open(report)
        click(browser, "a", category)
        browser.wait("document.querySelectorAll('tbody tr').length > 0")
        titles = browser.run("[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].innerText)")
        for row, title in enumerate(titles):
            if title.startswith("Table"):
                continue  # offered as a download
            element = "img" if title.startswith("Figure") else "iframe"
            browser.run(f"document.querySelectorAll('tbody tr')[{row}].querySelector('a').click()")
            loaded = "naturalWidth > 100" if element == "img" else "src.startsWith('data:text/html')"
            browser.wait(f"[...document.querySelectorAll('{element}')].some(each => each.{loaded})")
            shown[element] += 1
    assert shown == {"img": 5, "iframe": 5}
    assert browser.errors == []


def test_captions_and_rule_graph_are_there(report, browser):
    browser.errors.clear()
    browser.open(report)
    click(browser, "a", "1 Probe")
    browser.wait("document.querySelectorAll('tbody tr').length > 0")
    row = "[...document.querySelectorAll('tbody tr')].find(row => row.innerText.includes('AUROC by layer'))"
    browser.run(f"{row}.querySelectorAll('a')[1].click()")
    browser.wait("document.body.innerText.includes('0.5 is chance')")
    browser.open(report)
    browser.wait("document.querySelector('#rulegraph svg, #rulegraph canvas') !== null")
    assert browser.errors == []
