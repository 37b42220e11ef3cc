"""Command lines from dataclasses, progress bars, and log lines that say how long things took."""

import argparse
import dataclasses
import errno
import logging
import os
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from elkflow.common.errors import UserError, validation_message
from elkflow.common.memory import keep_freed_memory

T = TypeVar("T")
logger = logging.getLogger("elkflow")
BARS = "ELKFLOW_BARS"
"""Environment variable: the folder in which a running workflow looks for its jobs' progress bars."""


def parse(arguments: type[T], argv: list[str] | None = None) -> T:
    """Fill the dataclass `arguments` from a command line: field `layer_count: int` becomes `--layer-count 3`.

    Settings sections are given as JSON, `list[...]` fields take several values, fields with a default are optional.

    Raises:
        UserError: a value does not fit its type; the message names the option.
    """
    parser = argparse.ArgumentParser(description=arguments.__doc__, allow_abbrev=False)
    hints = typing.get_type_hints(arguments)
    fields = dataclasses.fields(arguments)  # type: ignore[arg-type]
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        several = "*" if typing.get_origin(hints[field.name]) is list else None
        parser.add_argument(f"--{field.name.replace('_', '-')}", required=required, nargs=several)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    values = {}
    for name, text in given.items():
        adapter = TypeAdapter(hints[name])
        try:
            as_json = isinstance(text, str) and _is_structured(hints[name])
            values[name] = adapter.validate_json(text) if as_json else adapter.validate_python(text)
        except ValidationError as error:
            raise UserError(f"--{name.replace('_', '-')}: {validation_message(error, hints[name])}") from None
    return arguments(**values)


def _is_structured(hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_structured(part) for part in typing.get_args(hint))
    return hasattr(hint, "model_validate") or typing.get_origin(hint) is dict


def run(main: Callable[[], None]) -> None:
    """Run a script: plain log lines to stderr; what the user can mend is one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for chatty in ("httpx", "httpx2", "httpcore", "fsspec", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    keep_freed_memory()
    start = time.monotonic()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    logger.info("finished in %.1f s", time.monotonic() - start)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """`items` behind a progress bar: on a terminal, or in a file for a workflow that shows it; else silent."""
    folder = Path(os.environ.get(BARS, ""))
    if folder != Path() and folder.is_dir():
        file = (folder / str(os.getpid())).open("w", encoding="utf-8")
        return tqdm(items, desc=what, total=total, file=file, mininterval=0.5, ncols=60, leave=False)
    return tqdm(items, desc=what, total=total, disable=not sys.stderr.isatty(), leave=False)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how long the body took."""
    start = time.monotonic()
    yield
    logger.info("%s: %.1f s", what, time.monotonic() - start)
