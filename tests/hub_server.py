"""A small Hugging Face Hub on loopback, in memory: the real client uploads to it and downloads from it.

    with HubServer() as hub:
        hub.add_repo("org/model", {"config.json": b"{}"})
        subprocess.run(command, env=hub.environment(tmp_path / "home", token="hf_me"))

`python tests/hub_server.py` runs one to try things by hand. hub_faults.py says what can be made to go wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub_api import answer
from hub_calls import Answer, Call
from hub_faults import Fault
from hub_store import Blob, Commit, HubError, Repo, stored_in_lfs


class Request(NamedTuple):
    method: str
    path: str  # with the query
    status: int  # 0: the connection was closed without an answer
    user: str | None
    range: str | None  # the Range header


class HubServer:
    """Starts on entering and stops on leaving; what it holds can be looked at after that, too."""

    def __init__(self, port: int = 0):
        self.port = port
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        self.repos: dict[tuple[str, str], Repo] = {}  # by type and lower-case id
        self.objects: dict[str, Blob] = {}  # LFS objects by sha256
        self.promised: dict[str, int] = {}  # sizes of the objects that may be uploaded
        self.users: dict[str, str] = {}  # token -> name
        self.readers: set[str] = set()  # tokens that may not write
        self.organizations: dict[str, set[str]] = {}  # name -> its organisations
        self.faults: list[Fault] = []
        self.stopping = threading.Event()
        self.httpd: _Server | None = None
        self.add_user("me", "hf_me", ["org"])
        self.add_user("other", "hf_other")

    def __enter__(self) -> HubServer:
        self.stopping.clear()
        self.httpd = _Server(("127.0.0.1", self.port), self)
        self.port = self.httpd.server_address[1]
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_exception):
        self.stopping.set()
        self.httpd.shutdown()
        self.httpd.close_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_user(self, name: str, token: str, organizations: Iterable[str] = (), *, role: str = "write"):
        """Another token of a user adds to the organisations; `role` "read" makes one that cannot write."""
        with self.lock:
            self.users[token] = name
            self.organizations.setdefault(name, set()).update(organizations)
            (self.readers.add if role == "read" else self.readers.discard)(token)

    def repo(self, repo_id: str, type: str = "model") -> Repo:
        """A repository, whoever may see it; KeyError if there is none."""
        return self.repos[type, repo_id.lower()]

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | Path,
        *,
        type: str = "model",
        private: bool = False,
        message: str = "Add files",
    ) -> str:
        """Put a commit with exactly these files on main, of a new repository if need be; returns its sha."""
        if not isinstance(files, Mapping):
            found = sorted(path for path in Path(files).rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        with self.lock:
            repo = self.repos.get((type, repo_id.lower()))
            if repo is None:
                sdk = "gradio" if type == "space" else None
                repo = self.repos[type, repo_id.lower()] = Repo(repo_id, type, private, sdk)
            blobs = {}
            for path, content in files.items():
                lfs = stored_in_lfs(path, len(content), content[:512], files.get(".gitattributes"))
                blobs[path] = Blob(bytes(content), lfs)
                if lfs:
                    self.objects[blobs[path].sha256] = blobs[path]
            commit = repo.add(blobs, message, "", repo.namespace, repo.branches.get("main"))
            repo.branches["main"] = commit.sha
            return commit.sha

    def gate(self, repo_id: str, allowed: Iterable[str] = (), type: str = "model"):
        """Give the files to its owners and the allowed users only; anyone still sees that it exists."""
        with self.lock:
            repo = self.repo(repo_id, type)
            repo.gated, repo.allowed = "auto", set(allowed)

    def files(self, repo_id: str, revision: str = "main", type: str = "model") -> dict[str, bytes]:
        with self.lock:
            return self.repo(repo_id, type).commit(revision).files

    def commits(self, repo_id: str, revision: str = "main", type: str = "model") -> list[Commit]:
        """Oldest first. A repository that the client created begins with the Hub's own .gitattributes."""
        with self.lock:
            return self.repo(repo_id, type).log(revision)

    def fail(
        self, kind: str, *, method: str | None = None, path: str = ".*", times: int | None = 1, **details
    ) -> Fault:
        """Spoil the next `times` requests whose method and path (a regular expression) match; see Fault."""
        fault = Fault(kind, method, path, times, details)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear(self):
        """Forget everything but the users."""
        with self.lock:
            for kept in (self.requests, self.repos, self.objects, self.promised, self.faults):
                kept.clear()

    def clear_faults(self):
        with self.lock:
            self.faults.clear()

    def environment(self, home: str | Path, token: str | None = None, **more: str) -> dict[str, str]:
        """The whole environment of a process that shall talk to this Hub, without this one's own settings."""
        prefixes = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return {**kept, **settings, **({"HF_TOKEN": token} if token else {}), **more}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], hub: HubServer):
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self):
        """Without HTTPServer's look-up of the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def close_all(self):
        """Also the connections that clients keep alive: otherwise they would be answered after the end."""
        self.server_close()
        for connection in list(self.connections):
            _close(connection)


def _close(connection: socket.socket):
    with suppress(OSError):  # the client was faster
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one packet
    server: _Server

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self):
        self.server.connections.discard(self.connection)
        with suppress(OSError):  # nobody is left to read
            super().finish()

    def log_message(self, *_args):
        pass

    def do_GET(self):
        hub, self.user, self.closed = self.server.hub, None, False
        try:
            with hub.lock:
                fault = next((f for f in hub.faults if f.take(self.command, self.path)), None)
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                self.user = hub.users.get(token)
            if fault and fault.kind == "slow":
                hub.stopping.wait(fault.details.get("seconds", 0))
            body = self.read(fault)
            if self.closed:
                return
            if fault and fault.status:
                reply = Answer.of(HubError(fault.status, "A fault was ordered"))
                reply.headers.update(fault.headers)
            else:
                reply = self.carry_out(hub, token, body)
            self.send(reply, fault)
        except OSError:
            self.close_connection = True  # the client went away

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def carry_out(self, hub: HubServer, token: str, body: bytes) -> Answer:
        path, _, query = self.path.partition("?")
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        call = Call(hub, self.command, parts, parse_qs(query), self.headers, body, token, self.user)
        with hub.lock:
            return answer(call)

    def read(self, fault: Fault | None) -> bytes:
        """The body of the request; part of it, and then the end, if that is the fault."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            if fault and fault.kind == "cut":
                self.hang_up()
            return body
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.kind == "cut" and self.command not in ("GET", "HEAD"):
            self.rfile.read(fault.part(length))
            self.hang_up()
            return b""
        return self.rfile.read(length)

    def send(self, reply: Answer, fault: Fault | None):
        if fault and (fault.kind == "lost" or (fault.kind == "cut" and self.command == "HEAD")):
            return self.hang_up()
        whole = reply.body
        body = fault.spoil(whole) if fault and self.command == "GET" else whole
        promised = len(body) if fault and fault.kind == "short" else len(whole)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(promised), **reply.headers}.items():
            self.send_header(name, value)
        self.note(reply.status)  # before the client can know, so that a test that looks sees it
        self.end_headers()
        if self.command != "HEAD":
            self.write(body, fault)
        self.wfile.flush()
        if len(body) < promised and self.command != "HEAD":
            self.hang_up(noted=True)

    def write(self, body: bytes, fault: Fault | None):
        """In one go, or in drops with pauses."""
        pause = fault.details.get("per_chunk", 0) if fault and fault.kind == "slow" else 0
        step = fault.details.get("chunk", max(1, len(body) // 8)) if pause else max(1, len(body))
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if pause:
                self.wfile.flush()
                self.server.hub.stopping.wait(pause)

    def note(self, status: int):
        with self.server.hub.lock:
            given = Request(self.command, self.path, status, self.user, self.headers.get("Range"))
            self.server.hub.requests.append(given)

    def hang_up(self, noted: bool = False):
        if not noted:
            self.note(0)
        self.closed = self.close_connection = True
        _close(self.connection)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Run a Hugging Face Hub in memory until it is interrupted.")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    port = parser.parse_args(arguments).port
    with tempfile.TemporaryDirectory(prefix="hub-home-") as home, HubServer(port) as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": home, "HF_TOKEN": "hf_me"}
        print(*(f"export {name}={value}" for name, value in settings.items()), sep="\n", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes, too
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
