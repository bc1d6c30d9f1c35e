"""What can go wrong while pulling: faults of the Hub, a damaged cache, kills, several processes at once.

Each ends in success or in one sentence, and leaves a cache that works on the next call.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from pulls import CONFIG, WEIGHTS, checksum, fetched, finish, pull, refused, same, start
from small_models import tiny_generator

from stylenat_hub.errors import InputError, OldCopyWarning, UnknownModelError, WeightsError
from stylenat_hub.pipeline import GANPipeline

FILE = r"/resolve/.*safetensors"
INFO, TREE = r"/api/models/org/church(/revision/\w+)?(\?blobs=true)?$", "/tree/"


@pytest.fixture
def church(hub, tiny):
    hub.add_repo("org/church", tiny)
    return hub


@pytest.fixture
def cache(church, tmp_path):
    """The cache's folder of a repository that was pulled once."""
    pull()
    return tmp_path / "cache" / "models--org--church"


def snapshot(cache):
    [folder] = (cache / "snapshots").iterdir()
    return folder


def as_in_a_new_process():
    """The client also keeps listings in memory, which a damaged file would not reach."""
    listings = sys.modules.get("huggingface_hub._tree_cache")
    getattr(listings, "_IN_MEMORY_TREE_CACHE", {}).clear()


def works(hub, model):
    """The next call finds the weights, and without a warning; so does one offline."""
    hub.clear_faults()
    as_in_a_new_process()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OldCopyWarning)
        assert same(pull().generator, model)
    assert same(pull(local_files_only=True).generator, model)


# Faults of the Hub.


@pytest.mark.parametrize("path", [INFO, TREE, "/resolve/"])
@pytest.mark.parametrize("kind", ["cut", "short", "wrong hash", "lost", "500", "503", "429", "slow"])
def test_a_fault_that_passes_is_not_noticed(church, pipeline, kind, path):
    fault = church.fail(kind, path=path, method="GET", **({"seconds": 0.1} if kind == "slow" else {}))
    assert same(pull().generator, pipeline.generator) and fault.hits == 1
    works(church, pipeline.generator)


@pytest.mark.parametrize("kind", ["lost", "500", "503", "429", "cut"])
def test_a_head_that_fails_once(church, pipeline, kind):
    fault = church.fail(kind, path=FILE, method="HEAD")
    assert same(pull().generator, pipeline.generator) and fault.hits == 1
    works(church, pipeline.generator)


@pytest.mark.parametrize(
    ("kind", "path", "word"),
    [
        ("cut", INFO, "RemoteProtocolError"),
        ("short", INFO, "an answer that is not the Hub's"),
        ("wrong hash", INFO, "an answer that is not the Hub's"),
        ("short", TREE, "an answer that is not the Hub's"),
        ("503", INFO, "HTTP 503"),
        ("500", TREE, "HTTP 500"),
        ("403", INFO, "HTTP 403"),
        ("cut", FILE, "RemoteProtocolError"),
        ("short", FILE, "less arrived than was announced"),
        ("500", FILE, "HTTP 500"),
        ("404", FILE, "HTTP 404"),
        ("429", FILE, "HTTP 429"),
    ],
)
def test_a_fault_that_stays_is_one_sentence(church, pipeline, kind, path, word):
    church.fail(kind, path=path, method="GET", times=None)
    refused("'org/church'", "the Hub cannot be asked", f"({word}", kind=UnknownModelError)
    works(church, pipeline.generator)


@pytest.mark.parametrize("kind", ["lost", "503"])
def test_a_head_that_always_fails(church, pipeline, kind):
    church.fail(kind, path=FILE, method="HEAD", times=None)
    refused("the Hub cannot be asked", "503" if kind == "503" else "RemoteProtocolError")
    works(church, pipeline.generator)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_wrong_bytes_are_never_kept(church, pipeline, tmp_path, name):
    church.fail("wrong hash", path=f"/resolve/.*/generator/{name}", times=None)
    refused(f"'{name}'", "'org/church'", "arrived damaged twice", kind=WeightsError)
    assert len(list((tmp_path / "cache" / "models--org--church" / "blobs").iterdir())) == 2  # the others
    works(church, pipeline.generator)


def test_a_cut_download_goes_on_where_it_stopped(church, pipeline, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    church.fail("cut", path=FILE, after=100_000)
    assert same(pull().generator, pipeline.generator)
    ranges = [request.range for request in church.requests if "safetensors" in request.path]
    assert [text for text in ranges if text and text != "bytes=0-"]


@pytest.mark.parametrize(("method", "path"), [("GET", INFO), ("GET", TREE), ("GET", FILE), ("HEAD", FILE)])
def test_an_hour_is_not_waited_for(church, pipeline, monkeypatch, method, path):
    slept = []
    module = SimpleNamespace(**{**vars(time), "sleep": slept.append})
    for name in ("huggingface_hub.utils._http", "huggingface_hub.file_download", "stylenat_hub.remote"):
        monkeypatch.setattr(f"{name}.time", module)
    fault = church.fail("429", path=path, method=method, retry_after=3600, times=None)
    refused("HTTP 429, and asks to wait 3600 s", kind=UnknownModelError)
    assert fault.hits and not [seconds for seconds in slept if seconds > 60]
    works(church, pipeline.generator)


# The Hub is down, or says something else than a moment ago.


def test_a_hub_that_is_gone(church, cache, pipeline):
    church.__exit__()
    try:
        with pytest.warns(OldCopyWarning, match=r"'org/church' \(ConnectError\).*may be older"):
            assert same(pull().generator, pipeline.generator)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            refused("'org/other'", "(ConnectError)", "check the network", source="org/other")
    finally:
        church.__enter__()  # at the same address
    works(church, pipeline.generator)


@pytest.mark.parametrize("kind", ["503", "cut", "wrong hash", "429"])
def test_an_old_copy_is_used_with_a_warning(church, cache, pipeline, kind):
    church.fail(kind, path=INFO, times=None, **({"retry_after": 3600} if kind == "429" else {}))
    with pytest.warns(OldCopyWarning, match="may be older"):
        assert same(pull().generator, pipeline.generator)
    # Who asks for a new copy is not given an old one.
    refused("the Hub cannot be asked", kind=UnknownModelError, force_download=True)
    works(church, pipeline.generator)


def test_a_damaged_old_copy_is_refused(church, cache):
    (snapshot(cache) / "generator" / WEIGHTS).resolve().write_bytes(b"")
    church.fail("503", path=INFO, times=None)
    refused(f"'{WEIGHTS}'", "damaged in the download cache", "while online", kind=WeightsError)


def test_an_old_copy_is_never_used_in_silence(church, cache, tmp_path, monkeypatch, pipeline):
    """The client asks for the newest commit a second time, and swallows it if that fails."""
    newer = tiny_generator(seed=5)
    GANPipeline(newer).save_pretrained(tmp_path / "newer")
    church.add_repo("org/church", tmp_path / "newer")
    second = church.fail("503", path="/revision/main$")
    assert same(pull().generator, newer) and second.hits == 1
    works(church, newer)


@pytest.mark.parametrize("kind", ["500", "503", "lost"])
def test_a_forced_download_that_fails(church, cache, pipeline, kind):
    church.fail(kind, path=FILE, method="HEAD", times=None)
    refused("the Hub cannot be asked", kind=UnknownModelError, force_download=True)
    works(church, pipeline.generator)


# A damaged cache.


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "flipped": flipped,
    "empty": lambda path: path.write_bytes(b""),
    "replaced": lambda path: path.write_bytes(b"{}"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", [f"generator/{WEIGHTS}", f"generator/{CONFIG}", "model_index.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(church, cache, pipeline, name, damage):
    DAMAGES[damage]((snapshot(cache) / name).resolve())
    church.requests.clear()
    words = (repr(name.split("/")[-1]), "'org/church'", "damaged in the download cache", "while online")
    refused(*words, kind=WeightsError, local_files_only=True)
    assert not church.requests
    assert same(pull().generator, pipeline.generator)
    assert fetched(church) == [name]  # and no other
    works(church, pipeline.generator)


def in_the_cache(cache):
    """What is beside the files themselves, and what may become of it."""
    folder = snapshot(cache)
    ref, tree, link = (
        cache / "refs" / "main",
        cache / "trees" / f"{folder.name}.json",
        folder / "generator" / WEIGHTS,
    )
    return {
        "no link": [link.unlink],
        "no link, no listing": [link.unlink, lambda: tree.write_text("")],
        "no snapshot": [lambda: shutil.rmtree(folder)],
        "an empty snapshot": [lambda: shutil.rmtree(folder), folder.mkdir, lambda: tree.write_text("")],
        "an empty reference": [lambda: ref.write_text("")],
        "half a reference": [lambda: ref.write_text(folder.name[:20])],
        "a reference of zeros": [lambda: ref.write_bytes(bytes(40))],
        "a reference of anything": [lambda: ref.write_bytes(b"\xff\xfe")],
        "no reference": [ref.unlink],
        "a listing of another kind": [lambda: tree.write_text("[]")],
    }


@pytest.mark.parametrize(
    "damage",
    [
        *("no link", "no link, no listing", "no snapshot", "an empty snapshot", "an empty reference"),
        *("half a reference", "a reference of zeros", "a reference of anything", "no reference"),
        "a listing of another kind",
    ],
)
def test_a_damaged_index_of_the_cache(church, cache, pipeline, damage):
    for step in in_the_cache(cache)[damage]:
        step()
    as_in_a_new_process()
    church.requests.clear()
    refused("'org/church'", "download cache", "while online", local_files_only=True)
    assert not church.requests
    as_in_a_new_process()
    works(church, pipeline.generator)


@pytest.mark.parametrize("text", ["", '{"format_version": 1, "fi', "\0" * 50])
def test_a_damaged_listing_is_not_needed(church, cache, pipeline, text):
    [listing] = (cache / "trees").iterdir()
    listing.write_text(text)
    as_in_a_new_process()
    assert same(pull(local_files_only=True).generator, pipeline.generator)
    works(church, pipeline.generator)


def test_a_listing_that_has_lost_files(church, tmp_path, pipeline):
    """Where the client takes a listing's word that there is nothing to fetch, the next process mends it."""
    pull()
    cache = tmp_path / "cache" / "models--org--church"
    [listing] = (cache / "trees").iterdir()
    listing.write_text('{"format_version": 1, "files": {}}')
    shutil.rmtree(snapshot(cache))
    as_in_a_new_process()
    refused("'org/church'", kind=WeightsError)
    works(church, pipeline.generator)


def test_a_cache_that_cannot_be_written_to(church, monkeypatch, pipeline):
    def fails(*_arguments, **_options):
        raise PermissionError(13, "Permission denied", "/cache/blobs")

    with monkeypatch.context() as patch:
        patch.setattr("stylenat_hub.download.snapshot_download", fails)
        refused("Permission denied", "'/cache/blobs'", "cache_dir", kind=InputError)
    works(church, pipeline.generator)


# Several processes, and killed ones.


def test_a_killed_download(church, tmp_path, pipeline):
    slow = church.fail("slow", path=FILE, method="GET", per_chunk=0.2, chunk=20_000, times=None)
    process = start(church, tmp_path / "home", ["org/church", {}])
    until = time.monotonic() + 30
    while not slow.hits and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)  # some of it has arrived
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert slow.hits == 1
    church.clear_faults()
    assert finish(start(church, tmp_path / "home", ["org/church", {}])) == [checksum(pipeline)]


def test_two_processes_at_once(church, tmp_path, pipeline):
    church.fail("slow", path=FILE, method="GET", seconds=1, times=None)
    home = tmp_path / "home"
    both = [start(church, home, ["org/church", {}]) for _ in range(2)]
    assert [finish(process) for process in both] == [[checksum(pipeline)]] * 2
    [blob] = home.glob("hub/models--org--church/snapshots/*/generator/*.safetensors")
    blob.resolve().write_bytes(b"damaged")
    church.requests.clear()
    both = [start(church, home, ["org/church", {}]) for _ in range(2)]
    assert [finish(process) for process in both] == [[checksum(pipeline)]] * 2
    assert fetched(church) == [f"generator/{WEIGHTS}"]  # once


def test_a_slow_one_does_not_undo_what_a_fast_one_mended(church, cache, monkeypatch, pipeline):
    """Two find the same damage; the second must look again before it removes anything."""
    from stylenat_hub import download

    path = snapshot(cache) / "generator" / WEIGHTS
    path.resolve().write_bytes(b"damaged")
    alone, other = download._alone, []

    def meanwhile(folder):
        if not other:
            other.append(True)
            other.append(pull())
        return alone(folder)

    monkeypatch.setattr(download, "_alone", meanwhile)
    church.requests.clear()
    assert same(pull().generator, pipeline.generator) and same(other[1].generator, pipeline.generator)
    assert fetched(church) == [f"generator/{WEIGHTS}"]
