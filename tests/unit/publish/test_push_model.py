"""Pushing to a hub that listens on loopback: what arrives, what does not, and who may see it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import push_model as script
import pytest

from elkflow.common.errors import UserError


class Hub(BaseHTTPRequestHandler):
    """The four calls of the hub's API that a commit of small files makes."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.calls.append((self.path, self.headers.get("Authorization"), body))
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            return self._answer(200, {"url": f"{self.server.address}/me/model"})
        if "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if "/commit/" in self.path:
            commit = {"commitUrl": f"{self.server.address}/me/model/commit/{'a' * 40}", "commitOid": "a" * 40}
            return self._answer(200, commit | {"success": True})
        return self._answer(200, {})

    def _answer(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls, server.address = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield server
    server.shutdown()


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "runs/r/seed1"
    (folder / "merged").mkdir(parents=True)
    (folder / "merged/config.json").write_text('{"model_type": "llama"}')
    (folder / "merged/model.safetensors").write_bytes(b"weights")
    (folder / "merged/.snakemake_timestamp").touch()
    (folder / "README.md").write_text("# the card\n")
    return tmp_path


def push(results, *more):
    script.main(["--run", "r", "--seed", "1", "--repo", "me/model", "--results", str(results), *more])


def committed(hub):
    (body,) = [body for path, _, body in hub.calls if "/commit/" in path]
    lines = [json.loads(line) for line in body.splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }


def test_checkpoint_and_card_arrive_in_one_commit(hub, results, capsys):
    push(results)
    assert committed(hub) == {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"weights",
        "README.md": b"# the card\n",
    }
    assert capsys.readouterr().out.strip().endswith("/commit/" + "a" * 40)


def created(hub):
    return json.loads(next(body for path, _, body in hub.calls if path == "/api/repos/create"))


def test_private_unless_told_otherwise(hub, results):
    push(results)
    assert created(hub)["visibility"] == "private"


def test_public_when_told_so(hub, results):
    push(results, "--private", "false")
    assert created(hub)["visibility"] == "public"


def test_no_token_no_call(hub, results, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="HF_TOKEN is not set"):
        push(results)
    assert hub.calls == []


def test_a_refusal_is_one_line(hub, results, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"the hub refused me/model: .*401") as error:
        push(results)
    assert "\n" not in str(error.value) and "wrong" not in str(error.value)


def test_nothing_to_push(hub, results):
    (results / "runs/r/seed1/merged/config.json").unlink()
    with pytest.raises(UserError, match="no checkpoint there"):
        push(results)
    assert hub.calls == []
