"""A hub on loopback: the calls that `datasets` and `huggingface_hub` make to look up, download and push a repository.

    with Hub() as hub:
        hub.add("me/rows", {"train.parquet": b"..."}, revision="a" * 40)
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))

Everything asked for is kept in `hub.calls`. Faults: `hub.token` is demanded from everybody; `hub.cut[path] = n` ends
the next answer for that file after n bytes.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"(?P<kind>datasets/|models/)?(?P<repo>[^/]+/[^/]+)"  # files of models are found without `models/`


class Hub:
    """Repositories by name and revision; `main` is the last revision added."""

    def __init__(self):
        self.repos, self.calls, self.cut, self.token = {}, [], {}, None
        self.commits = []

    def add(self, repo, files, revision):
        """Put `files` (path to bytes) into a dataset repository as one commit."""
        self.repos.setdefault(repo, {})[revision] = files
        self.repos[repo]["main"] = files
        self.repos[repo].setdefault("shas", {}).update({revision: revision, "main": revision})

    def environment(self, home):
        """Variables that send the real clients here, with a cache of their own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def downloads(self):
        """Paths of the files that were sent, in part or whole, with the range asked for."""
        return [(path, asked) for method, path, asked in self.calls if method == "GET" and "/resolve/" in path]

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("HEAD")

    def do_POST(self):
        self.answer("POST")

    def answer(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.calls.append((method, path, self.headers.get("Range")))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.send(401, {"error": "Invalid credentials in Authorization header"})
        if found := re.fullmatch(rf"/(?:{REPO})/resolve/(?P<revision>.+?)/(?P<file>.+)", self.split_revision(path)):
            return self.resolve(found, method)
        if found := re.fullmatch(rf"/api/(?:{REPO})/preupload/.+", path):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return self.send(200, {"files": files})
        if found := re.fullmatch(rf"/api/(?:{REPO})/commit/.+", path):
            return self.commit(found["repo"], body)
        if path == "/api/repos/create":
            asked = json.loads(body)
            return self.send(200, {"url": f"{self.hub.address}/datasets/{asked.get('organization')}/{asked['name']}"})
        if path == "/api/validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(rf"/api/(?:{REPO})(?P<rest>/.*)?", self.split_revision(path)):
            return self.describe(found, parse_qs(body.decode()))
        return self.send(404, {"error": "no such page"})

    def split_revision(self, path):
        """Revisions such as refs/convert/parquet hold slashes; within this class they do not."""
        return path.replace("refs/convert/parquet", "refs%convert%parquet")

    def files_at(self, repo, revision):
        """Files of a repository at a revision, or None after sending what the hub sends where there are none."""
        revision = revision.replace("%", "/")
        if repo not in self.hub.repos:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in self.hub.repos[repo]["shas"]:
            self.send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return self.hub.repos[repo][revision], self.hub.repos[repo]["shas"][revision]
        return None

    def describe(self, found, form):
        """Repository info, listings of its files, and facts about some of them."""
        call = re.fullmatch(r"(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", found["rest"] or "")
        if call is None:
            return self.send(404, {"error": "no such page"}, {"X-Error-Code": "EntryNotFound"})
        what, revision, folder = call.groups()
        at = self.files_at(found["repo"], revision or "main")
        if at is None:
            return None
        files, sha = at
        entries = [entry(path, content) for path, content in files.items()]
        if what == "tree":
            inside = [each for each in entries if not folder or each["path"].startswith(f"{folder}/")]
            if folder and not inside:
                return self.send(404, {"error": "not there"}, {"X-Error-Code": "EntryNotFound"})
            if "recursive=true" in self.path.lower():
                return self.send(200, inside)
            return self.send(200, children(inside, f"{folder}/" if folder else ""))
        if what == "paths-info":
            return self.send(200, [each for each in entries if each["path"] in form.get("paths", [])])
        names = [{"rfilename": path} for path in files]
        info = {"id": found["repo"], "sha": sha, "siblings": names, "private": False, "gated": False, "disabled": False}
        return self.send(200, info | {"tags": [], "downloads": 0, "likes": 0})

    def resolve(self, found, method):
        """A file, or part of it."""
        at = self.files_at(found["repo"], found["revision"])
        if at is None:
            return
        files, sha = at
        if found["file"] not in files:
            self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        content, start = files[found["file"]], 0
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start = int(asked[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if method == "HEAD":
            return
        if (end := self.hub.cut.pop(found["file"], None)) is not None:
            self.wfile.write(content[start:end])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def commit(self, repo, body):
        """Take the files of a push."""
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        sha = hashlib.sha1(body).hexdigest()
        self.hub.commits.append((repo, files))
        self.hub.add(repo, files, sha)
        self.send(200, {"commitUrl": f"{self.hub.address}/datasets/{repo}/commit/{sha}", "commitOid": sha})

    def send(self, status, content, headers=()):
        text = b"" if self.command == "HEAD" else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def entry(path, content):
    """A file as listings show it."""
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def children(entries, prefix):
    """The files and folders right below `prefix`."""
    below = {}
    for each in entries:
        name, slash, _ = each["path"].removeprefix(prefix).partition("/")
        below[name] = {"type": "directory", "path": prefix + name, "oid": "0", "size": 0} if slash else each
    return list(below.values())
