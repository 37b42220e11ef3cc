"""A whole tiny workflow, run once for real and looked at by many tests."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from workspace import make_workspace

ROOT = Path(__file__).resolve().parents[2]


def snakemake(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run the workflow in `folder` on `folder`/config.yaml; stdout and stderr come back as one text."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    if "--configfile" not in arguments:
        command += ["--configfile", str(folder / "config.yaml")]
    command += arguments
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}")
    return done


def planned(folder: Path, *arguments: str) -> set[str]:
    """Names of the rules that a dry-run would execute."""
    lines = snakemake(folder, "--dry-run", *arguments).stdout.splitlines()
    return {line.split()[1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule "))} - {"all"}


SECRETS = {"HF_TOKEN": "hf_veryMuchASecret", "WANDB_API_KEY": "0123secret4567secret89abcdef0123secret45"}


@contextmanager
def commands_seen() -> Iterator[set[bytes]]:
    """Command lines of all processes that run meanwhile, looked at every tenth of a second."""
    seen: set[bytes] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.add(file.read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


@pytest.fixture(scope="session")
def commands() -> set[bytes]:
    """Command lines of the processes that ran while `finished` was made."""
    return set()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, commands) -> Path:
    """The folder of a finished tiny run, made by someone who has tokens in the environment."""
    folder = make_workspace(tmp_path_factory.mktemp("workflow"))
    with pytest.MonkeyPatch.context() as environment, commands_seen() as seen:
        for name, secret in SECRETS.items():
            environment.setenv(name, secret)
        snakemake(folder, "--cores", "2")
    commands |= seen
    return folder


@pytest.fixture
def changed(finished, tmp_path):
    """A function that dry-runs the finished workflow with another config and returns the rules to be rerun."""

    def plan(edit, *arguments: str) -> set[str]:
        config = yaml.safe_load((finished / "config.yaml").read_text())
        edit(config)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        return planned(finished, "--configfile", str(file), *arguments)

    return plan
