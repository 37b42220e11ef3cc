"""Paths and parameters that rules take from the config."""

import copy
import json

import pytest
import yaml
from mixed import mixed_config
from snakemake.iocontainers import Wildcards
from workspace import tiny_config

from elkflow.common.errors import UserError
from elkflow.config.config import Config
from elkflow.orchestration.rule_inputs import RuleInputs


def wildcards(**values: str) -> Wildcards:
    """As Snakemake gives them to input functions."""
    return Wildcards(fromdict=values)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """Two datasets and their mixture; a probe of two wordings, and one that is tested on it; two runs."""
    folder = tmp_path_factory.mktemp("config")
    raw = mixed_config(tiny_config(), folder)
    (probe,) = raw["probes"].values()
    raw["models"]["other"] = copy.deepcopy(raw["models"]["smollm2"])
    raw["probes"] = {
        "two": probe | {"model": "other", "variants": ["held_out"], "untrained": "smollm2"},
        "one": probe | {"dataset": "rivers", "transfer": ["two"]},
    }
    (run,) = raw["runs"].values()
    raw["runs"] = {"r": run | {"probe": "two", "seeds": [0, 3]}, "s": run | {"probe": "one"}}
    raw["runs"]["s"] |= {"reward": "pathlib:Path", "ppo": run["ppo"] | {"actions": "sampled"}}
    return raw


@pytest.fixture(scope="module")
def inputs(config) -> RuleInputs:
    return RuleInputs(Config.load(config))


def test_a_runs_own_names_are_filled_in(inputs):
    paths = inputs.of_run("m/{policy}", "p/{policy}/{dataset}/{wording}/{probe}/seed{seed}")
    assert paths(wildcards(run="r", seed="3")) == ["m/smollm2", "p/smollm2/both/training/two/seed3"]
    assert inputs.of_run("m/{policy}")(wildcards(run="r")) == "m/smollm2", "a single path is no list"
    assert inputs.of_run("{suite}")(wildcards(run="r")) == "target"


def test_a_run_has_each_wording_asked_and_each_its_probe_reads(inputs):
    assert inputs.of_run("{asked}")(wildcards(run="s")) == ["held_out", "training"]
    assert inputs.of_run("{probed}.{split}")(wildcards(run="r", split="val")) == ["training.val", "held_out.val"]
    assert inputs.of_run("{probed}")(wildcards(run="s")) == "training"


def test_a_wildcard_counts_more_than_the_run(inputs):
    assert inputs.of_run("{dataset}/{wording}")(wildcards(run="r", wording="held_out")) == "both/held_out"


def test_a_probes_wordings_those_of_its_reward_and_its_untrained_model(inputs):
    given = wildcards(probe="two", split="ppo")
    pattern = "{model}/{dataset}/{wording}/{split}"
    assert inputs.of_probe(pattern)(given) == ["other/both/training/ppo", "other/both/held_out/ppo"]
    assert inputs.of_probe(pattern, rewarded=True)(given) == "other/both/training/ppo"
    assert inputs.of_probe(pattern)(wildcards(probe="two", dataset="rivers", split="val"))[0].startswith("other/rivers")
    assert inputs.of_untrained("{model}/{wording}/{split}")(given) == [
        f"smollm2/{wording}/{split}" for split in ("train", "val") for wording in ("training", "held_out")
    ]
    assert inputs.of_untrained("{model}")(wildcards(probe="one")) == []


def test_a_probe_and_those_it_is_tested_on(inputs):
    assert inputs.of_targets("{model}/{dataset}")(wildcards(probe="one")) == ["smollm2/rivers", "other/both"]
    assert inputs.targets(wildcards(probe="one")) == ["one", "two"] and inputs.targets(wildcards(probe="two")) == [
        "two"
    ]


def test_a_mixture_and_its_members(inputs):
    assert inputs.of_members("{member}/{dataset}")(wildcards(dataset="both")) == ["countries/both", "rivers/both"]
    assert len(inputs.of_members("{member}/{split}")(wildcards(dataset="both"))) == 6
    assert (inputs.mixed, inputs.plain) == ("both", "countries|rivers")


def test_without_a_mixture_no_name_is_one(config):
    plain = RuleInputs(Config.load(tiny_config()))
    assert plain.mixed == "(?!)" and plain.plain == "countries"


def test_every_training_once_and_in_order(inputs):
    assert inputs.of_trainings("{run}/{seed}") == ["r/0", "r/3", "s/0"]
    assert inputs.of_trainings("{policy}", "{dataset}") == ["smollm2", "both"], "what runs share stands there once"
    suites = inputs.of_trainings("{run}/{suite}")
    assert suites == [f"{run}/{suite}" for run in "rs" for suite in inputs.plan.suites]


def test_sections_come_as_json_with_their_defaults_and_values_as_they_are(inputs):
    assert json.loads(inputs.section("models/{policy}")(wildcards(run="r")))["dtype"] == "float32"
    assert json.loads(inputs.section("probes/{probe}")(wildcards(run="r")))["variants"] == ["held_out"]
    assert inputs.section("runs/{run}/algorithm")(wildcards(run="r")) == "ppo"
    assert inputs.section("runs/{run}/trackers")(wildcards(run="r")) == ["tensorboard"]


def test_a_name_that_the_config_lacks_is_told(inputs):
    with pytest.raises(UserError, match="runs/none: the config has no 'none', only r, s"):
        inputs.of_run("{policy}")(wildcards(run="none"))


def test_what_decides_a_model_a_split_and_a_prompt(inputs):
    given = wildcards(model="smollm2", dataset="rivers", wording="training")
    assert json.loads(inputs.model_source(given)) == {"path": "model"}
    assert set(json.loads(inputs.chat(given))) == {"chat", "system_prompt", "chat_arguments", "trust_remote_code"}
    assert "wordings" not in json.loads(inputs.questions(given))
    assert "split" not in json.loads(inputs.rendering(given))
    assert inputs.hub_datasets() == "{}" and inputs.licence(given) == "not stated"


def test_files_behind_datasets_templates_models_and_rewards(config, inputs, tmp_path, monkeypatch):
    assert inputs.source_files(wildcards(dataset="rivers")) == ["rivers.csv"]
    table, words = inputs.source_files(wildcards(dataset="countries"))
    assert table.endswith("workflow/resources/countries.csv") and words.endswith("workflow/resources/countries.yaml")
    (template,) = inputs.template_files(wildcards(dataset="rivers", wording="training"))
    assert template.endswith("workflow/prompts/qnli_training.yaml")
    (module,) = inputs.reward_module(wildcards(run="s"))
    assert module.endswith("pathlib.py") and inputs.reward_module(wildcards(run="r")) == []
    monkeypatch.chdir(tmp_path)
    assert inputs.model_files(wildcards(model="smollm2")) == []
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert inputs.model_files(wildcards(model="smollm2")) == ["model/config.json"]


def test_pushing_needs_a_dataset_and_a_token(config, inputs, monkeypatch):
    with pytest.raises(UserError, match="no dataset of the config has a `push_to`"):
        inputs.receipts(wildcards())
    raw = copy.deepcopy(config)
    raw["datasets"]["rivers"]["push_to"] = "me/rivers"
    pushed = RuleInputs(Config.load(raw))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        pushed.receipts(wildcards())
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert pushed.receipts(wildcards()) == ["<results>/pushed/rivers.json"]


def test_the_order_of_suites_decides_no_path(config):
    raw = copy.deepcopy(config)
    raw["evaluation"]["suites"] = dict(reversed(raw["evaluation"]["suites"].items()))
    assert yaml.safe_dump(raw, sort_keys=False) != yaml.safe_dump(config, sort_keys=False)
    assert RuleInputs(Config.load(raw)).suites == RuleInputs(Config.load(config)).suites


def test_the_fields_that_wordings_read_decide_what_is_a_duplicate(config, inputs):
    assert inputs.fields_read(wildcards(dataset="countries")) == ["question,sentence"]
