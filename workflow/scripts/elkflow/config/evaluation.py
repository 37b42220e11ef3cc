"""What base and tuned models are evaluated on, and how answers are scored."""

from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from elkflow.config.base import Settings

OWN_QUESTIONS = {"elkflow_cloze", "elkflow_prose"}
"""Tasks whose questions are stored with their task files; all others fetch theirs from the hub."""


class TaskSettings(Settings):
    """A task (or group of tasks) of lm-evaluation-harness: built in, or a file in `workflow/tasks/`."""

    task: str
    """Its name in the harness, e.g. `arc_challenge`, `mmlu`, `elkflow_cloze`."""
    metric: str = "acc"
    """The metric to report, as the harness names it: `acc`, `acc_norm`, `brier_score`, `bits_per_byte`, ... It must be
    a mean over questions; `f1`, perplexities and generated text are refused."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Few-shot examples before each question; unset: the task's own number."""
    limit: PositiveInt | None = None
    """Use only the first `limit` questions of each task; for trials, not for reported results."""
    batch_size: PositiveInt | Literal["auto"] | None = None
    """Overrides the evaluation's batch size for this task."""
    chat: bool = False
    """Wrap questions and few-shot examples in the tokenizer's chat template."""


class SuiteSettings(Settings):
    """Tasks that belong together: their results share a folder and an average."""

    wordings: tuple[str, ...] = ()
    """Wordings of the run's dataset: each becomes a yes/no task over the val split."""
    tasks: tuple[TaskSettings, ...] = ()
    """Harness tasks, the same for every run."""
    limit: PositiveInt | None = None
    """Use only the first `limit` val rows of each wording."""

    @field_validator("tasks")
    @classmethod
    def _named_once(cls, tasks: tuple[TaskSettings, ...]) -> tuple[TaskSettings, ...]:
        names = [task.task for task in tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"task {twice!r} is listed twice")
        return tasks

    @model_validator(mode="after")
    def _not_empty(self) -> "SuiteSettings":
        if not self.wordings and not self.tasks:
            raise ValueError("a suite needs `wordings` or `tasks`")
        if both := sorted(set(self.wordings) & {task.task for task in self.tasks}):
            raise ValueError(f"{both[0]!r} is both a wording and a task")
        return self

    def fetched(self) -> list[str]:
        """Tasks whose questions are downloaded."""
        return sorted(task.task for task in self.tasks if task.task not in OWN_QUESTIONS)


class EvaluationSettings(Settings):
    """Suites that every base model and every run is evaluated on."""

    suites: dict[str, SuiteSettings] = Field(min_length=1)
    """Name to suite. Every suite is run on every model, which is loaded once for all of them."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Questions per forward pass; `auto`: by number of tokens, reduced if memory runs out."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    """Overrides the compute dtype of the model's section."""
    quantization: Literal["8bit", "4bit", "none"] | None = None
    """Overrides the quantization of the model's section."""
    revisions: dict[str, str] = Field(default_factory=dict)
    """Hub dataset of a task to the commit to use, e.g. `cais/mmlu: <40 hex digits>`; for others the newest commit is
    used and recorded."""
    tuned: Literal["merged", "adapter"] = "merged"
    """What is evaluated as the tuned model: the merged checkpoint, or the base model with the adapter."""
    without_rl: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16)
    """Values of N in the best-of-N baselines, on the wordings of the suites; empty: no baselines."""
    fresh_probe: bool = False
    """Also read the tuned models' hidden states, with the frozen probe and with a fresh one: can the truth still be
    read?"""
    off_domain: tuple[str, ...] = ()
    """Probes fitted on other questions that also read the tuned models' states, before and after training; with
    `fresh_probe`."""

    @model_validator(mode="after")
    def _off_domain_needs_states(self) -> "EvaluationSettings":
        if self.off_domain and not self.fresh_probe:
            raise ValueError("off_domain: reads the states that `fresh_probe: true` extracts; set it as well")
        if len(set(self.off_domain)) < len(self.off_domain):
            raise ValueError("off_domain: names each probe once")
        return self

    def wordings(self) -> list[str]:
        """Every wording of a suite, in order, each once."""
        return list(dict.fromkeys(wording for suite in self.suites.values() for wording in suite.wordings))

    def suite_of(self, wording: str) -> str | None:
        """The first suite with a wording; None if there is none."""
        return next((name for name, suite in self.suites.items() if wording in suite.wordings), None)

    def fetched(self) -> list[str]:
        """Tasks of all suites whose questions are downloaded."""
        return sorted({task for suite in self.suites.values() for task in suite.fetched()})

    def questions(self) -> str:
        """As JSON, the part that determines a model's answers, without the order of suites."""
        ordered = self.model_copy(update={"suites": dict(sorted(self.suites.items()))})
        return ordered.model_dump_json(exclude={"tuned", "without_rl", "fresh_probe", "off_domain", "revisions"})
