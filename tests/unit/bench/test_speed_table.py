"""The speed table of docs/results.md: what the benchmarks wrote, and nothing for what they did not."""

import sys
from pathlib import Path

import pytest

from elkflow.common.errors import UserError
from elkflow.common.files import write_json

sys.path.append(str(Path(__file__).resolve().parents[3] / "bench"))

import speed_table

FILES = {
    "hiddens_speed": {
        "pairs_per_second": {"one_by_one": 2.0, "float32": 9.0, "bfloat16": 20.0},
        "ratio_fp32": 4.5,
        "ratio_best": 10.0,
        "matmul_share": {"float32": 0.8, "bfloat16": 0.7},
    },
    "probes_speed": {
        "layers": 31,
        "logistic": {"batched_seconds": 2.0, "one_by_one_seconds": 9.0, "in_features_seconds": 24.0},
        "ccs": {"batched_seconds": 3.0, "one_by_one_seconds": 27.0},
    },
    "ppo_speed": {
        "seconds_per_step": {"ours": {"float32": 3.0, "bfloat16": 2.0}, "peer": {"float32": 12.0}},
        "matmul_share": {"float32": 0.5, "bfloat16": 0.4},
        "learning_curve": {"seeds": 2},
        "time_to_quality": {
            "ours": {"total_seconds": 80.0},
            "peer": {"seconds": 400.0},
            "ratio": 5.0,
            "at_least": True,
        },
    },
    "data_speed": {"sizes": [{"rows": 1_000_000, "split_seconds": 30.0, "render_seconds": 25.0, "rss_peak_mb": 776.0}]},
}


def printed(folder, names, monkeypatch, capsys):
    for name in names:
        write_json(folder / f"{name}.json", FILES[name])
    monkeypatch.setattr("sys.argv", ["speed_table.py", "--folder", str(folder)])
    speed_table.main()
    return capsys.readouterr().out.splitlines()


def test_every_file_has_its_rows(tmp_path, monkeypatch, capsys):
    lines = printed(tmp_path, FILES, monkeypatch, capsys)
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "hidden states, float32",
        "hidden states, bfloat16",
        "logistic probes, 31 layers",
        "ccs probes, 31 layers",
        "PPO step, float32",
        "PPO step, bfloat16",
        "PPO to the same accuracy",
        "split 1,000,000 rows",
        "render their prompts, 776 MB",
    ]
    assert lines[2].split()[3:] == ["20.0", "pairs/s", "2.0", "10.0", "70%"]


def test_what_was_not_measured_is_left_out(tmp_path, monkeypatch, capsys):
    assert len(printed(tmp_path, ["probes_speed"], monkeypatch, capsys)) == 3
    assert speed_table.ppo_speed({"learning_curve": {"seeds": 2}}) == []


def test_no_results_are_an_error(tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="no results of benchmarks; `make bench` writes them"):
        printed(tmp_path, [], monkeypatch, capsys)
