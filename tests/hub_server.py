"""A local server that speaks the Hugging Face Hub's protocol, for tests, notebooks and documentation.

Enough of it for the real `huggingface_hub` client, and for what stands on it (`push_to_hub` and `from_pretrained` of
transformers, peft and datasets): users and tokens, models and datasets, private and gated repositories, branches, tags
and commits, files kept in git and files kept by LFS (sent in one piece or in parts), downloads that resume. Xet storage
is not offered: `HF_HUB_DISABLE_XET=1` makes the client use LFS, and `environment` and `in_process` set it.

    with HubServer(folder) as server:
        server.add_user("kim", token="hf_kim")
        subprocess.run(command, env=server.environment("hf_kim", home=folder / "home"))  # any process
        api = HfApi(endpoint=server.endpoint, token="hf_kim")  # or this one, if it is not offline

Large files come from and go to a second port, as the Hub's are on another host: the client must not send its token
there. What was asked of the server is in `requests`; `fail_next` and `cut_next` make it fail.

As a script it serves until it is interrupted, and prints its address on a line of its own:

    python tests/hub_server.py --root /tmp/hub --user kim --token hf_kim

Standard library only; PyYAML, where it is installed, to check the metadata of model cards.
"""

import argparse
import base64
import binascii
import fnmatch
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit


TYPES = {"model": "models", "dataset": "datasets"}
CHUNK = 64 * 1024
# What the Hub keeps by LFS whatever its size.
LFS_PATTERNS = re.findall(
    r"\S+",
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx "
    "*.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz "
    "*.wasm *.xz *.zip *.zst *tfevents*",
)
LFS_ATTRIBUTES = "filter=lfs diff=lfs merge=lfs -text"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
SHA = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LICENSES = re.findall(
    r"\S+",
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd "
    "bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 "
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 "
    "cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma "
    "gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 "
    "llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other "
    "pddl postgresql unknown unlicense wtfpl zlib",
)


class Refusal(Exception):
    """An answer that is an error: a status, a sentence, and the code by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class _Cut(Exception):
    """The connection is to break here."""


@dataclass
class Request:
    """One request as it came in. `storage`: at the port of large files. Bodies are counted, not kept."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    storage: bool
    status: int | None = None
    received: int = 0
    sent: int = 0


@dataclass
class _Fault:
    method: str
    pattern: re.Pattern[str]
    times: int
    status: int | None = None
    message: str = ""
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None


@dataclass(frozen=True)
class _User:
    name: str
    role: str
    organizations: tuple[str, ...]

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


@dataclass
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None  # instead of `body`; a range of it, if one is asked for


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: Any, status: int = 200, **headers: str) -> _Answer:
    return _Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **headers})


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(name, path)


def _blob_sha(data: bytes) -> str:
    """The name git gives to content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    """What git keeps in place of a file that LFS keeps."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern of .gitattributes or .gitignore names this path."""
    if "/" in pattern.rstrip("/"):
        return fnmatch.fnmatchcase(path, pattern.lstrip("/").replace("**/", "*"))
    return fnmatch.fnmatchcase(PurePosixPath(path).name, pattern)


def _is_ignored(path: str, rules: str) -> bool:
    """Whether .gitignore rules leave this path out; a folder that is left out takes its content along."""
    ignored = False
    parents = [str(parent) for parent in reversed(PurePosixPath(path).parents) if str(parent) != "."]
    for line in rules.splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        negated, rule = rule.startswith("!"), rule.removeprefix("!")
        names = parents if rule.endswith("/") else [*parents, path]
        if any(_matches(rule.rstrip("/"), name) for name in names):
            ignored = not negated
    return ignored


def _is_binary(sample: bytes) -> bool:
    """Whether the first bytes of a file are not text; the last character may be cut."""
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 4
    return False


def metadata_problems(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the YAML block at the head of a README.md, in the Hub's manner.

    Without PyYAML nothing is found. Of the Hub's checks these are the ones that cards of trained models meet.
    """
    try:
        import yaml
    except ImportError:
        return [], []
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|$)", content, re.DOTALL)
    if match is None or not match.group(1).strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if not isinstance(card, dict):
        return ["YAML Metadata Error: the metadata must be an object"], []
    errors: list[str] = []

    def texts(name: str, *, pattern: str | None = None, only: bool = False) -> list[str]:
        value = card.get(name)
        values = value if isinstance(value, list) and not only else [] if value is None else [value]
        for place, item in enumerate(values):
            label = f'"{name}[{place}]"' if isinstance(value, list) else f'"{name}"'
            if not isinstance(item, str):
                errors.append(f"{label} must be a string")
            elif pattern and not re.fullmatch(pattern, item):
                errors.append(f"{label} with value {json.dumps(item)} is not valid")
        return [item for item in values if isinstance(item, str)]

    for name in texts("license"):
        if name not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    texts("language", pattern=r"[a-z]{2,3}(?:[-_][A-Za-z]{2,4})?|code|multilingual")
    texts("tags")
    texts("library_name", only=True)
    texts("pipeline_tag", pattern=r"[a-z0-9]+(?:-[a-z0-9]+)*", only=True)
    texts("base_model", pattern=r"[\w.-]+(?:/[\w.-]+)?")
    texts("datasets", pattern=r"[\w.-]+(?:/[\w.-]+)?")
    texts("metrics")
    emissions = card.get("co2_eq_emissions")
    if isinstance(emissions, dict):
        if not isinstance(emissions.get("emissions"), int | float):
            errors.append('"co2_eq_emissions.emissions" must be a number')
        errors += [
            f'"co2_eq_emissions.{name}" must be a string'
            for name in ("source", "training_type", "geographical_location", "hardware_used")
            if name in emissions and not isinstance(emissions[name], str)
        ]
    elif emissions is not None and not isinstance(emissions, int | float):
        errors.append('"co2_eq_emissions" must be a number or an object')
    if "model-index" in card:
        errors += _model_index_problems(card["model-index"])
    return errors, []


def _model_index_problems(index: Any) -> list[str]:
    errors: list[str] = []

    def member(parent: Any, label: str, name: str, kind: type | tuple[type, ...], needed: bool = True) -> Any:
        if not isinstance(parent, dict):
            errors.append(f'"{label}" must be an object')
            return None
        if name not in parent:
            if needed:
                errors.append(f'"{label}.{name}" is required')
            return None
        if not isinstance(parent[name], kind):
            wanted = {str: "a string", list: "an array", dict: "an object"}.get(kind, "a number or a string")  # type: ignore
            errors.append(f'"{label}.{name}" must be {wanted}')
            return None
        return parent[name]

    if not isinstance(index, list):
        return ['"model-index" must be an array']
    for place, model in enumerate(index):
        label = f"model-index[{place}]"
        member(model, label, "name", str)
        for number, result in enumerate(member(model, label, "results", list) or []):
            part = f"{label}.results[{number}]"
            task = member(result, part, "task", dict)
            if task is not None:
                member(task, f"{part}.task", "type", str)
            dataset = member(result, part, "dataset", dict, needed="metrics" in (result or {}))
            if dataset is not None:
                member(dataset, f"{part}.dataset", "name", str)
                member(dataset, f"{part}.dataset", "type", str)
            for nth, metric in enumerate(member(result, part, "metrics", list) or []):
                member(metric, f"{part}.metrics[{nth}]", "type", str)
                value = member(metric, f"{part}.metrics[{nth}]", "value", (int, float, str, list, dict))
                if isinstance(value, float) and value != value:
                    errors.append(f'"{part}.metrics[{nth}].value" must be a number')
    return errors


class _Repository:
    """A repository on disk: references in repo.json, commits as snapshots (path to blob), blobs and LFS objects."""

    def __init__(self, folder: Path, repo_type: str, name: str):
        self.folder, self.type, self.name = folder, repo_type, name
        self.namespace = name.split("/")[0]

    @property
    def exists(self) -> bool:
        return (self.folder / "repo.json").is_file()

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "repo.json").read_text())

    def update(self, **changes: Any) -> None:
        state = self.state if self.exists else {}
        _write(self.folder / "repo.json", json.dumps({**state, **changes}, indent=1).encode())

    def commit(self, sha: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / sha).read_text())

    def resolve(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit's hash names."""
        state = self.state
        short = revision.removeprefix("refs/heads/")
        if short in state["branches"]:
            return state["branches"][short]
        short = revision.removeprefix("refs/tags/")
        if short in state["tags"]:
            return state["tags"][short]["commit"]
        if SHA.fullmatch(revision) and (self.folder / "commits" / revision).is_file():
            return revision
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, sha: str) -> Iterator[tuple[str, dict[str, Any]]]:
        current: str | None = sha
        while current:
            commit = self.commit(current)
            yield current, commit
            current = commit["parent"]

    def last_changes(self, sha: str, paths: list[str]) -> dict[str, dict[str, str]]:
        """The commit that last changed each of these files or folders."""

        def content(files: dict[str, Any], path: str) -> Any:
            return files.get(path) or {name: file for name, file in files.items() if name.startswith(path + "/")}

        found: dict[str, dict[str, str]] = {}
        for name, commit in self.history(sha):
            before = self.commit(commit["parent"])["files"] if commit["parent"] else {}
            for path in paths:
                if path not in found and content(commit["files"], path) != content(before, path):
                    found[path] = {"id": name, "title": commit["title"], "date": commit["date"]}
        return found

    def add_commit(
        self, files: dict[str, Any], parent: str | None, user: str, title: str, message: str, branch: str
    ) -> str:
        commit = {"parent": parent, "author": user, "title": title, "message": message, "date": _now(), "files": files}
        text = json.dumps(commit).encode()
        sha = hashlib.sha1(text + secrets.token_bytes(8)).hexdigest()
        _write(self.folder / "commits" / sha, text)
        self.update(branches={**(self.state["branches"] if self.exists else {}), branch: sha}, modified=_now())
        return sha

    def add_blob(self, data: bytes) -> dict[str, Any]:
        sha = _blob_sha(data)
        if not self.blob(sha).is_file():
            _write(self.blob(sha), data)
        return {"oid": sha, "size": len(data)}

    def blob(self, sha: str) -> Path:
        return self.folder / "blobs" / sha

    def object(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def content(self, file: dict[str, Any]) -> Path:
        return self.object(file["lfs"]) if "lfs" in file else self.blob(file["oid"])

    def text(self, files: dict[str, Any], path: str) -> str:
        return self.content(files[path]).read_text(encoding="utf-8", errors="replace") if path in files else ""

    def lfs_patterns(self, files: dict[str, Any]) -> list[str]:
        lines = (line.split() for line in self.text(files, ".gitattributes").splitlines())
        return [words[0].replace("[[:space:]]", " ") for words in lines if "filter=lfs" in words[1:]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, hub: "HubServer", storage: bool):
        self.hub, self.storage = hub, storage
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, has the hub answer it, and sends the answer; breaks off where a fault says so."""

    protocol_version = "HTTP/1.1"
    server_version = "HubServer"
    disable_nagle_algorithm = True
    wbufsize = CHUNK
    server: _Server

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_ = Request(self.command, unquote(parts.path), parts.query, headers, self.server.storage)
        hub = self.server.hub
        hub.requests.append(self.request_)
        self._left = int(headers.get("content-length") or 0)
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._in_chunk = 0
        self._cut = None
        try:
            fault = hub._fault(self.command, self.path)
            if fault is not None and fault.after is None:
                self._drain()
                refusal = Refusal(fault.status or 500, fault.message, fault.code)
                return self._send(self._refuse(refusal, fault.headers))
            self._cut = fault.after if fault is not None else None
            try:
                answer = hub._answer(self, parts.path, {k: v[-1] for k, v in parse_qs(parts.query).items()})
            except Refusal as refusal:
                self._drain()
                answer = self._refuse(refusal)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                self._drain()
                answer = self._refuse(Refusal(400, f"Bad request: {type(error).__name__}: {error}"))
            self._send(answer)
        except (_Cut, OSError):
            self.close_connection = True
            with suppress(OSError, ValueError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def read(self, size: int) -> bytes:
        """The next bytes of the body, at most `size`; none at its end."""
        if self._cut is not None and self.command in ("PUT", "POST"):
            if self._cut == self.request_.received:
                raise _Cut
            size = min(size, self._cut - self.request_.received)
        if self._chunked:
            if not self._in_chunk:
                self._in_chunk = int(self.rfile.readline().split(b";")[0] or b"0", 16)
                if not self._in_chunk:
                    while self.rfile.readline().strip():
                        pass
                    self._chunked = False
                    return b""
            data = self.rfile.read(min(size, self._in_chunk))
            self._in_chunk -= len(data)
            if not self._in_chunk:
                self.rfile.readline()
        else:
            data = self.rfile.read(min(size, self._left))
            if not data and self._left:
                raise ConnectionError("the client went away")
            self._left -= len(data)
        self.request_.received += len(data)
        return data

    def body(self) -> bytes:
        """The whole body, of a request that is small."""
        parts = []
        while data := self.read(CHUNK):
            parts.append(data)
        text = b"".join(parts)
        self.server.hub._look_for_tokens(f"body of {self.command} {self.request_.path}", text)
        return text

    def _drain(self) -> None:
        while self.read(CHUNK):
            pass

    def _refuse(self, refusal: Refusal, headers: dict[str, str] | None = None) -> _Answer:
        answer = _json({"error": refusal.message, **refusal.body}, refusal.status)
        answer.headers["X-Error-Message"] = refusal.message.encode("ascii", "replace").decode().replace("\n", " ")
        if refusal.code:
            answer.headers["X-Error-Code"] = refusal.code
        answer.headers.update(headers or {})
        return answer

    def _send(self, answer: _Answer) -> None:
        body = answer.body
        length, start = len(body), 0
        if answer.file is not None:
            size = answer.file.stat().st_size
            length = size
            answer.headers["Accept-Ranges"] = "bytes"
            wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").replace(" ", ""))
            if wanted and any(wanted.groups()):
                first, last = wanted.groups()
                start = int(first) if first else max(size - int(last), 0)
                end = min(int(last), size - 1) if first and last else size - 1
                if start > end:
                    answer = _Answer(416, headers={"Content-Range": f"bytes */{size}"})
                    length = 0
                else:
                    length = end - start + 1
                    answer.status = 206
                    answer.headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self.request_.status = answer.status
        self.send_response(answer.status)
        headers = {"X-Request-Id": self.headers.get("X-Amzn-Trace-Id") or str(uuid.uuid4()), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" or "Content-Length" not in headers:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            self.wfile.flush()
            return
        cut = self._cut if self.command == "GET" else None
        if answer.file is None:
            self._send_bytes(body, cut)
        else:
            with answer.file.open("rb") as file:
                file.seek(start)
                left = length
                while left and (data := file.read(min(CHUNK, left))):
                    self._send_bytes(data, cut)
                    left -= len(data)
        self.wfile.flush()

    def _send_bytes(self, data: bytes, cut: int | None) -> None:
        if cut is not None and self.request_.sent + len(data) > cut:
            data = data[: cut - self.request_.sent]
            self.wfile.write(data)
            self.request_.sent += len(data)
            raise _Cut
        self.wfile.write(data)
        self.request_.sent += len(data)


class HubServer:
    """The server, on 127.0.0.1. A context manager; `start` and `stop` do the same.

    Repositories are kept below `root` and are there again when another server is started on it; users are not.

    Args:
        root: folder of the repositories; made if missing.
        port: port of the Hub's address; 0 takes a free one. Large files are always at a free one.
        lfs_size: bytes from which a text file is kept by LFS. Binary files and the Hub's usual patterns always are.
        multipart_size: bytes above which an LFS object is sent in parts.
        part_size: bytes of a part.
        page_size: entries in a page of a listing.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        port: int = 0,
        lfs_size: int = 10 * 1024**2,
        multipart_size: int = 5 * 1024**3,
        part_size: int = 16 * 1024**2,
        page_size: int = 1000,
    ):
        self.root = Path(root).resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.port = port
        self.lfs_size, self.multipart_size, self.part_size = lfs_size, multipart_size, part_size
        self.page_size = page_size
        # Every request, oldest first.
        self.requests: list[Request] = []
        # (repository, SHA-256) of every LFS object that arrived whole, oldest first.
        self.uploads: list[tuple[str, str]] = []
        self._users: dict[str, _User] = {}
        self._faults: list[_Fault] = []
        self._seen: dict[str, list[str]] = {}
        self._secret = secrets.token_bytes(32)
        self._lock = threading.RLock()
        self._servers: list[_Server] = []

    # ------------------------------------------------------------------ for the tests

    def start(self) -> "HubServer":
        """Listen, and answer in threads of this process."""
        for port, storage in ((self.port, False), (0, True)):
            server = _Server(port, self, storage)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self._servers.append(server)
        self.port = self._servers[0].server_address[1]
        return self

    def stop(self) -> None:
        """Stop listening and break the connections that are open. `start` listens at the same address again."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
            for connection in list(server.open):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._servers.clear()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Address for `HF_ENDPOINT` and `HfApi(endpoint=...)`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """Address of the large files."""
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def add_user(self, name: str, token: str, role: str = "write", organizations: tuple[str, ...] = ()) -> None:
        """Let `token` act for user `name`; a user may have any number of tokens.

        Args:
            role: "write", or "read" for a token that changes nothing.
            organizations: further namespaces in which the user may write.
        """
        if role not in ("read", "write"):
            raise ValueError(f"role must be 'read' or 'write', got {role!r}.")
        self._users[token] = _User(name, role, tuple(organizations))

    def grant(self, repo_id: str, user: str, repo_type: str = "model") -> None:
        """Let a user into a gated repository."""
        repo = self._repository(repo_type, repo_id)
        repo.update(granted=[*repo.state.get("granted", []), user])

    def environment(self, token: str | None = None, *, home: str | Path) -> dict[str, str]:
        """This process's environment variables, changed so that a subprocess uses this server.

        Args:
            token: the token of the subprocess; None for a user who is not logged in.
            home: the subprocess's `HF_HOME`: its cache and its stored token.
        """
        foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        variables |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return variables if token is None else {**variables, "HF_TOKEN": token}

    @contextmanager
    def in_process(self, token: str | None = None, *, home: str | Path, sleep: bool = False) -> Iterator[None]:
        """Have this process's huggingface_hub, and what stands on it, use this server.

        The library reads its settings when it is imported, so they are set on its modules, and set back at the end.
        For transformers and peft that is enough, if they are imported before; datasets needs a process of its own. The
        environment variables are those of `environment` too, so that processes started meanwhile use the server.

        Args:
            token: as of `environment`.
            home: as of `environment`; also what transformers keeps of a repository's code.
            sleep: wait before trying again as the client does, rather than at once.
        """
        from huggingface_hub import constants, file_download, hf_api
        from huggingface_hub.utils import _http

        home = Path(home)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        changes: list[tuple[Any, str, Any]] = [
            (constants, "ENDPOINT", self.endpoint),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
            (constants, "HUGGINGFACE_CO_URL_HOME", self.endpoint + "/"),
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "HF_HUB_DISABLE_XET", True),
            (constants, "HF_HUB_DISABLE_TELEMETRY", True),
            (constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False),
            (constants, "HF_HOME", str(home)),
            (constants, "HF_HUB_CACHE", str(home / "hub")),
            (constants, "HF_TOKEN_PATH", str(home / "token")),
            (constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens")),
            (hf_api.api, "endpoint", self.endpoint),
        ]
        if not sleep:
            changes += [(module, "time", _Sleepless()) for module in (_http, file_download)]
        for module in map(sys.modules.get, ("transformers.utils.hub", "transformers.dynamic_module_utils")):
            if hasattr(module, "HF_MODULES_CACHE"):
                changes.append((module, "HF_MODULES_CACHE", str(home / "modules")))
            if hasattr(module, "_hf_api"):  # transformers' client, made at the first use
                changes.append((module, "_hf_api", None))
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        kept = dict(os.environ)
        variables = self.environment(token, home=home)

        def set_variables(values: dict[str, str]) -> None:
            for name in set(os.environ) - set(values):
                del os.environ[name]
            os.environ.update(values)

        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            set_variables(variables)
            _http.close_session()
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)
            set_variables(kept)
            _http.close_session()

    def fail_next(
        self,
        method: str,
        pattern: str,
        *,
        status: int = 500,
        times: int = 1,
        message: str = "Internal Error - We're working hard to fix this as soon as possible!",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Answer the next `times` requests of this method whose path and query match with an error.

        The client tries again by itself after 408, 429 and 5xx, five times; any other status ends its call.

        Args:
            pattern: regular expression, searched for in the path and query as sent (percent-encoded).
            code: the client's name of the error (`X-Error-Code`), as "RepoNotFound".
        """
        self._faults.append(_Fault(method, re.compile(pattern), times, status, message, code, headers or {}))

    def cut_next(self, method: str, pattern: str, *, after: int, times: int = 1) -> None:
        """Break the connection of the next `times` matching requests once `after` bytes of body went through.

        "GET" counts what the server sends, "PUT" and "POST" what it receives. Paths of large files are
        `/lfs/models/kim/tiny/SHA256?...&filename=model.safetensors` for GET, and the same without `filename` for PUT.
        """
        self._faults.append(_Fault(method, re.compile(pattern), times, after=after))

    def clear(self) -> None:
        """Forget the requests, uploads and faults so far; users and repositories stay."""
        self.requests.clear()
        self.uploads.clear()
        self._faults.clear()
        self._seen.clear()

    def token_leaks(self, token: str) -> list[str]:
        """Where a token was seen apart from the `Authorization` header of requests to the Hub's own address.

        Looks at addresses and headers of all requests, bodies that are not file content, and every stored file.
        """
        places = list(self._seen.get(token, []))
        for request in self.requests:
            where = f"{request.method} {request.path}"
            if token in unquote(request.path) or token in unquote(request.query):
                places.append(f"address of {where}")
            for name, value in request.headers.items():
                if token in value and (name != "authorization" or request.storage):
                    places.append(f"header {name} of {where}{' (storage)' if request.storage else ''}")
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and token.encode() in path.read_bytes():
                places.append(f"stored file {path.relative_to(self.root)}")
        return places

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, int]:
        """Paths and sizes in bytes of a repository's files."""
        repo = self._repository(repo_type, repo_id)
        return {path: file["size"] for path, file in repo.commit(repo.resolve(revision))["files"].items()}

    def read(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "model") -> bytes:
        """Content of a repository's file."""
        repo = self._repository(repo_type, repo_id)
        return repo.content(repo.commit(repo.resolve(revision))["files"][path]).read_bytes()

    def is_private(self, repo_id: str, repo_type: str = "model") -> bool:
        """Whether strangers are told that a repository does not exist."""
        return self._repository(repo_type, repo_id).state["private"]

    # ------------------------------------------------------------------ requests

    def _fault(self, method: str, path: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.method in (method, "*") and fault.times > 0 and fault.pattern.search(path):
                    fault.times -= 1
                    return fault
        return None

    def _look_for_tokens(self, place: str, text: bytes) -> None:
        for token in self._users:
            if token.encode() in text:
                self._seen.setdefault(token, []).append(place)

    def _answer(self, call: _Handler, path: str, query: dict[str, str]) -> _Answer:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if call.server.storage:
            return self._answer_storage(call, path, parts, query)
        if parts == ["api", "complete_multipart"]:
            return self._complete_parts(call, path, query)
        user = self._authenticate(call, parts)
        command = call.command
        if parts[0] == "api":
            name = "/".join(parts[1:])
            routes: dict[tuple[str, str], Callable[[_User | None, dict[str, Any]], _Answer]] = {
                ("GET", "whoami-v2"): self._whoami,
                ("POST", "repos/create"): self._create,
                ("DELETE", "repos/delete"): self._delete,
                ("POST", "repos/move"): self._move,
                ("POST", "validate-yaml"): self._validate_yaml,
            }
            if (command, name) in routes:
                return routes[command, name](user, json.loads(call.body() or b"{}"))
            types = {plural: single for single, plural in TYPES.items()}
            if len(parts) >= 3 and parts[1] in types:
                return self._answer_repository(call, user, types[parts[1]], parts, query)
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        repo_type = "model"
        if parts[0] in ("datasets", "models"):
            repo_type = parts.pop(0).removesuffix("s")
        if len(parts) == 6 and parts[1].endswith(".git") and parts[2:5] == ["info", "lfs", "objects"]:
            repo = self._open(user, repo_type, f"{parts[0]}/{parts[1].removesuffix('.git')}")
            if parts[5] == "batch" and command == "POST":
                return self._batch(user, repo, json.loads(call.body()))
            if parts[5] == "verify" and command == "POST":
                return self._verify(user, repo, json.loads(call.body()))
        if len(parts) >= 5 and parts[2] in ("resolve", "raw") and command in ("GET", "HEAD"):
            repo = self._open(user, repo_type, f"{parts[0]}/{parts[1]}")
            return self._resolve(user, repo, parts[3], "/".join(parts[4:]), raw=parts[2] == "raw")
        if len(parts) >= 4 and parts[1] == "resolve":
            self._open(user, repo_type, parts[0])  # a name without an owner: none of these here
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _authenticate(self, call: _Handler, parts: list[str]) -> _User | None:
        header = call.headers.get("Authorization")
        if not header:
            return None
        user = self._users.get(header.removeprefix("Bearer ").strip())
        if user is None:
            known = parts == ["api", "whoami-v2"]
            raise Refusal(401, "Invalid username or password." if known else _BAD_TOKEN)
        return user

    def _repository(self, repo_type: str, name: str) -> _Repository:
        return _Repository(self.root / TYPES[repo_type] / name, repo_type, name)

    def _open(self, user: _User | None, repo_type: str, name: str, *, write: bool = False) -> _Repository:
        """The repository, if the user may read it (and write to it)."""
        words = name.split("/")
        known = len(words) == 2 and all(NAME.fullmatch(word) for word in words)
        repo = self._repository(repo_type, name) if known else None
        may_read = repo is not None and repo.exists
        if repo is not None and may_read and repo.state["private"]:
            may_read = user is not None and user.owns(repo.namespace)
        if repo is None or not may_read or (write and user is None):
            # The Hub itself sends no code with 401: the client tells by the address, if it is an https one.
            if user is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if write and user is not None:
            if not user.owns(repo.namespace):
                raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
            if user.role != "write":
                raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        return repo

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()

    def _signed(self, base: str, path: str, method: str, **query: Any) -> str:
        """An address that needs no token: whoever has it may use it."""
        text = urlencode(query)
        return f"{base}{path}?{text}&signature={self._sign(f'{method} {path}?{text}')}"

    def _check_signature(self, call: _Handler, path: str, method: str) -> None:
        text = urlsplit(call.path).query.rpartition("&signature=")
        if not hmac.compare_digest(self._sign(f"{method} {path}?{text[0]}"), text[2]):
            raise Refusal(403, "SignatureDoesNotMatch: the address was not signed for this request")

    # ------------------------------------------------------------------ accounts and repositories

    def _whoami(self, user: _User | None, body: dict[str, Any]) -> _Answer:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return _json(
            {
                "type": "user",
                "id": hashlib.sha1(user.name.encode()).hexdigest()[:24],
                "name": user.name,
                "fullname": user.name,
                "canPay": False,
                "isPro": False,
                "orgs": [
                    {"type": "org", "name": name, "fullname": name, "roleInOrg": "write"}
                    for name in user.organizations
                ],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}},
            }
        )

    def _namespace(self, user: _User | None, body: dict[str, Any]) -> tuple[_User, str, str]:
        """Who asks, the kind of a repository and its full name, of a request to create or delete one."""
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_type = body.get("type") or "model"
        if repo_type not in TYPES:
            raise Refusal(400, f'"type" must be one of [{", ".join(TYPES)}] on this server')
        return user, repo_type, f"{body.get('organization') or user.name}/{body['name']}"

    def _url(self, repo_type: str, name: str) -> str:
        return f"{self.endpoint}/{'' if repo_type == 'model' else TYPES[repo_type] + '/'}{name}"

    def _create(self, user: _User | None, body: dict[str, Any]) -> _Answer:
        user, repo_type, name = self._namespace(user, body)
        namespace, short = name.split("/", 1)
        if not NAME.fullmatch(short) or ".." in short or "--" in short or short.endswith(".git"):
            raise Refusal(400, f'"name" with value "{short}" is not a valid repository name')
        if not user.owns(namespace) or user.role != "write":
            raise Refusal(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')
        url = self._url(repo_type, name)
        with self._lock:
            repo = self._repository(repo_type, name)
            if repo.exists:
                raise Refusal(409, f"You already created this {repo_type} repo", url=url)
            private = body.get("visibility") == "private" or bool(body.get("private"))
            repo.update(private=private, gated=False, created=_now(), branches={}, tags={})
            text = "".join(f"{pattern} {LFS_ATTRIBUTES}\n" for pattern in LFS_PATTERNS)
            attributes = {".gitattributes": repo.add_blob(text.encode())}
            repo.add_commit(attributes, None, user.name, "initial commit", "", "main")
        return _json({"url": url, "name": name, "id": hashlib.sha1(url.encode()).hexdigest()[:24], "private": private})

    def _delete(self, user: _User | None, body: dict[str, Any]) -> _Answer:
        user, repo_type, name = self._namespace(user, body)
        repo = self._open(user, repo_type, name)
        if not user.owns(repo.namespace) or user.role != "write":
            raise Refusal(403, "Forbidden: you don't have the rights to delete this repository")
        with self._lock:
            shutil.rmtree(repo.folder)
        return _json({})

    def _move(self, user: _User | None, body: dict[str, Any]) -> _Answer:
        repo_type = body.get("type") or "model"
        repo = self._open(user, repo_type, body["fromRepo"], write=True)
        target = self._repository(repo_type, body["toRepo"])
        if user is None or not user.owns(target.namespace):
            raise Refusal(403, f'You don\'t have the rights to create a {repo_type} under "{target.namespace}"')
        with self._lock:
            if target.exists:
                raise Refusal(409, f"There is already a {repo_type} repository with this name")
            target.folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(repo.folder, target.folder)
        return _json({})

    def _validate_yaml(self, user: _User | None, body: dict[str, Any]) -> _Answer:
        errors, warnings = metadata_problems(body["content"])
        answer = {
            "errors": [{"message": text} for text in errors],
            "warnings": [{"message": text} for text in warnings],
        }
        if errors:
            return _json({"error": "Invalid metadata in README.md", **answer}, 400)
        return _json(answer)

    # ------------------------------------------------------------------ one repository

    def _answer_repository(
        self, call: _Handler, user: _User | None, repo_type: str, parts: list[str], query: dict[str, str]
    ) -> _Answer:
        name, rest = "/".join(parts[2:4]), parts[4:]
        action = (call.command, rest[0] if rest else "")
        writes = {
            ("POST", "commit"),
            ("POST", "preupload"),
            ("POST", "branch"),
            ("DELETE", "branch"),
            ("POST", "tag"),
            ("DELETE", "tag"),
            ("POST", "super-squash"),
            ("PUT", "settings"),
        }
        if query.get("create_pr") or action == ("POST", "discussions"):
            self._open(user, repo_type, name)
            raise Refusal(403, "Pull requests are not offered by this server: commit to a branch")
        repo = self._open(user, repo_type, name, write=action in writes or rest == ["auth-check", "write"])
        if "xet-" in action[1]:
            raise Refusal(404, "This server has no Xet storage: set HF_HUB_DISABLE_XET=1")
        revision = rest[1] if len(rest) > 1 else "main"
        if action == ("GET", "") or action == ("GET", "revision"):
            expand = parse_qs(urlsplit(call.path).query)
            return self._info(repo, revision, query, expand.get("expand", []) + expand.get("expand[]", []))
        if action == ("GET", "tree"):
            return self._tree(call, repo, revision, "/".join(rest[2:]).strip("/"), query)
        if action == ("POST", "paths-info"):
            return self._paths_info(call, repo, revision)
        if action == ("GET", "refs"):
            return self._refs(repo)
        if action == ("GET", "commits"):
            return self._commits(call, repo, revision, query)
        if action[1] == "auth-check":
            return _json({})
        if action in writes and user is not None:
            body = call.body()
            if action[1] == "commit":
                return self._commit(user, repo, revision, [json.loads(line) for line in body.splitlines() if line])
            data = json.loads(body or b"{}")
            if action[1] == "preupload":
                return self._preupload(repo, revision, data)
            if action[1] == "settings":
                return self._settings(repo, data)
            with self._lock:
                return getattr(self, f"_{call.command.lower()}_{action[1].replace('-', '_')}")(
                    user, repo, revision, data
                )
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _info(self, repo: _Repository, revision: str, query: dict[str, str], expand: list[str]) -> _Answer:
        sha = repo.resolve(revision)
        state, files = repo.state, repo.commit(sha)["files"]
        siblings = []
        for path, file in sorted(files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if query.get("blobs", "").lower() == "true":
                sibling |= {"blobId": file["oid"], "size": file["size"]}
                if "lfs" in file:
                    size = len(_pointer(file["lfs"], file["size"]))
                    sibling["lfs"] = {"sha256": file["lfs"], "size": file["size"], "pointerSize": size}
            siblings.append(sibling)
        card = self._card(repo, files)
        info: dict[str, Any] = {
            "_id": hashlib.sha1(repo.name.encode()).hexdigest()[:24],
            "id": repo.name,
            "author": repo.namespace,
            "sha": sha,
            "lastModified": state["modified"],
            "createdAt": state["created"],
            "private": state["private"],
            "gated": state["gated"],
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": self._tags(card),
            "cardData": card,
            "siblings": siblings,
            "usedStorage": sum(path.stat().st_size for path in (repo.folder / "lfs").glob("*")),
        }
        if repo.type == "model":
            info["modelId"] = repo.name
            info["library_name"] = card.get("library_name") or ("transformers" if "config.json" in files else None)
            info["pipeline_tag"] = card.get("pipeline_tag")
            info["model-index"] = card.get("model-index")
            if "config.json" in files:
                info["config"] = _loads(repo.text(files, "config.json"))
            info["safetensors"] = self._parameters(repo, files)
        if expand:
            info = {name: info.get(name) for name in ["_id", "id", *expand]}
        return _json(info)

    def _card(self, repo: _Repository, files: dict[str, Any]) -> dict[str, Any]:
        try:
            import yaml

            match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n?---", repo.text(files, "README.md"), re.DOTALL)
            card = yaml.safe_load(match.group(1)) if match else {}
        except (ImportError, ValueError):
            card = {}
        except yaml.YAMLError:
            card = {}
        return json.loads(json.dumps(card, default=str)) if isinstance(card, dict) else {}

    @staticmethod
    def _tags(card: dict[str, Any]) -> list[str]:
        tags: list[str] = []
        for name, prefix in (("tags", ""), ("language", ""), ("license", "license:"), ("datasets", "dataset:")):
            value = card.get(name) or []
            tags += [f"{prefix}{item}" for item in (value if isinstance(value, list) else [value])]
        return tags

    @staticmethod
    def _parameters(repo: _Repository, files: dict[str, Any]) -> dict[str, Any] | None:
        """Parameters by type, as the headers of the safetensors files tell."""
        counts: dict[str, int] = {}
        for path, file in files.items():
            if not re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", path):
                continue
            with repo.content(file).open("rb") as stream:
                start = stream.read(8)
                size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                header = _loads(stream.read(size).decode(errors="replace")) if size < file["size"] else {}
            for name, tensor in header.items():
                if name != "__metadata__":
                    number = 1
                    for length in tensor["shape"]:
                        number *= length
                    counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + number
        return {"parameters": counts, "total": sum(counts.values())} if counts else None

    def _entry(self, path: str, file: dict[str, Any]) -> dict[str, Any]:
        entry = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
        if "lfs" in file:
            size = len(_pointer(file["lfs"], file["size"]))
            entry["lfs"] = {"oid": file["lfs"], "size": file["size"], "pointerSize": size}
        return entry

    def _entries(self, files: dict[str, Any], folder: str) -> dict[str, dict[str, Any]]:
        """Files below a folder, and the folders in between."""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in files.items():
            if folder and not path.startswith(folder + "/"):
                continue
            entries[path] = self._entry(path, file)
            for parent in map(str, PurePosixPath(path).parents):
                if parent != "." and parent != folder and (not folder or parent.startswith(folder + "/")):
                    entries[parent] = self._folder(files, parent)
        return entries

    @staticmethod
    def _folder(files: dict[str, Any], path: str) -> dict[str, Any]:
        content = sorted((name, file["oid"]) for name, file in files.items() if name.startswith(path + "/"))
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path}

    def _expand(self, repo: _Repository, sha: str, entries: list[dict[str, Any]]) -> None:
        changes = repo.last_changes(sha, [entry["path"] for entry in entries])
        for entry in entries:
            entry["lastCommit"] = changes.get(entry["path"])
            if entry["type"] == "file":
                entry["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}

    def _tree(self, call: _Handler, repo: _Repository, revision: str, folder: str, query: dict[str, str]) -> _Answer:
        sha = repo.resolve(revision)
        files = repo.commit(sha)["files"]
        entries = self._entries(files, folder)
        if folder and not entries:
            raise Refusal(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        if query.get("recursive", "").lower() != "true":
            depth = len(PurePosixPath(folder).parts) if folder else 0
            entries = {path: entry for path, entry in entries.items() if len(PurePosixPath(path).parts) == depth + 1}
        items = [entries[path] for path in sorted(entries)]
        answer = self._page(call, items, query)
        if query.get("expand", "").lower() == "true":
            page = json.loads(answer.body)
            self._expand(repo, sha, page)
            answer.body = json.dumps(page).encode()
        return answer

    def _page(self, call: _Handler, items: list[dict[str, Any]], query: dict[str, str]) -> _Answer:
        size = min(int(query.get("limit") or self.page_size), self.page_size)
        start = int(query.get("cursor") or 0)
        answer = _json(items[start : start + size])
        if start + size < len(items):
            path = urlsplit(call.path).path
            more = urlencode({**query, "cursor": start + size})
            answer.headers["Link"] = f'<{self.endpoint}{path}?{more}>; rel="next"'
        return answer

    def _paths_info(self, call: _Handler, repo: _Repository, revision: str) -> _Answer:
        body = call.body().decode()
        if "json" in call.headers.get("Content-Type", ""):
            data = json.loads(body)
            paths, expand = data["paths"], bool(data.get("expand"))
        else:
            form = parse_qs(body)
            paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
        sha = repo.resolve(revision)
        files = repo.commit(sha)["files"]
        entries = []
        for path in (path.strip("/") for path in ([paths] if isinstance(paths, str) else paths)):
            if path in files:
                entries.append(self._entry(path, files[path]))
            elif any(name.startswith(path + "/") for name in files):
                entries.append(self._folder(files, path))
        if expand:
            self._expand(repo, sha, entries)
        return _json(entries)

    def _refs(self, repo: _Repository) -> _Answer:
        state = repo.state
        return _json(
            {
                "branches": [
                    {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                    for name, sha in state["branches"].items()
                ],
                "tags": [
                    {"name": name, "ref": f"refs/tags/{name}", "targetCommit": tag["commit"]}
                    for name, tag in state["tags"].items()
                ],
                "converts": [],
                "pullRequests": [],
            }
        )

    def _commits(self, call: _Handler, repo: _Repository, revision: str, query: dict[str, str]) -> _Answer:
        items = [
            {
                "id": sha,
                "title": commit["title"],
                "message": commit["message"],
                "authors": [{"user": commit["author"]}],
                "date": commit["date"],
            }
            for sha, commit in repo.history(repo.resolve(revision))
        ]
        return self._page(call, items, query)

    def _settings(self, repo: _Repository, data: dict[str, Any]) -> _Answer:
        with self._lock:
            if "visibility" in data or "private" in data:
                repo.update(private=data.get("visibility") == "private" or bool(data.get("private")))
            if "gated" in data:
                repo.update(gated=data["gated"])
        return _json(data)

    # These four and the next are called with the lock held.

    def _post_branch(self, user: _User, repo: _Repository, name: str, data: dict[str, Any]) -> _Answer:
        if (
            not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name)
            or ".." in name
            or name.startswith("refs/")
            or SHA.fullmatch(name)
        ):
            raise Refusal(400, f"Invalid reference name: {name}")
        branches = repo.state["branches"]
        if name in branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{name}")
        repo.update(branches={**branches, name: repo.resolve(data.get("startingPoint") or "main")})
        return _json({})

    def _delete_branch(self, user: _User, repo: _Repository, name: str, data: dict[str, Any]) -> _Answer:
        branches = repo.state["branches"]
        if name == "main":
            raise Refusal(403, "The main branch cannot be deleted")
        if branches.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        repo.update(branches=branches)
        return _json({})

    def _post_tag(self, user: _User, repo: _Repository, revision: str, data: dict[str, Any]) -> _Answer:
        tags = repo.state["tags"]
        if data["tag"] in tags:
            raise Refusal(409, f"Tag reference exists already: refs/tags/{data['tag']}")
        repo.update(tags={**tags, data["tag"]: {"commit": repo.resolve(revision), "message": data.get("message", "")}})
        return _json({})

    def _delete_tag(self, user: _User, repo: _Repository, name: str, data: dict[str, Any]) -> _Answer:
        tags = repo.state["tags"]
        if tags.pop(name, None) is None:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        repo.update(tags=tags)
        return _json({})

    def _post_super_squash(self, user: _User, repo: _Repository, branch: str, data: dict[str, Any]) -> _Answer:
        if branch not in repo.state["branches"]:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files = repo.commit(repo.resolve(branch))["files"]
        repo.add_commit(files, None, user.name, data.get("message") or "Super-squash branch", "", branch)
        return _json({})

    # ------------------------------------------------------------------ upload

    def _preupload(self, repo: _Repository, revision: str, data: dict[str, Any]) -> _Answer:
        files = repo.commit(repo.resolve(revision))["files"]
        patterns = repo.lfs_patterns(files)
        ignore = data["gitIgnore"] if "gitIgnore" in data else repo.text(files, ".gitignore")
        answers = []
        for file in data["files"]:
            path, size = file["path"], file["size"]
            by_lfs = (
                size >= self.lfs_size
                or any(_matches(pattern, path) for pattern in patterns)
                or _is_binary(base64.b64decode(file.get("sample") or ""))
            )
            known = files.get(path)
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if by_lfs and size else "regular",
                    "shouldIgnore": _is_ignored(path, ignore),
                    "oid": (known.get("lfs") or known["oid"]) if known else None,
                }
            )
        return _json({"files": answers, "commitOid": repo.resolve(revision)})

    def _batch(self, user: _User | None, repo: _Repository, data: dict[str, Any]) -> _Answer:
        upload = data.get("operation") == "upload"
        if upload:
            self._open(user, repo.type, repo.name, write=True)
        in_parts = False
        objects = []
        for wanted in data["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
            objects.append(answer)
            if not SHA256.fullmatch(oid):
                answer["error"] = {"code": 422, "message": "the object's name is not a SHA-256"}
                continue
            path = f"/lfs/{TYPES[repo.type]}/{repo.name}/{oid}"
            present = repo.object(oid).is_file()
            if not upload:
                if present:
                    answer["actions"] = {"download": {"href": self._signed(self.storage, path, "GET", filename=oid)}}
                else:
                    answer["error"] = {"code": 404, "message": "Object does not exist on the server"}
                continue
            if present:
                continue
            prefix = "" if repo.type == "model" else TYPES[repo.type] + "/"
            verify = {"href": f"{self.endpoint}/{prefix}{repo.name}.git/info/lfs/objects/verify"}
            if size > self.multipart_size and "multipart" in data.get("transfers", []):
                in_parts = True
                parts = -(-size // self.part_size)
                common = {"upload": uuid.uuid4().hex, "size": size}
                header = {
                    str(number): self._signed(self.storage, path, "PUT", **common, part=number, parts=parts)
                    for number in range(1, parts + 1)
                }
                where = {"repo": f"{TYPES[repo.type]}/{repo.name}", "oid": oid, "parts": parts, **common}
                href = self._signed(self.endpoint, "/api/complete_multipart", "POST", **where)
                action = {"href": href, "header": {"chunk_size": str(self.part_size), **header}}
            else:
                action = {"href": self._signed(self.storage, path, "PUT", size=size)}
            answer["actions"] = {"upload": action, "verify": verify}
        return _Answer(
            200,
            json.dumps({"transfer": "multipart" if in_parts else "basic", "objects": objects}).encode(),
            {"Content-Type": "application/vnd.git-lfs+json; charset=utf-8"},
        )

    def _verify(self, user: _User | None, repo: _Repository, data: dict[str, Any]) -> _Answer:
        self._open(user, repo.type, repo.name, write=True)
        path = repo.object(data["oid"])
        if not SHA256.fullmatch(data["oid"]) or not path.is_file() or path.stat().st_size != data["size"]:
            raise Refusal(404, "Object does not exist on the server")
        return _json({})

    def _answer_storage(self, call: _Handler, path: str, parts: list[str], query: dict[str, str]) -> _Answer:
        method = "GET" if call.command == "HEAD" else call.command
        if len(parts) != 5 or parts[0] != "lfs" or parts[1] not in TYPES.values() or method not in ("GET", "PUT"):
            raise Refusal(404, "NoSuchKey: the specified key does not exist.")
        self._check_signature(call, path, method)
        repo = self._repository(parts[1].removesuffix("s"), f"{parts[2]}/{parts[3]}")
        oid = parts[4]
        if method == "GET":
            if not repo.object(oid).is_file():
                raise Refusal(404, "NoSuchKey: the specified key does not exist.")
            headers = {
                "ETag": f'"{oid}"',
                "Content-Type": "application/octet-stream",
                "Content-Disposition": _disposition(query.get("filename", oid)),
            }
            return _Answer(headers=headers, file=repo.object(oid))
        folder = repo.folder / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        sha256, md5, size = hashlib.sha256(), hashlib.md5(), 0
        try:
            with os.fdopen(handle, "wb") as file:
                while data := call.read(CHUNK):
                    file.write(data)
                    sha256.update(data)
                    md5.update(data)
                    size += len(data)
            if "part" in query:
                number, expected = int(query["part"]), self.part_size
                if number == int(query["parts"]):
                    expected = int(query["size"]) - (number - 1) * self.part_size
                if size != expected:
                    raise Refusal(400, f"EntityTooSmall: part {number} must have {expected} bytes, got {size}")
                os.replace(name, folder / f"{query['upload']}.{number}")
            else:
                self._store(repo, oid, sha256.hexdigest(), size, int(query["size"]), Path(name))
        finally:
            Path(name).unlink(missing_ok=True)
        return _Answer(headers={"ETag": f'"{md5.hexdigest()}"'})

    def _store(self, repo: _Repository, oid: str, sha256: str, size: int, expected: int, path: Path) -> None:
        """Take an object in, if it is what was announced."""
        if sha256 != oid or size != expected:
            raise Refusal(400, f"BadDigest: {oid} of {expected} bytes was announced, {sha256} of {size} came")
        with self._lock:
            repo.object(oid).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, repo.object(oid))
            self.uploads.append((repo.name, oid))

    def _complete_parts(self, call: _Handler, path: str, query: dict[str, str]) -> _Answer:
        self._check_signature(call, path, "POST")
        body = json.loads(call.body())
        plural, name = query["repo"].split("/", 1)
        repo = self._repository(plural.removesuffix("s"), name)
        if repo.object(query["oid"]).is_file():
            return _json({})  # asked again: the first answer was lost
        numbers = range(1, int(query["parts"]) + 1)
        paths = [repo.folder / "incoming" / f"{query['upload']}.{number}" for number in numbers]
        told = {part["partNumber"]: part["etag"].strip('"') for part in body["parts"]}
        sha256, size = hashlib.sha256(), 0
        whole = repo.folder / "incoming" / query["upload"]
        with whole.open("wb") as file:
            for number, part in zip(numbers, paths):
                data = part.read_bytes() if part.is_file() else b""
                if not part.is_file() or told.get(number) != hashlib.md5(data).hexdigest():
                    raise Refusal(400, f"InvalidPart: part {number} was not found or its etag is another")
                sha256.update(data)
                size += len(data)
                file.write(data)
        self._store(repo, query["oid"], sha256.hexdigest(), size, int(query["size"]), whole)
        for part in paths:
            part.unlink()
        return _json({})

    def _commit(self, user: _User, repo: _Repository, revision: str, lines: list[dict[str, Any]]) -> _Answer:
        branch = revision.removeprefix("refs/heads/")
        header: dict[str, Any] = {}
        with self._lock:
            parent = repo.resolve(revision)
            if branch not in repo.state["branches"]:
                raise Refusal(400, f"A commit goes to a branch, and {revision} is none")
            files = dict(repo.commit(parent)["files"])
            by_lfs: list[str] = []
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    header = value
                    expected = value.get("parentCommit")
                    if expected and not parent.startswith(expected):
                        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
                    continue
                path = value["path"]
                if not path or path.startswith("/") or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
                    raise Refusal(400, f"Invalid path: {path}")
                if key == "file":
                    try:
                        data = base64.b64decode(value["content"], validate=True)
                    except binascii.Error as error:
                        raise Refusal(400, f"{path}: the content is not base64") from error
                    files[path] = repo.add_blob(data)
                elif key == "lfsFile":
                    stored = repo.object(value["oid"])
                    if not SHA256.fullmatch(value["oid"]) or not stored.is_file():
                        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
                    size = stored.stat().st_size
                    pointer = _blob_sha(_pointer(value["oid"], size))
                    files[path] = {"oid": pointer, "size": size, "lfs": value["oid"]}
                    by_lfs.append(path)
                elif key == "deletedFile":
                    if files.pop(path, None) is None:
                        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                elif key == "deletedFolder":
                    below = [name for name in files if name.startswith(path.rstrip("/") + "/")]
                    if not below:
                        raise Refusal(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
                    for name in below:
                        del files[name]
                else:
                    raise Refusal(
                        400, f'"key" must be one of [header, file, lfsFile, deletedFile, deletedFolder], got {key}'
                    )
            if not header.get("summary"):
                raise Refusal(400, '"summary" is not allowed to be empty')
            folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
            if clash := sorted(folders & set(files)):
                raise Refusal(400, f"{clash[0]} is a file and a folder")
            if "README.md" in files and "lfs" not in files["README.md"]:
                problems, _ = metadata_problems(repo.text(files, "README.md"))
                if problems:
                    raise Refusal(400, "Invalid metadata in README.md: " + "; ".join(problems))
            patterns = repo.lfs_patterns(files)
            new = [path for path in by_lfs if not any(path == known or _matches(known, path) for known in patterns)]
            if new:
                text = repo.text(files, ".gitattributes")
                text += "".join(f"{path.replace(' ', '[[:space:]]')} {LFS_ATTRIBUTES}\n" for path in new)
                files[".gitattributes"] = repo.add_blob(text.encode())
            sha = repo.add_commit(files, parent, user.name, header["summary"], header.get("description") or "", branch)
        url = f"{self._url(repo.type, repo.name)}/commit/{sha}"
        return _json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # ------------------------------------------------------------------ download

    def _resolve(self, user: _User | None, repo: _Repository, revision: str, path: str, *, raw: bool) -> _Answer:
        state = repo.state
        if state["gated"] and not (user and (user.owns(repo.namespace) or user.name in state.get("granted", []))):
            if user is None:
                raise Refusal(
                    401,
                    f"Access to {repo.type} {repo.name} is restricted. You must have access to it and be authenticated "
                    "to access it. Please log in.",
                    "GatedRepo",
                )
            raise Refusal(
                403,
                f"Access to {repo.type} {repo.name} is restricted and you are not in the authorized list. "
                f"Visit {self._url(repo.type, repo.name)} to ask for access.",
                "GatedRepo",
            )
        sha = repo.resolve(revision)
        file = repo.commit(sha)["files"].get(path)
        headers = {"X-Repo-Commit": sha}
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers["ETag"] = f'"{file["oid"]}"'
        headers["Content-Disposition"] = _disposition(PurePosixPath(path).name)
        if "lfs" not in file:
            return _Answer(headers={**headers, "Content-Type": "text/plain; charset=utf-8"}, file=repo.content(file))
        if raw:
            return _Answer(body=_pointer(file["lfs"], file["size"]), headers=headers)
        where = f"/lfs/{TYPES[repo.type]}/{repo.name}/{file['lfs']}"
        location = self._signed(self.storage, where, "GET", filename=PurePosixPath(path).name)
        return _Answer(
            302,
            f"Found. Redirecting to {location}".encode(),
            {
                **headers,
                "Location": location,
                "Accept-Ranges": "bytes",
                "X-Linked-Size": str(file["size"]),
                "X-Linked-ETag": f'"{file["lfs"]}"',
                "Content-Type": "text/plain; charset=utf-8",
            },
        )


_BAD_TOKEN = "Invalid credentials in Authorization header"


class _Sleepless:
    """The time module without its pauses."""

    def __getattr__(self, name: str) -> Any:
        return (lambda seconds: time.sleep(min(seconds, 0.01))) if name == "sleep" else getattr(time, name)


def _disposition(name: str) -> str:
    plain = name.encode("ascii", "replace").decode().replace('"', "'")
    return f"inline; filename*=UTF-8''{quote(name)}; filename=\"{plain}\";"


def _loads(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A local server that speaks the Hugging Face Hub's protocol.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the repositories")
    parser.add_argument("--port", type=int, default=0, help="port; 0 takes a free one (default)")
    parser.add_argument("--user", action="append", default=[], help="a user's name; once for each --token")
    parser.add_argument(
        "--token", action="append", default=[], help="a token that acts for the user of the same place"
    )
    arguments = parser.parse_args()
    if len(arguments.user) != len(arguments.token):
        parser.error(f"--user and --token go in pairs: got {len(arguments.user)} and {len(arguments.token)}")
    with HubServer(arguments.root, port=arguments.port) as server:
        for user, token in zip(arguments.user, arguments.token):
            server.add_user(user, token)
        print(server.endpoint, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
