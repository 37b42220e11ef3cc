"""Reward functions of the user, named `module:function` in the config; the working folder is searched first."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError


def source_files(name: str) -> list[str]:
    """The file that defines `module:function`, an input of the rule that calls it; empty for a name without a colon.

    Raises:
        UserError: there is no such module.
    """
    if ":" not in name:
        return []
    module = name.partition(":")[0]
    try:
        with _working_folder():
            found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise UserError(f"reward: there is no module {module!r} in {Path.cwd()} or installed")
    return [found.origin]


def load_function(name: str) -> Callable[..., Any]:
    """Import `module:function`.

    Raises:
        UserError: the import fails.
    """
    module, _, function = name.partition(":")
    try:
        with _working_folder():
            return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward: {name!r} cannot be imported from {Path.cwd()} ({error})") from None


@contextmanager
def _working_folder() -> Iterator[None]:
    """Search the working folder for modules first."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.remove(str(Path.cwd()))
