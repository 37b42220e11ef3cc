"""Damaged checkpoints are recognised and skipped."""

import pytest
from tiny_trainer import metrics, same, trainer, weights


@pytest.mark.parametrize("damage", ["tensors.safetensors", "state.json", "hashes.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    whole = trainer(tmp_path / "whole")
    whole.train()
    first = trainer(tmp_path / "cut", stopping=lambda: len(metrics(tmp_path / "cut")) > 3)
    first.train()
    file = tmp_path / "cut" / "step-000003" / damage
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    second = trainer(tmp_path / "cut")
    assert second.session.progress.step == 2
    assert "step-000003: damaged" in caplog.text
    second.train()
    same(weights(whole), weights(second))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
