"""Where questions come from, how they are split between probe, PPO and validation, and how they are worded."""

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
    """The built-in questions, generated from a table of facts."""

    topic: Literal["countries", "elements"] = "countries"
    """What the facts are about: countries, or chemical elements (group: `country` or `element`)."""
    table: UserPath | None = None
    """CSV with the columns of `workflow/resources/{topic}.csv`, which is the default."""
    seed: NonNegativeInt = 0
    """Decides which other relation or subject each wrong question is drawn from."""
    label: Literal["truth", "number"] = "truth"
    """What label 1 means: that the sentence contains the answer, or that the question asks for a number. The latter is
    a surface cue that sabotages a probe on purpose, to test that this is detected; it needs `pair: null`."""


class HubDataset(Settings):
    """A dataset on the hub (or on the mirror named by `HF_ENDPOINT`)."""

    id: str
    """Repository, e.g. `nyu-mll/glue`."""
    name: str | None = None
    """Its configuration, e.g. `qnli`."""
    revision: str
    """Commit or tag. A commit pins the rows for good; `prefetch` records the commit of a tag or branch."""
    splits: dict[Literal["train", "val"], str] = Field(default={"train": "train"})
    """Hub splits to draw from. Without `val`, the val rows are also taken from `train`."""


class SplitSettings(Settings):
    """How rows are assigned to the probe (train), the policy (ppo) and the evaluation (val)."""

    recipe: Literal["grouped", "thesis"] = "grouped"
    """`grouped`: by group, balanced, without near-duplicates. `thesis`: exactly the published shuffle and
    `train_test_split`."""
    train: PositiveInt
    """Rows for the probe."""
    ppo: PositiveInt | Literal["rest"]
    """Rows for the policy; `rest`: all that the other splits leave."""
    val: PositiveInt | Literal["rest"]
    """Rows never trained on; `rest` only if the source has a val split of its own."""
    seed: NonNegativeInt = 42
    """Seed of every draw but those below."""
    val_seed: NonNegativeInt = 2023
    """Thesis recipe: seed of the val split."""
    take: PositiveInt | None = None
    """Thesis recipe: number of rows to keep after the first shuffle."""
    balance: bool = True
    """Grouped recipe: equal numbers of rows of every label (within one) in each split."""
    duplicates: Literal["remove", "keep"] = "remove"
    """Grouped recipe: what to do with rows whose text differs only in case, punctuation or spaces."""


class Wording(Settings):
    """One way to ask the questions."""

    template: UserPath
    """`file` or `file:template name`: a file in `workflow/prompts/`, or a path ending in .yaml."""
    about: UserPath | None = None
    """Makes this a question about an answer (is this text truthful?): the template whose question and answer are
    shown."""
    shown: Literal["every", "random"] = "every"
    """Which answers are shown: every one, each in its own row, or one drawn at random as in the thesis."""
    seed: NonNegativeInt | None = None
    """Seed of that draw; unset: the split's `seed` (val: `val_seed`)."""
    chat: bool | None = None
    """Wrap in the model's chat template; unset: as in the model's section."""


class QuestionSettings(Settings):
    """The questions, and which of them each stage gets. Exactly one source: `facts`, `hub`, `path` or `mixture`."""

    facts: FactsSource | None = None
    """The built-in questions."""
    hub: HubDataset | None = None
    """A dataset on the hub."""
    path: UserPath | dict[Literal["train", "val"], UserPath] | None = None
    """A local file (parquet, JSON lines, CSV, Arrow) or `save_to_disk` folder; or one for train and one for val."""
    mixture: list[str] | None = None
    """Other datasets of this config, joined split by split; the only other keys allowed are `licence` and `push_to`."""
    columns: dict[str, str] | None = None
    """Field name in the templates to column of the source; unset: every column under its own name."""
    id: str | None = None
    """Column with unique ids; unset: source split and row number."""
    group: str | list[str] | None = None
    """Column whose equal values never end up in two splits; with several columns this holds for each. Unset: every row
    is its own group."""
    pair: str | None = None
    """Column that joins rows, one of each label, to a pair: pairs stay together, and incomplete ones are left out."""
    label: str = "label"
    """Column with the labels: integers from 0, or the names in `labels`."""
    labels: list[str] = Field(default=["negative", "positive"], min_length=2)
    """Name of each label, in numerical order."""
    split: SplitSettings | None = None
    """Sizes and recipe."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """Apply the catalog entry, the defaults of the built-in questions, and the short form of wordings."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if (entry := given.pop("catalog", None)) is not None:
            given = _override(_catalog_entry(entry), given)
        if given.get("facts") is not None:
            topic = given["facts"].get("topic") if isinstance(given["facts"], dict) else None
            group = "element" if topic == "elements" else "country"
            given = {"id": "id", "group": group, "pair": "pair", "labels": ["No", "Yes"]} | given
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
            raise ValueError(f"mixture: {min(extra)!r} belongs to the datasets it joins")

    def _check_split(self, split: SplitSettings) -> None:
        parts = self.hub.splits if self.hub else self.path if isinstance(self.path, dict) else {"train": ""}
        if "train" not in parts:
            raise ValueError(f"{'hub.splits' if self.hub else 'path'}.train is missing")
        if "val" not in parts and split.val == "rest":
            raise ValueError("split.val: `rest` needs a source with a val split of its own")
        if "val" not in parts and split.recipe == "thesis":
            raise ValueError("split.recipe: the thesis recipe needs a source with a val split of its own")
        for name in SPLITS:
            size = getattr(split, name)
            if self.pair and split.recipe == "grouped" and isinstance(size, int) and size % len(self.labels):
                raise ValueError(f"split.{name}: {size} rows do not divide into pairs of {len(self.labels)}")

    def source(self) -> str:
        """The source as text, equal for equal sources."""
        if self.hub is not None:
            return f"hub {self.hub.id} {self.hub.name}"
        if self.facts is not None:
            return f"facts {self.facts.topic} {self.facts.table}"
        return f"path {self.local_files()}"

    def local_files(self) -> list[str]:
        """Local files and folders from which the questions are read."""
        if isinstance(self.path, dict):
            return list(self.path.values())
        return [self.path] if self.path else [self.facts.table] if self.facts and self.facts.table else []


class ChatSettings(Settings):
    """The part of a model's section that determines how prompts are wrapped."""

    chat: bool = False
    """Use the tokenizer's chat template."""
    system_prompt: str | None = None
    """Its system turn; empty: an empty turn; unset: none."""
    chat_arguments: dict[str, bool | int | str] = {}
    """Arguments for the chat template."""
    trust_remote_code: bool = False
    """Needed if the tokenizer comes with its own code."""


class RenderSettings(Settings):
    """How the questions of one wording become prompts for one model."""

    wording: Wording
    """The template."""
    labels: list[str]
    """Name of each label."""
    answers: list[str] | None
    """The order of the answers; unset: the template's."""
    one_token: bool
    """Refuse answers of more than one token."""
    too_long: Literal["refuse", "drop"]
    """What to do with prompts that exceed the context."""
    seeds: dict[str, int]
    """Seed for drawing the answers shown, for each split."""
    shared: bool = False
    """Whether a prompt may be in two splits."""


class DatasetSettings(QuestionSettings):
    """A labelled question set and its wordings."""

    answers: list[str] | None = None
    """Allowed answers, negative first; the templates' answer choices must be the same words. Unset: the templates'."""
    one_token: bool = True
    """Refuse answers that are not exactly one token of the model."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with a prompt that is longer than the model's context."""
    wordings: dict[WordingName, Wording] = {}
    """Name to template. Rendered for every model that needs it; the name is part of the file path. At least one; a
    mixture has those that all its datasets share."""
    licence: str | None = None
    """Licence, for the dataset card."""
    push_to: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """Hub repository (`owner/name`) that the target `push_datasets` writes to; created as private if it does not
    exist."""

    @field_validator("answers")
    @classmethod
    def _two_answers(cls, answers: list[str] | None) -> list[str] | None:
        if answers is not None and len(set(answers)) < max(2, len(answers)):
            raise ValueError("give at least two answers, all different")
        return answers

    @model_validator(mode="after")
    def _some_wording(self) -> Self:
        if not self.wordings and self.mixture is None:
            raise ValueError("wordings: give at least one")
        return self

    def questions(self) -> QuestionSettings:
        """The part that determines the rows."""
        return QuestionSettings.model_construct(**{name: getattr(self, name) for name in QuestionSettings.model_fields})

    def rendering(self, wording: str) -> RenderSettings:
        """The part that determines the prompts of one wording."""
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
            shared=split is not None and (split.duplicates == "keep" or split.recipe == "thesis"),
        )


def _override(entry: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The catalog entry, overridden by the given keys; a given source replaces the entry's."""
    if any(source in given for source in SOURCES):
        entry = {key: value for key, value in entry.items() if key not in SOURCES}
    return entry | given


def _catalog_entry(entry: Any) -> dict[str, Any]:
    path = CATALOG / f"{entry}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", str(entry)) or not path.is_file():
        known = ", ".join(sorted(file.stem for file in CATALOG.glob("*.yaml"))) or "nothing"
        raise ValueError(f"catalog: no entry {entry!r}; there is {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
