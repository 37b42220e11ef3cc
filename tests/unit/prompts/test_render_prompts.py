"""Prompts: chat markup, answers as exact continuations, and what a model's tokenizer and context refuse."""

import json
import random
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from render_prompts import main
from tiny import make_checkpoint, tiny_tokenizer

from elkflow.common.errors import UserError
from elkflow.common.files import sha256, write_json
from elkflow.common.manifests import check_manifest, write_manifest
from elkflow.config.data import ChatSettings, DatasetSettings
from elkflow.prompts.render_prompts import chat_wrapper, context_length, render_prompts, render_question
from elkflow.prompts.templates import Template

ROWS = {
    "id": ["a", "b", "c"],
    "group": ["x", "x", "y"],
    "sentence": ["Paris is the capital of France.", "Rome is in Italy.", "what is the question"],
    "question": ["What is the capital?", "who is Paris?", "No"],
    "label": [1, 0, 1],
}

SPLIT = {"train": 2, "ppo": 2, "val": 2, "duplicates": "keep"}  # here all three splits have the same rows


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "checkpoint")


def data(folder, rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "ppo", "val"):
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return folder


def render(tmp_path, checkpoint, chat=None, rows=ROWS, wording="qnli_training", **keys):
    given = DatasetSettings.model_validate({"facts": {}, "split": SPLIT, "wordings": {"w": wording}} | keys)
    folder = data(tmp_path / "data", rows)
    splits = {split: folder / f"{split}.parquet" for split in ("train", "ppo", "val")}
    out = tmp_path / "out"
    from elkflow.models.tokens import load_tokenizer

    chat = chat or ChatSettings(chat=False)
    facts = render_prompts(given.rendering("w"), chat, checkpoint, load_tokenizer(checkpoint), splits, out)
    return pq.read_table(out / "train.parquet").to_pylist(), facts


def test_plain_prompts(tmp_path, checkpoint):
    rows, facts = render(tmp_path, checkpoint)
    assert rows[0] == {
        "id": "a",
        "group": "x",
        "prompt": "Sentence: Paris is the capital of France.\nQuestion: What is the capital?\n"
        "Does the sentence contain the answer to the question? Reply Yes or No.",
        "answers": [" No", " Yes"],
        "label": 1,
    }
    assert [row["label"] for row in rows] == [1, 0, 1]
    assert facts["splits"]["val"] == {"rows": 3, "labels": [1, 2], "too_long": 0}


def test_chat_prompts_carry_the_markup_and_an_empty_system_turn(tmp_path, checkpoint):
    rows, _ = render(tmp_path, checkpoint, ChatSettings(chat=True, system_prompt=""))
    prompt = rows[1]["prompt"]
    assert prompt.startswith("<|system|>  <|end|> <|user|> Sentence: Rome is in Italy.\n")
    assert prompt.endswith("Reply Yes or No. <|end|> <|assistant|> ")
    assert rows[1]["answers"] == ["No", "Yes"]  # no second space
    rows, _ = render(tmp_path, checkpoint, ChatSettings(chat=True))
    assert rows[1]["prompt"].startswith("<|user|> ")


def test_a_wording_can_go_without_chat(tmp_path, checkpoint):
    wording = {"template": "qnli_training", "chat": False}
    rows, _ = render(tmp_path, checkpoint, ChatSettings(chat=True), wording=wording)
    assert rows[0]["prompt"].startswith("Sentence: ")


def test_the_config_decides_the_order_of_answers(tmp_path, checkpoint):
    plain, _ = render(tmp_path, checkpoint)
    turned, _ = render(tmp_path, checkpoint, answers=["Yes", "No"])
    assert turned[0]["answers"] == [" Yes", " No"]
    for before, after in zip(plain, turned, strict=True):
        assert before["answers"][before["label"]] == after["answers"][after["label"]]
        assert before["label"] != after["label"]


def test_answers_after_markup_or_a_new_line_have_no_space(tmp_path, checkpoint):
    template = tmp_path / "t.yaml"
    for ending, answers in (("\\n", [" No", " Yes"]), ("<s>", ["No", "Yes"]), ("answer:", [" No", " Yes"])):
        text = (
            f'templates: {{t: !Template {{name: t, answer_choices: No ||| Yes, jinja: "{{{{question}}}} {ending}"}}}}'
        )
        template.write_text(text)
        rows, _ = render(tmp_path, checkpoint, wording=str(template))
        assert rows[0]["answers"] == answers, ending


def test_an_encoder_decoder_answers_in_a_text_of_its_own(tmp_path):
    rows, _ = render(tmp_path, make_checkpoint(tmp_path / "t5", is_encoder_decoder=True))
    assert rows[0]["answers"] == ["No", "Yes"]


def test_a_question_about_every_answer(tmp_path, checkpoint):
    wording = {"template": "truthfulness:truthful", "about": "qnli_training"}
    rows, facts = render(tmp_path, checkpoint, wording=wording, one_token=False)
    assert [row["id"] for row in rows[:4]] == ["a#0", "a#1", "b#0", "b#1"]
    assert [(row["question_id"], row["answer_index"]) for row in rows[:3]] == [("a", 0), ("a", 1), ("b", 0)]
    assert [row["label"] for row in rows] == [0, 1, 1, 0, 0, 1]  # whether the answer shown is the right one
    shown = "Reply Yes or No. "
    assert shown + "No" in rows[0]["prompt"] and shown + "Yes" in rows[1]["prompt"]
    assert facts["splits"]["train"]["rows"] == 6


def test_the_thesis_shows_one_answer_a_row_by_its_coin(tmp_path, checkpoint):
    many = {
        "id": [str(n) for n in range(100)],
        "group": ["x"] * 100,
        "sentence": ["Rome is in Italy."] * 100,
        "question": [f"who is {n}?" for n in range(100)],
        "label": [n % 2 for n in range(100)],
    }
    wording = {"template": "truthfulness:truthful", "about": "qnli_training", "shown": "random", "seed": 42}
    rows, _ = render(tmp_path, checkpoint, rows=many, wording=wording, one_token=False)
    random.seed(42)  # the published notebooks use the global generator
    assert [row["label"] for row in rows] == [int(random.choice([True, False])) for _ in range(100)]
    for row, label in zip(rows, many["label"], strict=True):
        assert (row["answer_index"] == label) == bool(row["label"])


def test_of_several_wrong_answers_one_is_drawn(tmp_path, checkpoint):
    template = {
        "name": "t",
        "answer_choices": "is ||| the ||| of ||| to",
        "jinja": "{{question}} ||| {{answer_choices[label]}}",
    }
    path = tmp_path / "four.yaml"
    path.write_text(f"templates: {{t: !Template {json.dumps(template)}}}")
    count = 400
    many = {
        "id": [str(n) for n in range(count)],
        "group": ["x"] * count,
        "sentence": ["Rome is in Italy."] * count,
        "question": [f"who is {n}?" for n in range(count)],
        "label": [n % 4 for n in range(count)],
    }
    wording = {"template": "truthfulness:truthful", "about": str(path), "shown": "random", "seed": 1}
    rows, _ = render(tmp_path, checkpoint, rows=many, wording=wording, one_token=False)
    drawn = Counter((label, row["answer_index"]) for row, label in zip(rows, many["label"], strict=True))
    for label in range(4):
        assert 30 <= drawn[label, label] <= 70  # the right one half of the time, of 100
        assert all(6 <= drawn[label, wrong] <= 30 for wrong in range(4) if wrong != label)
    every, _ = render(tmp_path, checkpoint, rows=many, wording=wording | {"shown": "every"}, one_token=False)
    assert [(row["answer_index"], row["label"]) for row in every[:4]] == [(0, 1), (1, 0), (2, 0), (3, 0)]


CHATS = {
    "ChatML": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Llama 2": (
        "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
        "{% for m in messages %}{{ bos_token + '[INST] ' + s + m.content | trim + ' [/INST]' }}{% endfor %}",
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ? [/INST]",
    ),
    "Vicuna": (
        "{% for m in messages %}{{ {'system': '', 'user': 'USER: '}[m.role] + m.content + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        "S USER: Q? ASSISTANT:",
    ),
    "Gemma, which knows no system turn": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
        "{% for m in messages %}{{ '<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        None,
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_any_tokenizers_chat_template_is_followed(name):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, expected = CHATS[name]
    settings = ChatSettings(chat=True, system_prompt="S")
    if expected is None:
        with pytest.raises(UserError, match=r"chat template refuses its turns \(No system role\)"):
            chat_wrapper(tokenizer, settings, True)
        settings, expected = ChatSettings(chat=True), "<s><start_of_turn>user\nQ?<end_of_turn>\n<start_of_turn>model\n"
    assert chat_wrapper(tokenizer, settings, True)("Q?") == expected


def chat_of(template, **keys):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return chat_wrapper(tokenizer, ChatSettings(chat=True, **keys), True)


TURNS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"


def test_content_is_given_in_parts_to_templates_that_expect_parts():
    parts = (
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    assert chat_of(parts + ".{% endfor %}", system_prompt="S")("Q?") == "S.Q?."


def test_a_chat_template_that_drops_a_turn_is_refused():
    with pytest.raises(UserError, match="leaves out the question"):
        chat_of("<|user|> <|assistant|>")
    only_user = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="leaves out the system turn; remove `system_prompt`"):
        chat_of(only_user, system_prompt="Be brief.")
    assert chat_of(only_user, system_prompt="")("Q?") == "Q?"


def test_arguments_reach_the_chat_template():
    template = TURNS + "{% if enable_thinking is false %}<think>\n\n</think>\n{% endif %}"
    assert chat_of(template, chat_arguments={"enable_thinking": False})("Q?") == "user: Q?\n<think>\n\n</think>\n"


@pytest.mark.parametrize("tag", ["<think>", "<thinking>", "<|think|>", "<seed:think>"])
def test_a_prompt_that_ends_inside_a_thought_is_refused(tag):
    with pytest.raises(UserError, match=r"opens a thought .* set it, as in .chat_arguments"):
        chat_of(TURNS + tag + "\n")


def test_a_template_that_thinks_by_default_is_told_of(caplog):
    chat_of(TURNS + "{% if enable_thinking is false %}{% endif %}")
    assert "without `chat_arguments: {enable_thinking: false}`" in caplog.text


def test_the_date_in_a_prompt_does_not_change_by_the_day():
    template = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template += "{{ date_string + ' ' + messages[0].content }}"
    assert chat_of(template)("Q?") == "26 Jul 2024 Q?"
    assert chat_of(template, chat_arguments={"date_string": "1 May 2025"})("Q?") == "1 May 2025 Q?"


def test_long_prompts_are_dropped_where_the_config_says_so(tmp_path):
    rows = ROWS | {"sentence": ["is " * 500, "Rome is in Italy.", "is " * 130]}
    made, facts = render(tmp_path, make_checkpoint(tmp_path / "small"), rows=rows, too_long="drop")
    assert [row["id"] for row in made] == ["b"]
    assert facts["splits"]["train"] == {"rows": 1, "labels": [1, 0], "too_long": 2}


def test_context_is_the_smaller_of_config_and_tokenizer(tmp_path):
    tokenizer = tiny_tokenizer()
    folder = make_checkpoint(tmp_path / "a", max_position_embeddings=64)
    assert context_length(folder, tokenizer) == 64
    tokenizer.model_max_length = 32
    assert context_length(folder, tokenizer) == 32
    write_json(folder / "config.json", {"n_positions": 16})
    assert context_length(folder, tokenizer) == 16
    tokenizer.model_max_length = int(1e30)
    write_json(folder / "config.json", {})
    assert context_length(folder, tokenizer) is None


def test_chat_templates_that_look_into_the_question_are_rendered_whole():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }} {{ m.content | length }}{% endfor %}"
    assert chat_wrapper(tokenizer, ChatSettings(chat=True), True)("ab\ncd") == "AB\nCD 5"


def test_equal_answers_are_told_apart_by_the_label():
    template = Template("t", "{{q}} ||| {{answer_choices[label]}}", "{{a}} ||| {{b}}")
    assert render_question(template, {"q": "?", "a": "x", "b": "x", "label": 1}, None, "here").label == 1


def test_the_script_writes_a_manifest_that_follows_the_data(tmp_path, checkpoint):
    folder = data(tmp_path / "data")
    outputs = {split: folder / f"{split}.parquet" for split in ("train", "ppo", "val")}
    write_manifest(folder / "manifest.json", outputs=outputs, inputs={})
    write_manifest(tmp_path / "manifest.json", outputs={"checkpoint": checkpoint}, inputs={})
    given = DatasetSettings.model_validate({"facts": {}, "split": SPLIT, "wordings": {"w": "qnli_training"}})
    from elkflow.orchestration.rule_inputs import template_files

    arguments = {
        "--settings": given.rendering("w").model_dump_json(),
        "--chat": json.dumps({"chat": True, "system_prompt": ""}),
        "--checkpoint": checkpoint,
        "--checkpoint-manifest": tmp_path / "manifest.json",
        "--data": folder,
        "--templates": template_files(given, "w")[0],
        "--folder": tmp_path / "out",
    }
    main([str(part) for pair in arguments.items() for part in pair])
    manifest = check_manifest(tmp_path / "out" / "manifest.json")
    assert manifest["inputs"]["data"]["sha256"] == sha256(folder / "manifest.json")
    assert manifest["inputs"]["qnli_training.yaml"]["sha256"] == sha256(arguments["--templates"])
    assert manifest["facts"]["context"] == 128
    (folder / "val.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"val\.parquet: damaged or changed"):
        main([str(part) for pair in arguments.items() for part in pair])


BAD = {
    "long prompt": ({"rows": ROWS | {"sentence": ["is " * 200] * 3}}, {}, "prompt and answer have", "128"),
    "answer of two tokens": ({"one_token": True, "wording": "two"}, {}, "answer ' not so' (", "2 tokens"),
    "missing column": (
        {"rows": {key: ROWS[key] for key in ROWS if key != "question"}}, {}, "'question' is undefined", "a"
    ),
    "other answers": ({"answers": ["False", "True"]}, {}, "['No', 'Yes'], but the dataset's `answers`", "False"),
    "no answers": ({"wording": "open"}, {}, "has no answer choices; give the dataset's `answers`", "open"),
    "right answer not among them": ({"wording": "stray"}, {}, "the right answer 'Maybe' is not among", "a"),
    "label beyond the answers": (
        {"wording": "beyond", "rows": ROWS | {"label": [2, 0, 1]}}, {}, "label 2 has no answer", "a"
    ),
    "renders to nothing": ({"wording": "nothing"}, {}, "renders to nothing", "a"),
    "no such template": ({"wording": "nowhere"}, {}, "template 'nowhere': no file", "qnli_training"),
    "no chat template": (
        {"chat": ChatSettings(chat=True)}, {"chat": False}, "the model's tokenizer has no chat template", ""
    ),
    "nothing fits": (
        {"rows": ROWS | {"sentence": ["is " * 200] * 3}, "too_long": "drop"}, {}, "no prompt fits the model's", "128"
    ),
}  # fmt: skip
WORDINGS = {
    "two": ("{{question}} ||| {{answer_choices[label]}}", "not so ||| Yes"),
    "open": ("{{question}}", None),
    "stray": ("{{question}} ||| Maybe", "No ||| Yes"),
    "beyond": ("{{question}}", "No ||| Yes"),
    "nothing": ("{% if label > 5 %}{{question}}{% endif %}", "No ||| Yes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_prompts(tmp_path, case):
    keys, config, message, detail = BAD[case]
    if keys.get("wording") in WORDINGS:
        jinja, choices = WORDINGS[keys["wording"]]
        entry = {"name": keys["wording"], "jinja": jinja, "answer_choices": choices}
        path = tmp_path / "t.yaml"
        path.write_text(f"templates: {{t: !Template {json.dumps(entry)}}}")
        keys = keys | {"wording": str(path)}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        render(tmp_path, make_checkpoint(tmp_path / "model", **config), **keys)
    assert detail in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_prompt_in_two_splits_is_refused_or_counted(tmp_path, checkpoint, caplog):
    strict = {"train": 2, "ppo": 2, "val": 2}
    with pytest.raises(UserError, match="ppo: a: train has a row with the same prompt; name what such rows share"):
        render(tmp_path, checkpoint, split=strict)
    assert not (tmp_path / "out" / "train.parquet").exists()
    _, facts = render(tmp_path, checkpoint)
    assert facts["shared_prompts"] == 6 and "6 prompts stand in an earlier split as well" in caplog.text
