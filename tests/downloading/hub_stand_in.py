"""A small server on 127.0.0.1 that speaks the protocols of both hubs, and can misbehave on command."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LISTING = "(listing)"  # the path under which faults of the file lists are filed


@dataclass(frozen=True)
class Fault:
    """What happens to one request: a status, a cut after so many bytes, a stall, a redirect, or other content."""

    status: int = 0
    retry_after: str = ""
    cut_after: int | None = None
    stall: bool = False
    redirect: str = ""
    body: bytes | None = None
    ignore_range: bool = False
    wrong_range: bool = False
    extra: bytes = b""
    no_length: bool = False


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubStandIn:
    """repos: content by repository and path. faults: by path, each used once, in order; always: on every request."""

    repos: dict[str, dict[str, bytes]]
    in_lfs: frozenset[str] = frozenset()
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    always: dict[str, Fault] = field(default_factory=dict)
    listed_as: dict[str, str] = field(default_factory=dict)  # other names in the listing, by path
    wrong_hash: set[str] = field(default_factory=set)
    without_hash: set[str] = field(default_factory=set)
    page_size: int = 1000
    next_pages_at: str = ""  # another address than this server's
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def asked_for(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def fault(self, path: str) -> Fault:
        return self.faults[path].pop(0) if self.faults[path] else self.always.get(path, Fault())

    def digest(self, path: str, content: bytes, algorithm: str) -> str:
        salt = b"something else" if path in self.wrong_hash else b""
        if algorithm == "sha1":
            content = b"blob %d\0" % len(content) + content
        return hashlib.new(algorithm, content + salt).hexdigest()

    def hugging_face_listing(self, repo: str) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"}]
        for path, content in self.repos[repo].items():
            entry: dict[str, object] = {
                "type": "file",
                "oid": self.digest(path, content, "sha1"),
                "size": len(content),
                "path": self.listed_as.get(path, path),
            }
            if path in self.in_lfs:
                sha256 = self.digest(path, content, "sha256")
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def modelscope_listing(self, repo: str) -> dict[str, object]:
        files: list[dict[str, object]] = [{"Path": "folder", "Size": 0, "Sha256": "", "Type": "tree"}]
        files += [
            {
                "Path": self.listed_as.get(path, path),
                "Size": len(content),
                "Sha256": None if path in self.without_hash else self.digest(path, content, "sha256"),
                "Type": "blob",
            }
            for path, content in self.repos[repo].items()
        ]
        return {"Code": 200, "Success": True, "Data": {"Files": files}}


def _handler(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            url = urlsplit(self.path)  # also an absolute address, as a proxy is asked
            path, query = unquote(url.path), parse_qs(url.query)
            if path.startswith("/api/models/"):
                repo = path.removeprefix("/api/models/").split("/tree/")[0]
                self.list_hugging_face(repo, int(query.get("cursor", ["0"])[0]))
            elif path.endswith("/repo/files"):
                repo = path.removeprefix("/api/v1/models/").removesuffix("/repo/files")
                self.list_modelscope(repo)
            elif path.startswith("/api/v1/models/"):
                repo = path.removeprefix("/api/v1/models/").removesuffix("/repo")
                self.send_file(repo, query["FilePath"][0])
            elif "/resolve/" in path:
                repo, _, rest = path.removeprefix("/").partition("/resolve/")
                self.send_file(repo, rest.partition("/")[2])
            else:
                self.answer(404, b"")

        def list_hugging_face(self, repo: str, start: int) -> None:
            fault = self.begin(LISTING)
            if fault is None:
                return None
            if repo not in hub.repos:
                return self.answer(401, b"Repository not found")
            entries = hub.hugging_face_listing(repo)
            page = entries[start : start + hub.page_size]
            headers = {}
            if start + hub.page_size < len(entries):
                base = hub.next_pages_at or hub.url
                address = f"{base}/api/models/{repo}/tree/main?recursive=true&cursor={start + hub.page_size}"
                headers["Link"] = f'<{address}>; rel="next"'
            return self.answer(200, json.dumps(page).encode() if fault.body is None else fault.body, headers)

        def list_modelscope(self, repo: str) -> None:
            fault = self.begin(LISTING)
            if fault is None:
                return None
            if repo not in hub.repos:
                return self.answer(404, b"{}")
            body = json.dumps(hub.modelscope_listing(repo)).encode()
            return self.answer(200, body if fault.body is None else fault.body)

        def begin(self, path: str) -> Fault | None:
            """Note the request; answer it here, returning None, when its fault is one of the status line."""
            hub.requests.append(Request(path, self.headers["Range"], self.headers["Authorization"]))
            fault = hub.fault(path)
            if fault.status:
                self.answer(fault.status, b"", {"Retry-After": fault.retry_after} if fault.retry_after else {})
            elif fault.redirect:
                self.answer(302, b"", {"Location": fault.redirect})
            else:
                return fault
            return None

        def send_file(self, repo: str, path: str) -> None:
            fault = self.begin(path)
            if fault is None:
                return None
            if path not in hub.repos.get(repo, {}):
                return self.answer(404, b"")
            content = (hub.repos[repo][path] if fault.body is None else fault.body) + fault.extra
            headers, status, start = {}, 200, 0
            if self.headers["Range"] and not fault.ignore_range:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    return self.answer(416, b"")
                told = start + 1 if fault.wrong_range else start
                status, headers = 206, {"Content-Range": f"bytes {told}-{len(content) - 1}/{len(content)}"}
            return self.answer(status, content[start:], headers, fault)

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
        ) -> None:
            fault = fault or Fault()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if not fault.no_length:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body if fault.cut_after is None else body[: fault.cut_after])
            self.wfile.flush()
            if fault.stall:
                hub.released.wait(10)

    return Handler


@contextmanager
def serve(hub: HubStandIn) -> Iterator[HubStandIn]:
    """Serve the hub while the block runs; its address is in ``hub.url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
