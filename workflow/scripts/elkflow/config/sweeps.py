"""Sweeps: a list where one value is expected makes one run per value."""

import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from elkflow.common.errors import UserError
from elkflow.config.ppo import RunSettings

MAX_RUNS = 100_000


def expand_sweeps(runs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Runs, with one run per combination of swept values, named after the values.

    Raises:
        UserError: a list is empty, there are too many runs, or two get the same name.
    """
    made: set[str] = set()
    for name, run in runs.items():
        if not isinstance(run, Mapping):
            yield name, run
            continue
        axes = list(_swept_keys(run, RunSettings))
        for path, choices in axes:
            if not choices:
                raise UserError(f"runs.{name}.{'.'.join(path)}: an empty list makes no runs")
        if math.prod(len(choices) for _, choices in axes) > MAX_RUNS:
            raise UserError(f"runs.{name}: its lists make more than {MAX_RUNS} runs")
        for values in itertools.product(*(choices for _, choices in axes)):
            paths = [path for path, _ in axes]
            suffix = "".join(f"+{path[-1]}={value}" for path, value in zip(paths, values, strict=True))
            if f"{name}{suffix}" in made:
                raise UserError(f"runs.{name}: two runs would be called {f'{name}{suffix}'!r}")
            made.add(f"{name}{suffix}")
            yield f"{name}{suffix}", _with_values(run, dict(zip(paths, values, strict=True)))


def _swept_keys(
    section: Mapping[str, Any], model: type[BaseModel], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple, list]]:
    for key, value in section.items():
        field = model.model_fields.get(key)
        if field is None:
            continue
        parts = [field.annotation, *typing.get_args(field.annotation)]
        inner = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if isinstance(value, Mapping) and inner:
            yield from _swept_keys(value, inner, (*at, key))
        elif isinstance(value, list) and not any(typing.get_origin(part) in (list, tuple) for part in parts):
            yield (*at, key), value


def _with_values(section: Mapping[str, Any], values: Mapping[tuple, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        key: values[(*at, key)]
        if (*at, key) in values
        else _with_values(value, values, (*at, key))
        if isinstance(value, Mapping)
        else value
        for key, value in section.items()
    }
