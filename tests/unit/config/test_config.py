"""Valid configs: sweeps and references between sections; invalid ones: one clear message each."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
import yaml

from elkflow.common.errors import UserError
from elkflow.config.config import Config
from elkflow.orchestration.preflight import preflight

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "config").glob("*.yaml"))
TEMPLATE = """\
templates:
  only: !Template
    name: only
    answer_choices: No ||| Yes
    jinja: 'Is this {kind}: {{{{sentence}}}}? ||| {{{{answer_choices[label]}}}}'
"""


def rows() -> pd.DataFrame:
    return pd.DataFrame([{"sentence": f"sentence {i}", "topic": f"t{i // 4}", "label": i % 2} for i in range(80)])


@pytest.fixture
def raw(tmp_path):
    """A small valid config with files of its own; the model's folder is empty, as no test here reads it."""
    (tmp_path / "model").mkdir()
    rows().to_csv(tmp_path / "rows.csv", index=False)
    for kind in ("plain", "other"):
        (tmp_path / f"{kind}.yaml").write_text(TEMPLATE.format(kind=kind))
    return {
        "models": {"small": {"path": str(tmp_path / "model")}},
        "datasets": {
            "rows": {
                "path": str(tmp_path / "rows.csv"),
                "group": "topic",
                "split": {"train": 24, "ppo": 24, "val": 16},
                "wordings": {"plain": str(tmp_path / "plain.yaml"), "other": str(tmp_path / "other.yaml")},
            }
        },
        "probes": {"truth": {"model": "small", "dataset": "rows", "wording": "plain", "methods": ["logistic"]}},
        "runs": {
            "run": {"policy": "small", "probe": "truth", "dataset": "rows", "wording": "plain", "ppo": {"steps": 2}}
        },
        "evaluation": {"suites": {"target": {"wordings": ["plain", "other"]}}},
    }


def edited(raw: dict, key: str, value: object) -> dict:
    """A copy of `raw` with the value at `a.b.c` replaced, or removed if it is `...`."""
    changed = copy.deepcopy(raw)
    *parents, last = key.split(".")
    section = changed
    for part in parents:
        section = section[part]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return changed


def complaint(raw: dict) -> str:
    with pytest.raises(UserError) as caught:
        preflight(Config.load(raw))
    return str(caught.value)


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_fit_the_schema(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)
    assert Config.load(content).runs


def test_a_small_config_passes_every_check(raw):
    config = Config.load(raw)
    preflight(config)
    assert config.section("runs/run/ppo").steps == 2


def test_reference_and_schema_are_what_the_settings_say():
    spec = importlib.util.spec_from_file_location("generate_schema", ROOT / "workflow/schemas/generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.generated().items():
        assert path.read_text(encoding="utf-8") == text, f"run `python workflow/schemas/generate.py`: {path} is stale"


def test_every_key_is_documented():
    generated = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    rows_of_keys = [line for line in generated.splitlines() if line.startswith("| `")]
    assert len(rows_of_keys) > 100
    assert not [row for row in rows_of_keys if row.rstrip().endswith("|  |")]


def test_a_list_makes_a_run_of_each_value(raw):
    raw["runs"]["run"]["ppo"] |= {"learning_rate": [1e-3, 1e-4], "kl": {"coefficient": [0.0, 0.5]}}
    runs = Config.load(raw).runs
    assert list(runs) == [
        "run+learning_rate=0.001+coefficient=0.0",
        "run+learning_rate=0.001+coefficient=0.5",
        "run+learning_rate=0.0001+coefficient=0.0",
        "run+learning_rate=0.0001+coefficient=0.5",
    ]
    assert [(run.ppo.learning_rate, run.ppo.kl.coefficient) for run in runs.values()] == [
        (1e-3, 0.0),
        (1e-3, 0.5),
        (1e-4, 0.0),
        (1e-4, 0.5),
    ]


def test_values_that_are_lists_by_nature_make_no_sweep(raw):
    raw["runs"]["run"] |= {"seeds": [0, 1, 2], "trackers": []}
    raw["runs"]["run"]["ppo"]["lora"] = {"targets": ["q_proj", "k_proj"]}
    assert list(Config.load(raw).runs) == ["run"]


def test_names_become_literal_patterns(raw):
    raw["runs"] = {"a.b+c=1": raw["runs"]["run"]}
    raw["evaluation"]["suites"] = {"t.x": raw["evaluation"]["suites"]["target"]}
    config = Config.load(raw)
    assert config.names("runs") == [r"a\.b\+c=1"] and config.names("evaluation/suites") == [r"t\.x"]


# ---------------------------------------------------------------- what is wrong: the config alone

WRONG = [
    # unknown, missing and misspelt keys
    ("modells", {}, "modells: there is no such key; did you mean `models`?"),
    ("probes", ..., "probes: Field required"),
    ("probes.truth.metods", ["ccs"], "probes.truth.metods: there is no such key; did you mean `methods`?"),
    ("runs.run.ppo", {"step": 3}, "runs.run.ppo.step: there is no such key; did you mean `steps`?"),
    ("runs.run.policy", ..., "runs.run.policy: Field required"),
    ("datasets.rows.split.trian", 3, "datasets.rows.split.trian: there is no such key; did you mean `train`?"),
    ("evaluation.suites.target.zzz", 1, "evaluation.suites.target.zzz: there is no such key; there is wordings, tasks"),
    ("models.small.hub", {"token": "x"}, "models.small.hub.token: there is no such key"),
    # names of things that are not there
    ("probes.truth.model", "big", "probes.truth.model: 'big' is not among small"),
    ("probes.truth.dataset", "row", "probes.truth.dataset: 'row' is not among rows"),
    ("probes.truth.wording", "x", "probes.truth: wording: 'x' is not among plain, other"),
    ("probes.truth.untrained", "x", "probes.truth.untrained: 'x' is not among small"),
    ("probes.truth.transfer", ["x"], "probes.truth.transfer: 'x' is not among truth"),
    ("runs.run.probe", "lies", "runs.run.probe: 'lies' is not among truth"),
    ("runs.run.policy", "big", "runs.run.policy: 'big' is not among small"),
    ("runs.run.dataset", "x", "runs.run.dataset: 'x' is not among rows"),
    ("runs.run.wording", "x", "runs.run.wording: 'x' is not among plain, other"),
    ("evaluation.suites.target.wordings", ["x"], "evaluation.suites: wording for run run: 'x' is not among plain"),
    # names that cannot be part of a path
    ("models", {"../up": {"path": "m"}}, "models: '../up' is not a valid name"),
    ("probes", {"-rf": {"model": "small", "dataset": "rows", "wording": "plain"}}, "probes: '-rf' is not a valid name"),
    ("models", {"smаll": {"path": "m"}}, "models: 'smаll' is not a valid name"),  # Cyrillic а
    ("evaluation.suites", {"a/b": {"wordings": ["plain"]}}, "evaluation/suites: 'a/b' is not a valid name"),
    ("datasets", {"a\nb": {"facts": {}}}, "datasets"),
    # paths that Snakemake would read as patterns
    ("models.small.path", "models/{wildcards.x}", "models.small.path: a path must not contain braces"),
    (
        "datasets.rows.path",
        "rows\n.csv",
        "datasets.rows.path: a path must not contain braces (Snakemake's wildcards) or",
    ),
    (
        "datasets.rows.wordings.plain",
        "t{x}.yaml",
        "datasets.rows.wordings.plain.template: a path must not contain braces",
    ),
    # values out of range or of the wrong kind
    ("runs.run.ppo.steps", 0, "runs.run.ppo.steps: Input should be greater than 0 (got 0)"),
    ("runs.run.ppo.steps", "many", "runs.run.ppo.steps: Input should be a valid integer"),
    ("runs.run.ppo.learning_rate", float("nan"), "runs.run.ppo.learning_rate: Input should be"),
    ("runs.run.ppo.minibatch_size", 48, "runs.run.ppo: minibatch_size: 48 does not divide batch_size 64"),
    ("runs.run.ppo", {}, "runs.run.ppo: give exactly one of steps, epochs"),
    (
        "runs.run.algorithm",
        "a2c",
        "runs.run.algorithm: Input should be 'ppo', 'exact', 'sft', 'dpo', 'rloo' or 'grpo' (got 'a2c')",
    ),
    ("runs.run.reward", "os; rm", "runs.run.reward: String should match pattern"),
    ("runs.run.seeds", [1, 1], "runs.run.seeds: seeds must differ"),
    ("runs.run.seeds", [-1], "runs.run.seeds.0: Input should be greater than or equal to 0 (got -1)"),
    ("probes.truth.selection", 1.5, "probes.truth.selection: Input should be less than 1"),
    ("probes.truth.methods", ["magic"], "probes.truth.methods.0: Input should be"),
    ("probes.truth.reward", "ccs", "probes.truth: reward: 'ccs' is not among methods (logistic)"),
    ("models.small.dtype", "int4", "models.small.dtype: Input should be 'auto', 'bfloat16'"),
    ("models.small", {}, "models.small: give exactly one of wheel, hub, path (got none)"),
    ("models.small.hub", {"id": "a/b", "revision": "main"}, "models.small.hub.revision: must be a full commit hash"),
    ("models.small.system_prompt", "Be brief.", "models.small: system_prompt needs `chat: true`"),
    ("datasets.rows.split.train", -1, "datasets.rows.split.train: Input should be greater than 0 (got -1)"),
    ("datasets.rows.split.ppo", "all", "datasets.rows.split.ppo: Input should be"),
    ("datasets.rows.split", ..., "datasets.rows: split is missing"),
    ("datasets.rows.path", ..., "datasets.rows: give exactly one of facts, hub, path, mixture (found none)"),
    ("datasets.rows.facts", {}, "datasets.rows: give exactly one of facts, hub, path, mixture (found facts and path)"),
    ("datasets.rows.answers", ["Yes", "Yes"], "datasets.rows.answers: give at least two answers, all different"),
    ("datasets.rows.catalog", "no_such", "datasets.rows: catalog: no entry 'no_such'"),
    ("evaluation.suites", {}, "evaluation.suites: Dictionary should have at least 1 item"),
    ("evaluation.suites.target", {}, "evaluation.suites.target: a suite needs `wordings` or `tasks`"),
    # sweeps that are none
    ("runs.run.ppo.clip", [], "runs.run.ppo.clip: an empty list makes no runs"),
    ("runs.run.ppo.clip", [0.1, 0.1], "runs.run: two runs would be called 'run+clip=0.1'"),
    ("runs.run.ppo.clip", [0.1, -0.1], "runs.run+clip=-0.1.ppo.clip: Input should be greater than 0"),
    ("runs.run.ppo.steps", list(range(1, 200_000)), "runs.run: its lists make more than 100000 runs"),
    ("runs.run.policy", ["small", "../x"], "runs: 'run+policy=../x' is not a valid name"),
    ("runs", [], "runs: Input should be a valid dictionary"),
    ("runs", None, "runs: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=lambda part: str(part)[:40])
def test_a_mistake_in_the_config_is_one_line_naming_the_key(raw, key, value, message):
    told = complaint(edited(raw, key, value))
    assert message in told
    assert "\n" not in told and len(told) < 500


def test_a_misspelt_required_key_is_told_before_the_one_it_leaves_missing(raw):
    run = raw["runs"]["run"]
    run["polcy"] = run.pop("policy")
    assert complaint(raw) == "runs.run.polcy: there is no such key; did you mean `policy`?"


def test_an_alias_inside_its_own_anchor_is_refused(raw):
    raw["runs"]["run"] = yaml.safe_load("&run\npolicy: small\nppo: {steps: 2, kl: *run}\n")
    assert "runs.run" in complaint(raw) or "contains itself" in complaint(raw)


def test_a_union_is_named_by_the_key_not_by_its_members(raw):
    told = complaint(edited(raw, "datasets.rows.path", 5))
    assert told.startswith("datasets.rows.path: ")


# ---------------------------------------------------------------- what is wrong: files the config names


def with_column(name, values):
    """A change to rows.csv."""

    def change(folder):
        table = rows()
        table[name] = values(table) if callable(values) else values
        table.to_csv(folder / "rows.csv", index=False)

    return change


def without_column(name):
    return lambda folder: rows().drop(columns=name).to_csv(folder / "rows.csv", index=False)


def text(file, content):
    return lambda folder: (folder / file).write_text(content)


WRONG_FILES = [
    ("missing file", lambda folder: (folder / "rows.csv").unlink(), {}, "{folder}/rows.csv: no such file"),
    ("empty file", text("rows.csv", ""), {}, "rows.csv: empty"),
    ("no rows", text("rows.csv", "sentence,topic,label\n"), {}, "rows.csv: no rows"),
    ("no label column", without_column("label"), {}, "'label'"),
    ("no group column", without_column("topic"), {}, "'topic'"),
    ("no column for a template", without_column("sentence"), {}, "wordings.plain: the template uses 'sentence'"),
    ("a third label", with_column("label", lambda t: [2, *t.label[1:]]), {}, "row 0"),
    ("a label that is a word", with_column("label", lambda t: ["maybe", *t.label[1:]]), {}, "row 0"),
    ("a label that is missing", with_column("label", lambda t: [None, *t.label[1:]]), {}, "row 0"),
    ("one label only", with_column("label", 1), {}, "label"),
    ("labels with a fraction", with_column("label", 0.5), {}, "labels are integers or names"),
    ("train larger than the data", None, {"datasets.rows.split.train": 400}, "split"),
    ("splits larger than the data together", None, {"datasets.rows.split.val": 60}, "split"),
    ("one group for all rows", with_column("topic", "same"), {}, "group"),
    ("not parquet", text("rows.parquet", "PAR1"), {"datasets.rows.path": "{folder}/rows.parquet"}, "rows.parquet: "),
    ("not JSON lines", text("rows.jsonl", "{{{"), {"datasets.rows.path": "{folder}/rows.jsonl"}, "rows.jsonl: "),
    ("a folder for a file", None, {"datasets.rows.path": "{folder}"}, "{folder}"),
    ("a template missing", lambda folder: (folder / "plain.yaml").unlink(), {}, "plain.yaml"),
    ("a template that is not YAML", text("plain.yaml", "a: [b"), {}, "plain.yaml"),
    ("a template file without templates", text("plain.yaml", "a: b"), {}, "plain.yaml"),
    ("a template that is not Jinja", text("plain.yaml", TEMPLATE.format(kind="").replace("}}?", "")), {}, "plain.yaml"),
    ("a template without an answer", text("plain.yaml", TEMPLATE.format(kind="x").split("|||")[0] + "'"), {}, "plain"),
    ("other answers than the dataset's", None, {"datasets.rows.answers": ["False", "True"]}, "answers"),
    ("more facts than there are", None, {"datasets.rows": {
        "facts": {}, "split": {"train": 90000, "ppo": 2, "val": 2},
        "wordings": {"plain": "qnli_training", "other": "qnli_held_out"}
    }}, "datasets.rows: split: 90000 train"),
    ("a table of facts that is none", text("facts.csv", "a,b\n1,2\n"), {"datasets.rows": {
        "facts": {"table": "{folder}/facts.csv"}, "split": {"train": 2, "ppo": 2, "val": 2},
        "wordings": {"plain": "qnli_training", "other": "qnli_held_out"}
    }}, "facts.csv"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "edits", "message"), [case[1:] for case in WRONG_FILES], ids=[c[0] for c in WRONG_FILES]
)
def test_a_mistake_in_a_file_is_one_line_naming_it(raw, tmp_path, damage, edits, message):
    if damage:
        damage(tmp_path)
    for key, value in edits.items():
        raw = edited(raw, key, json.loads(json.dumps(value).replace("{folder}", str(tmp_path))))
    told = complaint(raw)
    assert message.replace("{folder}", str(tmp_path)) in told
    assert told.startswith("datasets.rows") and "\n" not in told


# ---------------------------------------------------------------- through the real command


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("probes.truth.metods", ["ccs"], "config: probes.truth.metods: there is no such key; did you mean `methods`?"),
        ("datasets.rows.split.train", 4000, "config: datasets.rows: split"),
        ("runs.run.probe", "$(touch pwned)", "config: runs.run.probe: '$(touch pwned)' is not among truth"),
    ],
)
def test_snakemake_says_it_once_and_writes_nothing(raw, tmp_path, key, value, message):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(edited(raw, key, value)))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    done = subprocess.run(
        [*command, "--configfile", folder / "config.yaml", "--cores", "1"],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 1, told
    assert told.count(message) == 1 and "Traceback" not in told
    left = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    assert [file for file in left if not file.startswith(".snakemake")] == ["config.yaml"]


@pytest.mark.parametrize("name", ["config", "thesis", "kl_sweep"])
def test_a_held_out_wording_is_asked_and_never_trained_on(name):
    config = Config.load(yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text(encoding="utf-8")))
    held_out = set(config.evaluation.wordings()) - {run.wording for run in config.runs.values()}
    assert held_out == {"held_out"}
    for run in config.runs.values():
        assert "held_out" not in config.probes[run.probe].wordings() and "held_out" in config.wordings(run.dataset)


def test_bare_yes_and_no_are_told_with_their_cure(raw):
    raw["datasets"]["rows"]["answers"] = [False, True]
    with pytest.raises(UserError, match=r'YAML reads a bare No, Yes.*write it in quotes, "No" and "Yes"'):
        Config.load(raw)


def test_a_probe_of_three_answers_is_told_before_anything_runs(raw, tmp_path):
    (tmp_path / "plain.yaml").write_text(TEMPLATE.format(kind="plain").replace("No ||| Yes", "No ||| Yes ||| Perhaps"))
    with pytest.raises(UserError, match=r"a probe compares two answers, 'plain' of rows has 3 \(No, Yes, Perhaps\)"):
        preflight(Config.load(raw))


def test_a_model_that_is_not_there_is_told_before_anything_runs(raw, tmp_path):
    raw["models"]["small"]["path"] = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"models\.small\.path: .*nowhere: no such folder"):
        preflight(Config.load(raw))


@pytest.mark.parametrize(
    ("key", "number"),
    [("learning_rate", 1e308), ("steps", 10**30), ("batch_size", 10**30), ("kl.coefficient", 1e308), ("epochs", 1e300)],
)
def test_absurd_numbers_are_refused_by_name(raw, key, number):
    given = edited(raw, "runs.run.ppo", {"steps": 2} if key != "epochs" else {})
    *parents, last = key.split(".")
    section = given["runs"]["run"]["ppo"]
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = number
    assert f"ppo.{key}: Input should be less than or equal to" in complaint(given)
