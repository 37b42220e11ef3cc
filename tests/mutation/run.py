"""Mutation testing of the mathematics: change one operator, number or condition and see whether a test notices.

    make mutation

The mutants are cosmic-ray's; each is tested in a forked process that has everything but
the mutated module imported already, which is some fifty times as fast as starting pytest anew. Survivors are compared
with tests/mutation/judged.json: one that nobody has judged fails the run.
"""

import json
import os
import signal
import sys
import types
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(ROOT / "tests")]
sys.dont_write_bytecode = True

import cosmic_ray.plugins  # noqa: E402
import hypothesis  # noqa: E402, F401
import numpy  # noqa: E402, F401
import pytest  # noqa: E402
import scipy.optimize  # noqa: E402, F401
import sklearn.linear_model  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402, F401
from cosmic_ray.mutating import mutate_code  # noqa: E402

MODULES = {"ppo": ["test_ppo.py"], "probes": ["test_probes.py"], "metrics": ["test_metrics.py"]}
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


def mutants(source: str):
    """Each (operator, occurrence, mutated source) that parses and is not the source itself."""
    for name in OPERATORS:
        operator, occurrence = cosmic_ray.plugins.get_operator(f"core/{name}")(), 0
        while (mutated := mutate_code(source, operator, occurrence)) is not None:
            occurrence += 1
            if mutated != source:
                yield name, mutated


def notices(module: str, code: types.CodeType, tests: list[str]) -> str:
    """Run the tests against a mutated module in a forked process: `killed`, `survived` or `endless`."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            mutated = types.ModuleType(f"elkflow.{module}")
            mutated.__file__ = str(ROOT / "workflow" / "scripts" / "elkflow" / f"{module}.py")
            import elkflow

            sys.modules[f"elkflow.{module}"] = mutated
            setattr(elkflow, module, mutated)
            exec(code, mutated.__dict__)
            options = ["-x", "-q", "-p", "no:cacheprovider", "--override-ini", "addopts=", "--rootdir", str(ROOT)]
            status = pytest.main([*options, *(str(ROOT / "tests" / "unit" / name) for name in tests)])
        except BaseException:
            status = 1
        os._exit(int(status))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "endless"
    return "killed" if os.waitstatus_to_exitcode(status) else "survived"


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Number, old and new text of the first line that differs."""
    lines = zip(before.splitlines(), after.splitlines(), strict=False)
    number, (old, new) = next((n, pair) for n, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return number, old.strip(), new.strip()


def main(chosen: list[str]) -> int:
    torch.set_num_threads(1)
    judged = json.loads((Path(__file__).parent / "judged.json").read_text(encoding="utf-8"))
    unjudged = 0
    for module in chosen or list(MODULES):
        path = ROOT / "workflow" / "scripts" / "elkflow" / f"{module}.py"
        source, tests = path.read_text(encoding="utf-8"), MODULES[module]
        assert notices(module, compile(source, path, "exec"), tests) == "survived", f"{tests} fail as they are"
        tally: Counter[str] = Counter()
        for operator, mutated in mutants(source):
            try:
                code = compile(mutated, path, "exec")
            except SyntaxError:
                tally["no Python"] += 1
                continue
            outcome = notices(module, code, tests)
            tally[outcome] += 1
            if outcome == "survived":
                number, old, new = changed_lines(source, mutated)
                verdict = judged.get(f"{module}: {old} -> {new}")
                unjudged += verdict is None
                print(
                    f"{module}.py:{number} [{operator}]\n  - {old}\n  + {new}\n  = {verdict or 'NOT JUDGED'}",
                    flush=True,
                )
        print(f"{module}: {dict(tally)}", flush=True)
    return 1 if unjudged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
