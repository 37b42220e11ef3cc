"""The exception whose message is shown to the user, and validation errors as one-line messages."""

import difflib
import re
import types
import typing
from typing import Any

if typing.TYPE_CHECKING:
    from pydantic import ValidationError


MAX_LENGTH = 600
"""Longest validation message in characters: the invalid value may be a whole file."""


class UserError(Exception):
    """A mistake in the config, the data or the environment: one sentence that names the key, file or row."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def validation_message(error: "ValidationError", model: Any = None) -> str:
    """One line for a validation error: `ppo.steps: Input should be greater than 0 (got 0)`.

    Args:
        error: pydantic's error; the first problem is reported, a misspelt key before any other.
        model: the type that was validated. If given, keys are suggested, and pydantic's names for the members of a
            union are left out of the location.
    """
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    keys, annotation = [], model
    for part in first["loc"][:-1]:
        inner, real = _inside(annotation, part)
        annotation = inner
        keys += [part] if real else []
    if first["loc"]:
        last = first["loc"][-1]
        keys += [last] if first["type"] in ("missing", "extra_forbidden") or _inside(annotation, last)[1] else []
    place = ".".join(_printable_key(key) for key in keys)
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    message = re.sub(r"a valid dictionary or instance of \w+", "a section", message)
    if first["type"] == "extra_forbidden":
        message = f"there is no such key{_suggestion(str(first['loc'][-1]), _known(annotation))}"
    elif first["type"] == "missing":
        message = "Field required"
    elif first["type"] != "value_error":
        message += f" (got {first['input']!r:.80})"
        if first["type"] == "string_type" and isinstance(first["input"], bool):
            message += '; YAML reads a bare No, Yes, Off or On as false or true: write it in quotes, "No" and "Yes"'
    message = message if len(message) <= MAX_LENGTH else message[:MAX_LENGTH] + " …"
    return f"{place}: {message}" if place else message


def _printable_key(key: Any) -> str:
    """A key as one printable word: quoted if it holds other characters, and cut to 78."""
    text = str(key)
    return text if re.fullmatch(r"[\w./+=-]{1,80}", text) else repr(text[:78])


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; there is {', '.join(known)}" if known else ""


def _known(annotation: Any) -> list[str]:
    """Keys of the sections that an annotation allows."""
    return [key for option in _options(annotation) for key in getattr(option, "model_fields", {})]


def _inside(annotation: Any, part: Any) -> tuple[Any, bool]:
    """The type of key `part`, and whether there is such a key (False: pydantic's name for a member of a union)."""
    if annotation is None:
        return None, True
    options = _options(annotation)
    for option in options:
        fields = getattr(option, "model_fields", {})
        if part in fields:
            return fields[part].annotation, True
        origin, parts = typing.get_origin(option), typing.get_args(option)
        keys = typing.get_args(parts[0]) if parts and typing.get_origin(parts[0]) is typing.Literal else ()
        if (origin is dict and (part in keys or not keys)) or (origin in (list, tuple) and isinstance(part, int)):
            return parts[1] if origin is dict else parts[0], True
    return annotation, False


def _options(annotation: Any) -> list[Any]:
    """The members of a union, without `Annotated`; any other type is its only member."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _options(parts[0])
    if origin in (typing.Union, types.UnionType):
        return [option for part in parts for option in _options(part)]
    return [annotation]
