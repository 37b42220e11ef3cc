"""Write docs/dev/licences.md: every locked package with its licence, from the installed packages' own metadata.

`python docs/dev/licences.py`; with `--check` it only says whether the list is that of the lock.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "dev" / "licences.md"
INTRODUCTION = """\
# Licences of dependencies

<!-- Written by docs/dev/licences.py from the packages' own metadata; `make test` compares the names with the lock. -->

This workflow is Apache-2.0. It installs these packages, and ships none of them; models and datasets have licences of
their own, which their manifests and cards name.

| package | version | licence |
|---|---|---|
"""


def locked() -> dict[str, str]:
    """Normalised name to version of every package in requirements.txt."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}


def licence(name: str) -> str:
    """Licence expression, else the classifiers' last parts, else the first line of the licence field."""
    about = metadata.metadata(name)
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if line.startswith("License")]
    named = [text for text in classifiers if text != "OSI Approved"]
    text = about.get("License-Expression") or ", ".join(named) or (about.get("License") or "").strip().split("\n")[0]
    return text[:80] or "not stated"


def page() -> str:
    """The list as Markdown; packages that are not installed on this platform are marked."""
    rows = []
    for name, version in sorted(locked().items()):
        try:
            rows.append(f"| {name} | {version} | {licence(name)} |")
        except metadata.PackageNotFoundError:
            rows.append(f"| {name} | {version} | not installed here |")
    return INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8")
