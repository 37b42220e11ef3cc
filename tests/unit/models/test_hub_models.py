"""Models of the hub: pinned commits, refusals, downloads that break off; the real client, a server on loopback."""

import json

import yaml
from hub_client import NEW, OLD, refused, script
from tiny import save_tiny_model
from workspace import ROOT


def test_a_model_without_a_pinned_commit_is_refused_and_the_hub_asked_for_one(hub, tmp_path):
    """As `config/thesis.yaml` has one."""
    hub.add("me/model", {"config.json": b"{}"}, NEW)
    thesis = yaml.safe_load((ROOT / "config" / "thesis.yaml").read_text(encoding="utf-8"))["models"]["unifiedqa"]
    assert thesis["hub"]["revision"] == "0" * 40
    settings = json.dumps({"hub": {"id": "me/model", "revision": "0" * 40}})
    given = ["--settings", settings, "--checkpoint", tmp_path / "checkpoint", "--manifest", tmp_path / "m.json"]
    message = refused(script("fetch_model", hub, tmp_path, *given))
    assert message.endswith(f"pins no commit yet (`revision` is all zeros); set it to the newest, {NEW}")
    message = refused(script("fetch_model", hub, tmp_path, *given, HF_HUB_OFFLINE="1"))
    assert "the newest could not be looked up" in message and "snakemake prefetch" in message


def fetch(hub, tmp_path, **variables):
    settings = json.dumps({"hub": {"id": "me/model", "revision": OLD}})
    given = ["--settings", settings, "--checkpoint", tmp_path / "checkpoint", "--manifest", tmp_path / "m.json"]
    return script("fetch_model", hub, tmp_path, *given, **variables)


def test_a_model_that_the_hub_refuses_or_breaks_off_leaves_nothing(hub, tmp_path):
    message = refused(fetch(hub, tmp_path))
    assert message.startswith("error: hub model me/model@aaaaaaaaaaaa: could not be downloaded (404")
    whole = {path.name: path.read_bytes() for path in save_tiny_model(tmp_path / "model").iterdir()}
    hub.add("me/model", whole, OLD)
    hub.token = "secret"
    assert "401 Unauthorized" in refused(fetch(hub, tmp_path))
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "m.json").exists()
    hub.token = None
    hub.add("me/model", whole | {"model.safetensors": whole["model.safetensors"][:-100]}, OLD)
    assert "model.safetensors" in refused(fetch(hub, tmp_path))
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "m.json").exists()
