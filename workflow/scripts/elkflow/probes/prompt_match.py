"""The prompt format a probe was fitted on: stored with the probe, and compared with the prompts it is to score."""

import dataclasses
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.probes.saved_probe import Probe
from elkflow.prompts.templates import load_template


def probe_origin(prompts: Path, states: Path) -> dict[str, Any]:
    """How prompts and hidden states were made, from the manifests next to their files.

    `asked` is the prompt format (see `prompt_format`), `loading` how the model was loaded (its dtype etc.).
    """
    loading = {"dtype": "auto", "quantization": None, "device_map": None}
    if (manifest := states.with_name(f"{states.stem}.manifest.json")).is_file():
        given = read_json(manifest)["settings"] or {}
        loading = {key: given.get(key, value) for key, value in loading.items()}
    return {"asked": prompt_format(prompts), "loading": loading}


def prompt_format(prompts: Path) -> dict[str, Any] | None:
    """The template itself, so that a reward does not depend on later edits of its file, and the chat settings.

    None if there is no manifest next to the prompts, and for a mixture, as each member has its own template.
    """
    if not (manifest := prompts.with_name("manifest.json")).is_file():
        return None
    made = read_json(manifest)["settings"]
    if "prompts" not in made:
        return None
    wording, chat = made["prompts"]["wording"], made["chat"]
    return {
        "template": dataclasses.asdict(load_template(wording["template"])),
        "about": wording["about"],
        "wrapped": chat["chat"] if wording["chat"] is None else wording["chat"],
        "chat": chat | {"trust_remote_code": False},
    }


def check_prompt_format(probe: Probe, folder: Path, prompts: Path) -> None:
    """Check that prompts of the probe's own dataset have the format that it was fitted on.

    Other datasets have other columns, and so their own templates.

    Raises:
        UserError: the template, what it is about or the chat settings differ; names which.
    """
    mine, known = prompt_format(prompts), probe.facts.get("asked")
    if not mine or not known or prompts.parent.parent.name != probe.facts["dataset"]:
        return
    for name, value in known.items():
        if name == "template":
            same = all(value[key] == mine[name][key] for key in ("jinja", "answer_choices"))
        else:
            same = value == mine[name]
        if not same:
            raise UserError(f"{prompts}: {name} is {mine[name]!r:.300}, but {folder} was fitted on {value!r:.300}")
