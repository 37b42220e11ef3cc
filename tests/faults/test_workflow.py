"""The whole workflow on tiny models, disturbed again and again on its way: it gets there, and to the same bytes.

One chain of faults goes from an empty folder to a finished one, stage by stage, so that each fault costs a start and
not a whole run. After each, every file that stands under its final name is the undisturbed run's, and no job that had
finished is done again; at the end all results are. `make faults` goes on with random chains until $ELKFLOW_FAULTS
faults are done.
"""

import os
import random
import shutil
import subprocess
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from .harness import Point, Workspace

WANTED = int(os.environ.get("ELKFLOW_FAULTS", "0"))
YEAR = 365 * 86400.0
pytestmark = pytest.mark.skipif(not WANTED, reason="whole workflows take minutes: `make faults` runs them")

DATA = [
    Point("between two splits", "split_dataset", "replace", r"/ppo\.parquet$", SIGTERM, after=True),
    Point("between two prompt files", "render_prompts", "replace", r"/train\.parquet$", SIGINT, after=True),
]
DOWNLOAD = [
    Point("during download", "fetch_model", "copy_file_range", r"/model\.safetensors$"),
    Point("between download and its place", "fetch_model", "replace", r"/checkpoint$"),
]
STATES = [
    Point("while writing hidden states", "extract_hiddens", "pwrite", r"\.safetensors", count=4),
    Point("between hidden states and manifest", "extract_hiddens", "replace", r"manifest\.json$"),
]
PROBE = [
    Point("between a probe's weights and facts", "train_probe", "replace", r"/probe\.json$"),
    Point("between rewards and manifest", "score_answers", "replace", r"manifest\.json$", SIGTERM),
]
TRAINING = [
    Point("before the first checkpoint", "train_ppo", "replace", r"/step-000000$"),
    Point("inside a checkpoint", "train_ppo", "replace", r"step-000001.*/hashes\.json$"),
    Point("between metrics and checkpoint", "train_ppo", "replace", r"/step-000002$"),
    Point("between two steps of training", "train_ppo", "replace", r"/step-000002$", SIGTERM, after=True),
    Point("between a checkpoint and pruning", "train_ppo", "replace", r"/step-000004$", after=True),
    Point("while writing the adapter", "train_ppo", "replace", r"/adapter$"),
]
MERGE = [
    Point("inside merge", "merge_lora", "sendfile", r"/tokenizer\.json$"),
    Point("between merge and manifest", "merge_lora", "replace", r"/merged\.json$"),
]
EVALUATION = [
    Point("inside evaluation", "evaluate_model", "replace", r"evaluations/answers/"),
    Point("between answers and manifest", "evaluate_model", "replace", r"/samples\.parquet$", after=True),
]
SUMMARY = [Point("inside the report", "summarise", "replace", r"/verdict\.json$")]
POINTS = [*DATA, *DOWNLOAD, *STATES, *PROBE, *TRAINING, *MERGE, *EVALUATION, *SUMMARY]

DAMAGE = {  # files, and what the stage that reads them makes
    "models/*/checkpoint/model.safetensors": "prompts/*/*/*/train.parquet",
    "data/*/train.parquet": "prompts/*/*/*/train.parquet",
    "prompts/*/*/training/train.parquet": "hiddens/*/*/*/train.safetensors",
    "hiddens/*/*/*/train.safetensors": "probes/*/probe.safetensors",
    "probes/*/probe.safetensors": "rewards/*/*/ppo.parquet",
    "rewards/*/*/ppo.parquet": "runs/*/*/adapter",
    "runs/*/*/adapter/adapter_model.safetensors": "runs/*/*/merged",
    "runs/*/*/merged/model.safetensors": "evaluations/tuned/*/*/*/samples.parquet",
    "evaluations/*/*/*/*/samples.parquet": "summary/verdict.json",
}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Workspace:
    """A finished run that nothing happened to, with the files that are removed after use."""
    workspace = Workspace.create(tmp_path_factory.mktemp("undisturbed") / "work")
    workspace.finish("--notemp")
    assert len(workspace.fingerprints()) > 60
    return workspace


@pytest.fixture(scope="session")
def can_mount(tmp_path_factory) -> bool:
    """Whether small disks can be had here (that needs root)."""
    folder = str(tmp_path_factory.mktemp("mounted"))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    return done.returncode == 0 and subprocess.run(["umount", folder], check=True).returncode == 0


@pytest.fixture
def fresh(undisturbed, tmp_path):
    """A function that makes new workspaces; what is left of them is removed at the end."""
    made = []

    def make(name: str, seed: int) -> Workspace:
        made.append(undisturbed.another(tmp_path / name, seed))
        return made[-1]

    yield make
    for workspace in made:
        workspace.unmount()
        shutil.rmtree(workspace.folder, ignore_errors=True)


def test_twenty_and_more_faults_on_the_way(fresh, can_mount, tally):
    work, dice = fresh("chain", 8), random.Random(8)

    def at(points: list[Point], *arguments: str) -> None:
        for point in points:
            work.kill_at(point, *arguments)

    def until(*rules: str) -> tuple[str, ...]:  # so that no stage is finished before its turn to be disturbed
        return ("--until", *rules)

    if can_mount:
        assert work.full_disk(200_000, *until("fetch_model"))
    at(DOWNLOAD, *until("fetch_model"))
    at(DATA[:1], *until("split_dataset"))
    work.finish(*until("fetch_model", "split_dataset"))
    work.damage("models/*/checkpoint/model.safetensors", "flip", *until("render_prompts"))
    at(DATA[1:], *until("render_prompts"))
    work.kill(SIGKILL, dice.uniform(3, 8), "all", *until("render_prompts"))
    if can_mount:
        assert work.full_disk(60_000, *until("extract_hiddens"))
    at(STATES, *until("extract_hiddens"))
    work.other_times(-20 * YEAR)
    work.kill(SIGKILL, dice.uniform(3, 8), "snakemake", *until("extract_hiddens"))
    at(PROBE[:1])
    work.damage("hiddens/*/*/training/train.safetensors", "flip", *until("train_probe"))
    work.kill(SIGTERM, dice.uniform(3, 8), "snakemake", *until("train_probe"))
    at(PROBE[1:])
    work.wrong_clock(3 * YEAR, "score_answers")
    work.damage("rewards/*/*/ppo.parquet", "cut", *until("train_ppo"))
    at(TRAINING)
    work.kill(SIGINT, dice.uniform(3, 8), "all", *until("train_ppo"))
    if can_mount or os.geteuid():
        work.read_only()
    work.finish(*until("train_ppo"))
    work.damage("runs/*/seed*/adapter/adapter_model.safetensors", "flip", *until("merge_lora"))
    at(MERGE)
    work.kill(SIGKILL, dice.uniform(4, 8), "job", *until("merge_lora"))
    at(EVALUATION)
    work.other_times(10 * YEAR)
    work.finish(*until("evaluate_base", "evaluate_tuned"))
    work.damage("evaluations/base/*/*/target/samples.parquet", "cut")
    at(SUMMARY)
    work.settle()
    assert work.tally.total() >= 20
    count(work, tally, can_mount)


def test_random_chains(fresh, can_mount, tally):
    """Faults at random moments until there are enough; a finished chain is compared and another one begun."""
    seed = 0
    while sum(number for kind, number in tally.items() if kind.startswith("whole workflow")) < WANTED:
        seed += 1
        work = fresh(f"random{seed}", seed)
        while not (work.results / "summary" / "verdict.json").exists():
            disturb(work, can_mount)
        work.settle()
        count(work, tally, can_mount)
        work.unmount()
        shutil.rmtree(work.folder)


def disturb(work: Workspace, can_mount: bool) -> None:
    """One fault drawn at random, of those that are possible just now."""
    dice = work.dice
    kind = dice.choice(["kill", "kill", "kill", "point", "point", "point", "damage", "times", "disk", "permission"])
    if kind == "kill":
        work.kill(
            dice.choice([SIGKILL, SIGTERM, SIGINT]), dice.uniform(3, 15), dice.choice(["all", "snakemake", "job"])
        )
    elif kind == "point":
        outcome, came = work.try_kill_at(dice.choice(POINTS))
        assert came or outcome.code == 0, outcome.text[-3000:]
    elif kind == "damage":
        read = [pattern for pattern, made in DAMAGE.items() if not list(work.results.glob(made))]
        if found := [pattern for pattern in read if work.finished(pattern)]:
            work.damage(dice.choice(found), dice.choice(["cut", "flip"]))
    elif kind == "times" and work.results.exists():
        work.other_times(dice.uniform(-30, 30) * YEAR)
    elif kind == "disk" and can_mount and (work.results.is_mount() or not work.results.exists()):
        work.full_disk(dice.randrange(8_000, 300_000))
    elif kind == "permission" and work.results.is_mount():
        work.read_only()


def count(work: Workspace, tally, can_mount: bool) -> None:
    """Add a finished chain to the tally that is printed at the end."""
    tally.update({f"whole workflow: {kind}": number for kind, number in work.tally.items()})
    if not can_mount:
        print("left out, as mounting a small disk needs root: full disks")
