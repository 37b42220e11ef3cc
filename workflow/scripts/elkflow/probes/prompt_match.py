"""How the texts were asked that a probe reads: kept with it, and compared when it is to judge others."""

import dataclasses
from pathlib import Path
from typing import Any

from elkflow.common.errors import UserError
from elkflow.common.files import read_json
from elkflow.probes.saved_probe import Probe
from elkflow.prompts.templates import load_template


def probe_origin(prompts: Path, states: Path) -> dict[str, Any]:
    """What the manifests beside a file of prompts and one of states tell about how both were made.

    `asked`: see `asked`; `loading`: the model's dtype and the like.
    """
    loading = {"dtype": "auto", "quantization": None, "device_map": None}
    if (manifest := states.with_name(f"{states.stem}.manifest.json")).is_file():
        given = read_json(manifest)["settings"] or {}
        loading = {key: given.get(key, value) for key, value in loading.items()}
    return {"asked": prompt_format(prompts), "loading": loading}


def prompt_format(prompts: Path) -> dict[str, Any] | None:
    """The template itself, so that a reward keeps its meaning when the file is edited, and the chat markup around it.

    None without a manifest beside the prompts, and for a mixture, whose members have templates of their own.
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
    """Refuse prompts of the probe's own dataset that ask otherwise than those it was fitted on.

    Another dataset has other columns, and so a template of its own.

    Raises:
        UserError: the template's text, what it is about or the chat markup is another; names which.
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
