"""PPO over two nodes, with the edits that docs/cluster.md asks for."""

import json
import re
import shutil

import torch
import yaml
from safetensors.torch import load_file
from workspace import ROOT, write_config

from .conftest import SLOW, Run

pytestmark = SLOW


def documented(language: str, beginning: str) -> str:
    """The block of docs/cluster.md that starts so."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n({beginning}.*?)^```", page, re.MULTILINE | re.DOTALL)
    return block


def test_two_nodes_make_the_run_that_two_processes_of_one_make(finished, cluster, folder, tmp_path):
    for name in ("workflow", "config", "envs"):  # with their times, so that nothing counts as changed
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Snakefile", tmp_path)
    rules = tmp_path / "workflow" / "rules"
    with (rules / "common.smk").open("a") as common:
        common.write("\n\n" + documented("python nodes=true", "def "))
    text = (rules / "ppo.smk").read_text()
    assert text.count(" launched(") == 1
    (rules / "ppo.smk").write_text(text.replace(" launched(", " launched_on_nodes("))

    profile = yaml.safe_load((finished.profile / "profile.v9+.yaml").read_text())
    asked = yaml.safe_load(documented("yaml", "set-resources:\n  train_ppo:"))["set-resources"]["train_ppo"]
    profile["set-resources"]["train_ppo"] |= asked | {"gpu": 2, "processes": 2}
    profile["set-threads"]["train_ppo"] = 1
    (tmp_path / "profile").mkdir()
    write_config(tmp_path / "profile" / "profile.v9+.yaml", profile)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["runs"] = {"nodes": config["runs"]["quickstart"]}
    write_config(folder / "nodes.yaml", config)

    run = Run(cluster, folder, tmp_path / "profile", ["--configfile", "nodes.yaml"], snakefile=tmp_path / "Snakefile")
    made = folder / "results/runs/nodes/seed0"
    run.start("--rerun-triggers", "mtime", "--", str((made / "manifest.json").relative_to(folder)))
    assert run.finish() == 0, run.text
    (job,) = run.jobs().values()
    facts = cluster.facts(job)
    assert (facts["NodeList"], facts["NumTasks"], facts["TresPerJob"]) == ("gpu[1-2]", "2", "gres:gpu:2")
    assert json.loads((made / "manifest.json").read_text())["facts"]["processes"] == 2
    one = folder / "results/runs/quickstart/seed0"
    assert (made / "samples.jsonl").read_bytes() == (one / "samples.jsonl").read_bytes()
    adapters = [load_file(folder / "adapter/adapter_model.safetensors") for folder in (made, one)]
    assert adapters[0].keys() == adapters[1].keys()
    for name, weights in adapters[0].items():  # their processes have other numbers of threads, which round otherwise
        torch.testing.assert_close(weights, adapters[1][name], atol=1e-6, rtol=0, msg=name)
