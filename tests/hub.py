"""A stand-in for the Hugging Face hub on the loopback address: repositories of models, in memory, one branch each."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Answers what ``huggingface_hub`` asks to create, to commit to and to read a repository of a model."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        """By sha256: what was uploaded for a commit to come."""
        self.asked: list[str] = []

    def sha(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answered()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answered(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        self.server.asked.append(f"{self.command} {path}")
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command == "PUT":  # at an address that was given to who is signed in
            self.server.large[path.removeprefix("/large/")] = body
            self._send({})
        elif self.command == "POST" and not signed:
            self._send({"error": "Invalid username or password."}, status=401)
        elif self.command == "POST":
            self._send(self._changed(path, body))
        elif path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            self._described(f"{owner}/{name}", rest)
        else:
            self._resolved(path)

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _changed(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.repos.setdefault(repo, {})
            return {"url": f"{self.server.url}/{repo}", "id": repo, "name": repo}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        repo, _, what = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if what == "preupload":
            files = [one["path"] for one in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            return {"files": [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in modes.items()]}
        for line in body.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                self.server.repos[repo][one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            elif one["key"] == "lfsFile":
                self.server.repos[repo][one["value"]["path"]] = self.server.large[one["value"]["oid"]]
        sha = self.server.sha(repo)
        return {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha}

    def _described(self, repo: str, rest: list[str]) -> None:
        if repo not in self.server.repos:
            self._send({"error": "Repository not found"}, status=404, **{"X-Error-Code": "RepoNotFound"})
            return
        files = self.server.repos[repo]
        if rest[:1] == ["tree"]:
            listed = {name: (len(data), hashlib.sha1(data).hexdigest()) for name, data in files.items()}
            self._send([{"type": "file", "path": n, "size": size, "oid": oid} for n, (size, oid) in listed.items()])
        else:
            self._send({"id": repo, "sha": self.server.sha(repo), "siblings": [{"rfilename": name} for name in files]})

    def _resolved(self, path: str) -> None:
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        data = self.server.repos.get(repo, {}).get(rest.partition("/")[2])
        if data is None:
            self._send({"error": "Entry not found"}, status=404, **{"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha1(data).hexdigest()
        self._send(data, **{"ETag": f'"{etag}"', "X-Repo-Commit": self.server.sha(repo)})

    def _send(self, content: Any, *, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
