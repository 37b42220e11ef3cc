"""Hundreds of damaged configs: each either loads or is refused in one line that names a key; nothing else happens."""

import copy
import json
import os
import random
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elkflow.common.errors import UserError
from elkflow.config.config import Config

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = {path.stem: path for path in sorted((ROOT / "config").glob("*.yaml"))}
MUTANTS = 400  # of each shipped config
JUNK = [
    None, True, 0, -1, 10**400, 0.5, float("nan"), float("inf"), -0.0, "", " ", "x", "no", "1e-3", "~", "a\nb", "\x00",
    "é" * 300, "x" * 5000, "../../etc/passwd", "/", "-rf", "--help", "$(touch pwned)", "`id`", "; rm -rf x", "{{7*7}}",
    "{% for i in range(10**9) %}x{% endfor %}", "{wildcard}", "%s%n", "os:system", "ru\u202en", [], {}, [[]], [{}],
    [None], ["a", "a"], {"": 1}, {"x": {"y": {}}}, {1: 2}, {None: 3}, {"__class__": "x"}, date(2023, 1, 2), b"bytes",
    list(range(50)), {"model_config": {"extra": "allow"}},
]  # fmt: skip


def places(section: Any, at: tuple = ()) -> Iterator[tuple]:
    """Path of every key and list entry inside a config."""
    items = section.items() if isinstance(section, dict) else enumerate(section) if isinstance(section, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def mutated(config: dict, dice: random.Random) -> dict:
    """One to three random edits: junk for a value, a key dropped, misspelt, doubled or moved, two values swapped."""
    changed = copy.deepcopy(config)
    for _ in range(dice.randint(1, 3)):
        spots = list(places(changed))
        *parents, last = dice.choice(spots)
        section = changed
        for part in parents:
            section = section[part]
        kind = dice.choice(["junk", "junk", "drop", "typo", "copy", "swap", "wrap"])
        if kind == "drop":
            del section[last]
        elif kind == "typo" and isinstance(last, str) and len(last) > 1:
            index = dice.randrange(len(last))
            section[last[:index] + dice.choice("_xé./ \n") + last[index + 1 :]] = section.pop(last)
        elif kind == "copy" and isinstance(section, dict):
            section[f"{last}2"] = copy.deepcopy(section[last])
        elif kind == "swap" and len(section) > 1:
            other = dice.choice(list(section) if isinstance(section, dict) else range(len(section)))
            section[last], section[other] = section[other], section[last]
        elif kind == "wrap":
            section[last] = dice.choice([[section[last]], {"value": section[last]}, [section[last], section[last]]])
        else:
            section[last] = copy.deepcopy(dice.choice(JUNK))
    return changed


def verdict(config: Any) -> str | None:
    """None if the config loads, else the message; any other exception, or a bad message, fails the test."""
    try:
        Config.load(config)
    except UserError as error:
        message = str(error)
        assert message.isprintable() and 5 < len(message) < 1000, message[:200]
        place = r"""(?:[\w./+=\[\]-]++|'[^']*+'?+|"[^"]*+"?+)++"""  # possessive: no backtracking into odd keys
        assert re.match(rf"{place}: .|a section contains itself", message), message
        return message
    return None


@pytest.mark.parametrize("name", SHIPPED)
def test_mutants_of_a_shipped_config(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(SHIPPED[name].read_text(encoding="utf-8"))
    dice = random.Random(f"{name} 2023")
    messages = [verdict(mutated(config, dice)) for _ in range(MUTANTS)]
    refused = [message for message in messages if message]
    assert len(refused) > MUTANTS / 2
    assert len({message.split(":")[0] for message in refused}) > 20, "the same few keys over and over"
    assert not os.listdir(tmp_path)


def strategy(schema: dict, whole: dict) -> st.SearchStrategy:
    """Values drawn from a JSON schema, about one in a hundred replaced by junk."""
    fitting: st.SearchStrategy
    if "$ref" in schema:
        return st.deferred(lambda: strategy(whole["$defs"][schema["$ref"].rsplit("/", 1)[1]], whole))
    if "anyOf" in schema:
        fitting = st.one_of([strategy(part, whole) for part in schema["anyOf"]])
    elif "enum" in schema:
        fitting = st.sampled_from(schema["enum"])
    elif "const" in schema:
        fitting = st.just(schema["const"])
    elif schema.get("type") == "object":
        required = set(schema.get("required", ()))
        known = {key: strategy(value, whole) for key, value in schema.get("properties", {}).items()}
        fitting = st.fixed_dictionaries(
            {key: value for key, value in known.items() if key in required},
            optional={key: value for key, value in known.items() if key not in required},
        )
        patterns = list(schema.get("patternProperties", {}).values())
        inner = patterns[0] if patterns else schema.get("additionalProperties")
        if isinstance(inner, dict):
            fitting = st.dictionaries(st.sampled_from(["a", "b", "facts"]), strategy(inner, whole), max_size=2)
    elif schema.get("type") == "array":
        fitting = st.lists(strategy(schema.get("items", {}), whole), max_size=2)
    else:
        fitting = {
            "string": st.sampled_from(["a", "b", "acc", "arc_easy", "0" * 40, "config.json"]),
            "integer": st.integers(-1, 8),
            "number": st.floats(allow_nan=True) | st.floats(0, 1),
            "boolean": st.booleans(),
            "null": st.none(),
        }.get(schema.get("type", ""), st.sampled_from(JUNK))
    return st.integers(0, 99).flatmap(lambda roll: st.sampled_from(JUNK) if roll == 57 else fitting)


SCHEMA = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8"))


@given(config=strategy(SCHEMA, SCHEMA))
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_configs_drawn_from_the_schema(config):
    if isinstance(config, dict):
        verdict(config)
