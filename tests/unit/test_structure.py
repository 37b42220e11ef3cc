"""The shape of the code: no import cycles, no giants, thin scripts, rules that read as a table of contents."""

import ast
import importlib.util
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
LIBRARY = sorted((SCRIPTS / "elkflow").rglob("*.py"))
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SCRIPTS).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Library modules that a file imports anywhere, inside functions too; imports for type checkers are left out."""
    modules = {name_of(file) for file in LIBRARY}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules) - {"elkflow", name_of(path)}


def test_no_module_imports_itself_in_a_circle():
    graph = {name_of(path): imported(path) for path in LIBRARY}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle
    assert len(order) == len(graph) and sum(map(len, graph.values())) > 40


FLOORS = (
    {"common"},
    {"config", "batching"},
    {"models"},
    {"prompts", "hiddens", "summary"},
    {"data", "probes", "evaluation", "report"},
    {"rewards", "publish", "verify"},
    {"ppo"},
    {"orchestration"},
)
"""The library's rooms, lowest first: a room imports from rooms below it alone."""


def test_rooms_import_from_lower_floors_only():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert set(floor) == {path.parent.name for path in LIBRARY if path.parent.name != "elkflow"}
    upwards = [
        f"{name_of(path)} imports {other}"
        for path in LIBRARY
        for other in imported(path)
        if (room := other.split(".")[1]) != path.parent.name and floor[room] >= floor[path.parent.name]
    ]
    assert not upwards


def test_rooms_hold_the_modules_and_their_init_files_nothing():
    """What stands in the root or in an `__init__.py` would be followed by no walk along imports."""
    assert [path.name for path in LIBRARY if path.parent.name == "elkflow"] == ["__init__.py"]
    for path in LIBRARY:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "__init__.py":
            assert len(tree.body) == 1 and ast.get_docstring(tree), name_of(path)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], name_of(path)


def test_rule_script_module_and_test_share_a_name():
    """Of every script that a rule starts; what no rule starts is for people."""
    rules = "".join(path.read_text(encoding="utf-8") for path in RULES)
    started = set(re.findall(r"script=code_inputs.script_path\(\"(\w+)\"\)", rules))
    assert len(started) > 15
    modules = {path.stem: path.parent.name for path in LIBRARY}
    for name in started:
        assert (SCRIPTS / f"{name}.py").is_file() and name in modules, name
        assert (ROOT / "tests" / "unit" / modules[name] / f"test_{name}.py").is_file(), name


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS.glob("*.py"), *RULES], ids=lambda path: path.name)
def test_no_file_is_a_giant(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_are_thin_and_do_nothing_when_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120
    kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign, ast.If, ast.Expr)
    assert all(isinstance(node, kinds) for node in tree.body)
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert "main" in names and 'if __name__ == "__main__":\n    run(main)' in path.read_text(encoding="utf-8")


def test_every_public_function_says_what_it_does():
    silent = [
        f"{name_of(path)}.{node.name}"
        for path in LIBRARY
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_every_rule_is_documented_logged_and_quoted(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""'), "a rules file opens with what it needs and makes"
    for block in re.split(r"^(?=rule )", text, flags=re.MULTILINE)[1:]:
        name = block.split(":")[0]
        assert re.match(r'rule \w+:\n    """', block), f"{name}: no docstring"
        if "shell:" in block and "localrule: True" not in block:
            assert "    log:" in block and "    conda:" in block, name
        command = "".join(re.findall(r"^    shell:\n((?:        .*\n)+)", block, re.MULTILINE))
        bare = [value for value in re.findall(r"(?<!\{)\{([^{}]+)\}(?!\})", command) if not value.endswith(":q")]
        assert set(bare) <= {"threads"} | {v for v in bare if v.startswith("resources.")}, bare


def test_what_the_snakefile_imports_is_light():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import elkflow.config.config, elkflow.common.code_inputs;"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code, SCRIPTS], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "datasets", "sklearn", "matplotlib"} & set(loaded.split())


def names_bound(path: Path) -> dict[str, str]:
    """Names that a rules file binds for all of them, to the statement that does: imports, functions, constants."""
    found = {}
    text = path.read_text(encoding="utf-8")
    for statement in re.findall(r"^(?:from|import) (?:[^(\n]*\([^)]*\)|[^\n]*)", text, re.MULTILINE):
        for node in ast.parse(statement).body:
            found |= {(alias.asname or alias.name).split(".")[0]: ast.unparse(node) for alias in node.names}
    return found | {name: "def" for name in re.findall(r"^(?:def )?(\w+)(?:\(.*\):$| = )", text, re.MULTILINE)}


def test_no_two_rules_files_bind_the_same_name():
    """All includes share one namespace, where the last wins: a stage would call another's function unnoticed."""
    files = [ROOT / "Snakefile", *RULES]
    bound = [(name, path.name) for path in files for name in names_bound(path)]
    assert {name for name, _ in bound} > {"code_inputs", "launched", "INPUTS", "TEMPLATES", "answers_in"}
    names = [name for name, _ in bound]
    assert not [(name, file) for name, file in bound if names.count(name) > 1]


def test_rules_import_modules_and_no_functions():
    """A bare function can be hidden by another module's of the same name."""
    for path in (ROOT / "Snakefile", *RULES):
        for statement in names_bound(path).values():
            for node in ast.parse(statement).body if statement.startswith("from ") else []:
                for alias in node.names:
                    assert importlib.util.find_spec(f"{node.module}.{alias.name}"), f"{path.name}: {statement}"
