"""Where questions come from, how they are divided between probe, PPO and validation, and how they are worded."""

import re
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, field_validator, model_validator

from elkflow.common.paths import CATALOG
from elkflow.config.base import Settings, UserPath

SPLITS = ("train", "ppo", "val")
SOURCES = ("facts", "hub", "path", "mixture")

WordingName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class FactsSource(Settings):
    """The built-in questions about countries, generated from a table of facts."""

    table: UserPath | None = None
    """CSV of the same columns as `workflow/resources/facts.csv`, which is the default."""
    seed: NonNegativeInt = 0
    """Decides which other relation or country each wrong question is drawn from."""
    label: Literal["truth", "number"] = "truth"
    """What is labelled 1: that the sentence holds the answer, or that the question asks for a number. The latter is a
    surface cue that sabotages a probe on purpose, to see it found out; it needs `pair: null`."""


class HubDataset(Settings):
    """A dataset on the hub (or on the mirror named by `HF_ENDPOINT`)."""

    id: str
    """Repository, e.g. `nyu-mll/glue`."""
    name: str | None = None
    """Its configuration, e.g. `qnli`."""
    revision: str
    """Commit or tag. A commit pins the rows for good; `prefetch` records the commit behind a tag or branch."""
    splits: dict[Literal["train", "val"], str] = Field(default={"train": "train"})
    """Hub splits to draw from. Without `val`, the val rows are taken out of `train` too."""


class SplitSettings(Settings):
    """How rows are dealt to the probe (train), the policy (ppo) and the evaluation (val)."""

    recipe: Literal["grouped", "thesis"] = "grouped"
    """`grouped`: by group, balanced, without near-duplicates. `thesis`: shuffle and `train_test_split`, to the row."""
    train: PositiveInt
    """Rows for the probe."""
    ppo: PositiveInt | Literal["rest"]
    """Rows for the policy; `rest` takes what the others leave."""
    val: PositiveInt | Literal["rest"]
    """Rows never trained on; `rest` only where the source has a val split of its own."""
    seed: NonNegativeInt = 42
    """Decides every draw but those below."""
    val_seed: NonNegativeInt = 2023
    """Seed of the val split in the thesis's recipe."""
    take: PositiveInt | None = None
    """Thesis's recipe: keep only so many rows after the first shuffle."""
    balance: bool = True
    """Grouped recipe: the same number of rows of every label (give or take one) in each split."""
    duplicates: Literal["remove", "keep"] = "remove"
    """Grouped recipe: rows whose text differs in case, punctuation or spaces only."""


class Wording(Settings):
    """One way to ask the questions."""

    template: UserPath
    """`file` or `file:template name`, a file of `workflow/prompts/` (or a path ending in .yaml)."""
    about: UserPath | None = None
    """Makes it a question about an answer (is this text truthful?): the template whose question and answer it shows."""
    shown: Literal["every", "random"] = "every"
    """Of the answers shown: every one in a row of its own, or one drawn by a coin as in the thesis."""
    seed: NonNegativeInt | None = None
    """Seed of that coin; unset: the split's `seed` (val: `val_seed`)."""
    chat: bool | None = None
    """Wrap in the model's chat template; unset: as the model's section says."""


class QuestionSettings(Settings):
    """Which questions, and which of them each stage gets. Exactly one source: `facts`, `hub`, `path` or `mixture`."""

    facts: FactsSource | None = None
    """Questions about countries that ship with the workflow."""
    hub: HubDataset | None = None
    """A dataset on the hub."""
    path: UserPath | dict[Literal["train", "val"], UserPath] | None = None
    """A local file (parquet, JSON lines, CSV, Arrow) or `save_to_disk` folder; or one for train and one for val."""
    mixture: list[str] | None = None
    """Other datasets of this config, joined split by split; no key but `licence` and `push_to` may stand beside it."""
    columns: dict[str, str] | None = None
    """Field name in the templates to column of the source; unset: every column under its own name."""
    id: str | None = None
    """Column with unique ids; unset: source split and row number."""
    group: str | list[str] | None = None
    """Column whose equal values never end in two splits; of several columns each one counts. Unset: every row alone."""
    pair: str | None = None
    """Column that ties rows with one of each label together: they stay so, and incomplete pairs are left out."""
    label: str = "label"
    """Column with the labels: numbers from 0, or the names in `labels`."""
    labels: list[str] = Field(default=["negative", "positive"], min_length=2)
    """Name of each label, in numerical order."""
    split: SplitSettings | None = None
    """Sizes and recipe."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Catalog entry under the given keys, defaults of the built-in questions, `wordings: {name: template}`."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if (entry := given.pop("catalog", None)) is not None:
            given = _override(_catalog_entry(entry), given)
        if given.get("facts") is not None:
            given = {"id": "id", "group": "country", "pair": "pair", "labels": ["No", "Yes"]} | given
        if isinstance(given.get("wordings"), dict):  # `name: template` is short for `name: {template: template}`
            short = given["wordings"].items()
            given["wordings"] = {
                name: {"template": value} if isinstance(value, str) else value for name, value in short
            }
        return given

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [name for name in SOURCES if getattr(self, name) is not None]
        if len(sources) != 1:
            found = f"found {' and '.join(sources)}" if sources else "found none"
            raise ValueError(f"give exactly one of {', '.join(SOURCES)} ({found})")
        if self.mixture is not None:
            self._check_mixture(self.mixture)
            return self
        if self.split is None:
            raise ValueError("split is missing")
        self._check_split(self.split)
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must be different")
        return self

    def _check_mixture(self, members: list[str]) -> None:
        if len(set(members)) < max(2, len(members)):
            raise ValueError("mixture: name at least two datasets, each once")
        if extra := self.model_fields_set - {"mixture", "licence", "push_to"}:
            raise ValueError(f"mixture: {min(extra)!r} belongs to the datasets that it joins")

    def _check_split(self, split: SplitSettings) -> None:
        parts = self.hub.splits if self.hub else self.path if isinstance(self.path, dict) else {"train": ""}
        if "train" not in parts:
            raise ValueError(f"{'hub.splits' if self.hub else 'path'}.train is missing")
        if "val" not in parts and split.val == "rest":
            raise ValueError("split.val: `rest` needs a source with a val split of its own")
        if "val" not in parts and split.recipe == "thesis":
            raise ValueError("split.recipe: the thesis's recipe needs a source with a val split of its own")
        for name in SPLITS:
            size = getattr(split, name)
            if self.pair and split.recipe == "grouped" and isinstance(size, int) and size % len(self.labels):
                raise ValueError(f"split.{name}: {size} rows do not divide into pairs of {len(self.labels)}")

    def source(self) -> str:
        """Where the rows are from, as text that is equal for equal sources."""
        if self.hub is not None:
            return f"hub {self.hub.id} {self.hub.name}"
        return f"facts {self.facts.table}" if self.facts is not None else f"path {self.local_files()}"

    def local_files(self) -> list[str]:
        """Local files and folders that the questions are read from."""
        if isinstance(self.path, dict):
            return list(self.path.values())
        return [self.path] if self.path else [self.facts.table] if self.facts and self.facts.table else []


class ChatSettings(Settings):
    """The part of a model's section that decides how prompts are wrapped."""

    chat: bool = False
    """Use the tokenizer's chat template."""
    system_prompt: str | None = None
    """Its system turn; empty: an empty turn; unset: none."""
    trust_remote_code: bool = False
    """Needed where the tokenizer is code."""


class RenderSettings(Settings):
    """How the questions of one wording become prompts for one model."""

    wording: Wording
    """The template."""
    labels: list[str]
    """Name of each label."""
    answers: list[str] | None
    """The order of answers, if it is not the template's."""
    one_token: bool
    """Refuse longer answers."""
    too_long: Literal["refuse", "drop"]
    """What to do with prompts that do not fit the context."""
    seeds: dict[str, int]
    """Seed of the answers shown, for each split."""


class DatasetSettings(QuestionSettings):
    """A labelled question set and its wordings."""

    answers: list[str] | None = None
    """What may be answered, negative first; the templates' answer choices must be the same words. Unset: theirs."""
    one_token: bool = True
    """Refuse answers that are not exactly one token of the model."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with a prompt that is longer than the model's context."""
    wordings: dict[WordingName, Wording] = {}
    """Name to template. Rendered for every model that needs them; the name is part of the file path. At least one; a
    mixture has those that all its datasets have."""
    licence: str | None = None
    """For the dataset's card."""
    push_to: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """Hub repository (`owner/name`) that the target `push_datasets` writes to; private when it creates it."""

    @field_validator("answers")
    @classmethod
    def _two_answers(cls, answers: list[str] | None) -> list[str] | None:
        if answers is not None and len(set(answers)) < max(2, len(answers)):
            raise ValueError("answers must be at least two, and different")
        return answers

    @model_validator(mode="after")
    def _some_wording(self) -> Self:
        if not self.wordings and self.mixture is None:
            raise ValueError("wordings: give at least one")
        return self

    def questions(self) -> QuestionSettings:
        """The part that decides which rows there are."""
        return QuestionSettings.model_construct(**{name: getattr(self, name) for name in QuestionSettings.model_fields})

    def rendering(self, wording: str) -> RenderSettings:
        """The part that decides the prompts of one wording."""
        chosen, split = self.wordings[wording], self.split
        first, last = (split.seed, split.val_seed) if split else (0, 0)
        seeds = {name: last if name == "val" else first for name in SPLITS}
        if chosen.seed is not None:
            seeds = dict.fromkeys(SPLITS, chosen.seed)
        return RenderSettings(
            wording=chosen,
            labels=self.labels,
            answers=self.answers,
            one_token=self.one_token,
            too_long=self.too_long,
            seeds=seeds,
        )


def _override(entry: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The catalog's entry with the given keys on top; a source given in the config replaces the catalog's."""
    if any(source in given for source in SOURCES):
        entry = {key: value for key, value in entry.items() if key not in SOURCES}
    return entry | given


def _catalog_entry(entry: Any) -> dict[str, Any]:
    path = CATALOG / f"{entry}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", str(entry)) or not path.is_file():
        known = ", ".join(sorted(file.stem for file in CATALOG.glob("*.yaml"))) or "nothing"
        raise ValueError(f"catalog: no entry {entry!r}; there is {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
