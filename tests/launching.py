"""Commands started as the workflow starts them: one process plainly, several under accelerate, on the CPU."""

import os
import subprocess
import sys

SEVERAL = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
SEVERAL += ["--dynamo_backend=no", "--main_process_port=0"]


def launched(processes: int, *command, **environment: str) -> None:
    """Run a Python script with its arguments on so many processes; fail with its errors if it does."""
    launcher = [*SEVERAL, f"--num_processes={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, command)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
