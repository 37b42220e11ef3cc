"""Model cards: readable metadata, the run's own numbers, and a warning where one is due."""

import yaml

from elkflow.common.files import read_json, write_json
from elkflow.report.model_card import model_card


def test_front_matter_is_what_the_hub_reads(results, verdict):
    from huggingface_hub import ModelCard

    manifest = results / "models/m/manifest.json"
    source = {"hub": {"id": "someone/model", "revision": "0" * 40}}
    write_json(manifest, read_json(manifest) | {"settings": source})
    read = ModelCard(model_card(verdict["trainings"][0], verdict, results, "apache-2.0"))
    assert (read.data.license, read.data.base_model) == ("apache-2.0", "someone/model")
    accuracy = {result.dataset_name: result.metric_value for result in read.data.eval_results}
    assert accuracy == {"d (training)": 1.0, "d (held_out)": 0.5, "d (cloze)": 0.75}


def test_the_card_tells_this_run_and_no_other(results, verdict):
    first, second = (model_card(training, verdict, results) for training in verdict["trainings"])
    assert "100.0 % | +50.0 [" in first and "100.0 % | +50.0 [" not in second and "90.0 % | +40.0 [" in second
    for text in (first, second):
        for heading in ("## Results", "## Probe", "## Training", "## Data", "## Limits", "## Provenance"):
            assert heading in text
        assert "is wrong on 10.0 % of held-out questions" in text and "**Outcome: honest**" in text
        assert "| val | 60 | 30 | No: 30, Yes: 30 |" in text


def test_reward_hacking_stands_on_the_card(results, verdict):
    training = verdict["trainings"][0] | {"exploits_probe": "yes", "outcome": "overfits_probe"}
    text = model_card(training, verdict, results)
    assert "Reward hacking was found" in text and "Outcome: overfits the probe" in text


def test_an_unknown_licence_is_not_made_up(results, verdict):
    manifest = results / "models/m/manifest.json"
    write_json(manifest, read_json(manifest) | {"settings": {"path": "somewhere"}})
    text = model_card(verdict["trainings"][0], verdict, results)
    assert yaml.safe_load(text.split("---")[1])["license"] == "other"
