"""A small server on loopback that answers like the Hugging Face hub: commits, file trees, files with ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_API = re.compile(r"/api/(datasets|models)/(?P<name>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^?]+)")
_FILE = re.compile(r"/(?:datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>[^?]+)")


class Hub:
    """Repositories by name and revision: {path: bytes}; `fetched` lists every file that was sent."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.fetched: list[str] = []
        self.cut_after: int | None = None  # bytes after which the next file's connection breaks
        self.wrong: dict[str, bytes] = {}  # what is sent instead of a file
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], revision: str = "main") -> str:
        """Put a repository there; returns the commit of its revision."""
        commit = hashlib.sha1(json.dumps([name, revision, sorted(files)]).encode()).hexdigest()
        self.repositories[name, revision] = self.repositories[name, commit] = files
        return commit

    def commit_of(self, name: str, revision: str) -> str | None:
        """The commit of a revision, or None."""
        files = self.repositories.get((name, revision))
        found = [r for (n, r), f in self.repositories.items() if n == name and f is files and len(r) == 40]
        return found[0] if files is not None else None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(path: str, data: bytes) -> dict:
    """A file of a tree: Parquet through large-file storage, everything else as a plain git object."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    described = {"type": "file", "path": path, "size": len(data), "oid": git}
    if path.endswith(".parquet"):
        described["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return described


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub that the server sets."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer(send=True)

    def do_HEAD(self):
        self.answer(send=False)

    def answer(self, send):
        path = self.path.replace("%2F", "/")
        if match := _API.match(path):
            self.api(match)
        elif match := _FILE.match(path):
            self.file(match, send)
        else:
            self.refuse()

    def api(self, match):
        name, revision = match["name"], match["revision"]
        commit = self.hub.commit_of(name, revision)
        if commit is None:
            self.refuse("RevisionNotFound" if any(n == name for n, _ in self.hub.repositories) else "RepoNotFound")
        elif match["what"] == "revision":
            self.document({"id": name, "sha": commit, "siblings": [], "private": False, "tags": []})
        else:
            files = self.hub.repositories[name, revision]
            self.document([entry(path, data) for path, data in sorted(files.items())])

    def file(self, match, send):
        commit = self.hub.commit_of(match["name"], match["revision"])
        files = self.hub.repositories.get((match["name"], match["revision"]), {})
        if commit is None or match["path"] not in files:
            self.refuse("EntryNotFound")
            return
        described = entry(match["path"], files[match["path"]])
        data = self.hub.wrong.get(match["path"], files[match["path"]])
        begin = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{described.get("lfs", described)["oid"]}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if send:
            self.hub.fetched.append(match["path"] + (f" from {begin}" if begin else ""))
            if self.hub.cut_after is not None:
                data, self.hub.cut_after = data[: begin + self.hub.cut_after], None
                self.close_connection = True
            self.wfile.write(data[begin:])

    def document(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code="RepoNotFound"):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code}: nothing here")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub of its own, at `hub.url` while the block runs."""
    hub = Hub()

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
