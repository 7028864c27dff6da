"""A Hugging Face Hub on 127.0.0.1 for tests: the real client, `diffusers` and the `hf` command talk to it.

It keeps models in memory: a commit is a snapshot (path -> bytes) under a 40-digit id; a branch, tag or pull
request is a name for one. Weights, pictures and logs take the LFS route (batch, PUT, verify) and are only
committed by their sha256, so a client that skips a step is refused. `HF_ENDPOINT` is read when
`huggingface_hub` is imported, so clients run in a process of their own:

    with LoopbackHub() as hub:
        print(hub.python("from huggingface_hub import HfApi; print(HfApi().whoami())", home, token=hub.token))
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".npz", ".parquet")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)


class HubError(Exception):
    """A refusal: HTTP status, and the `X-Error-Code` by which the client picks its exception."""

    def __init__(self, status: int, code: str, message: str = ""):
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclass
class Repo:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)  # branches, and "refs/pr/N"
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)  # (ref, sha, message), oldest first

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> str:
        listing = [(path, hashlib.sha1(data).hexdigest()) for path, data in sorted(files.items())]
        sha = hashlib.sha1(repr((len(self.log), message, listing)).encode()).hexdigest()
        self.refs[ref], self.commits[sha] = sha, dict(files)
        self.log.append((ref, sha, message))
        return sha

    def resolve(self, revision: str) -> str:
        sha = self.refs.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound")
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


SILENT = -1


@dataclass
class Failure:
    """Requests whose "METHOD /path" matches go through `after` times; the next `times` are cut."""

    pattern: re.Pattern
    after: int
    times: int
    status: int | None  # None drops the connection without an answer, SILENT keeps it open without one

    def strikes(self, request: str) -> bool:
        if not self.pattern.search(request) or self.times == 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


class LoopbackHub:
    """The server and its state; `repos`, `lfs` and `requests` are there to be looked at by tests."""

    user, token = "tester", "hf_loopback_secret"

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []  # "METHOD /path", in order of arrival
        self.failures: list[Failure] = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        handler = type("BoundHandler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def fail_after(self, n: int, pattern: str = "", *, times: int = 1, status: int | None = None):
        """Let `n` requests matching `pattern` through, then cut the next `times` of them."""
        self.failures.append(Failure(re.compile(pattern), n, times, status))

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment of a client process: this endpoint, nothing of the caller's Hugging Face settings."""
        foreign = ("HF_", "HUGGING_FACE", "PYTHONPATH")
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(foreign)}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # xet needs a server of its own; this one speaks LFS
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        return kept | own | ({"HF_TOKEN": token} if token else {})

    def python(self, code: str, home: Path, *, token: str | None = None, ok: bool = True) -> str:
        """Run `code` in a client process; returns its standard output, or its error where it has to fail."""
        command, environment = [sys.executable, "-c", code], self.environment(home, token)
        done = subprocess.run(command, env=environment, cwd=home.parent, capture_output=True, text=True)
        assert (done.returncode == 0) is ok, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if ok else done.stderr


@dataclass
class Request:
    hub: LoopbackHub
    method: str
    path: str  # still percent-encoded: "refs%2Fpr%2F1" is one segment
    query: dict[str, list[str]]
    body: bytes
    authorized: bool

    def json(self) -> dict:
        return json.loads(self.body)

    def repo(self, name: str, *, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.authorized):
            raise HubError(404 if self.authorized else 401, "RepoNotFound", "Repository not found")
        if write and not self.authorized:
            raise HubError(401, "Unauthorized", "Invalid username or password.")
        return repo


@dataclass
class Reply:
    content: dict | list | bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES) or "tfevents" in path


def _entry(path: str, data: bytes) -> dict:
    """One row of the tree listing; `oid` is git's blob id, `lfs.oid` the sha256 of the content."""
    git_oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid}
    if _is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _etag(entry: dict) -> str:
    return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]


def whoami(request: Request) -> Reply:
    if not request.authorized:
        raise HubError(401, "Unauthorized", "Invalid username or password.")
    access = {"displayName": "test", "role": "write"}
    return Reply({"type": "user", "name": request.hub.user, "orgs": [], "auth": {"accessToken": access}})


def create_repo(request: Request) -> Reply:
    whoami(request)
    asked = request.json()
    name = f"{asked.get('organization') or request.hub.user}/{asked['name']}"
    if asked.get("type") == "space" and not asked.get("sdk"):
        raise HubError(400, "BadRequest", "a Space needs an sdk")
    reply = {"name": name}
    name = f"spaces/{name}" if asked.get("type") == "space" else name
    reply["url"] = f"{request.hub.url}/{name}"
    if name in request.hub.repos:
        return Reply(reply | {"error": "You already created this model repo"}, status=409)
    private = asked.get("visibility") == "private" or asked.get("private") is True  # new and older clients
    request.hub.repos[name] = repo = Repo(private)
    repo.commit("main", {".gitattributes": GITATTRIBUTES.encode()}, "initial commit")
    return Reply(reply)


def validate_yaml(request: Request) -> Reply:
    front = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    try:
        yaml.safe_load(front.group(1) if front else "")
    except yaml.YAMLError as error:
        return Reply({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    return Reply({"errors": [], "warnings": []})


def preupload(request: Request, name: str, revision: str) -> Reply:
    files = request.repo(name, write=True).files(revision)
    answer = []
    for asked in request.json()["files"]:
        path = asked["path"]
        oid = _etag(_entry(path, files[path])) if path in files else None  # so the client sees no change
        mode = "lfs" if _is_lfs(path) else "regular"
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Reply({"files": answer})


def lfs_batch(request: Request, name: str) -> Reply:
    request.repo(name, write=True)
    objects = [{"oid": o["oid"], "size": o["size"]} for o in request.json()["objects"]]
    for o in objects:
        if o["oid"] not in request.hub.lfs:
            hrefs = {"upload": f"/lfs/{o['oid']}", "verify": f"/{name}.git/info/lfs/verify"}
            o["actions"] = {step: {"href": request.hub.url + href} for step, href in hrefs.items()}
    return Reply({"transfer": "basic", "objects": objects})


def lfs_put(request: Request, oid: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "BadDigest", "content does not have the announced sha256")
    request.hub.lfs[oid] = request.body
    return Reply()


def lfs_verify(request: Request, name: str) -> Reply:
    request.repo(name, write=True)
    if len(request.hub.lfs.get(request.json()["oid"], b"")) != request.json()["size"]:
        raise HubError(404, "EntryNotFound", "object was not uploaded")
    return Reply({})


def commit(request: Request, name: str, revision: str) -> Reply:
    repo = request.repo(name, write=True)
    files, message = dict(repo.files(revision)), ""
    for line in request.body.splitlines():
        key, value = json.loads(line)["key"], json.loads(line)["value"]
        if key == "header":
            message = value["summary"]
            if value.get("parentCommit", repo.resolve(revision)) != repo.resolve(revision):
                raise HubError(412, "PreconditionFailed", "A commit has happened since.")
        elif key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in request.hub.lfs:
                raise HubError(400, "LfsMissing", f"{value['path']}: LFS object was not uploaded")
            files[value["path"]] = request.hub.lfs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise HubError(400, "BadRequest", f"unknown operation {key}")
    opens_pr = "create_pr" in request.query
    ref = f"refs/pr/{1 + sum(r.startswith('refs/pr/') for r in repo.refs)}" if opens_pr else revision
    sha = repo.commit(ref, files, message)
    url = f"{request.hub.url}/{name}"
    pr_url = f"{url}/discussions/{ref.rsplit('/', 1)[-1]}" if opens_pr else None
    return Reply({"commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "pullRequestUrl": pr_url})


def of_space(reply: Callable[..., Reply]) -> Callable[..., Reply]:
    """The same for a Space, which is kept under its path on the Hub."""
    return lambda request, name, *rest: reply(request, f"spaces/{name}", *rest)


def create_tag(request: Request, name: str, revision: str) -> Reply:
    repo, tag = request.repo(name, write=True), request.json()["tag"]
    if tag in repo.tags:
        raise HubError(409, "Conflict", f"Tag reference exists already: {tag}")
    repo.tags[tag] = repo.resolve(revision)
    return Reply({})


def list_refs(request: Request, name: str) -> Reply:
    repo = request.repo(name)
    refs = [{"name": ref, "ref": ref, "targetCommit": sha} for ref, sha in repo.refs.items()]
    tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in repo.tags.items()]
    pulls = [ref for ref in refs if ref["name"].startswith("refs/pr/")]
    branches = [ref for ref in refs if ref not in pulls]
    return Reply({"branches": branches, "pullRequests": pulls, "tags": tags, "converts": []})


def model_info(request: Request, name: str, revision: str = "main") -> Reply:
    repo = request.repo(name)
    sha = repo.resolve(revision)
    siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
    info = {"id": name, "modelId": name, "author": name.split("/")[0], "sha": sha, "private": repo.private}
    return Reply(info | {"disabled": False, "gated": False, "tags": [], "siblings": siblings})


def tree(request: Request, name: str, revision: str) -> Reply:
    return Reply([_entry(path, data) for path, data in sorted(request.repo(name).files(revision).items())])


def resolve(request: Request, name: str, revision: str, path: str) -> Reply:
    repo = request.repo(name)
    sha = repo.resolve(revision)
    if path not in repo.commits[sha]:
        raise HubError(404, "EntryNotFound", f"{path} not in {name}")
    data = repo.commits[sha][path]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(_entry(path, data))}"'}
    return Reply(data, headers=headers | {"Content-Type": "application/octet-stream"})


_NAME, _REV = r"([^/]+/[^/]+?)", r"([^/]+)"
ROUTES: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", f"/api/models/{_NAME}/preupload/{_REV}", preupload),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/([0-9a-f]{64})", lfs_put),
    ("POST", f"/{_NAME}\\.git/info/lfs/verify", lfs_verify),
    ("POST", f"/api/models/{_NAME}/commit/{_REV}", commit),
    ("POST", f"/api/spaces/{_NAME}/preupload/{_REV}", of_space(preupload)),
    ("POST", f"/api/spaces/{_NAME}/commit/{_REV}", of_space(commit)),
    ("GET", f"/api/spaces/{_NAME}/revision/{_REV}", of_space(model_info)),
    ("POST", f"/api/models/{_NAME}/tag/{_REV}", create_tag),
    ("GET", f"/api/models/{_NAME}/refs", list_refs),
    ("GET", f"/api/models/{_NAME}/revision/{_REV}", model_info),
    ("GET", f"/api/models/{_NAME}", model_info),
    ("GET", f"/api/models/{_NAME}/tree/{_REV}", tree),
    ("GET", f"/{_NAME}/resolve/{_REV}/(.+)", resolve),
)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> Reply:
        url = urlsplit(self.path)
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {self.hub.token}"):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        query = parse_qs(url.query, keep_blank_values=True)
        request = Request(self.hub, self.command, url.path, query, body, authorization is not None)
        method = "GET" if self.command == "HEAD" else self.command
        for route, pattern, function in ROUTES:
            found = re.fullmatch(pattern, url.path)
            if route == method and found:
                return function(request, *map(unquote, found.groups()))
        raise HubError(404, "NotFound", f"the loopback Hub has no {self.command} {url.path}")

    def _serve(self):
        body = self._body()
        with self.hub.lock:
            line = f"{self.command} {unquote(urlsplit(self.path).path)}"
            self.hub.requests.append(line)
            cut = next((f for f in self.hub.failures if f.strikes(line)), None)
            silent = cut is not None and cut.status in (None, SILENT)
            try:
                reply = Reply({"error": "injected failure"}, cut.status) if cut else self._answer(body)
            except HubError as error:
                headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
                reply = Reply({"error": str(error)}, error.status, headers)
        if silent:
            self.close_connection = True
            if cut.status == SILENT:
                self.hub.closing.wait()
            return
        content = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        for key, value in ({"Content-Type": "application/json"} | reply.headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _serve
