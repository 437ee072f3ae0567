"""A hub on this machine that speaks the protocols of Hugging Face and ModelScope over a folder of repositories."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".ckpt")
PIECE = 1 << 14


@dataclass
class Fault:
    """What goes wrong with requests whose path ends with `path`, so often.

    Attributes:
        status: answered instead; with `headers` and `content`.
        cut: the connection ends after so many bytes of a body.
        corrupt: the first byte of a body is another one.
        whole: the range that was asked for is ignored.
        stall: seconds of silence before a body.
    """

    path: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b"{}"
    cut: int | None = None
    corrupt: bool = False
    whole: bool = False
    stall: float = 0.0
    method: str = "GET"


@dataclass(frozen=True)
class Request:
    """What a client asked for; `file` as ModelScope's clients name it, in the query."""

    method: str
    path: str
    headers: Mapping[str, str]
    file: str | None = None


class Hub(ThreadingHTTPServer):
    """Serves `<root>/<org>/<name>`.

    Large files are redirected to `storage`, another server on another host, as both hubs do.

    Attributes:
        log: every request.
        sent: bytes of file contents that were sent, by file name.
        tokens: model id -> the token that may read it.
        open_listings: models are listed without a token too, as gated ones are.
        largest: a longer body is refused, whatever file it is of.
        extra: names that listings add, with sizes: files that are not there.
        pause: seconds between two pieces of a body, but not of the files in `hurried`.
    """

    daemon_threads = True

    def __init__(self, root: Path, storage: Hub | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.storage = storage
        self.log: list[Request] = []
        self.sent: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.tokens: dict[str, str] = {}
        self.open_listings = False
        self.largest: int | None = None
        self.extra: dict[str, int] = {}
        self.pause = 0.0
        self.hurried: set[str] = set()
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {
            request.file or request.path.split(f"/{COMMIT}/")[-1]
            for request in self.log
            if request.method == "GET" and (request.file is not None or "/resolve/" in request.path)
        }

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and path.endswith(fault.path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, name: str, nbytes: int) -> None:
        with self.lock:
            self.sent[name] = self.sent.get(name, 0) + nbytes


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Run a hub and its storage in threads."""
    with ExitStack() as running:
        storage = Hub(root)
        hub = Hub(root, storage)
        for server in (storage, hub):
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            running.callback(thread.join)
            running.callback(server.server_close)
            running.callback(server.shutdown)
        yield hub


def digest_of(file: Path) -> str:
    """The sha256 of a large file, git's sha1 of another."""
    content = file.read_bytes()
    if file.name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client is gone; some tests kill it

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.server.lock:
            self.server.log.append(
                Request(
                    self.command,
                    path,
                    {name.title(): value for name, value in self.headers.items()},
                    query.get("FilePath"),
                )
            )
        parts = path.strip("/").split("/")
        self._fault = self.server.fault_for(self.command, query.get("FilePath", path))
        if self._fault is not None and self._fault.status is not None:
            self._send(self._fault.content, self._fault.headers, self._fault.status)
        elif parts[0] == "storage":
            self._content(self.server.root / "/".join(parts[1:]), {})
        elif parts == ["openapi", "v1", "models"]:
            self._json({"data": {"models": self._models(query.get("owner", ""))}, "success": True})
        elif parts[:3] == ["api", "v1", "models"]:
            self._modelscope("/".join(parts[3:5]), parts[5:], query)
        elif parts == ["api", "models"]:
            self._json(self._models(query.get("author", "")))
        elif parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse("EntryNotFound")

    def _files(self, model_id: str) -> dict[str, Path]:
        folder = self.server.root / model_id
        return {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}

    def _may_read(self, model_id: str) -> bool:
        token = self.server.tokens.get(model_id)
        return token is None or self.headers.get("Authorization") == f"Bearer {token}"

    def _models(self, author: str) -> list[dict[str, str]]:
        return [{"id": f"{author}/{folder.name}"} for folder in sorted((self.server.root / author).glob("*"))]

    def _describe(self, model_id: str, rest: list[str]) -> None:
        if not (self.server.root / model_id).is_dir():
            return self._refuse("RepoNotFound")
        if not self.server.open_listings and not self._may_read(model_id):
            return self._refuse("GatedRepo", 403)
        if rest == ["refs"]:
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}]
            return self._json({"branches": branches, "tags": [], "converts": []})
        if rest and rest[1] not in ("main", COMMIT):
            return self._refuse("RevisionNotFound")
        files = self._files(model_id)
        if rest[:1] == ["tree"]:
            entries: list[object] = [{"type": "directory", "path": "vae", "oid": COMMIT}]
            for name, file in files.items():
                entry = {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest_of(file)}
                if name.endswith(LARGE):
                    entry["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": 134}
                    entry["oid"] = "0" * 40
                entries.append(entry)
            entries += [
                {"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in self.server.extra.items()
            ]
            return self._json(entries)
        return self._json(
            {"id": model_id, "modelId": model_id, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        )

    def _resolve(self, model_id: str, revision: str, name: str) -> None:
        file = self.server.root / model_id / name
        if not self._may_read(model_id):
            return self._refuse("GatedRepo", 403 if "Authorization" in self.headers else 401)
        if not file.is_file() or revision not in ("main", COMMIT):
            return self._refuse("EntryNotFound")
        headers = {"ETag": f'"{digest_of(file)}"', "X-Repo-Commit": COMMIT}
        if not name.endswith(LARGE):
            return self._content(file, headers)
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(file.stat().st_size)}
        return self._redirect(f"{model_id}/{name}", headers)

    def _modelscope(self, model_id: str, rest: list[str], query: Mapping[str, str]) -> None:
        files = self._files(model_id)
        if not files or query.get("Revision", "master") != "master":
            return self._json({"Code": 10010205001, "Message": "not found", "Success": False}, 404)
        if not self._may_read(model_id):
            return self._json({"Code": 10010205003, "Message": "forbidden", "Success": False}, 403)
        if rest == ["repo", "files"]:
            entries = [
                {"Path": name, "Name": file.name, "Type": "blob", "Size": file.stat().st_size}
                | {"Sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
                for name, file in files.items()
            ]
            entries += [
                {"Path": name, "Name": name, "Type": "blob", "Size": size} for name, size in self.server.extra.items()
            ]
            return self._json({"Code": 200, "Data": {"Files": entries}, "Success": True})
        if rest == ["repo"] and query.get("FilePath") in files:
            if query["FilePath"].endswith(LARGE):
                return self._redirect(f"{model_id}/{query['FilePath']}", {})
            return self._content(files[query["FilePath"]], {})
        return self._json({"Code": 200, "Data": {"Id": 1}, "Success": True})

    def _redirect(self, place: str, headers: Mapping[str, str]) -> None:
        assert self.server.storage is not None
        storage = f"http://localhost:{self.server.storage.server_port}/storage"
        self._send(b"", {**headers, "Location": f"{storage}/{quote(place)}"}, 302)

    def _content(self, file: Path, headers: Mapping[str, str]) -> None:
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, headers = 200, {**headers, "Accept-Ranges": "bytes"}
        if asked is not None and not (self._fault is not None and self._fault.whole):
            start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(content), len(content))
            if start >= end:
                return self._send(b"", {"Content-Range": f"bytes */{len(content)}"}, 416)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            content, status = content[start:end], 206
        if self.server.largest is not None and len(content) > self.server.largest:
            return self._send(b"", {}, 400)
        self._send(content, headers, status, file.name)
        return None

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, content: bytes, headers: Mapping[str, str], status: int = 200, name: str | None = None) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "GET":
            return
        if name is None:
            self.wfile.write(content)
            return
        fault = self._fault or Fault("")
        time.sleep(fault.stall)
        if fault.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        for start in range(0, len(content if fault.cut is None else content[: fault.cut]), PIECE):
            end = min(start + PIECE, len(content), len(content) if fault.cut is None else fault.cut)
            self.wfile.write(content[start:end])
            self.server.count(name, end - start)
            if name not in self.server.hurried:
                time.sleep(self.server.pause)
        self.close_connection = fault.cut is not None

    def _refuse(self, code: str, status: int = 404) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)
