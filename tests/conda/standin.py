"""A `conda` for machines that reach no conda channel: py-rattler's solver and installer over a local channel.

    python standin.py make DIR      write DIR/bin/{conda,activate} and DIR/channels/conda-forge
    PATH=DIR/bin:$PATH snakemake ... --software-deployment-method conda

The channel holds this interpreter as `python` (the skeleton of a virtual environment) and `pip` from its wheel. So the
env files are really parsed, solved and installed, their pip pins really come from the package index, and Snakemake
really enters each env; only CPython itself is not conda's own build.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml
from rattler import Channel, ChannelConfig, Gateway, MatchSpec, Platform, VirtualPackage, install, solve

ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'


def make(root: Path) -> None:
    """Write the channel, and the two programs that Snakemake calls."""
    import rattler_build
    from rattler.index import index_fs

    channel = root / "channels" / "conda-forge"
    here = str(Platform.current())
    for folder in (here, "noarch"):
        (channel / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        python = _python_skeleton(Path(temporary, "python"))
        version = platform.python_version()
        rattler_build.assemble_package(
            "python", version, here, "0_local", channel / here, files_dir=python, detect_prefix=False
        )
        pip, version = _pip_files(Path(temporary, "pip"))
        rattler_build.assemble_package(
            "pip",
            version,
            "noarch",
            "py_local_0",
            channel / "noarch",
            files_dir=pip,
            noarch="python",
            depends=["python"],
            detect_prefix=False,
        )
    asyncio.run(index_fs(channel, write_shards=False, force=True))
    programs = root / "bin"
    programs.mkdir(exist_ok=True)
    call = f'CONDA_STANDIN="{root}" exec "{sys.executable}" "{Path(__file__).resolve()}" "$@"'
    (programs / "conda").write_text(f"#!/bin/sh\n{call}\n")
    (programs / "conda").chmod(0o755)
    (programs / "activate").write_text(ACTIVATE)


def _python_skeleton(folder: Path) -> Path:
    """What a virtual environment holds before anything is installed, pointing at the running interpreter."""
    base = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / minor / "site-packages"
    site.mkdir(parents=True)
    (site / "README.txt").write_text("local test channel\n")  # conda packages hold no empty folders
    settings = f"home = {base.parent}\ninclude-system-site-packages = false\nversion = {platform.python_version()}\n"
    (folder / "pyvenv.cfg").write_text(settings)
    programs = folder / "bin"
    programs.mkdir()
    (programs / minor).symlink_to(base)
    for name in ("python3", "python"):
        (programs / name).symlink_to(minor)
    return folder


def _pip_files(folder: Path) -> tuple[Path, str]:
    """The newest pip's wheel, unpacked, and its version."""
    site = folder / "site-packages"
    site.mkdir(parents=True)
    wheels = folder.parent / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), "pip"]
    subprocess.run(command, check=True)
    (wheel,) = wheels.glob("pip-*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return folder, wheel.name.split("-")[1]


def create(file: Path, prefix: Path, root: Path) -> None:
    """`conda env create`: solve and install the conda part, then let the env's own pip install the pip part."""
    environment = yaml.safe_load(file.read_text(encoding="utf-8"))
    if unknown := set(environment) - {"name", "channels", "dependencies"}:
        sys.exit(f"unknown keys in {file}: {sorted(unknown)}")
    specs = [MatchSpec(item, strict=True) for item in environment["dependencies"] if isinstance(item, str)]
    pins = [pin for item in environment["dependencies"] if isinstance(item, dict) for pin in item["pip"]]
    alias = ChannelConfig(channel_alias=(root / "channels").as_uri() + "/")
    records = asyncio.run(
        solve(
            [Channel(name, alias) for name in environment["channels"] if name != "nodefaults"],
            specs,
            gateway=Gateway(cache_dir=root / "cache" / "repodata"),
            platforms=[str(Platform.current()), "noarch"],
            virtual_packages=VirtualPackage.detect(),
        )
    )
    asyncio.run(install(records, str(prefix), cache_dir=root / "cache", show_progress=False))
    if pins:
        listing = prefix / "conda-meta" / "pip.txt"
        listing.write_text("\n".join(pins) + "\n")
        command = [f"{prefix}/bin/python", "-m", "pip", "install", "--no-input", "--requirement", str(listing)]
        subprocess.run(command, check=True)


def main(argv: list[str]) -> None:
    if argv[:1] == ["make"]:
        return make(Path(argv[1]).resolve())
    root = Path(os.environ["CONDA_STANDIN"])
    if argv == ["--version"]:
        print("conda 26.9.0")  # Snakemake wants at least 24.7.1
    elif argv == ["info", "--json"]:
        print(json.dumps({"conda_prefix": str(root), "platform": str(Platform.current())}))
    elif argv[:2] == ["config", "--get"]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif argv[:1] == ["clean"]:
        pass
    elif argv[:2] == ["env", "create"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--quiet", action="store_true")
        parser.add_argument("--no-default-packages", action="store_true")
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument("--prefix", type=Path, required=True)
        given = parser.parse_args(argv[2:])
        create(given.file, given.prefix, root)
    else:
        sys.exit(f"not supported: conda {argv}")


if __name__ == "__main__":
    main(sys.argv[1:])
