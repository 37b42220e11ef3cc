"""Every conda environment is really made from its pins, and every rule really runs in its own."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from workspace import ROOT, make_workspace

from elkflow.common.code_inputs import imports

NAMES = ["base", "train", "evaluate"]

# Put into each environment: every Python that starts there says so. (`.pth` lines run when they begin with import.)
TRACE = (
    "import os, sys, json; 'ELKFLOW_TRACE' in os.environ and open(os.environ['ELKFLOW_TRACE'], 'a')"
    ".write(json.dumps([sys.prefix, sys.orig_argv]) + chr(10))\n"
)


def pins(name: str) -> list[str]:
    return yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())["dependencies"][-1]["pip"]


@pytest.mark.parametrize("name", NAMES)
def test_uv_resolves_environment_to_the_very_same_pins(name, tmp_path):
    """The pins agree with one another, and nothing that they need is missing but what depends on the hardware."""
    asked = tmp_path / "pins.in"
    asked.write_text("\n".join(pins(name)))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-header", "--no-annotate", "--python-version", "3.11"]
    done = subprocess.run([*command, "--quiet", str(asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resolved = {line.split("+")[0].split(" ;")[0] for line in done.stdout.splitlines() if "==" in line}
    assert set(pins(name)) <= resolved
    assert all(line.startswith(("nvidia-", "cuda-", "triton")) for line in resolved - set(pins(name)))


def rules() -> dict[str, str]:
    """Script of each rule that has one, and the environment that the rule names."""
    found = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for block in re.split(r"^(?:check)?rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            script = re.search(r'script_path\("(\w+)"\)', block)
            if script:
                environment = re.search(r"envs/(\w+)\.yaml", block)
                assert environment, f"a rule without conda environment: {block.splitlines()[0]}"
                found[script[1]] = environment[1]
    return found


@pytest.mark.parametrize(("script", "name"), rules().items())
def test_environment_of_a_rule_holds_what_its_script_imports(script, name):
    held = {canonicalize_name(Requirement(pin).name) for pin in pins(name)}
    distributions = metadata.packages_distributions()
    for file in [ROOT / f"workflow/scripts/{script}.py", *map(Path, imports(script))]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"elkflow"}:
                assert held & {canonicalize_name(found) for found in distributions[module]}, f"{file}: {module}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    if not os.environ.get("ELKFLOW_TEST_SLOW"):
        pytest.skip("installs every environment, which takes minutes: set ELKFLOW_TEST_SLOW=1")
    return make_workspace(tmp_path_factory.mktemp("conda"))


@pytest.fixture(scope="session")
def snakemake(folder):
    """Run Snakemake in `folder` with the stand-in for conda on its path."""
    subprocess.run([sys.executable, Path(__file__).with_name("standin.py"), "make", folder / "conda"], check=True)
    programs = f"{folder}/conda/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--configfile", "config.yaml", "--software-deployment-method", "conda", "--conda-prefix", "envs"]
        environment = os.environ | {"PATH": programs, "ELKFLOW_TRACE": str(folder / "trace.jsonl")}
        done = subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture(scope="session")
def environments(snakemake, folder) -> dict[str, Path]:
    """Prefix of each environment, made by Snakemake itself."""
    snakemake("--conda-create-envs-only")
    lines = snakemake("--list-conda-envs").splitlines()
    found = [re.fullmatch(r"\S*envs/(\w+)\.yaml\s.*?(\S+)", line.strip()) for line in lines]
    prefixes = {match[1]: (folder / match[2]).resolve() for match in found if match}
    for prefix in prefixes.values():
        (_site(prefix) / "trace.pth").write_text(TRACE)
    return prefixes


def _site(prefix: Path) -> Path:
    (site,) = prefix.glob("lib/python*/site-packages")
    return site


def test_every_environment_holds_its_pins(environments):
    assert sorted(environments) == sorted(NAMES)
    for name, prefix in environments.items():
        found = {
            canonicalize_name(item.name): item.version for item in metadata.distributions(path=[str(_site(prefix))])
        }
        for pin in map(Requirement, pins(name)):
            assert pin.specifier.contains(found[canonicalize_name(pin.name)]), f"{pin} in {name}"


def test_every_rule_ran_in_its_own_environment(environments, snakemake, folder):
    snakemake()
    assert (folder / "results" / "summary" / "verdict.json").stat().st_size > 0
    ran: dict[str, set[str]] = {}
    for line in (folder / "trace.jsonl").read_text().splitlines():
        prefix, arguments = json.loads(line)
        scripts = [Path(part).stem for part in arguments if re.search(r"workflow/scripts/\w+\.py$", part)]
        for script in scripts[:1]:
            ran.setdefault(script, set()).add(prefix)
    expected = rules()
    assert {"split_dataset", "extract_hiddens", "train_probe", "train_ppo", "merge_lora"} <= set(ran)
    for script, prefixes in ran.items():
        assert prefixes == {str(environments[expected[script]])}, script
