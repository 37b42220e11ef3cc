"""A private Slurm for the tests of this folder, and a user's way of driving the workflow on it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from workspace import make_workspace

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
IMPATIENT = Path(__file__).with_name("impatient.py")
PACKAGES = "munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins"
SLOW = pytest.mark.skipif(
    not os.environ.get("ELKFLOW_TEST_SLOW"), reason="minutes on a real Slurm: set ELKFLOW_TEST_SLOW=1"
)


@dataclass
class Cluster:
    """A running Slurm: two CPU nodes, two GPU nodes of four invented GPUs."""

    folder: Path
    users: list[subprocess.Popen] = field(default_factory=list)
    """Every Snakemake that was started on it."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands speak to it, and Snakemake is found."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        programs = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # the nodes share a few real cores: more threads than jobs would only wait, and waiting threads are busy
        return kept | {"PATH": programs, "OMP_THREAD_LIMIT": "1"}

    def run(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def restart_controller(self, outage: float) -> None:
        """Stop slurmctld, leave the cluster without it for `outage` seconds, start it again."""
        subprocess.run([SCRIPT, "restart", self.folder, str(outage)], check=True)

    def fail_node(self, node: str) -> None:
        """What the controller does when a node dies: its jobs are lost, and it comes back."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        # a node in touch with the controller may be back before it is asked to be
        wait_for(lambda: self._back(node), f"{node} to be back")

    def _back(self, node: str) -> bool:
        resume = ["scontrol", "update", f"NodeName={node}", "State=RESUME"]
        subprocess.run(resume, env=self.environment, capture_output=True)
        return self.run("sinfo", "--noheader", "--nodes", node, "--format", "%t").split()[0] in ("idle", "mix", "alloc")

    def states(self) -> dict[str, str]:
        """State of every job that Slurm remembers."""
        lines = self.run("squeue", "--noheader", "--states", "all", "--format", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job, e.g. `TimeLimit`."""
        return dict(re.findall(r"(\S+?)=(\S+)", self.run("scontrol", "show", "job", job)))

    def processes(self, job: str, script: str) -> list[int]:
        """Processes of a job whose command line names `script`."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            in_job = f"SLURM_JOB_ID={job}".encode() in environment
            if in_job and any(part.endswith(script.encode()) for part in arguments[:3]):
                found.append(int(entry.name))
        return found

    def signal(self, job: str, script: str, number: signal.Signals) -> None:
        processes = self.processes(job, script)
        assert processes, f"job {job} runs no {script}"
        for process in processes:
            os.kill(process, number)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not _found(name)]:
        message = f"no Slurm here ({', '.join(missing)} missing): apt-get install {PACKAGES}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    # sockets need a short path
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"))
    subprocess.run([SCRIPT, "up", folder], check=True)
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        for user in cluster.users:
            user.kill()
        subprocess.run([SCRIPT, "down", folder], check=True)
        shutil.rmtree(folder)


def _found(name: str) -> bool:
    return bool(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"))


def edited_profile(folder: Path, memory: dict[str, str] | None = None, **block: str | int) -> Path:
    """A copy of the Slurm profile with the values of its one block changed, as a user would; and rules' `memory`."""
    text = (ROOT / "profiles" / "slurm" / "profile.v9+.yaml").read_text(encoding="utf-8")
    for name, value in block.items():
        shown = f'"{value}"' if isinstance(value, str) else value
        text, count = re.subn(rf"^(  {name}: )\S+", rf"\g<1>{shown}", text, flags=re.MULTILINE)
        assert count == 1, f"the profile's block has no {name}"
    for rule, value in (memory or {}).items():
        text, count = re.subn(
            rf"(^  {rule}:\n(?:    .*\n)*?    mem_mb: ).*", rf"\g<1>{value}", text, flags=re.MULTILINE
        )
        assert count == 1, f"the profile asks for no memory for {rule}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.v9+.yaml").write_text(text, encoding="utf-8")
    return folder


@dataclass
class Run:
    """`snakemake --profile …` on the cluster, in the background or to its end."""

    cluster: Cluster
    folder: Path
    profile: Path
    arguments: list[str] = field(default_factory=list)
    snakefile: Path = ROOT / "Snakefile"
    process: subprocess.Popen | None = None
    log: Path = Path()
    """What Snakemake printed."""

    def start(self, *arguments: str) -> "Run":
        self.log = self.folder / f"snakemake-{len(self.cluster.users)}.log"
        command = [sys.executable, str(IMPATIENT), "--snakefile", str(self.snakefile), *self.arguments]
        command += ["--profile", str(self.profile), *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.cluster.environment, stdout=log, stderr=subprocess.STDOUT
            )
        self.cluster.users.append(self.process)
        return self

    @property
    def text(self) -> str:
        return self.log.read_text()

    def finish(self, seconds: float = 1200) -> int:
        """Exit code."""
        wait_for(lambda: self.process and self.process.poll() is not None, f"the end of\n{self.text}", seconds)
        assert self.process
        return self.process.returncode

    def jobs(self) -> dict[str, str]:
        """Slurm's job id of each submitted job, by its Slurm log folder, e.g. `rule_train_ppo/quick_0`."""
        pattern = r"SLURM jobid (\d+) \(log: \S*?/logs/slurm/(\S+)/\d+\.log\)"
        return {folder: job for job, folder in re.findall(pattern, self.text)}


def wait_for(condition: Callable[[], object], what: str, seconds: float = 600, run: Run | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if run and run.process and run.process.poll() is not None:
            raise AssertionError(f"Snakemake ended before {what}:\n{run.text}")
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain for {what}\n{run.text if run else ''}")
        time.sleep(0.2)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def begun(cluster, folder) -> Run:
    """The first stages, with too little memory for the first try at rendering."""
    run = Run(cluster, folder, edited_profile(folder / "profile", account="", gpus=2), ["--configfile", "config.yaml"])
    little = ["--set-resources", "render_prompts:mem_mb=250 + 4000 * (attempt - 1)"]
    assert run.start(*little, "--", "results/prompts/smollm2/countries/training/manifest.json").finish() == 0, run.text
    return run


@pytest.fixture(scope="session")
def finished(begun, cluster, folder) -> Run:
    """The whole workflow, with two GPUs, so two processes, for PPO."""
    run = Run(cluster, folder, begun.profile, [*begun.arguments, "--notemp"]).start()
    assert run.finish() == 0, run.text
    return run
