"""The Hub of the tests, through the real client: what the other tests build on has to be right."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = bytes(range(256)) * 40
CARD = """---
library_name: diffusers
license: mit
pipeline_tag: unconditional-image-generation
tags: [gan]
datasets: [org/faces]
---
# A model
"""


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read at each call
    with HubServer() as hub:
        yield hub


@pytest.fixture
def me(hub):
    return HfApi(endpoint=hub.url, token="hf_me")


@pytest.fixture
def other(hub):
    return HfApi(endpoint=hub.url, token="hf_other")


@pytest.fixture
def nobody(hub):
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def get(hub, tmp_path):
    """hf_hub_download of a file's bytes into a cache of the test's own."""

    def get(repo_id, filename, token="hf_me", **more):
        more = {"cache_dir": tmp_path / "cache", "endpoint": hub.url, "token": token, **more}
        return Path(hf_hub_download(repo_id, filename, **more)).read_bytes()

    return get


def status(error, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return caught.value.response.status_code


def test_create_and_delete(hub, me, other, nobody):
    assert me.whoami()["name"] == "me" and [o["name"] for o in me.whoami()["orgs"]] == ["org"]
    assert me.create_repo("org/model").repo_id == "org/model"
    assert me.create_repo("mine").repo_id == "me/mine"
    assert hub.files("org/model").keys() == {".gitattributes"}
    assert status(HfHubHTTPError, me.create_repo, "org/model") == 409
    assert me.create_repo("org/model", exist_ok=True).repo_id == "org/model"
    assert me.create_repo("org/data", repo_type="dataset", private=True).repo_type == "dataset"
    assert me.dataset_info("org/data").private and hub.repo("org/data", "dataset").private
    assert status(HfHubHTTPError, other.create_repo, "org/theirs") == 403
    assert status(HfHubHTTPError, nobody.create_repo, "org/theirs") == 401
    stranger = HfApi(endpoint=hub.url, token="hf_wrong")
    assert status(HfHubHTTPError, stranger.create_repo, "org/theirs") == 401
    assert status(HfHubHTTPError, stranger.model_info, "org/model") == 401  # although it is public
    hub.add_user("me", "hf_me_read", role="read")
    reader = HfApi(endpoint=hub.url, token="hf_me_read")
    assert reader.model_info("org/model").id == "org/model"
    assert status(HfHubHTTPError, reader.create_repo, "org/theirs") == 403
    assert me.repo_exists("org/model") and not me.repo_exists("org/theirs")
    assert [m.id for m in me.list_models(author="org")] == ["org/model"]
    assert status(HfHubHTTPError, other.delete_repo, "org/model") == 403
    me.delete_repo("org/model")
    assert status(RepositoryNotFoundError, me.delete_repo, "org/model") == 404
    me.delete_repo("org/model", missing_ok=True)


def test_private_and_gated(hub, me, other, nobody, get, tmp_path):
    hub.add_repo("org/model", {"a.txt": b"a"}, private=True)
    assert me.model_info("org/model").private and get("org/model", "a.txt") == b"a"
    assert status(RepositoryNotFoundError, nobody.model_info, "org/model") == 401
    assert status(RepositoryNotFoundError, other.model_info, "org/model") == 404
    assert status(RepositoryNotFoundError, get, "org/model", "a.txt", False, cache_dir=tmp_path) == 401
    me.auth_check("org/model")
    with pytest.raises(RepositoryNotFoundError):
        other.auth_check("org/model")
    assert not list(other.list_models(author="org"))
    me.update_repo_settings("org/model", private=False)
    assert other.model_info("org/model").private is False
    hub.gate("org/model")
    assert other.model_info("org/model").gated == "auto" and other.repo_exists("org/model")
    assert status(GatedRepoError, get, "org/model", "a.txt", "hf_other", cache_dir=tmp_path) == 403
    assert status(GatedRepoError, get, "org/model", "a.txt", False, cache_dir=tmp_path) == 401
    assert status(GatedRepoError, other.auth_check, "org/model") == 403
    hub.gate("org/model", allowed=["other"])
    assert get("org/model", "a.txt", "hf_other", force_download=True) == b"a"


def test_upload_folder(hub, me, tmp_path):
    me.create_repo("org/model")
    folder = tmp_path / "folder"
    (folder / "generator").mkdir(parents=True)
    files = {
        "README.md": CARD.encode(),
        "generator/diffusion_pytorch_model.safetensors": WEIGHTS,
        "generator/config.json": b"{}",
        "picture.png": b"\x89PNG\0" + WEIGHTS,
        "dot.png": b"\x89PNG\0",
        "empty.bin": b"",
    }
    for path, content in files.items():
        (folder / path).write_bytes(content)
    done = me.upload_folder(
        repo_id="org/model", folder_path=folder, commit_message="First", commit_description="All of it"
    )
    assert {k: v for k, v in hub.files("org/model").items() if k != ".gitattributes"} == files
    last = hub.commits("org/model")[-1]
    assert (last.title, last.description, last.author, last.sha) == ("First", "All of it", "me", done.oid)
    assert done.commit_url == f"{hub.url}/org/model/commit/{done.oid}"
    in_lfs = {path for path, blob in last.blobs.items() if blob.lfs}
    assert in_lfs == {"generator/diffusion_pytorch_model.safetensors", "picture.png"}
    assert len([r for r in hub.requests if r.method == "PUT"]) == 2

    again = me.upload_folder(repo_id="org/model", folder_path=folder)  # nothing changed: no commit
    assert again.oid == done.oid and len(hub.commits("org/model")) == 2
    (folder / "dot.png").unlink()
    (folder / "copy.safetensors").write_bytes(WEIGHTS)
    hub.requests.clear()
    me.upload_folder(repo_id="org/model", folder_path=folder, delete_patterns=["*.png", "*.safetensors"])
    assert "dot.png" not in hub.files("org/model") and "picture.png" in hub.files("org/model")
    assert hub.files("org/model")["copy.safetensors"] == WEIGHTS
    assert not [r for r in hub.requests if r.method == "PUT"]  # the store had these bytes already

    info = me.model_info("org/model", files_metadata=True)
    assert info.library_name == "diffusers" and info.pipeline_tag == "unconditional-image-generation"
    assert {"gan", "license:mit", "dataset:org/faces"} <= set(info.tags) and info.card_data.license == "mit"
    sizes = {s.rfilename: s.size for s in info.siblings}
    assert sizes["generator/config.json"] == 2 and sizes["copy.safetensors"] == len(WEIGHTS)
    assert len({s.lfs.sha256 for s in info.siblings if s.rfilename.endswith(".safetensors")}) == 1


def test_commits(hub, me, other, get):
    me.create_repo("org/model")
    first = hub.commits("org/model")[0].sha

    def commit(*operations, api=me, **more):
        return api.create_commit("org/model", list(operations), commit_message="Change", **more)

    new = [CommitOperationAdd(path, b"x") for path in ("a.txt", "data/b.txt", "data/c.txt")]
    second = commit(*new, parent_commit=first).oid
    changed = CommitOperationAdd("a.txt", b"y")
    assert status(HfHubHTTPError, commit, changed, parent_commit=first) == 412
    assert status(HfHubHTTPError, commit, CommitOperationAdd("a.txt", b"y"), api=other) == 403
    absent = CommitOperationDelete("absent.txt")
    assert status(RemoteEntryNotFoundError, commit, CommitOperationAdd("a.txt", b"z"), absent) == 404
    assert hub.commits("org/model")[-1].sha == second and hub.files("org/model")["a.txt"] == b"x"
    commit(
        CommitOperationDelete("a.txt"), CommitOperationDelete("data/"), CommitOperationAdd("d.bin", WEIGHTS)
    )
    assert hub.files("org/model").keys() == {".gitattributes", "d.bin"}
    me.upload_file(
        path_or_fileobj=b"*.dat filter=lfs\n*.bin -filter\n",
        path_in_repo=".gitattributes",
        repo_id="org/model",
    )
    for name in ("small.dat", "e.bin"):
        me.upload_file(path_or_fileobj=WEIGHTS[:300], path_in_repo=name, repo_id="org/model")
    blobs = hub.commits("org/model")[-1].blobs
    assert blobs["small.dat"].lfs and not blobs["e.bin"].lfs

    asks = commit(CommitOperationAdd("a.txt", b"proposed"), api=other, create_pr=True)
    assert asks.pr_revision == "refs/pr/1" and "a.txt" not in hub.files("org/model")
    assert get("org/model", "a.txt", revision="refs/pr/1") == b"proposed"
    commit(CommitOperationAdd("b.bin", WEIGHTS), api=other, revision="refs/pr/1")
    assert hub.files("org/model", "refs/pr/1")["b.bin"] == WEIGHTS
    pulls = me.list_repo_refs("org/model", include_pull_requests=True).pull_requests
    assert [(p.ref, p.target_commit) for p in pulls] == [
        ("refs/pr/1", hub.commits("org/model", "refs/pr/1")[-1].sha)
    ]
    assert status(RevisionNotFoundError, commit, CommitOperationAdd("a", b""), revision="absent") == 404


def test_looking_and_refs(hub, me):
    old = hub.add_repo("org/model", {"a.txt": b"1", "sub/w.safetensors": WEIGHTS})
    new = hub.add_repo("org/model", {"a.txt": b"2", "sub/w.safetensors": WEIGHTS}, message="Second")
    assert [(c.commit_id, c.title) for c in me.list_repo_commits("org/model")] == [
        (new, "Second"),
        (old, "Add files"),
    ]
    me.create_tag("org/model", tag="v1", revision=old, tag_message="one")
    me.create_branch("org/model", branch="dev/x", revision="v1")
    assert status(HfHubHTTPError, me.create_tag, "org/model", tag="v1") == 409
    assert status(HfHubHTTPError, me.create_branch, "org/model", branch="dev/x") == 409
    me.create_tag("org/model", tag="v1", exist_ok=True)
    me.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="org/model", revision="dev/x")
    assert hub.files("org/model", "dev/x")["a.txt"] == b"3" and hub.files("org/model")["a.txt"] == b"2"
    refs = me.list_repo_refs("org/model")
    assert {b.name for b in refs.branches} == {"main", "dev/x"} and [t.target_commit for t in refs.tags] == [
        old
    ]
    for revision, sha in {"main": new, "v1": old, old: old, "refs/heads/main": new}.items():
        assert me.model_info("org/model", revision=revision).sha == sha
    assert status(RevisionNotFoundError, me.model_info, "org/model", revision=old[:8]) == 404
    assert me.list_repo_files("org/model", revision="v1") == ["a.txt", "sub/w.safetensors"]
    entries = {e.path: e for e in me.list_repo_tree("org/model", recursive=True, expand=True)}
    assert entries["a.txt"].last_commit.title == "Second" and entries["sub"].last_commit.oid == old
    assert entries["sub/w.safetensors"].lfs.size == entries["sub/w.safetensors"].size == len(WEIGHTS)
    assert [e.path for e in me.list_repo_tree("org/model")] == ["a.txt", "sub"]
    assert [e.path for e in me.list_repo_tree("org/model", "sub")] == ["sub/w.safetensors"]
    found = me.get_paths_info("org/model", ["a.txt", "sub", "absent"], revision="v1")
    assert [(e.path, type(e).__name__) for e in found] == [("a.txt", "RepoFile"), ("sub", "RepoFolder")]
    assert me.file_exists("org/model", "a.txt") and not me.file_exists("org/model", "b.txt")
    me.delete_branch("org/model", branch="dev/x")
    me.delete_tag("org/model", tag="v1")
    assert status(RevisionNotFoundError, me.delete_tag, "org/model", tag="v1") == 404
    assert [b.name for b in me.list_repo_refs("org/model").branches] == ["main"]


def test_space(hub, me, tmp_path):
    me.create_repo("org/demo", repo_type="space", space_sdk="gradio", private=True)
    (tmp_path / "app.py").write_text("print()")
    (tmp_path / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\ncolorFrom: black\n---\n")
    with pytest.raises(ValueError, match='"colorFrom" must be one of'):
        me.upload_folder(repo_id="org/demo", repo_type="space", folder_path=tmp_path)
    (tmp_path / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\ncolorFrom: red\n---\n")
    me.upload_folder(repo_id="org/demo", repo_type="space", folder_path=tmp_path)
    info = me.space_info("org/demo")
    assert (info.sdk, info.private, info.runtime.stage) == ("gradio", True, "RUNNING")
    assert hub.files("org/demo", type="space")["app.py"] == b"print()"
    me.delete_repo("org/demo", repo_type="space")


def test_downloads(hub, me, get, tmp_path):
    old = hub.add_repo("org/model", {"a.txt": b"1", "w.safetensors": WEIGHTS, "empty.bin": b""})
    assert [path for path, blob in hub.commits("org/model")[0].blobs.items() if blob.lfs] == ["w.safetensors"]
    hub.add_repo("org/model", {"a.txt": b"2"})
    me.create_tag("org/model", tag="v1", revision=old)
    assert get("org/model", "a.txt") == b"2" and get("org/model", "w.safetensors", revision="v1") == WEIGHTS
    assert get("org/model", "a.txt", revision=old) == b"1"
    assert status(RemoteEntryNotFoundError, get, "org/model", "w.safetensors") == 404
    assert status(RevisionNotFoundError, get, "org/model", "a.txt", revision="v2") == 404
    hub.requests.clear()
    assert get("org/model", "w.safetensors", revision="v1") == WEIGHTS
    assert [(r.method, r.status) for r in hub.requests] == [("HEAD", 200)]  # the rest is in the cache
    where = {"cache_dir": tmp_path / "cache2", "endpoint": hub.url, "token": False}
    folder = Path(snapshot_download("org/model", revision="v1", **where))
    assert folder.name == old and (folder / "w.safetensors").read_bytes() == WEIGHTS
    blobs = {path.name for path in folder.parent.parent.joinpath("blobs").iterdir()}
    assert blobs == {blob.etag for blob in hub.commits("org/model", "v1")[-1].blobs.values()}


def test_ranges(hub):
    hub.add_repo("org/model", {"a.txt": b"0123456789"})

    def part(wanted):
        request = urllib.request.Request(f"{hub.url}/org/model/resolve/main/a.txt", headers={"Range": wanted})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status, reply.read(), reply.headers["Content-Range"]
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers["Content-Range"]

    assert part("bytes=4-") == (206, b"456789", "bytes 4-9/10")
    assert part("bytes=2-3") == (206, b"23", "bytes 2-3/10")
    assert part("bytes=-3") == (206, b"789", "bytes 7-9/10")
    assert part("bytes=8-99") == (206, b"89", "bytes 8-9/10")
    assert part("bytes=10-")[::2] == (416, "bytes */10")


def test_uploads_are_checked(hub, me):
    def send(path, body, method="POST"):
        headers = {"Authorization": "Bearer hf_me", "Content-Type": "application/json"}
        request = urllib.request.Request(hub.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["X-Error-Message"]

    me.create_repo("org/model")
    oid = "0" * 64
    batch = json.dumps({"objects": [{"oid": oid, "size": 3}]}).encode()
    assert send(f"/lfs/{oid}", b"abc", "PUT")[0] == 403
    assert send("/org/model.git/info/lfs/objects/batch", batch)[0] == 200
    assert send(f"/lfs/{oid}", b"abc", "PUT") == (
        400,
        "The content does not have the announced sha256 and size",
    )
    absent = {"key": "lfsFile", "value": {"path": "w.bin", "oid": oid, "size": 3}}
    lines = [{"key": "header", "value": {"summary": "x"}}, absent]
    code, message = send("/api/models/org/model/commit/main", "\n".join(map(json.dumps, lines)).encode())
    assert code == 400 and "was not uploaded" in message
    assert send("/api/models/org/model/nonsense", b"{}")[0] == 404
    assert send("/api/models/org/model/tag/main", b"{}") == (400, "Malformed request: KeyError('tag')")
    assert len(hub.commits("org/model")) == 1


def test_two_clients_at_once(hub, me, other):
    me.create_repo("org/model")
    hub.add_user("other", "hf_other", ["org"])

    def upload(api, name):
        for number in range(5):
            content = WEIGHTS + f"{name}{number}".encode()
            api.upload_file(path_or_fileobj=content, path_in_repo=f"{name}{number}.bin", repo_id="org/model")

    threads = [threading.Thread(target=upload, args=args) for args in ((me, "a"), (other, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.files("org/model")) == 11 and len(hub.commits("org/model")) == 11
    assert {c.author for c in hub.commits("org/model")} == {"me", "other"}


CLIENT = """
import json, sys
from huggingface_hub import HfApi, constants, snapshot_download
api = HfApi()
api.upload_folder(repo_id="org/model", folder_path=sys.argv[1], revision="main", create_pr=False)
url = api.create_repo("org/model", exist_ok=True)
path = snapshot_download("org/model")
print(json.dumps([api.whoami()["name"], url, path, constants.HF_HOME]))
"""


def test_a_process_of_its_own(hub, me, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_inherited")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    me.create_repo("org/model")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "w.safetensors").write_bytes(WEIGHTS)
    hub.add_user("other", "hf_other", ["org"])
    environment = hub.environment(tmp_path / "home", token="hf_other", MORE="1")
    assert environment["MORE"] == "1" and "HF_TOKEN" not in hub.environment(tmp_path)
    line = [sys.executable, "-c", CLIENT, str(tmp_path / "folder")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name, url, path, home = json.loads(done.stdout.splitlines()[-1])
    assert name == "other" and url == f"{hub.url}/org/model" and home == str(tmp_path / "home")
    assert (
        Path(path).is_relative_to(tmp_path / "home")
        and (Path(path) / "w.safetensors").read_bytes() == WEIGHTS
    )
    assert hub.commits("org/model")[-1].author == "other"


def test_in_the_foreground():
    line = [sys.executable, str(ROOT / "tests" / "hub_server.py")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = [process.stdout.readline().strip() for _ in range(4)]
            settings = dict(text.removeprefix("export ").split("=") for text in printed)
            with urllib.request.urlopen(settings["HF_ENDPOINT"] + "/api/models", timeout=5) as reply:
                assert json.load(reply) == []
            assert settings["HF_TOKEN"] == "hf_me" and Path(settings["HF_HOME"]).is_dir()
        finally:
            process.terminate()
    assert not Path(settings["HF_HOME"]).exists()


def test_after_the_end(me, hub):
    me.create_repo("org/model")
    hub.__exit__()
    with pytest.raises(Exception, match="refused"):
        me.model_info("org/model")  # also over the connection that the client keeps
    assert hub.files("org/model").keys() == {".gitattributes"}
    hub.__enter__()  # the fixture stops it again
    assert me.model_info("org/model").id == "org/model"
