"""A small Hub on 127.0.0.1 for tests: repositories with branches in memory, and the HTTP calls of `huggingface_hub`.

It checks what it is given (sizes, SHA-256, tokens, parents of commits), answers 404 to calls that it does not know and
keeps their names in `unknown`. `break_after` makes the network fail: the connection is cut after that many bytes of
requests in all have been read, and every one that follows, or with `recovers` only that one; `lose_reply_to` cuts it
after a call was carried out; `revoke_before` takes all tokens back before a call.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Commit:
    message: str
    files: dict[str, bytes]
    parent: str | None = None

    @property
    def sha(self) -> str:
        text = repr((self.message, self.parent, [(path, sha256(data)) for path, data in sorted(self.files.items())]))
        return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]]

    @property
    def commits(self) -> list[Commit]:
        return self.branches["main"]

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """The head of a branch, or the commit of that SHA."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((one for line in self.branches.values() for one in line if one.sha == revision), None)


class Cut(Exception):
    """The network fails here."""


class HubServer:
    """
    Args:
        tokens (`set[str]`): That may read and write.
        user (`str`, *optional*, defaults to `"somebody"`): Whose they are.
    """

    def __init__(self, tokens: set[str], user: str = "somebody"):
        self.tokens, self.user = tokens, user
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.unknown: list[str] = []
        self.faults: list[str] = []  # of the client: wrong sizes, wrong hashes
        self.carried = 0  # bytes of requests
        self.break_after: int | None = None
        self.recovers = False
        self.lose_reply_to: str | None = None
        self.revoke_before: str | None = None
        self.lock = threading.Lock()
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._http.shutdown()
        self._http.server_close()

    def take(self, number: int) -> int:
        """How many of `number` bytes the network still carries."""
        with self.lock:
            taken = number if self.break_after is None else max(0, min(number, self.break_after - self.carried))
            self.carried += taken
            if taken < number and self.recovers:
                self.break_after = None
            return taken


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        call = f"{self.command} {path}"
        self.hub.calls.append(call)
        if self.hub.revoke_before and self.hub.revoke_before in call:
            self.hub.tokens = set()
        try:
            self.body = self._read()
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    if action not in OPEN and not self._is_known():
                        self._send(401, {"error": "Invalid credentials in Authorization header"})
                        return
                    reply = action(self, **match.groupdict())
                    if self.hub.lose_reply_to and self.hub.lose_reply_to in call:
                        self.hub.lose_reply_to = None
                        raise Cut
                    self._send(*reply)
                    return
            self.hub.unknown.append(call)
            self._send(404, {"error": f"no such call: {call}"})
        except Cut:
            self.close_connection = True
            self.connection.close()

    def _read(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self._carried(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self._carried(int(self.headers.get("Content-Length") or 0))

    def _carried(self, size: int) -> bytes:
        carried = self.hub.take(size)
        data = self.rfile.read(carried)
        if carried < size:
            raise Cut
        return data

    def _is_known(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    def _send(self, status: int, content=b"", headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": len(data), "Content-Type": "application/json", **(headers or {})}
        if status >= 400:
            headers["X-Error-Message"] = content.get("error", "")
            headers["X-Error-Code"] = content.get("code", "")
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- calls ------------------------------------------------------------------------------------------------------

    def harnesses(self):
        return 404, {"error": "a list that the client can do without"}

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or self.hub.user}/{wanted['name']}"
        status = 409 if name in self.hub.repositories else 200
        if status == 200:
            first = Commit("initial commit", {".gitattributes": GIT_ATTRIBUTES})
            self.hub.repositories[name] = Repository(wanted.get("visibility") == "private", {"main": [first]})
        return status, {"url": f"{self.hub.url}/{name}", "name": name, "error": "You already created this repo"}

    def validate_yaml(self):
        return 200, {"errors": [], "warnings": []}

    def branch(self, repo: str, revision: str):
        repository = self.hub.repositories[repo]
        if revision in repository.branches:
            return 409, {"error": "Reference already exists"}
        repository.branches[revision] = list(repository.commits)
        return 200, {}

    def info(self, repo: str, revision: str | None = None):
        if (repository := self.hub.repositories.get(repo)) is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        if (head := repository.at(revision or "main")) is None:
            return 404, {"error": "Revision not found", "code": "RevisionNotFound"}
        siblings = [{"rfilename": path} for path in sorted(head.files)]
        return 200, {"id": repo, "sha": head.sha, "private": repository.private, "siblings": siblings, "tags": []}

    def tree(self, repo: str, revision: str, folder: str):
        head = self.hub.repositories[repo].at(revision)
        inside = f"{folder.strip('/')}/" if folder.strip("/") else ""
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": git_oid(data), **_lfs(path, data)}
            for path, data in sorted(head.files.items())
            if path.startswith(inside)
        ]
        return 200, entries

    def preupload(self, repo: str, revision: str):
        head = self.hub.repositories[repo].at(revision)
        files = []
        for file in json.loads(self.body)["files"]:
            old, is_lfs = head.files.get(file["path"]), file["path"].endswith(".safetensors")
            oid = None if old is None else (sha256(old) if is_lfs else git_oid(old))
            mode = "lfs" if is_lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def lfs_batch(self, repo: str):
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}/{wanted['size']}"}}
            objects.append({**wanted, **({} if wanted["oid"] in self.hub.objects else {"actions": action})})
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str, size: str):
        if sha256(self.body) != oid or len(self.body) != int(size):
            self.hub.faults.append(f"object {oid[:8]}: {len(self.body)} bytes of {size}, or another SHA-256")
            return 400, {"error": self.hub.faults[-1]}
        self.hub.objects[oid] = self.body
        return 200, b""

    def commit(self, repo: str, revision: str):
        repository = self.hub.repositories[repo]
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            line = repository.branches[revision]
            head = line[-1]
            if header.get("parentCommit") not in (None, head.sha):
                return 412, {"error": "A commit has happened since. Please refresh and try again."}
            files = dict(head.files)
            for operation in lines[1:]:
                key, value = operation["key"], operation["value"]
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    data = self.hub.objects.get(value["oid"])
                    if data is None or len(data) != value["size"]:
                        self.hub.faults.append(f"{value['path']}: its object was not uploaded whole")
                        return 400, {"error": self.hub.faults[-1]}
                    files[value["path"]] = data
                elif key == "deletedFile":
                    del files[value["path"]]
                else:
                    return 400, {"error": f"unknown operation {key}"}
            line.append(Commit(header["summary"], files, head.sha))
        sha = line[-1].sha
        return 200, {"success": True, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha}

    def resolve(self, repo: str, revision: str, path: str):
        if (repository := self.hub.repositories.get(repo)) is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        if (commit := repository.at(revision)) is None:
            return 404, {"error": "Revision not found", "code": "RevisionNotFound"}
        headers = {"X-Repo-Commit": commit.sha}
        if (data := commit.files.get(path)) is None:
            return 404, {"error": "Entry not found", "code": "EntryNotFound"}, headers
        if path.endswith(".safetensors"):
            headers |= {"X-Linked-Size": len(data), "X-Linked-Etag": f'"{sha256(data)}"'}
        return 200, data, {**headers, "ETag": f'"{git_oid(data)}"', "Content-Type": "application/octet-stream"}


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[\w.-]+)"
ROUTES = (
    (("GET",), "/api/agent-harnesses", _Handler.harnesses),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), f"/api/models/{REPO}/branch/{REVISION}", _Handler.branch),
    (("GET",), f"/api/models/{REPO}(?:/revision/{REVISION})?", _Handler.info),
    (("GET",), f"/api/models/{REPO}/tree/{REVISION}(?P<folder>(?:/.*)?)", _Handler.tree),
    (("POST",), f"/api/models/{REPO}/preupload/{REVISION}", _Handler.preupload),
    (("POST",), f"/{REPO}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>\w+)/(?P<size>\d+)", _Handler.lfs_put),
    (("POST",), f"/api/models/{REPO}/commit/{REVISION}", _Handler.commit),
    (("GET", "HEAD"), f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", _Handler.resolve),
)
OPEN = (_Handler.harnesses, _Handler.lfs_put)  # the address of an upload is the permission, as on the Hub


def _lfs(path: str, data: bytes) -> dict:
    if not path.endswith(".safetensors"):
        return {}
    return {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 134}}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
