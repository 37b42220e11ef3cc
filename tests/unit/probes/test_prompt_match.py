"""Prompts of another format than the probe was fitted on."""

import dataclasses

import pytest
from planted import labels_of, made, pair_states, score, train, write_split

from elkflow.common import manifests
from elkflow.common.errors import UserError


def asked_with(split, folder, template, chat=True):
    """The split's prompts in a folder as `render_prompts` makes it, with its manifest."""
    file = folder / "made_up" / "plain" / "ppo.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(split.prompts[0].read_bytes())
    settings = {
        "prompts": {"wording": {"template": template, "about": None, "chat": None}},
        "chat": {"chat": chat, "system_prompt": ""},
    }
    manifests.write_manifest(file.with_name("manifest.json"), outputs={"ppo": file}, inputs={}, settings=settings)
    return dataclasses.replace(split, prompts=[file])


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        ("qnli_held_out", True, "template is .*, but .* was fitted on"),
        ("qnli_training", False, "wrapped is False, but .* was fitted on True"),
    ],
)
def test_prompts_of_another_template_are_refused(tmp_path, template, chat, message):
    splits = made(tmp_path)
    probe = train(
        tmp_path,
        (asked_with(splits[0], tmp_path / "train", "qnli_training"), splits[1]),
        methods=["mass_mean"],
    )
    split = write_split(tmp_path / "ppo", "ppo", labels_of(20), pair_states(labels_of(20)))
    score(tmp_path, probe, asked_with(split, tmp_path / "same", "qnli_training"))
    with pytest.raises(UserError, match=message):
        score(tmp_path, probe, asked_with(split, tmp_path / "other", template, chat))
