"""A server that speaks as much of a model hub's protocol as sending and loading a model need.

The real hub cannot be reached from where these tests run, so `textrl push` is tested against this:
repositories, branches, the question which files are large, large files by Git LFS's basic transfer,
commits, file lists and downloads. It keeps everything in memory. It is not a model of the hub's
rules about names, quotas and metadata, nor of its chunked transfer (Xet).
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

TOKEN = "hf_of_the_test"
COMMIT = "0" * 40
"""The one commit that a client is told of; it stands for the main branch."""


class Hub(ThreadingHTTPServer):
    """The repositories: for each its privacy and, for each branch, its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def begin(self) -> tuple[list[str], bytes]:
        """Return the parts of the address and the body; note what was asked."""
        path = unquote(urlparse(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path.strip("/").split("/"), self.body()

    def do_POST(self) -> None:
        parts, body = self.begin()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        match parts:
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case ["api", "models", owner, name, "branch", branch]:
                files = self.server.files[f"{owner}/{name}"]
                known = branch in files
                files.setdefault(branch, dict(files["main"]))
                self.answer({}, 409 if known else 200)
            case ["api", "models", _, _, "preupload", _]:
                self.answer({"files": [self.mode(file) for file in json.loads(body)["files"]]})
            case [_, _, "info", "lfs", "objects", "batch"]:
                self.answer({"transfer": "basic", "objects": self.uploads(json.loads(body))})
            case ["api", "models", owner, name, "commit", branch]:
                self.commit(f"{owner}/{name}", branch, body)
            case _:
                self.answer({"error": "not found"}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "somebody-else":
            return self.answer({"error": "You don't have the rights to create a model"}, 403)
        if repo in self.server.files:
            return self.answer({"error": "exists", "url": f"{self.server.url}/{repo}"}, 409)
        self.server.private[repo] = bool(
            asked.get("private") or asked.get("visibility") == "private"
        )
        self.server.files[repo] = {"main": {".gitattributes": b""}}
        self.answer({"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})

    @staticmethod
    def mode(file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def uploads(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                "oid": thing["oid"],
                "size": thing["size"],
                "actions": {"upload": {"href": f"{self.server.url}/large/{thing['oid']}"}},
            }
            for thing in asked["objects"]
        ]

    def commit(self, repo: str, branch: str, body: bytes) -> None:
        files = self.server.files[repo][branch]
        for line in body.splitlines():
            match json.loads(line):
                case {"key": "file", "value": {"path": path, "content": content}}:
                    files[path] = base64.b64decode(content)
                case {"key": "lfsFile", "value": {"path": path, "oid": digest}}:
                    files[path] = self.server.large[digest]
                case {"key": "deletedFile", "value": {"path": path}}:
                    del files[path]
        number = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        url = f"{self.server.url}/{repo}/commit/{number}"
        self.answer({"success": True, "commitUrl": url, "commitOid": number, "hookOutput": ""})

    def do_PUT(self) -> None:
        parts, body = self.begin()
        digest = hashlib.sha256(body).hexdigest()
        assert parts == ["large", digest]
        self.server.large[digest] = body
        self.answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts, _ = self.begin()
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        hidden = self.server.private.get(repo) and "Authorization" not in self.headers
        if repo not in self.server.files or hidden:
            return self.answer(
                {"error": "no repository"}, 401, X_Error_Code="RepoNotFound", X_Error_Message="none"
            )
        parts = ["main" if part == COMMIT else part for part in parts]
        match parts:
            case ["api", "models", _, _, "tree", branch]:
                files = self.server.files[repo][branch].items()
                self.answer(
                    [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files]
                )
            case ["api", "models", *_]:
                branch = parts[5] if len(parts) > 5 else "main"
                listed = [{"rfilename": path} for path in self.server.files[repo][branch]]
                private = self.server.private[repo]
                self.answer({"id": repo, "sha": COMMIT, "private": private, "siblings": listed})
            case [_, _, "resolve", branch, *path]:
                content = self.server.files[repo][branch].get("/".join(path))
                if content is None:
                    self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                else:
                    tag = f'"{hashlib.sha1(content).hexdigest()}"'
                    self.answer(content, ETag=tag, X_Repo_Commit=COMMIT)
            case _:
                self.answer({"error": "not found"}, 404)


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty hub."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
