"""A model hub on the loopback interface that speaks the protocol of huggingface_hub: list, download, commit.

Files that end in .safetensors are stored as by Git LFS. `faults` makes answers wrong: see `HubServer`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_the_tests"


def git_hash(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def is_lfs(path):
    return path.endswith((".safetensors", ".bin", ".js"))


@dataclass
class Repo:
    """kind: "model", "dataset" or "space". commits: {hash: {path: content}}; refs: {branch: hash}."""

    kind: str
    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, files, branch="main", message=""):
        content = {**self.commits.get(self.refs.get(branch), {}), **files}  # None: a removed file
        content = {path: data for path, data in content.items() if data is not None}
        sha = hashlib.sha1(f"{branch} {len(self.commits)} {sorted(content)}".encode()).hexdigest()
        self.commits[sha], self.refs[branch] = content, sha
        self.messages.append(message)
        return sha

    def find(self, revision):
        return revision if revision in self.commits else self.refs.get(revision)


class HubServer:
    """repos: {(kind, "OWNER/NAME"): Repo}. requests: "METHOD path" of each request; headers: those of each.

    faults: "wrong" (downloads have other bytes), "short" (downloads end early), "size" (the listing claims 1 TB),
    "down" (status 503), "moving" (each listing adds a commit)
    """

    def __init__(self):
        self.repos, self.requests, self.headers, self.faults, self.uploads = {}, [], [], set(), {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def add(self, name, files, kind="model", **settings):
        """A repository with one commit; returns the commit."""
        repo = self.repos[kind, name] = Repo(kind, **settings)
        return repo.commit(files)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.read_body()
        if path == "/api/agent-harnesses":  # huggingface_hub asks for it before some of its first requests
            return self.answer(404)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.headers.append(dict(self.headers))
        parts = path.strip("/").split("/")
        if "down" in self.hub.faults:
            return self.answer(503, b"down")
        if parts[:2] == ["api", "validate-yaml"]:
            return self.json({"errors": [], "warnings": []})
        if parts[:3] == ["api", "repos", "create"]:
            return self.create()
        if parts[0] == "upload":
            self.hub.uploads[parts[1]] = self.body
            return self.answer(200)
        if parts[0] == "api":
            return self.api(parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:])
        kind = parts[0].removesuffix("s") if parts[0] in ("datasets", "spaces") else "model"
        parts = parts[1:] if kind != "model" else parts
        if parts[1].endswith(".git"):
            return self.lfs_batch(kind, f"{parts[0]}/{parts[1].removesuffix('.git')}")
        return self.resolve(kind, "/".join(parts[:2]), parts[3:])

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # --- reading ---

    def open_repo(self, kind, name):
        """The repository; None after an error was answered."""
        repo, has_token = self.hub.repos.get((kind, name)), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not has_token):
            return self.error(404 if has_token else 401, "RepoNotFound")
        if repo.gated and not has_token:
            return self.error(401, "GatedRepo")
        return repo

    def api(self, kind, name, rest):
        repo = self.open_repo(kind, name)
        if repo is None:
            return None
        action, revision = (rest[0] if rest else "revision"), "/".join(rest[1:]) or "main"
        if action == "branch":
            repo.refs.setdefault(revision, repo.refs["main"])
            return self.json({})
        if action in ("tree", "paths-info"):
            revision = rest[1]
        if (sha := repo.find(revision)) is None and not (repo.commits == {} and self.command == "POST"):
            return self.error(404, "RevisionNotFound")
        files = repo.commits.get(sha, {})
        if action == "preupload":
            wanted = json.loads(self.body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"]) else "regular"} for f in wanted]
            return self.json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if action == "commit":
            return self.commit(repo, name, revision)
        if "moving" in self.hub.faults:
            repo.commit({})
        if action == "tree":
            recursive = "recursive=true" in self.path.lower()
            return self.json(self.list_folder(files, "/".join(rest[2:]), recursive=recursive))
        if action == "paths-info":
            paths = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
            entries = self.list_folder(files, "", recursive=True)
            return self.json([entry for entry in entries if entry["path"] in paths])
        siblings = [{"rfilename": path, **self.facts(files[path], path)} for path in files]
        return self.json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []})

    def list_folder(self, files, folder, *, recursive):
        start = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(start)]
        folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents if str(parent) != "."}
        folders = sorted(path for path in folders if path.startswith(start))
        entries = [
            *({"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0} for path in folders),
            *({"type": "file", "path": path, **self.facts(files[path], path)} for path in inside),
        ]
        return [entry for entry in entries if recursive or "/" not in entry["path"][len(start) :]]

    def facts(self, content, path):
        size = 10**12 if "size" in self.hub.faults else len(content)
        facts = {"size": size, "oid": git_hash(content), "blobId": git_hash(content)}
        if is_lfs(path):
            digest = hashlib.sha256(content).hexdigest()
            facts["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 130}
        return facts

    def resolve(self, kind, name, rest):
        repo = self.open_repo(kind, name)
        if repo is None:
            return None
        revision, path = rest[0], "/".join(rest[1:])
        if (sha := repo.find(revision)) is None:
            return self.error(404, "RevisionNotFound")
        if path not in repo.commits[sha]:
            return self.error(404, "EntryNotFound", {"X-Repo-Commit": sha})
        content = repo.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{git_hash(content)}"', "Accept-Ranges": "bytes"}
        if is_lfs(path):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        if "wrong" in self.hub.faults:
            content = bytes(len(content))
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            return self.answer(206, content[int(first) : end + 1], headers)
        return self.answer(200, content, headers)

    # --- writing ---

    def create(self):
        asked = json.loads(self.body)
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'me'}/{asked['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.error(401, "")
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repos:
            return self.json({"url": url, "error": "You already created this repo"}, 409)
        private = asked.get("private") or asked.get("visibility") == "private"
        repo = self.hub.repos[kind, name] = Repo(kind, private=bool(private))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.json({"url": url, "name": name, "id": name})

    def lfs_batch(self, kind, name):
        if self.open_repo(kind, name) is None:
            return None
        objects = json.loads(self.body)["objects"]
        return self.json({"transfer": "basic", "objects": [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{each['oid']}", "header": {}}}}
            for each in objects
        ]})  # fmt: skip

    def commit(self, repo, name, revision):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.error(403, "")
        files, message = {}, ""
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif item["key"] == "deletedFile":
                files[value["path"]] = None
        sha = repo.commit(files, revision, message)
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        url = f"{self.hub.endpoint}/{prefix}{name}/commit/{sha}"
        return self.json({"commitUrl": url, "commitOid": sha, "success": True})

    # --- answers ---

    def json(self, value, status=200):
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def error(self, status, code, headers=None):
        self.answer(status, b"{}", {"X-Error-Code": code, **(headers or {})})

    def answer(self, status, content=b"", headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            is_short = "short" in self.hub.faults and "/resolve/" in self.path
            self.wfile.write(content[: len(content) // 2] if is_short else content)
            self.close_connection = self.close_connection or is_short
