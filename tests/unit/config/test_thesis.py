"""The thesis's procedure on files of its size: the published numbers of rows and of truthful texts."""

import pyarrow as pa
import pyarrow.parquet as pq
from tiny import make_checkpoint

from elkflow.config.data import ChatSettings, DatasetSettings
from elkflow.data.split_dataset import split_dataset
from elkflow.models.tokens import load_tokenizer
from elkflow.prompts.render_prompts import render_prompts


def test_the_published_counts_come_out_on_a_stand_in_file(tmp_path):
    """They depend only on row numbers and seeds, so made-up rows suffice."""
    paths = {}
    for part, count in (("train", 104_743), ("val", 5_463)):
        numbers = range(count)
        table = {
            "sentence": [f"{part} {n}" for n in numbers],
            "question": [f"who is {n}?" for n in numbers],
            "label": [n % 2 for n in numbers],
        }
        paths[part] = str(tmp_path / f"{part}.parquet")
        pq.write_table(pa.table(table), paths[part])
    shown = {"template": "truthfulness:truthful", "about": "qnli_training", "shown": "random"}
    given = DatasetSettings.model_validate(
        {
            "path": paths,
            "split": {"recipe": "thesis", "train": 10_000, "ppo": "rest", "val": "rest"},
            "wordings": {"truthful": shown},
            "one_token": False,
        }
    )
    facts = split_dataset(given.questions(), tmp_path / "data")["splits"]
    assert {name: entry["rows"] for name, entry in facts.items()} == {"train": 10_000, "ppo": 94_743, "val": 5_463}

    splits = {name: tmp_path / "data" / f"{name}.parquet" for name in ("train", "val")}
    checkpoint = make_checkpoint(tmp_path / "model")
    rendering = given.rendering("truthful")
    facts = render_prompts(
        rendering, ChatSettings(), checkpoint, load_tokenizer(checkpoint), splits, tmp_path / "prompts"
    )
    # untruthful, truthful
    assert facts["splits"]["train"]["labels"] == [5_016, 4_984]
    assert facts["splits"]["val"]["labels"] == [2_795, 2_668]
