"""A config with a mixture: the built-in questions and a file of other ones, wordings of the same names."""

import pandas as pd

RIVERS = 120


def mixed_config(config: dict, folder) -> dict:
    """`config` (see workspace.tiny_config) with probe and run on a mixture; writes rivers.csv into `folder`."""
    rows = [
        {
            "passage": f"River {n} of the map runs for {n * 7 + 100} miles.",
            "asked": f"How long is river {n}?" if n % 2 else f"Who owns river {n}?",
            "label": n % 2,
        }
        for n in range(RIVERS)
    ]
    pd.DataFrame(rows).to_csv(folder / "rivers.csv", index=False)
    (name,) = config["datasets"]
    config["datasets"] |= {
        "rivers": {
            "path": "rivers.csv",
            "columns": {"sentence": "passage", "question": "asked"},
            "answers": ["No", "Yes"],
            "split": {"train": 40, "ppo": 32, "val": 20},
            "wordings": {"held_out": "qnli_held_out", "training": "qnli_training"},
        },
        "both": {"mixture": [name, "rivers"]},
    }
    for section in (*config["probes"].values(), *config["runs"].values()):
        section["dataset"] = "both"
    return config
