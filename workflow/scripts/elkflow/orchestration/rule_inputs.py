"""Where rules' inputs come from when a pattern alone does not say."""

import os

from elkflow.common.paths import FACTS
from elkflow.config.data import DatasetSettings, QuestionSettings


def source_files(settings: QuestionSettings) -> list[str]:
    """Local files and folders that the rows are read from."""
    return [os.path.relpath(FACTS)] if settings.facts and not settings.facts.table else settings.local_files()


def template_files(settings: DatasetSettings, wording: str) -> list[str]:
    """Template files behind one wording."""
    from elkflow.prompts.templates import locate_template

    chosen = settings.wordings[wording]
    names = [name for name in (chosen.template, chosen.about) if name]
    return list(dict.fromkeys(os.path.relpath(locate_template(name)[0]) for name in names))
