"""File times that lie ahead are brought back; all others stay."""

import os
import time

from elkflow.orchestration.future_timestamps import settle


def test_only_the_future_is_settled(tmp_path):
    now = time.time()
    times = {"past": now - 1e9, "recent": now - 5, "skewed": now + 20, "ahead": now + 3600, "far": now + 3e8}
    for name, moment in times.items():
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "file").write_text(name)
        os.utime(tmp_path / "results" / name / "file", (moment, moment))
    (tmp_path / "results" / "dangling").symlink_to("nowhere")
    assert settle(tmp_path / "results") == 2
    for name, moment in times.items():
        found = (tmp_path / "results" / name / "file").stat().st_mtime
        assert abs(found - (now if name in ("ahead", "far") else moment)) < 5
        assert (tmp_path / "results" / name / "file").read_text() == name
    assert settle(tmp_path / "results") == 0 and settle(tmp_path / "none yet") == 0
