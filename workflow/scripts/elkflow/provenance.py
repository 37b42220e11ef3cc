"""Which source files a stage depends on: the workflow takes them as inputs, so an edit reruns just what it touches."""

import ast
import os
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
PACKAGE = Path(__file__).parent.name


def script_path(name: str) -> str:
    """Path of workflow/scripts/`name`.py, relative to the working folder where that is possible."""
    return _shown(SCRIPTS / f"{name}.py")


def imports(name: str) -> list[str]:
    """Paths of the library modules that script `name` imports, directly or through another module."""
    script = SCRIPTS / f"{name}.py"
    found: set[Path] = set()
    todo = [script]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imported(path)
    return sorted(_shown(path) for path in found - {script})


@cache
def _imported(path: Path) -> list[Path]:
    """The library modules that one file imports itself. Read once: twenty rules' scripts share most of them."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            module = SCRIPTS.joinpath(*(node.module or "").split("."))
            found += [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found += [SCRIPTS.joinpath(*part).with_suffix(".py") for part in parts if part[0] == PACKAGE]
    return [module for module in found if module.is_file()]


def _shown(path: Path) -> str:
    return os.path.relpath(path)
