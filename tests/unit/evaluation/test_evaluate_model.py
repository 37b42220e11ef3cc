"""Questions to models through lm-evaluation-harness: tokens, scores, batching, tables, and the script."""

import json
import math
from pathlib import Path

import evaluate_model as script
import numpy as np
import pandas as pd
import pytest
import torch
from launching import launched
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from tiny import save_tiny_model

from elkflow.batching.prefix_tree import Line
from elkflow.common.errors import UserError
from elkflow.common.files import read_json, read_table, write_table
from elkflow.common.manifests import check_manifest, write_manifest
from elkflow.config.evaluation import EvaluationSettings, SuiteSettings, TaskSettings
from elkflow.config.model import ModelSettings
from elkflow.evaluation import evaluate_model, harness_model, harness_tasks, score_cache
from elkflow.hiddens.reader import Reader
from elkflow.models.load import load_model
from elkflow.models.tokens import encode_answer, encode_prompt, load_tokenizer

SENTENCES = ["paris is the capital of france", "rome is the capital of italy", "what is the answer"]
OPENING = "<|user|> does the sentence contain the answer to the question ?"
CONTROL = [TaskSettings(task="elkflow_cloze"), TaskSettings(task="elkflow_prose", metric="bits_per_byte")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("checkpoint"), texts=SENTENCES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads of tiny matrix products only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def questions(count=24, seed=0):
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(SENTENCES, size=1 + number % 3)) for number in range(count)]
    return pd.DataFrame(
        {
            "id": [f"q{number:02d}" for number in range(count)],
            "group": [f"g{number % 4}" for number in range(count)],
            "prompt": [f"{OPENING} {text} <|end|> <|assistant|>" for text in texts],
            "answers": [["No", "Yes"]] * count,
            "label": random.integers(0, 2, size=count),
        }
    )


def written(table, folder):
    write_table(table, folder / "val.parquet")
    return folder / "val.parquet"


def subject(checkpoint, **kwargs):
    model = load_model(checkpoint, dtype="float32")
    return harness_model.HarnessModel(model, load_tokenizer(checkpoint), **kwargs)


def by_hand(checkpoint, prompt, answer):
    """Log-probability of an answer from one plain forward pass over tokens(prompt) ++ tokens(answer)."""
    tokenizer, model = load_tokenizer(checkpoint), load_model(checkpoint, dtype="float32")
    opening, closing = encode_prompt(tokenizer, prompt), encode_answer(tokenizer, answer)
    with torch.inference_mode():
        logprobs = model(torch.tensor([opening + closing])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[len(opening) - 1 + place, token]) for place, token in enumerate(closing))


def test_scores_are_the_log_probabilities_of_training_tokens(checkpoint, tmp_path):
    table = questions()
    suite = SuiteSettings(wordings=["plain"])
    results, samples = evaluate_model.evaluate_suite(
        subject(checkpoint), suite, {"plain": written(table, tmp_path / "plain")}
    )
    assert samples["id"].tolist() == table["id"].tolist()
    assert samples["label"].tolist() == table["label"].tolist()
    for row in (0, 7, 23):
        expected = [by_hand(checkpoint, table["prompt"][row], answer) for answer in ("No", "Yes")]
        assert samples["scores"][row] == pytest.approx(expected, abs=1e-4)
    assert samples["prediction"].tolist() == [int(np.argmax(scores)) for scores in samples["scores"]]
    assert (samples["correct"] == (samples["prediction"] == samples["label"])).all()
    assert results["plain"]["value"] == pytest.approx(float(samples["correct"].mean()))
    assert results["plain"]["n"] == 24 and results["plain"]["metric"] == "acc"


def test_a_prompt_that_ends_in_a_space_keeps_it(checkpoint):
    """The harness moves trailing spaces into the answer, which training does not do."""
    model = subject(checkpoint)
    model.exact_prompts = True
    tokenizer = load_tokenizer(checkpoint)
    assert model._encode_pair("what is ", "Yes") == (
        encode_prompt(tokenizer, "what is "),
        encode_answer(tokenizer, "Yes"),
    )


def requests_for(model, pairs):
    return [((context, answer), *model._encode_pair(context, answer)) for context, answer in pairs]


MIXED = [
    (f"{OPENING} {text}", f" {answer}") for text in SENTENCES for answer in ("Yes", "No", "is the capital of france")
]


LAYOUTS = {"windows": {}, "masked": {"windowed": False}, "plain": {"shared": False}}


def laid_out(model, layout):
    """The model made to lay its questions out like this."""
    model._readers = dict.fromkeys((True, False), Reader(model.model, "decoder", **LAYOUTS[layout]))
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
@pytest.mark.parametrize("pairs", [MIXED, [(text, " Yes") for text in SENTENCES], MIXED[:1]])
def test_it_agrees_with_the_harness_own_model(checkpoint, batch_size, pairs, layout):
    ours = laid_out(subject(checkpoint, batch_size=batch_size), layout)
    theirs = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=1)
    requests = requests_for(theirs, pairs)
    expected = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    found = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_contexts_too_long_for_windows_are_laid_out_under_masks(checkpoint, monkeypatch):
    model = subject(checkpoint)
    short, long = requests_for(model, [("what is", " Yes")]), requests_for(model, MIXED)
    expected = model._loglikelihood_tokens(long)
    assert set(model._readers) == {True} and model._readers[True].windowed
    monkeypatch.setattr(harness_model, "LONGEST_IN_WINDOWS", len(short[0][1]) + len(short[0][2]))
    model._loglikelihood_tokens(short)
    assert set(model._readers) == {True}
    found = model._loglikelihood_tokens(long)
    assert model._readers[False].shared and not model._readers[False].windowed
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_runs_twice(checkpoint, monkeypatch, layout):
    model = subject(checkpoint)
    model.exact_prompts = True
    model._loglikelihood_tokens(requests_for(model, [("what is", "Yes")]))
    assert model._readers[True].windowed  # asked, it takes them
    laid_out(model, layout)
    pairs = [(f"{OPENING} {text}", answer) for text in SENTENCES for answer in ("Yes", "No")]
    requests = requests_for(model, pairs)
    prompts = {tuple(context) for _, context, _ in requests}
    opening = len(encode_prompt(model.tokenizer, OPENING))
    fed = []
    forward = model.model.forward

    def watched(input_ids, **extra):
        fed.append((input_ids.shape, extra.get("attention_mask")))
        return forward(input_ids, **extra)

    monkeypatch.setattr(model.model, "forward", watched)
    found = model._loglikelihood_tokens(requests)
    monkeypatch.undo()
    ((shape, mask),) = fed
    if layout != "plain":  # the opening once, then what differs; answers of one token cost nothing
        assert shape == (1, opening + sum(len(prompt) - opening for prompt in prompts))
        assert (mask is None) == (layout == "windows")
    else:
        assert shape == (3, max(map(len, prompts))) and mask is None
    for (score, _), (prompt, answer) in zip(found, pairs, strict=True):
        assert score == pytest.approx(by_hand(checkpoint, prompt, answer), abs=1e-4)


def test_auto_shrinks_the_batch_when_memory_runs_out(checkpoint, monkeypatch):
    model = subject(checkpoint, batch_size="auto")
    requests = requests_for(model, MIXED)
    expected = model._loglikelihood_tokens(requests)
    sizes = []
    pack = harness_model.batch_lines

    def cramped(lines, tokens):
        sizes.append(tokens)
        if tokens > 600:
            raise RuntimeError("CUDA out of memory. Tried to allocate more than there is")
        return pack(lines, tokens)

    monkeypatch.setattr(harness_model, "batch_lines", cramped)
    assert model._loglikelihood_tokens(requests) == expected
    assert sizes[0] > 600 >= sizes[-1]


def test_an_answer_that_melts_into_the_prompt_is_refused(checkpoint):
    model = subject(checkpoint)
    with pytest.raises(UserError, match="'Yes' has no tokens of its own after 'what is france'"):
        model._loglikelihood_tokens(requests_for(model, [("what is france", "Yes")]))


def test_batches_hold_limit_logits(monkeypatch):
    monkeypatch.setattr(harness_model, "MOST_LOGITS", 12)
    lines = []
    for length, scored in ((9, 3), (9, 3), (8, 8), (5, 5), (4, 4), (20, 20)):
        line = Line()
        lines.append(line)
        line.answer(len(lines), line.append(list(range(length)))[-scored:])
    parts = list(harness_model.limit_logits(iter([lines])))
    assert [line for part in parts for line in part] == lines
    assert [len(part) for part in parts] == [2, 1, 2, 1]


def test_a_text_longer_than_the_context_is_scored_in_windows(checkpoint):
    model = subject(checkpoint, batch_size=4)
    tokens = model.tok_encode(" ".join(SENTENCES * 80))
    cuts = get_rolling_token_windows(tokens, model.prefix_token_id, max_seq_len=model.max_length, context_len=1)
    windows = [make_disjoint_window(window) for window in cuts]
    assert len(windows) == 3 and sum(len(scored) for _, scored in windows) == len(tokens)
    expected = 0.0
    for context, scored in windows:
        with torch.inference_mode():
            logprobs = model.model(torch.tensor([context + scored[:-1]])).logits[0].log_softmax(-1)
        expected += float(logprobs[len(context) - 1 :].gather(1, torch.tensor(scored)[:, None]).sum())
    request = [type("Request", (), {"args": (" ".join(SENTENCES * 80),)})]
    assert model.loglikelihood_rolling(request, disable_tqdm=True) == pytest.approx([expected], rel=1e-6)


def test_control_tasks_need_no_network_and_have_one_right_answer_each(checkpoint):
    results, samples = evaluate_model.evaluate_suite(subject(checkpoint), SuiteSettings(tasks=CONTROL), {})
    assert results["elkflow_cloze"]["n"] >= 200 and results["elkflow_prose"]["n"] == 10
    cloze = samples[samples["task"] == "elkflow_cloze"]
    assert cloze["scores"].map(len).eq(4).all()
    assert cloze["label"].value_counts().max() - cloze["label"].value_counts().min() <= 1
    prose = samples[samples["task"] == "elkflow_prose"]
    likelihood = sum(scores[0] for scores in prose["scores"])
    bits = -likelihood / prose["weight"].sum() / math.log(2)
    assert results["elkflow_prose"]["value"] == pytest.approx(bits)
    assert not results["elkflow_prose"]["higher_is_better"]
    assert prose["correct"].isna().all() and prose["label"].isna().all()


def test_cloze_items_are_distinct_and_say_nothing_of_what_is_trained():
    documents = harness_tasks.own_tasks().load(["elkflow_cloze"])
    items = list(documents["tasks"]["elkflow_cloze"].task_docs)
    assert len({(item["stem"], tuple(item["choices"])) for item in items}) == len(items)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert not {"Yes", "No", "yes", "no"} & set(item["choices"])


def test_standard_errors():
    ones = pd.DataFrame({"part": "a", "value": [0.0, 1.0, 1.0, 1.0], "weight": 1.0})
    summary = evaluate_model.task_result(ones, "acc")
    assert summary["value"] == 0.75
    assert summary["stderr"] == pytest.approx(np.std([0, 1, 1, 1], ddof=1) / 2)
    two = pd.concat([ones, pd.DataFrame({"part": "b", "value": [0.0, 0.0], "weight": 1.0})])
    assert evaluate_model.task_result(two, "acc")["value"] == 0.375  # plain mean over parts, as the leaderboard does


def test_a_metric_the_task_does_not_have_is_named(checkpoint):
    suite = SuiteSettings(tasks=[TaskSettings(task="elkflow_cloze", metric="f2", limit=2)])
    with pytest.raises(UserError, match=r"'elkflow_cloze' has no metric 'f2' \(it has acc\)"):
        evaluate_model.evaluate_suite(subject(checkpoint), suite, {})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"suites": {}}, "suites"),
        ({"suites": {"empty": {}}}, "needs `wordings` or `tasks`"),
        ({"suites": {"a": {"wordings": ["x"], "tasks": [{"task": "x"}]}}}, "both a wording and a task"),
        ({"suites": {"a": {"tasks": [{"task": "x"}, {"task": "x"}]}}}, "listed twice"),
        ({"suites": {"a": {"wordings": ["x"]}}, "batch_size": 0}, "batch_size"),
        ({"suites": {"a": {"wording": ["x"]}}}, "wording"),
        ({"suites": {"a": {"tasks": [{"task": "x", "num_fewshot": -1}]}}}, "num_fewshot"),
    ],
)
def test_settings_that_make_no_sense(section, message):
    with pytest.raises(ValidationError, match=message):
        EvaluationSettings.model_validate(section)


def command(checkpoint, folder, settings, extra=()):
    files = [written(questions(), folder / wording) for wording in settings.wordings()]
    lineage = checkpoint.with_name(f"{checkpoint.name}.json")
    write_manifest(lineage, outputs={"checkpoint": checkpoint}, inputs={})
    return [
        *("--settings", settings.questions()),
        *("--model-settings", ModelSettings(path="anywhere", dtype="float32").model_dump_json()),
        *("--model", str(checkpoint), "--lineage", str(lineage)),
        *("--answers", str(folder / "answers")),
        *("--prompts", *map(str, files)),
        *("--results", *(str(folder / "out" / suite / "results.json") for suite in settings.suites)),
        *extra,
    ]


def test_the_script_writes_every_suite_with_manifests(checkpoint, tmp_path):
    settings = EvaluationSettings(
        suites={
            "target": SuiteSettings(wordings=["first", "second"], limit=10),
            "control": SuiteSettings(tasks=CONTROL),
        }
    )
    script.main(command(checkpoint, tmp_path, settings))
    results = read_json(tmp_path / "out" / "target" / "results.json")
    assert list(results) == ["first", "second"] and results["first"]["n"] == 10
    samples = read_table(tmp_path / "out" / "target" / "samples.parquet").to_pandas()
    assert samples.groupby("task").size().to_dict() == {"first": 10, "second": 10}
    assert set(read_json(tmp_path / "out" / "control" / "results.json")) == {"elkflow_cloze", "elkflow_prose"}
    for suite in ("target", "control"):
        check_manifest(tmp_path / "out" / suite / "manifest.json")
    assert set(check_manifest(tmp_path / "out" / "target" / "manifest.json")["inputs"]) == {
        "model",
        "prompts first",
        "prompts second",
    }
    before = (tmp_path / "out" / "target" / "samples.parquet").read_bytes()
    script.main(command(checkpoint, tmp_path, settings))
    assert (tmp_path / "out" / "target" / "samples.parquet").read_bytes() == before


def test_a_changed_model_or_question_is_never_served_old_answers(tmp_path, monkeypatch):
    checkpoint = save_tiny_model(tmp_path / "checkpoint", texts=SENTENCES)
    settings = EvaluationSettings(suites={"target": SuiteSettings(wordings=["plain"])})
    runs = []
    forward = harness_model.HarnessModel._score_all
    monkeypatch.setattr(harness_model.HarnessModel, "_score_all", lambda *given: runs.append(1) or forward(*given))

    def scores(extra=()):
        before = len(runs)
        script.main(command(checkpoint, tmp_path, settings, extra))
        table = read_table(tmp_path / "out" / "target" / "samples.parquet").to_pandas()
        return np.stack(table["scores"]), len(runs) - before

    first, ran = scores()
    assert ran == 1
    again, ran = scores()
    assert ran == 0 and np.array_equal(first, again)  # nothing changed: found again, not computed
    save_tiny_model(checkpoint, texts=SENTENCES, seed=1)  # the same folder with other weights
    other, ran = scores()
    assert ran == 1 and not np.allclose(first, other)
    save_tiny_model(checkpoint, texts=SENTENCES)
    back, ran = scores()
    assert ran == 0 and np.array_equal(first, back)
    monkeypatch.setitem(globals(), "OPENING", "<|user|> what is the question ?")  # the same model, other questions
    reworded, ran = scores()
    assert ran == 1 and not np.allclose(first, reworded)


def test_answers_are_kept_by_dtype_and_code(tmp_path, monkeypatch):
    requests = [(("a", "b"), [1, 2], [3]), (("a", "c"), [1], [2, 3])]
    store = score_cache.ScoreCache(tmp_path, {"model": "x", "dtype": "float32"})
    store.put(requests, [(-1.5, True), (-2.25, False)])
    assert store.get(requests) == [(-1.5, True), (-2.25, False)]
    assert store.get(requests[::-1]) is None
    assert store.get([(None, [1], [2, 3]), (None, [1, 2], [3])]) is None
    assert score_cache.ScoreCache(tmp_path, {"model": "x", "dtype": "bfloat16"}).get(requests) is None
    monkeypatch.setattr(score_cache, "sha256", lambda file: f"edited {file}")
    assert score_cache.ScoreCache(tmp_path, {"model": "x", "dtype": "float32"}).get(requests) is None


def test_a_killed_evaluation_keeps_the_blocks_it_finished(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(harness_model, "BLOCK", 4)
    model = subject(checkpoint, cache=score_cache.ScoreCache(tmp_path, {}))
    requests = requests_for(model, MIXED)
    whole = model._loglikelihood_tokens(requests)
    assert len(list(tmp_path.rglob("*.json"))) == 3
    monkeypatch.setattr(model, "_score_all", None)  # nothing is left to compute
    assert model._loglikelihood_tokens(requests) == whole


def test_a_damaged_model_is_named_before_it_is_loaded(tmp_path):
    checkpoint = save_tiny_model(tmp_path / "checkpoint", texts=SENTENCES)
    settings = EvaluationSettings(suites={"target": SuiteSettings(wordings=["plain"])})
    arguments = command(checkpoint, tmp_path, settings)
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"bits")
    with pytest.raises(UserError, match="checkpoint: damaged or changed"):
        script.main(arguments)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tuned(checkpoint, tmp_path_factory):
    """An adapter that says something else than the base model, and the two merged."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    model = get_peft_model(
        load_model(checkpoint, dtype="float32"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    load_tokenizer(checkpoint).save_pretrained(folder / "merged")
    return folder


@pytest.mark.parametrize(
    ("precision", "rounding"),
    [({"dtype": "float32"}, 1e-4), ({"dtype": "bfloat16"}, 0.1), ({"quantization": "8bit"}, 0.2)],
    ids=lambda value: str(value),
)
def test_base_adapter_and_merged_model_in_every_precision(checkpoint, tuned, precision, rounding):
    settings = EvaluationSettings(suites={"a": SuiteSettings(wordings=["x"])}, **precision)
    found = []
    for folder, adapter in ((checkpoint, None), (checkpoint, tuned / "adapter"), (tuned / "merged", None)):
        model = evaluate_model.load_harness_model(
            folder, ModelSettings(path="x", dtype="float32"), settings, adapter=adapter
        )
        assert bool(getattr(model.model, "is_loaded_in_8bit", False)) is ("quantization" in precision)
        assert "dtype" not in precision or str(model.model.dtype) == f"torch.{precision['dtype']}"
        exact = {answer: by_hand(tuned / "merged" if found else checkpoint, *answer) for answer in MIXED[:6]}
        scored = model._loglikelihood_tokens([((c, a), *tokens(model, c, a)) for c, a in exact])
        assert model._readers[True].windowed
        found.append([score for score, _ in scored])
        assert found[-1] == pytest.approx(list(exact.values()), abs=rounding)
    base, adapter, merged = found
    assert adapter == pytest.approx(merged, abs=rounding) and base != pytest.approx(merged, abs=2 * rounding)


def tokens(model, prompt, answer):
    return encode_prompt(model.tokenizer, prompt), encode_answer(model.tokenizer, answer)


def test_two_processes_give_the_same_results_and_samples(checkpoint, tmp_path):
    """Shares of unequal size, choices and whole texts, and a suite of each."""
    suites = {"target": SuiteSettings(wordings=["first", "second"], limit=23), "control": SuiteSettings(tasks=CONTROL)}
    settings = EvaluationSettings(suites=suites)
    for processes in (1, 2):
        launched(processes, script.__file__, *command(checkpoint, tmp_path / f"of{processes}", settings))
    one, two = tmp_path / "of1", tmp_path / "of2"
    kept = [len(list((folder / "answers").rglob("*.json"))) for folder in (one, two)]
    assert kept[1] == 2 * kept[0] > 0  # each process kept the scores of its own share
    for suite in suites:
        tables = [read_table(folder / f"out/{suite}/samples.parquet").to_pandas() for folder in (one, two)]
        columns = ["task", "part", "doc_id", "id", "label", "prediction", "correct", "weight"]
        pd.testing.assert_frame_equal(*(table[columns] for table in tables))
        for scores in zip(*(table["scores"] for table in tables), strict=True):
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        first, second = (read_json(folder / f"out/{suite}/results.json") for folder in (one, two))
        assert list(first) == list(second)
        for task in first:
            assert second[task] == pytest.approx(first[task], abs=1e-6), task
        check_manifest(two / f"out/{suite}/manifest.json")


def test_task_files_are_where_the_workflow_looks_for_them():
    assert {file.name for file in Path(harness_tasks.TASKS).glob("*.yaml")} >= {
        "yes_no.yaml",
        "cloze.yaml",
        "prose.yaml",
    }
    assert json.loads(EvaluationSettings(suites={"a": SuiteSettings(wordings=["x"])}).questions()).keys() == {
        *("suites", "batch_size", "dtype", "quantization"),
    }
