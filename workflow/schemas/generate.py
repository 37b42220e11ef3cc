"""Write config/README.md and config.schema.json from the settings (`python workflow/schemas/generate.py`).

With `--check` nothing is written, and the exit code says whether both files are up to date.
"""

import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from elkflow.config.config import Config  # noqa: E402
from elkflow.config.data import DatasetSettings  # noqa: E402
from elkflow.config.ppo import LoRASettings, RunSettings  # noqa: E402

INTRODUCTION = """\
# Config reference

<!-- Generated from the settings' docstrings by workflow/schemas/generate.py; `make test` compares. Do not edit. -->

`config.yaml` is the quickstart, `thesis.yaml` the thesis experiment. Use another file with
`snakemake --configfile my.yaml`, and override single values with `--config`. Unknown keys are refused, and everything
is checked before the first job starts. Threads, memory and GPUs are set in `profiles/`.

Editors check a config as you type if its first line is
`# yaml-language-server: $schema=../workflow/schemas/config.schema.json`.

Names (of models, datasets, probes, runs, suites, wordings) become parts of paths: letters, digits and `. _ = + -`.

**Sweeps.** Inside `runs`, a list where one value is expected makes one run per value, named after it:
`clip: [0.1, 0.2]` in the `ppo` section of `quickstart` makes `quickstart+clip=0.1` and
`quickstart+clip=0.2`. Several lists make all combinations.
"""


def sections(model: type[BaseModel] = Config, at: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """All sections and their places in the config, e.g. `runs.<name>.ppo`, parents first."""
    yield at, model
    for key, field in model.model_fields.items():
        place = f"{at}.{key}" if at else key
        for inner, deeper in _models(field.annotation):
            yield from sections(inner, place + deeper)


def _models(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Sections inside a field's type: a section itself, `dict[str, section]` (`.<name>`), `list[section]` (`[]`)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    deeper = ".<name>" if origin is dict else "[]" if origin in (list, tuple) else ""
    for part in parts[1:] if origin is dict else parts:
        yield from ((model, deeper + rest) for model, rest in _models(part))


def readme() -> str:
    """The reference page, with one table per section."""
    seen: set[tuple[str, type[BaseModel]]] = set()
    pieces = [INTRODUCTION]
    for place, model in sections():
        if (place, model) in seen:
            continue
        seen.add((place, model))
        pieces.append(f"## `{place}`\n" if place else "## Top level\n")
        pieces.append(_prose(model.__doc__))
        rows = [
            f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_prose(field.description).strip()} |"
            for key, field in model.model_fields.items()
        ]
        pieces.append("\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(pieces)


def _prose(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|") + "\n"


def _type(annotation: Any) -> str:
    """A type in the words of YAML."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in parts if part is not type(None))
    if origin in (list, tuple):
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"{_type(parts[0])} → {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", type(None): "nothing"}
    return names.get(annotation, "anything")


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.default_factory() if field.default_factory else field.default
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def schema() -> dict[str, Any]:
    """JSON Schema of the config as users write it: with sweeps, short forms and Snakemake's own `pathvars`."""
    whole = Config.model_json_schema()
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}
    whole["properties"]["pathvars"] = {"type": "object", "description": "Snakemake's locations of results, logs, …"}
    definitions = whole["$defs"]
    for model in {model for _, model in sections(RunSettings)}:
        swept = definitions[model.__name__]["properties"]
        for key, value in swept.items():
            parts = value.get("anyOf", [value])
            if not any("$ref" in part or part.get("type") == "array" for part in parts):
                swept[key] = _with_list(value)
    definitions[LoRASettings.__name__]["properties"]["targets"]["anyOf"].append({"type": "string"})  # `q,v` for short
    dataset = definitions[DatasetSettings.__name__]["properties"]
    dataset["catalog"] = {"type": "string", "description": "An entry of config/datasets/; keys given here override it."}
    wordings = dataset["wordings"]["patternProperties"]
    for pattern, value in wordings.items():
        wordings[pattern] = {"anyOf": [{"type": "string"}, value]}
    return whole


def _with_list(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, or a list of such values: a sweep."""
    notes = {key: value[key] for key in ("title", "description", "default") if key in value}
    plain = {key: inner for key, inner in value.items() if key not in notes}
    parts = plain.pop("anyOf", None) or [plain]
    return {**notes, "anyOf": [*parts, {"type": "array", "items": {"anyOf": parts}, "minItems": 1}]}


def generated() -> dict[Path, str]:
    """Path and content of every generated file."""
    return {
        ROOT / "config" / "README.md": readme(),
        ROOT / "workflow" / "schemas" / "config.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
    }


def main(argv: list[str]) -> int:
    stale = {
        path: text
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        print(f"{'stale' if '--check' in argv else 'written'}: {path.relative_to(ROOT)}")
        if "--check" not in argv:
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
