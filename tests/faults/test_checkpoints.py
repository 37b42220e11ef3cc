"""Checkpoints killed at every line of their writing, damaged in every file: training goes on from a whole one."""

import random

import pytest
import torch

from elkflow.ppo import checkpoints

from .interrupt import every_line


def state_of(step: int):
    tensors = {"weight": torch.full((16, 16), float(step)), "optimizer.0.exp_avg": torch.arange(64.0) * step}
    more, python = checkpoints.random_states()
    return tensors | more, {"fingerprint": "same run", "random": python, "progress": {"step": step}}


def save(folder, step):
    checkpoints.save(folder, step, *state_of(step))


def newest_step(folder) -> int | None:
    found = checkpoints.newest(folder, "same run")
    if found is None:
        return None
    tensors, state = found
    assert torch.equal(tensors["weight"], torch.full((16, 16), float(state["step"])))
    assert torch.equal(tensors["optimizer.0.exp_avg"], torch.arange(64.0) * state["step"])
    return state["step"]


def test_killed_at_any_line_the_newest_whole_checkpoint_is_found(tmp_path, tally):
    save(tmp_path, 4)
    kills = 0
    for _ in every_line(lambda: save(tmp_path, 8)):
        kills += 1
        found = newest_step(tmp_path)
        assert found in (4, 8)
        if found == 8:
            for file in checkpoints.folder_of(tmp_path, 8).iterdir():
                file.unlink()
            checkpoints.folder_of(tmp_path, 8).rmdir()
    assert newest_step(tmp_path) == 8 and kills > 30
    assert not list(tmp_path.glob(".*")), "leftovers of killed writers"
    tally["checkpoint saving: SIGKILL"] += kills


def test_killed_at_any_line_of_pruning_the_last_ones_stay(tmp_path, tally):
    kills = 0
    for step in range(1, 6):
        save(tmp_path, step)
    for _ in every_line(lambda: checkpoints.prune(tmp_path, 2, [1])):
        kills += 1
        assert newest_step(tmp_path) == 5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-000001", "step-000004", "step-000005"]
    tally["checkpoint pruning: SIGKILL"] += kills


@pytest.mark.parametrize("how", ["cut", "flip", "empty", "missing"])
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "hashes.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, file, how, tally, caplog):
    dice = random.Random(f"{file} {how}")
    for attempt in range(1 if how in ("empty", "missing") else 20):
        save(tmp_path, 4)
        save(tmp_path, 8)
        path = checkpoints.folder_of(tmp_path, 8) / file
        content = bytearray(path.read_bytes())
        if how == "cut":
            content = content[: dice.randrange(len(content))]
        elif how == "flip":
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        elif how == "empty":
            content.clear()
        path.write_bytes(content)
        if how == "missing":
            path.unlink()
        found = newest_step(tmp_path)
        # A flipped bit of JSON may leave its meaning alone (a space for another); then the checkpoint is still whole.
        assert found == 4 or (found == 8 and file == "hashes.json"), attempt
        tally[f"checkpoint damaged: {how}"] += 1
    assert "step-000008" in caplog.text


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path):
    save(tmp_path, 4)
    assert checkpoints.newest(tmp_path, "another run") is None
