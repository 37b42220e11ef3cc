"""Mutation testing of the mathematics: change one operator, number or condition and see whether a test notices.

    make mutation                                all modules
    make mutation MODULES="ppo.objective"      these; of the others the last result stands
    make mutation SURVIVORS=1                    only mutants that survived last time, after tests were added

Keeps what became of each module in tests/mutation/found.json, and writes docs/dev/mutation.md from it.

The mutants are cosmic-ray's; each is tested in a forked process that has everything but the mutated module imported
already, which is some fifty times as fast as starting pytest anew, and by those tests alone that run the mutated
statement. Survivors are compared with tests/mutation/judged.json: one that nobody has judged fails the run.
"""

import argparse
import ast
import importlib
import json
import os
import signal
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(ROOT / "tests")]
sys.dont_write_bytecode = True

import cosmic_ray.plugins  # noqa: E402
import coverage  # noqa: E402
import hypothesis  # noqa: E402, F401
import numpy  # noqa: E402, F401
import pytest  # noqa: E402
import scipy.optimize  # noqa: E402, F401
import sklearn.linear_model  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402, F401
from cosmic_ray.mutating import mutate_code  # noqa: E402

MODULES = {
    f"{room}.{name}": [f"tests/unit/{room}/test_{name}.py"]
    for room, name in (("ppo", "objective"), ("probes", "methods"), ("common", "metrics"))
}
SECONDS = 60
BINARY = (
    *("Add_Sub", "Add_Mul", "Sub_Add", "Sub_Mul", "Mul_Add", "Mul_Div"),
    *("Div_Mul", "Pow_Mul", "FloorDiv_Mul", "Mod_Mul", "BitAnd_BitOr"),
)
COMPARISON = (
    *("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt"),
    *("Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Is_IsNot", "IsNot_Is"),
)
OPERATORS = [
    *(f"ReplaceBinaryOperator_{pair}" for pair in BINARY),
    *(f"ReplaceComparisonOperator_{pair}" for pair in COMPARISON),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Invert"),
    *("AddNot", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceFalseWithTrue"),
    *("ReplaceTrueWithFalse", "ZeroIterationForLoop"),
]
"""Of cosmic-ray's: each operator against its likely confusions, not against every other (`+` against `<<`)."""


INTRODUCTION = """\
# Mutation testing

<!-- Written by `make mutation` (tests/mutation/run.py). -->

`make mutation` changes the mathematics of PPO, of the probes and of the metrics one operator, number or condition at a
time and runs the module's unit tests on every mutant. Those that no test notices are below, each with the reason why it
may live; a survivor that nobody has judged (`tests/mutation/judged.json`) fails the command.

| module | mutants | killed by a test | killed for running for ever | survived |
|---|---|---|---|---|
{counts}

| module | code | survives as | because |
|---|---|---|---|
{rows}
"""


def mutants(source: str):
    """Each (operator, occurrence, mutated source) that parses and is not the source itself."""
    for name in OPERATORS:
        operator, occurrence = cosmic_ray.plugins.get_operator(f"core/{name}")(), 0
        while (mutated := mutate_code(source, operator, occurrence)) is not None:
            occurrence += 1
            if mutated != source:
                yield name, mutated


def notices(module: str, code: types.CodeType, tests: Sequence[str], *options: str) -> str:
    """Run the tests against a module's code in a forked process: `killed`, `survived` or `endless`."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            mutated = types.ModuleType(f"elkflow.{module}")
            mutated.__file__ = str(path_of(module))
            room, _, name = f"elkflow.{module}".rpartition(".")
            sys.modules[f"elkflow.{module}"] = mutated
            setattr(importlib.import_module(room), name, mutated)
            exec(code, mutated.__dict__)
            always = ["-x", "-q", "-p", "no:cacheprovider", "--override-ini", "addopts=", "--rootdir", str(ROOT)]
            status = pytest.main([*always, *options, *(str(ROOT / test) for test in tests)])
        except BaseException:
            status = 1
        os._exit(int(status))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "endless"
    return "killed" if os.waitstatus_to_exitcode(status) else "survived"


def path_of(module: str) -> Path:
    return ROOT / "workflow" / "scripts" / "elkflow" / Path(*module.split(".")).with_suffix(".py")


def tests_by_line(module: str, source: str) -> dict[int, list[str]]:
    """Line to the tests that run the innermost statement it belongs to; a line that only importing runs has none."""
    path = path_of(module)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COVERAGE_FILE"] = f"{folder}/coverage"
        options = ("--cov=elkflow", "--cov-context=test", "--cov-report=")
        outcome = notices(module, compile(source, path, "exec"), MODULES[module], *options)
        assert outcome == "survived", f"{MODULES[module]} fail as they are"
        data = coverage.CoverageData(os.environ.pop("COVERAGE_FILE"))
        data.read()
        ran = data.contexts_by_lineno(str(path))
    found: dict[int, list[str]] = {}
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    for node in sorted(statements, key=lambda node: node.end_lineno - node.lineno, reverse=True):  # the inner ones last
        body = getattr(node, "body", None)
        lines = range(node.lineno, body[0].lineno if body else node.end_lineno + 1)
        tests = {context.rpartition("|")[0] for line in lines for context in ran.get(line, ())} - {""}
        found |= {line: sorted(tests) for line in lines}
    return found


class Survivor(TypedDict):
    """A mutant that no test noticed."""

    old: str
    new: str
    verdict: str | None
    """Why it may live, from judged.json."""


class Found(TypedDict):
    """What became of a module's mutants."""

    tally: dict[str, int]
    survivors: list[Survivor]


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Number, old and new text of the first line that differs."""
    lines = zip(before.splitlines(), after.splitlines(), strict=False)
    number, (old, new) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return number, old.strip(), new.strip()


def tested(
    module: str, judged: dict[tuple[str, str, str], str], last: Found | None
) -> tuple[Counter[str], list[Survivor]]:
    """How many mutants of a module had which end, and those that survived: all, or those that survived `last` time."""
    source = path_of(module).read_text(encoding="utf-8")
    tests = tests_by_line(module, source)
    again = {(each["old"], each["new"]) for each in last["survivors"]} if last else set()
    tally = Counter((last["tally"] if last else {}) | {"survived": 0})
    survivors = []
    for operator, mutated in mutants(source):
        try:
            code = compile(mutated, path_of(module), "exec")
        except SyntaxError:
            continue
        number, old, new = changed_lines(source, mutated)
        if last and (old, new) not in again:
            continue
        outcome = notices(module, code, tests.get(number) or MODULES[module])
        tally[outcome] += 1
        if outcome == "survived":
            verdict = judged.get((module, old, new))
            survivors.append(Survivor(old=old, new=new, verdict=verdict))
            print(f"{module}:{number} [{operator}]\n  - {old}\n  + {new}\n  = {verdict or 'NOT JUDGED'}", flush=True)
    print(f"{module}: {dict(tally)}", flush=True)
    return tally, survivors


def page(found: dict[str, Found]) -> str:
    """What docs/dev/mutation.md says."""
    counts = []
    for module in MODULES:
        if module in found:
            tally = Counter(found[module]["tally"])
            numbers = (tally.total(), tally["killed"], tally["endless"], tally["survived"])
            counts.append(f"| `{module}` | {' | '.join(map(str, numbers))} |")
        else:
            counts.append(f"| `{module}` | not run | | | |")
    rows = [
        f"| `{module}` | {ticked(each['old'])} | {ticked(each['new'])} | {each['verdict'] or 'not judged'} |"
        for module in MODULES
        if module in found
        for each in found[module]["survivors"]
    ]
    return INTRODUCTION.format(counts="\n".join(counts), rows="\n".join(rows))


def ticked(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="module")
    parser.add_argument("--survivors", action="store_true", help="only mutants that survived last time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    entries = json.loads((Path(__file__).parent / "judged.json").read_text(encoding="utf-8"))
    judged = {(entry["module"], entry["old"], entry["new"]): entry["because"] for entry in entries}
    kept = Path(__file__).parent / "found.json"
    found: dict[str, Found] = json.loads(kept.read_text(encoding="utf-8"))
    unjudged = False
    for module in given.modules or list(MODULES):
        tally, survivors = tested(module, judged, found.get(module) if given.survivors else None)
        unjudged |= any(each["verdict"] is None for each in survivors)
        found[module] = {"tally": dict(tally), "survivors": survivors}
        kept.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (ROOT / "docs" / "dev" / "mutation.md").write_text(page(found), encoding="utf-8")
    return 1 if unjudged else 0


if __name__ == "__main__":
    sys.exit(main())
