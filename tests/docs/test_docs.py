"""README, docs and CONTRIBUTING are true: links lead somewhere, configs load, snippets run, commands exist."""

import ast
import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from elkflow.config.config import Config
from elkflow.orchestration.preflight import preflight

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PROFILE = ROOT / "profiles" / "slurm" / "profile.v9+.yaml"
RULES = [path.read_text(encoding="utf-8") for path in ROOT.glob("workflow/rules/*.smk")]
QUICKSTART = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, what else stands after the language, and the text."""

    page: Path
    language: str
    options: dict[str, str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text.strip().splitlines()[0][:50]}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        found = re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for match in found:
            options = dict(part.split("=", 1) for part in match[2].split() if "=" in part)
            yield Block(page, match[1], options, match[3])


BLOCKS = list(blocks())


def of(*languages: str, **options: bool) -> list[Block]:
    return [
        block
        for block in BLOCKS
        if block.language in languages and all((name in block.options) == there for name, there in options.items())
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


def marked(page: Path) -> dict[str, tuple[str, str]]:
    """What stands between `<!-- NAME: begin (COMMAND) -->` and `<!-- NAME: end -->`, and the command."""
    found = re.finditer(
        r"<!-- (\w+): begin \((.+)\) -->\n(.*?)<!-- \1: end -->", page.read_text(encoding="utf-8"), re.DOTALL
    )
    return {match[1]: (match[2], match[3]) for match in found}


def test_figures_name_the_command_that_prints_them():
    shown = marked(ROOT / "docs" / "results.md")
    assert set(shown) == {"verdict", "speed"}
    for command, _ in shown.values():
        assert (ROOT / command.split()[-1]).is_file(), command


def test_the_readme_has_the_figures_of_the_verdict():
    """Every number that the README prints as the verdict's stands in the table that the command printed."""
    (_, table), (_, text) = (marked(page)["verdict"] for page in (ROOT / "docs" / "results.md", ROOT / "README.md"))
    numbers = re.findall(r"[+-]?\d+\.\d+", text)
    assert len(numbers) >= 6 and set(numbers) <= set(re.findall(r"[+-]?\d+\.\d+", table))


def test_the_readme_fits_on_a_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 70


def test_stages_have_one_number_each():
    """The tutorial's headings number the stages as the rules do, and name rules that are there."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d) [\w ]+: (.+)$", tutorial, re.MULTILINE)
    assert [int(number) for number, _ in headings] == list(range(9))
    for number, names in headings:
        for name in re.findall(r"`(\w+)`", names):
            (text,) = (text for text in RULES if re.search(rf"^rule {name}:$", text, re.MULTILINE))
            assert number in re.findall(r"\d", text.partition(".")[0].partition(":")[0]), f"{name}: stage {number}?"


def merged(base: dict, over: dict) -> dict:
    result = copy.deepcopy(base)
    for key, value in over.items():
        result[key] = (
            merged(result[key], value) if isinstance(result.get(key), dict) and isinstance(value, dict) else value
        )
    return result


@pytest.mark.parametrize("block", of("yaml", file=False, task=False), ids=str)
def test_config_fragments_load_on_top_of_the_quickstart(block):
    fragment = yaml.safe_load(block.text)
    if set(fragment) <= set(Config.model_fields):
        Config.load(merged(QUICKSTART, fragment))
    elif "__variables__" in fragment:
        assert block.text in PROFILE.read_text(encoding="utf-8"), f"{block}: not what the Slurm profile says"
    else:
        assert block.page.name in ("cluster.md",), f"{block}: neither a config nor a profile"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that holds every file the docs show."""
    for block in BLOCKS:
        if "file" in block.options:
            path = tmp_path / block.options["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_dataset_is_split_and_rendered(folder):
    from elkflow.data.split_dataset import split_dataset
    from elkflow.prompts.render_prompts import render_question
    from elkflow.prompts.templates import load_template

    (fragment,) = (yaml.safe_load(block.text) for block in of("yaml", file=False, task=False) if "primes" in block.text)
    config = Config.load(merged(QUICKSTART, fragment))
    preflight(config)
    facts = split_dataset(config.datasets["primes"], folder / "data")
    assert facts["splits"]["val"]["rows"] == 4
    question = render_question(load_template("primes.yaml"), {"number": 7, "label": 1}, None, "rows")
    assert question.text == "Is 7 a prime number? Reply Yes or No." and question.answers[question.label] == "Yes"


def test_the_example_reward_is_found_and_called(folder):
    from elkflow.ppo.train_ppo import reward_source

    reward = reward_source("short_answers:brevity", folder / "none.parquet", None, -1.0)
    assert reward(["p", "p"], ["", "abc"]) == [1.0, 0.25]


def test_the_example_probe_finds_a_planted_direction(tmp_path):
    """The three edits of CONTRIBUTING.md, made to a copy of the library."""
    library = Path(shutil.copytree(ROOT / "workflow" / "scripts" / "elkflow", tmp_path / "elkflow"))
    (function,), (case,) = of("python", probe=True), of("python", case=True)
    edit(library / "probes" / "methods.py", "\ndef _within(", "\n" + function.text + "\n\ndef _within(")
    edit(library / "probes" / "fitting.py", '        case "mass_mean":', case.text + '        case "mass_mean":')
    edit(library / "config" / "probe.py", '"mass_mean", ', '"mass_mean", "median_difference", ')
    code = """
import torch
from types import SimpleNamespace
from elkflow.probes import fitting
from elkflow.config.probe import ProbeSettings
settings = ProbeSettings(model="m", dataset="d", wording="w", methods=["median_difference"])
torch.manual_seed(0)
labels = torch.arange(200) % 2
fit = torch.randn(3, 1, 200, 2, 8)
fit[..., 1, 5] += 6.0 * labels - 3.0
parts = SimpleNamespace(train=SimpleNamespace(labels=labels.numpy(), groups=labels.numpy()), fit=slice(None))
weight = fitting.fit_method("median_difference", fit, parts, settings).weight
assert weight.shape == (3, 8) and (weight.argmax(1) == 5).all(), weight
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=True)


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert content.count(old) == 1, f"{path}: {old!r} occurs {content.count(old)} times"
    path.write_text(content.replace(old, new), encoding="utf-8")


VERDICT = {
    "evaluations": [{"task": "training", "run": "quickstart", "base": 0.5, "tuned": 0.9, "p_value": 1e-9}],
    "probes": [{"probe": "truth", "layer": 20, "auroc": 0.98}],
}


def test_the_example_task_is_asked(tmp_path, monkeypatch):
    from tiny import save_tiny_model

    from elkflow.config.model import ModelSettings
    from elkflow.evaluation import evaluate_model, harness_tasks

    folder = Path(shutil.copytree(ROOT / "workflow" / "tasks", tmp_path / "tasks"))
    for block in of("yaml", "csv", task=True):
        (folder / block.options["task"]).write_text(block.text, encoding="utf-8")
    monkeypatch.setattr(harness_tasks, "TASKS", folder)
    harness_tasks.own_tasks.cache_clear()
    (fragment,) = (yaml.safe_load(block.text) for block in of("yaml", task=False) if "opposites" in block.text)
    settings = Config.load(merged(QUICKSTART, fragment)).evaluation
    model = evaluate_model.load_harness_model(save_tiny_model(tmp_path / "model"), ModelSettings(path="x"), settings)
    results, samples = evaluate_model.evaluate_suite(model, settings.suites["control"], {})
    harness_tasks.own_tasks.cache_clear()
    assert results["opposites"]["n"] == 3 and set(samples["label"]) == {1}


def test_the_example_algorithm_learns_what_is_rewarded(tmp_path):
    """The three edits of CONTRIBUTING.md, made to a copy of the library."""
    library = Path(shutil.copytree(ROOT / "workflow" / "scripts" / "elkflow", tmp_path / "elkflow"))
    (module,), (branch,) = of("python", algorithm=True), of("python", branch=True)
    (library / "ppo" / "reinforce.py").write_text(module.text, encoding="utf-8")
    otherwise = "    from elkflow.ppo.trl_trainers import"
    edit(library / "ppo" / "train_ppo.py", otherwise, branch.text + otherwise)
    edit(
        library / "ppo" / "train_ppo.py",
        "\nfrom elkflow.ppo.session import",
        "\nfrom elkflow.ppo.reinforce import train_reinforce\nfrom elkflow.ppo.session import",
    )
    edit(library / "config" / "ppo.py", '"rloo", "grpo"]', '"rloo", "grpo", "reinforce"]')
    code = """
import sys, pathlib
from tiny_trainer import metrics, trainer
from elkflow.ppo.train_ppo import train_session
from elkflow.config.ppo import RunSettings
assert "reinforce" in str(RunSettings.model_fields["algorithm"].annotation)
folder = pathlib.Path(sys.argv[1])
settings = {"train": "full", "learning_rate": 1e-3, "steps": 60, "sentinel": None}
made = trainer(folder, batch_size=24, evaluate_rows=24, evaluate_every=1, **settings)
assert train_session(made.session, "reinforce").outcome == "finished"
rewards = [row["held_out_reward"] for row in metrics(folder)]
assert max(rewards) > rewards[0] + 0.3, rewards
"""
    paths = [tmp_path, ROOT / "tests", ROOT / "tests" / "unit"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], env=environment, check=True)


@pytest.mark.parametrize(
    "block",
    of("python", file=False, probe=False, case=False, finished=False, algorithm=False, branch=False, nodes=False),
    ids=str,
)
def test_python_snippets_run(block, folder):
    (folder / "results" / "summary").mkdir(parents=True)
    (folder / "results" / "summary" / "verdict.json").write_text(json.dumps(VERDICT))
    subprocess.run([sys.executable, "-c", block.text], check=True, capture_output=True)


def commands() -> list[str]:
    """Every command line of shell blocks and of indented lines that begin with one of our tools."""
    lines = [line for block in of("bash", "sh", "shell", "console") for line in block.text.splitlines()]
    for page in PAGES:
        lines += re.findall(
            r"^    ((?:snakemake|make|python|git|source) .*)$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    joined = "\n".join(lines).replace("\\\n", " ")
    return sorted({line.split(" #")[0].strip().removeprefix("$ ") for line in joined.splitlines() if line.strip()})


ELSEWHERE = ("git ", "cd ", "source ", "pip ", "export ", "scp ", "ssh ", "sbatch ", "tmux", "conda ", "#")


@pytest.mark.parametrize("line", [line for line in commands() if not line.startswith(ELSEWHERE)])
def test_commands_exist(line, tmp_path):
    words = shlex.split(line)
    while "=" in words[0]:
        words.pop(0)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["SNAKEMAKE_OUTPUT_CACHE"] = str(tmp_path)
    if words[0] == "make":
        targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True, env=environment)
    elif words[0] == "snakemake":
        extra = [] if {"--unlock", "--lint", "--rulegraph", "--report", "--summary"} & set(words) else ["--dry-run"]
        cores = [] if {"--cores", "-c", "--profile"} & set(words) else ["--cores", "1"]
        cores += [] if "--configfile" in words else ["--configfile", "config/config.yaml"]
        if "--report" in words:
            return  # needs finished results; tests/integration writes one
        done = subprocess.run(
            [sys.executable, "-m", *words, *extra, *cores, "--directory", tmp_path, "--snakefile", ROOT / "Snakefile"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    elif words[0] in ("python", "python3.11") and "-c" in words:
        compile(words[words.index("-c") + 1], line, "exec")
    elif words[0] in ("python", "python3.11"):
        script = next(word for word in words[1:] if not word.startswith("-") or word == "-m")
        assert script == "-m" or (ROOT / script).is_file(), line
    else:
        assert words[0] in ("accelerate", "lm-eval", "lm_eval", "uv", "."), f"what is {words[0]}?"


def test_the_rooms_are_drawn_as_they_import_and_all_are_listed():
    page = (ROOT / "docs" / "dev" / "architecture.md").read_text(encoding="utf-8")
    drawn = subprocess.run(
        [sys.executable, ROOT / "docs" / "dev" / "architecture.py"], check=True, capture_output=True, text=True
    ).stdout
    assert drawn in page, "run `python docs/dev/architecture.py --write`"
    rooms = sorted(path.parent.name for path in ROOT.glob("workflow/scripts/elkflow/*/__init__.py"))
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == rooms


def defined(path: Path) -> set[str]:
    """Names of a module's classes and functions, and of its classes' methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    inner = [(node, child) for node in tree.body if isinstance(node, ast.ClassDef) for child in node.body]
    names = {node.name for node in tree.body if isinstance(node, kinds)}
    return names | {f"{node.name}.{child.name}" for node, child in inner if isinstance(child, kinds)}


def test_the_walks_name_what_is_there_and_enter_each_room_once():
    page = (ROOT / "docs" / "dev" / "architecture.md").read_text(encoding="utf-8")
    library = ROOT / "workflow" / "scripts" / "elkflow"
    for file, names in re.findall(r"`(\w+/\w+\.py)`:\s+((?:`[\w.]+`(?:,\s+)?)+)", page):
        assert not set(re.findall(r"[\w.]+", names)) - defined(library / file), file
    for file in re.findall(r"`(\w+/\w+\.py)`", page):
        assert (library / file).is_file(), file
    for walk in page.split("\n## ")[-2:]:
        entered = re.findall(r"^\d\. \*\*`(\w+)`\*\*", walk, re.MULTILINE)
        assert len(entered) == len(set(entered)) >= 4


def test_licences_are_those_of_the_lock():
    page = (ROOT / "docs" / "dev" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| ([^|]+) \|", page, re.MULTILINE))
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    listed.pop("package", None)
    assert {name: version.strip() for name, version in listed.items()} == locked, "run `python docs/dev/licences.py`"


def test_judged_mutants_are_of_the_code_as_it_is_and_listed():
    """A survivor of `make mutation` that was judged, but whose line is no more, is removed from the list."""
    listed = (ROOT / "docs" / "dev" / "mutation.md").read_text(encoding="utf-8")
    for entry in json.loads((ROOT / "tests" / "mutation" / "judged.json").read_text(encoding="utf-8")):
        path = Path(*entry["module"].split(".")).with_suffix(".py")
        code = (ROOT / "workflow" / "scripts" / "elkflow" / path).read_text(encoding="utf-8")
        assert entry["old"] in [line.strip() for line in code.splitlines()], entry
        assert entry["because"] in listed, "run `make mutation`"
