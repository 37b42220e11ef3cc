"""A stage like PPO, without the mathematics: one step after another, going on after the last one written."""

import json
import os
import sys
import time
from pathlib import Path

name, output = sys.argv[1:]
record = Path(f"{name}.steps")
if name == "memory":
    ballast = bytearray(500_000_000)
step = len(record.read_text().splitlines()) if record.exists() else 0
while True:
    with record.open("a") as file:
        file.write(json.dumps({"step": step, "process": os.getpid()}) + "\n")
    if Path("enough").exists():
        break
    step += 1
    time.sleep(0.3)
Path(output).touch()
