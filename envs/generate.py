"""Writes the per-rule conda environments from the lock, so that both always hold the same versions.

    python envs/generate.py          envs/*.yaml from requirements.txt
    python envs/generate.py --lock   requirements.txt from the running environment first

Run it in an environment where the lock is installed: which package needs which is read from the installed metadata.
"""

import argparse
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).resolve().parent
LOCK = FOLDER.parent / "requirements.txt"

# CUDA's own packages follow from torch's build, which differs between machines: pip picks them.
HARDWARE = ("nvidia-", "cuda-", "triton")

BASE = [
    "pydantic",
    "pyyaml",
    "jinja2",
    "tqdm",
    "packaging",
    "numpy",
    "scipy",
    "statsmodels",
    "pandas",
    "pyarrow",
    "safetensors",
]
MODELS = ["torch", "transformers", "accelerate", "peft", "bitsandbytes", "gguf", "scikit-learn"]
ENVIRONMENTS = {
    "base": [*BASE, "datasets", "transformers", "scikit-learn", "matplotlib", "altair", "vl-convert-python"],
    "train": [*BASE, *MODELS, "datasets", "trl", "tensorboard"],
    "evaluate": [*BASE, *MODELS, "datasets", "lm-eval"],
}


def read_lock(path: Path = LOCK) -> dict[str, str]:
    """Canonical package name to exact version."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pins = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pins}


def installed_lock() -> str:
    """The running environment as a lock: every package but pip, this one and CUDA's, without local version suffixes."""
    pins = {}
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.name)
        if name not in ("pip", "elkflow") and not name.startswith(HARDWARE):
            pins[name] = Version(distribution.version).public
    header = (
        "# Generated from requirements.in by `python envs/generate.py --lock`: every package, exactly. Do not edit.\n"
    )
    return header + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def closure(roots: Iterable[str], lock: dict[str, str]) -> list[str]:
    """`name==version` of every package that `roots` need, directly or through others, in the lock's versions.

    Raises:
        SystemExit: a needed package is not in the lock.
    """
    found: set[tuple[str, str]] = set()  # a package, and one of its extras or ""
    todo = [(canonicalize_name(name), "") for name in roots]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found or name.startswith(HARDWARE):
            continue
        if name not in lock:
            sys.exit(f"error: {name} is needed but {LOCK.name} does not pin it")
        found.add((name, extra))
        environment = {**default_environment(), "extra": extra}
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate(environment):
                todo += [(canonicalize_name(needed.name), part) for part in ("", *needed.extras)]
    return [f"{name}=={lock[name]}" for name in sorted({name for name, _ in found})]


def render(roots: Iterable[str], lock: dict[str, str]) -> str:
    """The YAML of one conda environment. From conda come python and pip only: the rest is the lock's, by pip."""
    pins = "".join(f"      - {pin}\n" for pin in closure(roots, lock))
    return (
        "# Generated from requirements.txt by envs/generate.py. Do not edit.\n"
        "channels:\n  - conda-forge\n  - nodefaults\n"
        "dependencies:\n  - python =3.11\n  - pip\n  - pip:\n" + pins
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lock", action="store_true", help="rewrite requirements.txt from the running environment")
    if parser.parse_args(argv).lock:
        LOCK.write_text(installed_lock(), encoding="utf-8")
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"error: the environments are for Python 3.11, this is {platform.python_version()}")
    lock = read_lock()
    for name, roots in ENVIRONMENTS.items():
        (FOLDER / f"{name}.yaml").write_text(render(roots, lock), encoding="utf-8")


if __name__ == "__main__":
    main()
