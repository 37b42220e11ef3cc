"""Prompt templates in promptsource's YAML format, rendered in Jinja2's sandbox.

Reference: Bach et al., "PromptSource: An Integrated Development Environment and Repository for Natural Language
Prompts" (ACL 2022). A template consists of the question and, after `|||`, the right answer; `answer_choices` lists the
possible answers in the order of the labels.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from elkflow.common.errors import UserError
from elkflow.common.paths import PROMPTS
from elkflow.prompts.time_limit import time_limit

SEPARATOR = "|||"
BUILT_IN_NAMES = frozenset({"answer_choices", "zip", "range", "dict", "lipsum", "cycler", "joiner", "namespace"})


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads promptsource's two tags as plain mappings."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


for _tag in ("!Template", "!TemplateMetadata"):
    _Loader.add_constructor(_tag, _mapping)


def _most_frequent(items: list[Any]) -> list[Any]:
    """The items that occur most often, as promptsource defines it."""
    counts = {item: items.count(item) for item in items}
    return [item for item, count in counts.items() if count == max(counts.values())]


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with limits on operations that could fill memory in one step."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        whole = isinstance(left, int | float) and isinstance(right, int | float)
        if (operator == "%" and not whole) or (operator == "**" and not (whole and abs(right) <= 64 >= abs(left))):
            raise SecurityError(f"a template may not use `{operator}` like this")
        if operator == "*" and not whole and max(_size(left) * _size(right), 0) > 10_000:
            raise SecurityError("a template may not repeat text more than 10,000 times")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return value if isinstance(value, int) else len(value) if isinstance(value, str | list | tuple) else 1


def _environment() -> jinja2.Environment:
    # What promptsource's templates use beyond Jinja; its filter `choice` is left out, as it is random.
    environment = _Environment(undefined=jinja2.StrictUndefined)
    environment.globals["zip"] = zip
    environment.filters["most_frequent"] = _most_frequent
    return environment


ENVIRONMENT = _environment()
GLOBALS = dict(ENVIRONMENT.globals)


@dataclass(frozen=True)
class Template:
    """One template; `jinja` is the question, `|||` and the right answer."""

    name: str
    jinja: str
    answer_choices: str | None
    """The possible answers separated by `|||`, as a Jinja template; None: open answers."""

    @cached_property
    def _compiled(self) -> tuple[jinja2.Template, jinja2.Template | None]:
        choices = self.answer_choices
        return ENVIRONMENT.from_string(self.jinja), ENVIRONMENT.from_string(choices) if choices else None

    @cached_property
    def fixed_choices(self) -> list[str] | None:
        """The answers if they are the same for every row, and so need no rendering."""
        choices = self.answer_choices
        return [part.strip() for part in choices.split(SEPARATOR)] if choices and "{" not in choices else None

    @cached_property
    def fields(self) -> frozenset[str]:
        """Names of the columns that the template uses."""
        source = self.jinja + (self.answer_choices or "")
        return frozenset(jinja2.meta.find_undeclared_variables(ENVIRONMENT.parse(source))) - BUILT_IN_NAMES

    def render(self, row: Mapping[str, Any]) -> tuple[str, str | None, list[str] | None]:
        """Question, right answer and possible answers of a row; the latter two are None if the template has none.

        Raises:
            jinja2.TemplateError: the row lacks a name, or the sandbox forbids an operation.
            TookTooLongError: rendering takes too long.
        """
        body, choices = self._compiled
        shield = self._shield(row)
        values = {name: _replace_in(value, SEPARATOR, shield) for name, value in row.items()} if shield else dict(row)
        answers = None
        with time_limit():
            if self.fixed_choices is not None:
                answers = values["answer_choices"] = list(self.fixed_choices)
            elif choices is not None:
                answers = values["answer_choices"] = [
                    part.strip() for part in _render_fast(choices, values).split(SEPARATOR)
                ]
            question, bar, right = _render_fast(body, values).partition(SEPARATOR)
        found = (question.strip(), right.strip() if bar else None, answers)
        return _replace_in(found, shield, SEPARATOR) if shield else found

    def _shield(self, row: Mapping[str, Any]) -> str | None:
        """A placeholder for `|||` in the row's data, as the rendered text is split at `|||`; None: not needed."""
        if not any(SEPARATOR in (value if isinstance(value, str) else str(value)) for value in row.values()):
            return None
        texts = json.dumps([*row.values(), self.jinja, self.answer_choices], ensure_ascii=False, default=str)
        return next(shield for n in itertools.count() if (shield := f"\ue000{n}\ue001") not in texts)


def _replace_in(value: Any, old: str, new: str) -> Any:
    """`value` with `old` replaced in every string inside it."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list | tuple):
        return type(value)(_replace_in(part, old, new) for part in value)
    if isinstance(value, dict):
        return {_replace_in(key, old, new): _replace_in(part, old, new) for key, part in value.items()}
    return value


def _render_fast(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """`template.render(values)` at twice the speed: globals are merged into `values` once, not through layers."""
    return "".join(template.root_render_func(template.new_context({**GLOBALS, **values}, shared=True)))


def load_template(name: str) -> Template:
    """Load the template called `file` or `file:template name`.

    Raises:
        UserError: there is no such file or template, `file` has several, or the template is not valid Jinja.
    """
    path, wanted = locate_template(name)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        found = [_template(entry) for entry in content["templates"].values()]
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.yaml")))
        raise UserError(f"template {name!r}: no file {path}; workflow/prompts has {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a promptsource template file ({reason})") from None
    chosen = [template for template in found if wanted in (None, template.name)]
    if len(chosen) != 1:
        names = ", ".join(repr(template.name) for template in found)
        raise UserError(f"template {name!r}: {path} has {names}; give one of them as file:name")
    try:
        _ = chosen[0]._compiled
    except jinja2.TemplateError as error:
        raise UserError(f"{path}: template {chosen[0].name!r} is not valid Jinja ({error})") from None
    return chosen[0]


def locate_template(name: str) -> tuple[Path, str | None]:
    """File and template name of `file`, `file:template name` or a path ending in .yaml."""
    file, _, wanted = name.partition(":")
    return (Path(file) if file.endswith((".yaml", ".yml")) else PROMPTS / f"{file}.yaml"), wanted or None


def _template(entry: Mapping[str, Any]) -> Template:
    choices = entry.get("answer_choices")
    if isinstance(choices, list):  # promptsource's first versions
        choices = f" {SEPARATOR} ".join(choices)
    return Template(entry["name"], entry["jinja"], choices)
