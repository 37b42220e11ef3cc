"""Run the whole workflow on tiny models, disturb it, start it again, and compare with an undisturbed run."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from workspace import make_workspace

from elkflow.files import sha256

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).parent / "inject"
TIMING = re.compile(r'"(seconds\w*|\w*_seconds|tokens_per_second|\w*_per_second|time\w*)": *[-0-9.e+]+')


@dataclass
class Outcome:
    """How a start of the workflow ended: exit code (negative: the signal), what it printed, which jobs it finished."""

    code: int
    text: str
    finished: dict[str, str] = field(default_factory=dict)  # output file to rule

    def __post_init__(self) -> None:
        jobs: dict[str, tuple[str, list[str]]] = {}
        rule, outputs = "", []
        for line in self.text.splitlines():
            if match := re.match(r"(?:local)?rule (\w+):", line.strip()):
                rule, outputs = match[1], []
            elif match := re.match(r"\s+output: (.*)", line):
                outputs = match[1].split(", ")
            elif match := re.match(r"\s+jobid: (\d+)", line):
                jobs[match[1]] = (rule, outputs)
            elif (match := re.search(r"Finished jobid: (\d+)", line)) and match[1] in jobs:
                self.finished |= {file.removesuffix(" (pipe)"): jobs[match[1]][0] for file in jobs[match[1]][1]}


class Workspace:
    """A folder with the tiny workflow in some state of completion."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.results = folder / "results"
        self.made: dict[str, tuple[int, int]] = {}  # finished output to what it looked like then
        self.tally: Counter[str] = Counter()
        self.faults = 0

    @classmethod
    def create(cls, folder: Path, seed: int = 0) -> "Workspace":
        """A new one; nothing has run."""
        folder.mkdir(parents=True)
        make_workspace(folder)
        return cls(folder, seed)

    def copy(self, folder: Path, seed: int) -> "Workspace":
        """The same state elsewhere, times of files included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Workspace(folder, seed)

    def start(self, *arguments: str, fault: dict | None = None, clock: float = 0.0) -> subprocess.Popen:
        """Start the workflow in a process group of its own, so that all of it can be killed at once."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(INJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if fault:
            environment["ELKFLOW_FAULT"] = json.dumps(fault)
        if clock:
            environment["ELKFLOW_CLOCK"] = str(clock)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--directory", str(self.folder), "--configfile", str(self.folder / "config.yaml"), *arguments]
        with (self.folder / "run.log").open("w") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, process: subprocess.Popen, seconds: float = 600) -> Outcome:
        """Wait for the end, note what was finished, and make sure that nothing finished was made a second time."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        outcome = Outcome(code, (self.folder / "run.log").read_text(errors="replace"))
        repeated = sorted(set(outcome.finished) & set(self.made))
        assert not repeated, f"made again although finished: {repeated}"
        self.made |= {file: self.look(file) for file in outcome.finished}
        return outcome

    def look(self, file: str) -> tuple[int, int]:
        """Inode and time of a finished output; temporary ones may be gone."""
        path = self.folder / file
        return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else (0, 0)

    def run(self, *arguments: str, **options) -> Outcome:
        """Run until it ends by itself."""
        return self.wait(self.start(*arguments, **options))

    def finish(self) -> None:
        """Run to the end; it has to get there in one go."""
        outcome = self.run()
        assert outcome.code == 0, outcome.text[-5000:]
        left = [str(path) for path in self.results.rglob(".*") if path.name.endswith(".tmp")]
        assert not left, f"leftovers of killed writers: {left}"

    def count(self, kind: str) -> None:
        """Note a fault survived so far."""
        self.faults += 1
        self.tally[kind] += 1

    # ------------------------------------------------------------ faults

    def kill(self, signum: int, seconds: float, whom: str) -> Outcome:
        """Start, and send a signal after a while: to `all` processes, to `snakemake` alone, or to a `job` alone."""
        process = self.start()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            if whom == "job":
                jobs = [pid for pid in _descendants(process.pid) if b"/workflow/scripts/" in _command(pid)]
                for pid in jobs[-1:]:
                    os.kill(pid, signum)
            elif whom == "all":
                os.killpg(process.pid, signum)
            else:
                os.kill(process.pid, signum)
        outcome = self.wait(process)
        if whom == "snakemake" and signum == signal.SIGKILL:  # its jobs go on without it; give them time to end
            for _ in range(600):
                if not _group(process.pid):
                    break
                time.sleep(0.1)
        return outcome

    def kill_inside(self, script: str, call: str, count: int, after: bool, signum: int) -> Outcome:
        """Kill a stage at its `count`-th rename or flush of a file."""
        once = self.folder / f"fault{self.faults}"
        fault = {"script": script, "call": call, "count": count, "after": after, "signal": signum, "once": str(once)}
        outcome = self.run(fault=fault)
        assert once.exists(), f"{script} never came to its {count}th {call}\n{outcome.text[-3000:]}"
        return outcome

    def damage(self, path: Path, how: str) -> None:
        """Cut a file in half or flip one of its bits."""
        content = bytearray(path.read_bytes())
        if how == "cut":
            content = content[: len(content) // 2]
        else:
            content[self.dice.randrange(len(content))] ^= 1 << self.dice.randrange(8)
        path.write_bytes(content)

    # ------------------------------------------------------------ comparison

    def fingerprints(self) -> dict[str, str]:
        """Hash of every result; left out are seconds and speeds in metrics, and the manifests that hash those."""
        found = {}
        for path in sorted(self.results.rglob("*")):
            name = str(path.relative_to(self.results))
            if not path.is_file() or path.name.startswith(".") or "checkpoints" in path.parts or _varies(name):
                continue
            if path.suffix in (".jsonl", ".json"):
                found[name] = hashlib.sha256(TIMING.sub("", path.read_text()).encode()).hexdigest()
            else:
                found[name] = sha256(path)
        return found


def _varies(name: str) -> bool:
    """Whether a result tells times, or hashes one that does."""
    return name.endswith(("manifest.json", "merged.json")) or name.startswith(
        ("summary/training", "summary/provenance")
    )


def _group(leader: int) -> list[int]:
    """Living processes of a process group."""
    done = subprocess.run(["ps", "-o", "pid=", "-g", str(leader)], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


def _descendants(parent: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    children = [int(pid) for pid in done.stdout.split()]
    return [pid for child in children for pid in (child, *_descendants(child))]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
