"""The peer's Python environment, `.venv-peers/`, made by the benchmarks that need it and by nothing else."""

import subprocess
import sys
import venv
from pathlib import Path

PINS = Path(__file__).with_name("trl_environment.txt")


def python(folder: Path = Path(".venv-peers")) -> Path:
    """Its interpreter; the environment is made if it is missing or older than bench/trl_environment.txt."""
    interpreter, made_from = folder / "bin" / "python", folder / "trl_environment.txt"
    if not made_from.is_file() or made_from.read_text() != PINS.read_text():
        print(f"making {folder} from {PINS.name}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "--requirement", PINS], check=True)
        made_from.write_text(PINS.read_text())
    return interpreter.absolute()
