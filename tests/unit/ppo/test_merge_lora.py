"""A merged checkpoint says what base model and trained part said together, or is refused."""

import pytest
import torch
from tiny import moved, save_tiny_model, tiny_tokenizer

from elkflow.common.errors import UserError
from elkflow.common.files import read_json, write_table
from elkflow.config.model import ModelSettings
from elkflow.config.ppo import PPOSettings
from elkflow.models.load import load_model
from elkflow.ppo import merge_lora as merging
from elkflow.ppo.merge_lora import last_logits, merge, with_trained
from elkflow.ppo.policy import Policy
from elkflow.ppo.train_ppo import save_policy

SETTINGS = ModelSettings(path="x", dtype="float32")
ROWS = [[5, 9, 11, 12], [7, 8, 9, 10, 4, 20]]


@pytest.fixture
def parts(tmp_path):
    """Checkpoint, adapter maker and prompts."""
    save_tiny_model(tmp_path / "model")
    import pandas as pd

    write_table(pd.DataFrame({"prompt": ["is paris the capital", "rome no yes", "who"]}), tmp_path / "val.parquet")

    def trained(**settings):
        policy = moved(Policy(load_model(tmp_path / "model", dtype="float32"), PPOSettings(steps=1, **settings)))
        save_policy(policy, tiny_tokenizer(), tmp_path / "adapter")
        return last_logits(policy.model, ROWS)

    return tmp_path, trained


def test_the_adapter_is_the_same_bytes_in_every_process(parts):
    folder, trained = parts
    trained(lora={"targets": "all-linear"})
    names = read_json(folder / "adapter" / "adapter_config.json")["target_modules"]
    assert len(names) == 7 and names == sorted(names)


@pytest.mark.parametrize(
    "settings",
    [{}, {"layers": 2, "lora": {"targets": "all-linear"}}, {"train": "layers", "layers": 2}, {"train": "full"}],
)
def test_the_merged_model_says_the_same(parts, settings):
    folder, trained = parts
    wanted = trained(**settings)
    facts = merge(folder / "model", folder / "adapter", folder / "val.parquet", folder / "merged", SETTINGS)
    found = last_logits(load_model(folder / "merged", dtype="float32"), ROWS)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert not torch.allclose(found, last_logits(load_model(folder / "model", dtype="float32"), ROWS), atol=1e-3)
    assert facts["logit_difference"] <= 1e-4 and facts["same_likeliest_token"] == 1.0
    names = {file.name for file in (folder / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_last_logits_are_those_of_each_row():
    from tiny import tiny_llama

    model = tiny_llama(60)
    for row, logits in zip(ROWS, last_logits(model, ROWS), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logits, model(input_ids=torch.tensor([row])).logits[0, -1], atol=1e-5, rtol=0)


def test_a_merge_that_loses_something_is_refused(parts, monkeypatch):
    folder, trained = parts
    trained()

    def careless(model, adapter):
        made = with_trained(model, adapter)
        made.merge_and_unload = lambda: made.unload()
        return made

    monkeypatch.setattr(merging, "with_trained", careless)
    with pytest.raises(UserError, match="logits differ from the adapter's by"):
        merge(folder / "model", folder / "adapter", folder / "val.parquet", folder / "merged", SETTINGS)
    assert not (folder / "merged").exists()
