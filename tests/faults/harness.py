"""Run the whole workflow on tiny models, disturb it, start it again, and compare with an undisturbed run."""

import contextlib
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

from workspace import make_workspace, tiny_config, write_config

from elkflow.common.files import sha256

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).parent / "inject"
TIMING = re.compile(r'"(seconds\w*|\w*_seconds|tokens_per_second|\w*_per_second|time\w*)": *[-0-9.e+]+')

HASHING = ("manifest.json", "merged.json", "README.md")
"""Files that hold hashes of others, a run's metrics with their seconds among them."""


@dataclass(frozen=True)
class Point:
    """A named moment: a stage's `count`-th call of `os.<call>` on a file whose path matches `file`."""

    name: str
    script: str
    call: str
    file: str
    signal: int = signal.SIGKILL
    after: bool = False
    """Whether the call still happens."""
    count: int = 1


@dataclass(frozen=True)
class Job:
    """A finished job's files."""

    inputs: list[str]
    outputs: list[str]


@dataclass
class Outcome:
    """How a start of the workflow ended: exit code (negative: the signal), what it printed, which jobs it finished."""

    code: int
    text: str
    finished: dict[str, Job] = field(default_factory=dict)
    """By each of their outputs."""

    def __post_init__(self) -> None:
        jobs: dict[str, Job] = {}
        named = Job([], [])
        for line in self.text.splitlines():
            if re.match(r"(local|Error in )?rule (\w+):", line.strip()):
                named = Job([], [])
            elif match := re.match(r"\s+(input|output): (.*)", line):
                getattr(named, f"{match[1]}s").extend(match[2].split(", "))
            elif match := re.match(r"\s+jobid: (\d+)", line):
                jobs[match[1]] = named
            elif (match := re.search(r"Finished jobid: (\d+)", line)) and match[1] in jobs:
                self.finished |= dict.fromkeys(jobs[match[1]].outputs, jobs[match[1]])


class Workspace:
    """A folder with the tiny workflow in some state of completion.

    Args:
        whole: fingerprints of an undisturbed run's results, to compare with after every fault.
    """

    def __init__(self, folder: Path, whole: dict[str, str] | None = None, seed: int = 0) -> None:
        self.folder, self.whole = folder, whole
        self.dice = random.Random(seed)
        self.results = folder / "results"
        self.made: dict[str, Job] = {}
        """Outputs of finished jobs."""
        self.tally: Counter[str] = Counter()

    @classmethod
    def create(cls, folder: Path) -> "Workspace":
        """A new one; nothing has run. Every step of training is a checkpoint, the last one is kept."""
        folder.mkdir(parents=True)
        make_workspace(folder)
        config = tiny_config()
        (run,) = config["runs"].values()
        run["ppo"] |= {"checkpoint_every": 1, "keep": "last"}
        write_config(folder / "config.yaml", config)
        return cls(folder)

    def another(self, folder: Path, seed: int) -> "Workspace":
        """One with the same model and config, in which nothing has run, to end like this finished one."""
        folder.mkdir(parents=True)
        shutil.copytree(self.folder / "model", folder / "model")
        shutil.copy(self.folder / "config.yaml", folder)
        return Workspace(folder, self.fingerprints(), seed)

    def start(self, *arguments: str, fault: dict | None = None, clock: float = 0.0) -> subprocess.Popen:
        """Start the workflow in a process group of its own, so that all of it can be killed at once."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(INJECT),
        }
        if fault:
            environment["ELKFLOW_FAULT"] = json.dumps(fault)
        if clock:
            environment["ELKFLOW_CLOCK"] = str(clock)
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "-p"]
        command += ["--directory", str(self.folder), "--configfile", str(self.folder / "config.yaml"), *arguments]
        with (self.folder / "run.log").open("w") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, process: subprocess.Popen, seconds: float = 600) -> Outcome:
        """Wait for the end, and make sure that nothing finished before was made a second time."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        outcome = Outcome(code, (self.folder / "run.log").read_text(errors="replace"))
        repeated = sorted(set(outcome.finished) & set(self.made))
        assert not repeated, f"made again although finished: {repeated}"
        self.made |= outcome.finished
        return outcome

    def run(self, *arguments: str, **options) -> Outcome:
        """Run until it ends by itself."""
        return self.wait(self.start(*arguments, **options))

    def finish(self, *arguments: str) -> None:
        """Run to the end; it has to get there in one go."""
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome.text[-5000:]

    def survived(self, kind: str) -> None:
        """Note a fault; every file that stands under its final name must be whole: the undisturbed run's."""
        wrong = [name for name, found in self.fingerprints().items() if found != (self.whole or {}).get(name)]
        assert not wrong, f"after {kind}: not the files of an undisturbed run: {wrong}"
        self.tally[kind] += 1
        print(f"survived {self.tally.total()}: {kind}", flush=True)

    def settle(self) -> None:
        """Run to the end: the results are the undisturbed run's, no writer left anything, nothing is left to do."""
        self.finish()
        kept = {name: found for name, found in self.whole.items() if not re.match(r"hiddens/.*safetensors$", name)}
        assert self.fingerprints() == kept
        left = [str(path) for path in self.results.rglob(".*") if path.name.endswith(".tmp")]
        assert not left, f"leftovers of killed writers: {left}"
        assert "Nothing to be done" in self.run().text

    # ------------------------------------------------------------ faults

    def kill(self, signum: int, seconds: float, whom: str, *arguments: str) -> None:
        """Start, and send a signal after a while: to `all` processes, to `snakemake` alone, or to a `job` alone.

        It is no fault, and not counted, if there is nobody left by then.
        """
        process = self.start(*arguments)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        whole = process.poll() is None
        jobs = [pid for pid in _descendants(process.pid) if b"/workflow/scripts/" in _command(pid)]
        with contextlib.suppress(ProcessLookupError):
            if whom == "job" and jobs:
                os.kill(jobs[-1], signum)
            elif whom == "all" and whole:
                os.killpg(process.pid, signum)
            elif whom == "snakemake" and whole:
                os.kill(process.pid, signum)
            else:
                whom = "nobody"
        self.wait(process)
        for _ in range(600):  # the jobs of a snakemake that was killed go on without it; give them time to end
            if not _group(process.pid):
                break
            time.sleep(0.1)
        if whom != "nobody":
            self.survived(f"{signal.Signals(signum).name} to {whom} at a random moment")

    def kill_at(self, point: Point, *arguments: str) -> None:
        """Kill a stage at a named moment; it must come there."""
        outcome, came = self.try_kill_at(point, *arguments)
        assert came, f"{point.script} never came to: {point.name}\n{outcome.text[-3000:]}"

    def try_kill_at(self, point: Point, *arguments: str) -> tuple[Outcome, bool]:
        """Kill a stage at a named moment, if it comes there."""
        once = self.folder / "fault"
        once.unlink(missing_ok=True)
        fault = {name: getattr(point, name) for name in ("script", "call", "file", "signal", "after", "count")}
        outcome = self.run(*arguments, fault=fault | {"once": str(once)})
        if once.exists():
            self.survived(f"{signal.Signals(point.signal).name} {point.name}")
        return outcome, once.exists()

    def full_disk(self, room: int, *arguments: str) -> bool:
        """Leave `room` bytes on the disk of the results until it is full; then make more. Whether it came to that."""
        self.mount("size=1g")
        disk = os.statvfs(self.results)
        self.mount(f"size={(disk.f_blocks - disk.f_bfree) * disk.f_bsize + room}")
        outcome = self.run(*arguments)
        self.mount("size=1g")
        if outcome.code == 0:
            return False
        assert "No space left" in outcome.text or "os error 28" in outcome.text, outcome.text[-3000:]
        self.survived("disk full")
        return True

    def mount(self, options: str) -> None:
        """Put the results on a small disk of their own, or change its options."""
        if self.results.is_mount():
            subprocess.run(["mount", "-o", f"remount,{options}", str(self.results)], check=True)
        else:
            self.results.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.results)], check=True)

    def unmount(self) -> None:
        """Take the small disk away, with all that is on it."""
        if self.results.is_mount():
            subprocess.run(["umount", str(self.results)], check=True)

    def read_only(self) -> None:
        """Take away the permission to write results."""
        folders = [folder for folder in [self.results, *self.results.rglob("*")] if folder.is_dir()]
        if os.geteuid() == 0:  # has every permission, so the file system is made read-only
            self.mount("ro")
        else:
            for folder in folders:
                folder.chmod(0o555)
        outcome = self.run()
        said = "Read-only file system" in outcome.text or "Permission denied" in outcome.text
        assert outcome.code != 0 and said, outcome.text[-3000:]
        if os.geteuid() == 0:
            self.mount("rw")
        else:
            for folder in folders:
                folder.chmod(0o755)
        self.survived("no permission to write")

    def outputs_with(self, path: Path) -> list[str]:
        """All outputs of the finished job that made this one; none, if no finished job did."""
        job = self.made.get(str(path.relative_to(self.folder)))
        return job.outputs if job else []

    def forget(self, files: list[str]) -> None:
        """Expect these outputs to be made again, and whatever finished jobs made of them."""
        while jobs := [self.made[file] for file in files if file in self.made]:
            gone = {output for job in jobs for output in job.outputs}
            self.made = {file: job for file, job in self.made.items() if file not in gone}
            files = [file for file, job in self.made.items() if gone & set(job.inputs)]

    def finished(self, pattern: str) -> list[Path]:
        """Files that finished jobs made, alone or in a folder."""
        found = sorted(self.results.glob(pattern))
        return [path for path in found if self.outputs_with(path) or self.outputs_with(path.parent)]

    def damage(self, pattern: str, how: str, *arguments: str) -> None:
        """Cut a finished file that a stage to come reads in half, or flip one of its bits: that stage names it.

        It is made again once it is removed, with the rest of its job's files. Its time stays as it was, as on a disk
        that rots: hashes have to tell.
        """
        path = self.dice.choice(self.finished(pattern))
        before = path.stat()
        content = bytearray(path.read_bytes())
        if how == "cut":
            content = content[: len(content) // 2]
        else:
            content[self.dice.randrange(len(content))] ^= 1 << self.dice.randrange(8)
        path.write_bytes(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        outcome = self.run(*arguments)
        named = any(f"/{place.name}: " in outcome.text for place in (path, path.parent))  # a folder as a whole
        assert outcome.code != 0 and "error: " in outcome.text and named, f"{path} {how}\n{outcome.text[-3000:]}"
        output = path if self.outputs_with(path) else path.parent
        self.forget(self.outputs_with(output))
        removed = [job for file, job in self.made.items() if not (self.folder / file).exists()]
        for made in {file for job in removed for file in job.outputs}:  # temporary ones, made again where needed
            self.made.pop(made, None)
        path.unlink() if output == path else shutil.rmtree(output)
        self.survived(f"{path.suffix[1:]} file damaged ({how})")

    def other_times(self, shift: float) -> None:
        """As if the clock had been wrong by `shift` seconds while everything so far was made."""
        for path in self.results.rglob("*"):
            os.utime(path, (time.time() + shift, time.time() + shift))
        self.survived("file times changed")

    def wrong_clock(self, shift: float, *until: str) -> None:
        """Run on with a clock that is wrong by `shift` seconds."""
        outcome = self.run("--until", *until, clock=shift)
        assert outcome.code == 0, outcome.text[-3000:]
        self.survived("clock changed")

    # ------------------------------------------------------------ comparison

    def fingerprints(self) -> dict[str, str]:
        """Hash of every result; left out are seconds and speeds in metrics, and the manifests that hash those."""
        found = {}
        for path in sorted(self.results.rglob("*")):
            name = str(path.relative_to(self.results))
            hidden = any(part.startswith(".") or part == "checkpoints" for part in Path(name).parts)
            if not path.is_file() or hidden or _varies(name):
                continue
            if path.suffix in (".jsonl", ".json"):
                found[name] = hashlib.sha256(TIMING.sub("", path.read_text()).encode()).hexdigest()
            else:
                found[name] = sha256(path)
        return found


def _varies(name: str) -> bool:
    """Whether a result tells times, or hashes one that does."""
    timed = name.startswith(("runs", "evaluations/tuned", "summary")) and name.endswith(HASHING)
    return timed or name.startswith(("summary/training", "summary/provenance"))


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
