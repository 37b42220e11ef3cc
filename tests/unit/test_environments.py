"""The lock, the conda environments made from it, and what they declare."""

import importlib.util
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["base", "train", "evaluate"]

spec = importlib.util.spec_from_file_location("generate_environments", ROOT / "envs/generate.py")
assert spec and spec.loader
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def environment(name):
    return yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())


def test_every_environment_is_listed():
    assert (
        sorted(path.stem for path in (ROOT / "envs").glob("*.yaml")) == sorted(NAMES) == sorted(generate.ENVIRONMENTS)
    )


@pytest.mark.parametrize("name", NAMES)
def test_environment_is_what_the_lock_says(name):
    expected = generate.render(generate.ENVIRONMENTS[name], generate.read_lock())
    assert (ROOT / f"envs/{name}.yaml").read_text() == expected, "run `python envs/generate.py`"


def test_lock_holds_the_whole_closure_of_what_is_asked_for():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.in").read_text().splitlines())
    asked = [Requirement(line) for line in lines if line]
    lock = generate.read_lock()
    assert {pin.split("==")[0] for pin in generate.closure([item.name for item in asked], lock)} == set(lock)
    for item in asked:
        assert item.specifier.contains(lock[canonicalize_name(item.name)]), item


def test_lock_is_exact_and_leaves_hardware_to_pip():
    for name, version in generate.read_lock().items():
        assert Requirement(f"{name}=={version}").specifier.contains(version)
        assert "+" not in version, f"{name}: a local version exists on one machine only"
        assert not name.startswith(generate.HARDWARE)


def test_a_package_outside_the_lock_is_an_error():
    with pytest.raises(SystemExit, match="torch is needed but"):
        generate.closure(["torch"], {"numpy": "1"})


@pytest.mark.parametrize("name", NAMES)
def test_environment_parses_strictly(name):
    from rattler import MatchSpec

    content = environment(name)
    assert set(content) == {"channels", "dependencies"}
    assert content["channels"] == ["conda-forge", "nodefaults"]
    plain = [MatchSpec(item, strict=True) for item in content["dependencies"] if isinstance(item, str)]
    assert [str(item.name.normalized) for item in plain] == ["python", "pip"]
    assert str(plain[0].version) == "3.11.*"
    assert not list((ROOT / "envs").glob("*.pin.txt")), "a pin file makes Snakemake drop the pip part without a word"


def test_every_module_can_be_imported():
    """In this Python, from its file's name alone; `.ci/run` asks the same of a second Python."""
    scripts = ROOT / "workflow" / "scripts"
    files = sorted((scripts / "elkflow").rglob("*.py"))
    names = [".".join(file.relative_to(scripts).with_suffix("").parts).removesuffix(".__init__") for file in files]
    code = f"import importlib, sys; sys.path.insert(0, {str(scripts)!r}); [importlib.import_module(n) for n in {names}]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_installs_and_is_then_imported_anywhere(tmp_path):
    """`pip install -e .` without a network, in a copy of the clone and an environment of its own."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "workflow" / "scripts", clone / "workflow" / "scripts")
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.in"):
        shutil.copy(ROOT / name, clone)
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (tools,) = {str(Path(module.origin).parents[1]) for module in map(importlib.util.find_spec, ("pip", "setuptools"))}
    (site / "tools.pth").write_text(tools)  # pip and setuptools are those of the lock's environment
    python = tmp_path / "venv" / "bin" / "python"
    options = ["--quiet", "--editable", ".", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *options], cwd=clone, check=True)
    code = "import elkflow.common.errors as module; print(module.__file__)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == clone / "workflow" / "scripts" / "elkflow" / "common" / "errors.py"
    code = "from importlib.metadata import distribution as d; print(*d('elkflow').requires, sep='\\n')"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    asked = (line.partition("#")[0].strip() for line in (ROOT / "requirements.in").read_text().splitlines())
    assert done.stdout.split() == [line for line in asked if line]
