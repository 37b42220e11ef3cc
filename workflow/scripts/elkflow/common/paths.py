"""Every path that is counted from a source file."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The library."""
SCRIPTS = PACKAGE.parent
"""workflow/scripts: what rules start, and the folder that modules are imported from."""
WORKFLOW = SCRIPTS.parent
CHECKOUT = WORKFLOW.parent
"""The folder with the Snakefile."""
CATALOG = CHECKOUT / "config" / "datasets"
"""Datasets that a config may name without describing them."""
RESOURCES = WORKFLOW / "resources"
PROMPTS = WORKFLOW / "prompts"
REPORT = WORKFLOW / "report"
TASKS = WORKFLOW / "tasks"
