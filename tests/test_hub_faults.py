"""Faults of the tests' Hub, and what the real client makes of each: what it retries, checks and keeps."""

from __future__ import annotations

import http.client
import time
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # read at each call
    with HubServer() as hub:
        yield hub


@pytest.fixture
def sleeps(monkeypatch):
    """How long the client would sleep between its attempts."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def download(hub, cache):
    return Path(hf_hub_download("org/model", "w.safetensors", cache_dir=cache, endpoint=hub.url, token=False))


def test_downloads(hub, sleeps, tmp_path, monkeypatch):
    hub.add_repo("org/model", {"w.safetensors": WEIGHTS})
    size = len(WEIGHTS)

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # what is cut off within a chunk is lost
    caches = iter(range(99))

    def attempt(kind, **details):
        """The bytes or the error, and the ranges that were asked for, in a new cache."""
        hub.clear_faults()
        hub.requests.clear()
        sleeps.clear()
        fault = hub.fail(kind, path="/resolve/", **details)
        cache = tmp_path / str(next(caches))
        try:
            got = download(hub, cache).read_bytes()
        except (OSError, HfHubHTTPError) as error:
            got = error
            assert not [path for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts]
        return got, fault.hits, [r.range for r in hub.requests if r.method == "GET"]

    assert attempt("cut", after=100) == (WEIGHTS, 1, [None, "bytes=64-"])
    assert attempt("cut", after=0)[0] == WEIGHTS and sleeps == [1]
    with pytest.raises(Exception, match="peer closed connection"):
        attempt("cut", after=0, times=None)
    assert sleeps == [1] * 5  # a count that begins anew whenever a chunk arrives
    with pytest.raises(Exception, match="disconnected"):
        attempt("cut", method="HEAD")
    short, _, ranges = attempt("short")
    assert isinstance(short, OSError) and f"has size {size // 2}" in str(short) and ranges == [None]
    wrong, hits, _ = attempt("wrong hash")
    assert wrong == bytes(255 - byte for byte in WEIGHTS) and hits == 1  # the client does not check the hash
    assert attempt("429", method="GET", retry_after=3)[0] == WEIGHTS and sleeps == [4]
    assert attempt("429", method="HEAD")[0] == WEIGHTS and sleeps == []  # at once, then with patience
    failed, hits, _ = attempt("503", method="GET")
    assert failed.response.status_code == 503 and hits == 1 and sleeps == []  # a download is not retried
    down, hits, _ = attempt("500", status=504, method="HEAD", times=None)
    assert isinstance(down, LocalEntryNotFoundError) and hits == 7 and sleeps == [1, 2, 4, 8, 8]
    assert attempt("slow", method="GET", seconds=0.05, per_chunk=0.001, chunk=2000)[0] == WEIGHTS
    assert attempt("lost", method="GET")[0] == WEIGHTS
    with pytest.raises(ValueError, match="no fault"):
        hub.fail("explosion")
    with pytest.raises(ValueError, match="no detail"):
        hub.fail("cut", bytes=3)


def test_slowly(hub):
    hub.add_repo("org/model", {"w.safetensors": WEIGHTS})
    slow = hub.fail("slow", seconds=0.05, per_chunk=0.01, chunk=2000)
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=5)
    started = time.monotonic()
    for _ in range(2):  # over one connection: more or fewer bytes than promised would disturb the second
        connection.request("GET", "/org/model/resolve/main/w.safetensors")
        assert connection.getresponse().read() == WEIGHTS
    connection.close()
    assert slow.hits == 1 and time.monotonic() - started > 0.1


def test_uploads(hub, sleeps):
    me = HfApi(endpoint=hub.url, token="hf_me")
    me.create_repo("org/model")

    def upload(content):
        sleeps.clear()
        hub.requests.clear()
        return me.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id="org/model")

    cut = hub.fail("cut", method="PUT", after=10)
    upload(WEIGHTS)
    assert (
        cut.hits == 1 and sleeps == [1] and [r.status for r in hub.requests if r.method == "PUT"] == [0, 200]
    )
    limit = hub.fail("429", path="/preupload/", retry_after=2)
    store = hub.fail("503", method="PUT", times=2)
    upload(WEIGHTS * 2)
    assert (limit.hits, store.hits, sleeps) == (1, 2, [3, 1, 2])
    failing = hub.fail("500", path="/commit/")
    with pytest.raises(HfHubHTTPError, match="500 Internal Server Error"):
        upload(WEIGHTS * 3)
    assert failing.hits == 1 and sleeps == []  # a commit is sent once
    lost = hub.fail("lost", path="/commit/")
    with pytest.raises(Exception, match="disconnected"):
        upload(WEIGHTS * 3)
    assert lost.hits == 1 and hub.files("org/model")["w.bin"] == WEIGHTS * 3  # but it was made
    assert not [r for r in hub.requests if r.method == "PUT"]  # the object was there since the attempt before


def test_what_the_cache_holds_is_believed(hub, tmp_path):
    hub.add_repo("org/model", {"w.safetensors": WEIGHTS})
    path = download(hub, tmp_path)
    path.resolve().write_bytes(WEIGHTS[:10])
    hub.requests.clear()
    assert download(hub, tmp_path).read_bytes() == WEIGHTS[:10] and len(hub.requests) == 1
    down = hub.fail("503", times=None)
    assert download(hub, tmp_path) == path and down.hits == 1  # a Hub that is down is not waited for
