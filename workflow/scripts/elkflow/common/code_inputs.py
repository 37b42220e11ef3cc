"""Which source files a stage depends on: the workflow takes them as inputs, so an edit reruns just what it touches."""

import ast
import os
from functools import cache
from pathlib import Path

from elkflow.common.paths import PACKAGE, SCRIPTS


def script_path(name: str) -> str:
    """Path of workflow/scripts/`name`.py, relative to the working folder where that is possible."""
    return os.path.relpath(SCRIPTS / f"{name}.py")


def imports(name: str) -> list[str]:
    """Paths of the library modules that script `name` imports, directly or through another module."""
    return sorted(os.path.relpath(path) for path in closure(SCRIPTS / f"{name}.py"))


def closure(path: Path) -> set[Path]:
    """The library modules that the file at `path` imports, directly or through another module; not the file itself."""
    found: set[Path] = set()
    todo = [path]
    while todo:
        new = set(_imported(todo.pop())) - found
        found |= new
        todo += new
    return found - {path}


@cache
def _imported(path: Path) -> list[Path]:
    """The library modules that one file imports itself. Read once: twenty rules' scripts share most of them.

    Imports are absolute and the rooms' `__init__.py` empty, says a test; so neither is followed.
    """
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            module = SCRIPTS.joinpath(*(node.module or "").split("."))
            found += [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [alias.name.split(".") for alias in node.names]
            found += [SCRIPTS.joinpath(*part).with_suffix(".py") for part in parts if part[0] == PACKAGE.name]
    return [module for module in found if module.is_file()]
