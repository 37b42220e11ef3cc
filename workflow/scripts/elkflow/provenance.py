"""Which source files a stage depends on: the workflow takes them as inputs, so an edit reruns just what it touches."""

import ast
import os
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
PACKAGE = Path(__file__).parent.name


def script_path(name: str) -> str:
    """Path of workflow/scripts/`name`.py, relative to the working folder where that is possible."""
    return _shown(SCRIPTS / f"{name}.py")


def imports(name: str) -> list[str]:
    """Paths of the library modules that script `name` imports, directly or through another module."""
    found: set[Path] = set()
    todo = [SCRIPTS / f"{name}.py"]
    while todo:
        path = todo.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                module = SCRIPTS.joinpath(*(node.module or "").split("."))
                todo += [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
            elif isinstance(node, ast.Import):
                parts = [alias.name.split(".") for alias in node.names]
                todo += [SCRIPTS.joinpath(*part).with_suffix(".py") for part in parts if part[0] == PACKAGE]
    return sorted(_shown(path) for path in found - {SCRIPTS / f"{name}.py"})


def _shown(path: Path) -> str:
    return os.path.relpath(path)
