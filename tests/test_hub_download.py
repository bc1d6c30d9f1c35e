"""Hub ids, with the real client against a small Hub on loopback that can do no more than these tests need."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from small_models import tiny_generator

from stylenat_hub.pipeline import GANPipeline

ROOT = Path(__file__).resolve().parent.parent
SHA = "a" * 40

# Runs in a process of its own, because the client reads its settings when it is imported.
CLIENT = """
import json, sys, torch
from stylenat_hub.pipeline import GANPipeline
def attempt(source, **kwargs):
    try:
        pipe = GANPipeline.from_pretrained(source, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]
    pipe.set_progress_bar_config(disable=True)
    return [pipe.model_name, pipe([3], output_type="pt").images.double().sum().item()]
print(json.dumps([attempt(source, **kwargs) for source, kwargs in json.loads(sys.argv[1])]))
"""


class Hub(BaseHTTPRequestHandler):
    """Read-only: repositories are folders below `root`; `fetched` collects the names of files whose bytes
    went out.
    """

    root: Path
    fetched: list[str]

    def log_message(self, *_args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts
        folder, action, rest = self.root / "/".join(parts[:2]), parts[2:3], parts[3:]
        if parts[1] == "gated":
            return self.refuse(403, "GatedRepo")
        if not folder.is_dir():
            return self.refuse(404, "RepoNotFound")
        if rest and rest[0] not in ("main", SHA):
            return self.refuse(404, "RevisionNotFound")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if action == ["tree"]:
            tree = [
                {
                    "type": "file",
                    "path": path.relative_to(folder).as_posix(),
                    "oid": oid(path),
                    "size": path.stat().st_size,
                }
                for path in files
            ]
            return self.send(json.dumps(tree).encode())
        if action == ["resolve"]:
            path = folder / "/".join(rest[1:])
            if not path.is_file():
                return self.refuse(404, "EntryNotFound")
            if self.command == "GET":
                self.fetched.append(path.relative_to(folder).as_posix())
            return self.send(path.read_bytes(), {"X-Repo-Commit": SHA, "ETag": f'"{oid(path)}"'})
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        about = {"id": "/".join(parts[:2]), "sha": SHA, "siblings": siblings, "private": False, "tags": []}
        return self.send(json.dumps(about).encode())

    def refuse(self, status, code):
        self.send(b"{}", {"X-Error-Code": code}, status)

    def send(self, body, headers=None, status=200):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def oid(path):
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def server(tmp_path):
    handler = type("Handler", (Hub,), {"root": tmp_path / "hub", "fetched": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield httpd
        httpd.shutdown()


def ask(tmp_path, endpoint, *attempts, **environment):
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **settings, **environment}
    line = [sys.executable, "-c", CLIENT, json.dumps(attempts)]
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_repositories(tmp_path, server):
    hub = tmp_path / "hub" / "org"
    pipe = GANPipeline(tiny_generator())
    pipe.save_pretrained(hub / "pipeline")
    pipe.generator.save_pretrained(hub / "bare")
    pipe.to(torch.bfloat16).save_pretrained(hub / "pipeline", variant="bf16")
    (hub / "pipeline" / "discriminator").mkdir()
    (hub / "pipeline" / "discriminator" / "diffusion_pytorch_model.safetensors").write_bytes(b"not needed")
    url = f"http://127.0.0.1:{server.server_port}"
    picture = GANPipeline(tiny_generator())([3], output_type="pt").images.double().sum().item()

    first = ask(
        tmp_path,
        url,
        ("org/bare", {"local_files_only": True}),
        ("org/pipeline", {}),
        ("org/bare", {}),
        ("org/pipeline", {"local_files_only": True}),
        ("org/pipeline", {"variant": "fp8"}),
        ("org/pipeline", {"revision": "v9"}),
        ("org/absent", {}),
        ("org/gated", {}),
        ("org/bare", {"local_files_only": True, "variant": "bf16"}),
    )
    kind, message = first.pop(0)
    assert kind == "UnknownModelError" and "local_files_only" in message
    assert first[:3] == [["org/pipeline", picture], ["org/bare", picture], ["org/pipeline", picture]]
    needed = ["config.json", "diffusion_pytorch_model.safetensors"]
    expected = sorted([*(f"generator/{name}" for name in needed), "model_index.json", *needed])
    assert sorted(server.RequestHandlerClass.fetched) == expected  # no other variant, no discriminator
    says = [
        ("WeightsError", "no variant 'fp8'", "variant='bf16'"),
        ("UnknownModelError", "no revision 'v9'"),
        ("UnknownModelError", "no repository of that name"),
        ("UnknownModelError", "is gated"),
        ("WeightsError", "no variant 'bf16'"),
    ]
    for (kind, message), (expected_kind, *words) in zip(first[3:], says, strict=True):
        assert kind == expected_kind and all(word in message for word in words), message

    offline = ask(tmp_path, url, ("org/pipeline", {}), ("org/other", {}), HF_HUB_OFFLINE="1")
    assert offline[0] == ["org/pipeline", picture]
    assert offline[1][0] == "UnknownModelError" and "HF_HUB_OFFLINE" in offline[1][1]
    server.shutdown()
    server.server_close()
    unreachable = ask(tmp_path, url, ("org/other", {}), ("org/pipeline", {}))
    assert unreachable[0][0] == "UnknownModelError" and "check the network" in unreachable[0][1]
    assert unreachable[1] == ["org/pipeline", picture]
