"""The whole workflow on tiny models, disturbed again and again on its way: it gets there, and to the same bytes.

One chain of faults goes from an empty folder to a finished one, stage by stage, so that each fault costs a start and
not a whole run. `make faults` goes on with random chains until $ELKFLOW_FAULTS faults are done.
"""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from .harness import Workspace

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
WANTED = int(os.environ.get("ELKFLOW_FAULTS", "0"))
pytestmark = pytest.mark.skipif(not WANTED, reason="whole workflows take minutes: `make faults` runs them")

POINTS = [  # script, call, how manieth, whether it still happens, signal
    ("fetch_model", "replace", 1, False, KILL),  # downloaded, not yet in place
    ("split_dataset", "replace", 2, True, TERM),
    ("render_prompts", "replace", 1, True, INT),
    ("extract_hiddens", "fsync", 1, False, KILL),  # states written, not flushed
    ("extract_hiddens", "replace", 2, False, KILL),  # between states and manifest
    ("train_probe", "replace", 2, True, KILL),
    ("score_answers", "replace", 1, True, TERM),  # between table and manifest
    ("train_ppo", "replace", 1, False, KILL),  # before the first checkpoint
    ("train_ppo", "replace", 3, False, KILL),  # inside a checkpoint
    ("train_ppo", "replace", 4, True, KILL),  # between a checkpoint and what follows
    ("merge_lora", "replace", 1, False, KILL),
    ("evaluate_model", "replace", 2, True, KILL),
    ("compare", "replace", 3, False, KILL),
]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Workspace:
    """A finished run that nothing happened to."""
    workspace = Workspace.create(tmp_path_factory.mktemp("undisturbed") / "work")
    workspace.finish()
    assert len(workspace.fingerprints()) > 30
    return workspace


@pytest.fixture
def fresh(undisturbed, tmp_path):
    """A function that makes new workspaces of the same model and config; their small disks are unmounted at the end."""
    made = []

    def make(name: str, seed: int = 0) -> Workspace:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(undisturbed.folder / "model", folder / "model")
        shutil.copy(undisturbed.folder / "config.yaml", folder)
        made.append(folder)
        return Workspace(folder, seed)

    yield make
    for folder in made:
        if (folder / "results").is_mount():
            subprocess.run(["umount", str(folder / "results")], check=True)


def settle(workspace: Workspace, undisturbed: Workspace) -> None:
    """Finish, compare with the undisturbed run, and see that nothing is left to do."""
    workspace.finish()
    found, expected = workspace.fingerprints(), undisturbed.fingerprints()
    assert {name: found.get(name) for name in expected} == expected
    assert set(found) == set(expected)
    assert "Nothing to be done" in workspace.run().text


def full_disk(workspace: Workspace, share: float, undisturbed: Workspace) -> None:
    """Give the results a disk of a share of what they need; it fills up; then make room."""
    need = sum(path.stat().st_size for path in undisturbed.results.rglob("*") if path.is_file())
    workspace.results.mkdir(exist_ok=True)
    size = f"size={max(int(need * share), 65536)}"
    if workspace.results.is_mount():
        subprocess.run(["mount", "-o", f"remount,{size}", str(workspace.results)], check=True)
    else:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(workspace.results)])
        if mounted.returncode:
            pytest.skip("mounting a small disk needs root")
    outcome = workspace.run()
    assert outcome.code != 0 and ("No space left" in outcome.text or "os error 28" in outcome.text), outcome.text[
        -3000:
    ]
    subprocess.run(["mount", "-o", "remount,size=1g", str(workspace.results)], check=True)
    workspace.count("disk full")


def read_only(workspace: Workspace) -> None:
    """Take away the permission to write results (root has every permission, so the file system is made read-only)."""
    where = str(workspace.results)
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    outcome = workspace.run()
    assert outcome.code != 0 and "Read-only file system" in outcome.text, outcome.text[-3000:]
    subprocess.run(["mount", "-o", "remount,rw", where], check=True)
    workspace.count("no permission to write")


def damaged(workspace: Workspace, pattern: str, how: str) -> None:
    """Spoil a finished file that a stage to come reads: that stage names it; it is made again once it is removed."""
    path = workspace.dice.choice(sorted(workspace.results.glob(pattern)))
    workspace.damage(path, how)
    outcome = workspace.run()
    named = any(f"{place.name}: damaged" in outcome.text for place in (path, path.parent))  # a folder as a whole
    assert outcome.code != 0 and named, outcome.text[-3000:]
    path.unlink() if path.parent.name != "adapter" else shutil.rmtree(path.parent)
    workspace.made.clear()  # what stands on it is made again, rightly
    workspace.count(f"damaged file ({how})")


def other_times(workspace: Workspace, shift: float) -> None:
    """As if the clock had been wrong by `shift` seconds while everything so far was made."""
    for path in workspace.results.rglob("*"):
        os.utime(path, (time.time() + shift, time.time() + shift))
    workspace.made = {file: workspace.look(file) for file in workspace.made}
    workspace.count("file times changed")


def wrong_clock(workspace: Workspace, shift: float, *until: str) -> None:
    """Run on with a clock that is wrong by `shift` seconds."""
    outcome = workspace.run("--until", *until, clock=shift)
    assert outcome.code == 0, outcome.text[-3000:]
    workspace.count("clock changed")


def killed(workspace: Workspace, signum: int, whom: str, seconds: float) -> None:
    workspace.kill(signum, seconds, whom)
    workspace.count(f"{signal.Signals(signum).name} to {whom} at a random moment")


def killed_inside(workspace: Workspace, point: tuple) -> None:
    workspace.kill_inside(*point)
    workspace.count(f"{signal.Signals(point[4]).name} inside a stage")


def test_twenty_and_more_faults_on_the_way(undisturbed, fresh, tally):
    work, dice = fresh("chain", seed=8), random.Random(8)
    points = iter(POINTS)
    full_disk(work, 0.02, undisturbed)
    killed_inside(work, next(points))  # fetch_model
    assert work.run("--until", "fetch_model").code == 0
    damaged(work, "models/*/checkpoint/model.safetensors", "flip")
    shutil.rmtree(work.results / "models")
    for _ in range(2):  # split_dataset, render_prompts
        killed_inside(work, next(points))
    killed(work, KILL, "all", dice.uniform(2, 9))
    full_disk(work, 0.4, undisturbed)
    for _ in range(2):  # extract_hiddens
        killed_inside(work, next(points))
    other_times(work, -20 * 365 * 86400)
    killed(work, KILL, "snakemake", dice.uniform(4, 9))
    killed_inside(work, next(points))  # train_probe
    killed(work, TERM, "snakemake", dice.uniform(4, 9))
    killed_inside(work, next(points))  # score_answers
    wrong_clock(work, 3 * 365 * 86400, "score_answers")
    damaged(work, "rewards/*/*/ppo.parquet", "cut")
    for _ in range(3):  # train_ppo
        killed_inside(work, next(points))
    killed(work, INT, "all", dice.uniform(4, 9))
    read_only(work)
    assert work.run("--until", "train_ppo").code == 0
    damaged(work, "runs/*/seed*/adapter/adapter_model.safetensors", "flip")
    killed_inside(work, next(points))  # merge_lora
    killed(work, KILL, "job", dice.uniform(5, 9))
    killed_inside(work, next(points))  # evaluate_model
    other_times(work, 10 * 365 * 86400)
    assert work.run("--until", "evaluate_base", "evaluate_tuned").code == 0
    damaged(work, "evaluations/base/*/*/target/samples.parquet", "cut")
    killed_inside(work, next(points))  # compare
    settle(work, undisturbed)
    assert work.faults >= 20
    tally.update({f"whole workflow: {kind}": count for kind, count in work.tally.items()})


def test_random_chains(undisturbed, fresh, tally):
    """Kills, full disks, wrong times at random moments; a finished chain is compared and another one begun."""
    done, seed = 0, 0
    while done < WANTED:
        seed += 1
        dice = random.Random(seed)
        work = fresh(f"random{seed}", seed)
        full_disk(work, dice.uniform(0.01, 0.5), undisturbed)
        for _ in range(200):
            kind = dice.choice(["kill", "kill", "kill", "inside", "times", "disk", "permission"])
            if (work.results / "summary" / "verdict.json").exists():
                break
            if kind == "kill":
                killed(
                    work, dice.choice([KILL, TERM, INT]), dice.choice(["all", "snakemake", "job"]), dice.uniform(3, 15)
                )
            elif kind == "times":
                other_times(work, dice.uniform(-1e9, 1e9))
            elif kind == "permission":
                read_only(work)
            elif kind == "inside":
                point = (
                    dice.choice(POINTS)[0],
                    dice.choice(["replace", "fsync"]),
                    dice.randint(1, 4),
                    dice.random() < 0.5,
                )
                once = work.folder / f"fault{work.faults}"
                fault = dict(zip(("script", "call", "count", "after"), point, strict=True))
                outcome = work.run(fault=fault | {"signal": KILL, "once": str(once)})
                if once.exists():
                    work.count("SIGKILL inside a stage")
                else:
                    assert outcome.code == 0, outcome.text[-3000:]
            elif len(list(work.results.rglob("*"))) < 20:
                full_disk(work, dice.uniform(0.01, 0.5), undisturbed)
        settle(work, undisturbed)
        done += work.faults
        print(f"chain {seed}: {work.faults} faults, {done} in all", flush=True)
        tally.update({f"whole workflow: {kind}": count for kind, count in work.tally.items()})
        subprocess.run(["umount", str(work.results)], check=True)
        shutil.rmtree(work.folder)
