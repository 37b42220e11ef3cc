"""What people expect of a repository: CI, hooks, the workflow catalog, a citation. Each says what the rest says."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_ci_runs_every_part_of_its_script():
    parts = set(re.findall(r"^(\w+)\(\) \{", read(".ci/run"), re.MULTILINE)) - {"system", "other_python"}
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    called = " ".join([*jobs["parts"]["strategy"]["matrix"]["parts"], jobs["pythons"]["steps"][-1]["run"]])
    assert set(called.split()) - {".ci/run"} == parts
    (default,) = re.findall(r"\$\{@:-(.+)\}", read(".ci/run"))
    assert set(default.split()) == parts


def test_hooks_are_the_locks_versions():
    lock = read("requirements.txt").splitlines()
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    pins = {pin for hook in hooks for pin in hook.get("additional_dependencies", [])}
    assert len(pins) == 2 and pins <= set(lock)


def test_what_the_catalog_asks_for_is_there(tmp_path):
    """Its standardised usage: workflow/Snakefile, config/README.md, and a file that says how to run it."""
    usage = yaml.safe_load(read(".snakemake-workflow-catalog.yml"))["usage"]
    deployment = usage["software-stack-deployment"]
    assert set(deployment) == {"conda", "apptainer", "apptainer+conda", "report"} and usage["mandatory-flags"]
    assert "snakemake" in read("README.md").lower() and (ROOT / "config" / "README.md").is_file()
    options = ["--cores", "1", "--directory", tmp_path, "--configfile", ROOT / "config" / "config.yaml"]
    planned = []
    for file in ("Snakefile", "workflow/Snakefile"):
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / file, "--dry-run", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        planned.append({*re.findall(r"^(?:local)?rule (\w+):", done.stdout + done.stderr, re.MULTILINE)})
    assert "train_ppo" in planned[0] and planned[1] - {"verdict"} == planned[0] - {"all"}


def test_citation_and_package_agree():
    citation, project = yaml.safe_load(read("CITATION.cff")), read("pyproject.toml")
    assert f'version = "{citation["version"]}"' in project and f'license = "{citation["license"]}"' in project
    assert f"## {citation['version']} ({citation['date-released']})" in read("CHANGELOG.md")


def test_every_public_file_is_linked_from_the_readme_or_contributing():
    linked = {
        link.split("#")[0]
        for page in ("README.md", "CONTRIBUTING.md")
        for link in re.findall(r"\]\(([^)]+)\)", read(page))
    }
    assert {"CODE_OF_CONDUCT.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "CITATION.cff"} <= linked
