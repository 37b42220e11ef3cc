"""What mkdocs needs to make one site of pages that are written to be read in the repository.

Pages outside docs/ come in as they stand; links between files of the repository become links between pages of the site,
and files that are linked to but are no pages are copied to files/.
"""

import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "config/README.md": "config.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
}
"""Pages from outside docs/: path in the repository, and in the site."""
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^```(\w+) +(?:(?:file|task)=(\S+)|\S+)$", re.MULTILINE)
"""A code block that says what the tests do with it: that it is this file, or how it is run."""
FORMULA = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def in_repository(page: str, link: str) -> str:
    """Path in the repository of what a page of the site links to."""
    source = SOURCES.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def in_site(path: str) -> str:
    """Path in the site of a file of the repository."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, and every other file that a page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in files.documentation_pages():
        for link, _ in LINK.findall(Path(page.abs_src_path or "").read_text(encoding="utf-8")):
            path = in_repository(page.src_uri, link)
            if (ROOT / path).is_file() and in_site(path) not in files.src_uris:
                files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links within the site; those that lead nowhere are left to mkdocs.

    Of what stands behind a code block's language only a file's name is shown, as its title.
    """

    def turned(match: re.Match[str]) -> str:
        path = in_repository(page.file.src_uri, match[1])
        if not (ROOT / path).is_file():
            return match[0]
        return os.path.relpath(in_site(path), posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

    def titled(match: re.Match[str]) -> str:
        return f"```{match[1]}" + (f' title="{match[2]}"' if match[2] else "")

    return FENCE.sub(titled, LINK.sub(turned, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML."""
    return FORMULA.sub(lambda match: convert(html.unescape(match[1])), content)
