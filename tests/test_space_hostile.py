"""What strangers send to the Space through its API: refused or bounded, and the next visitor is served."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from stylenat_hub.latents.styles import load_styles
from stylenat_hub.pipeline import GANPipeline

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "spaces"))  # as when app.py is run

gradio = pytest.importorskip("gradio", reason="needs gradio: pip install -c constraints.txt -e '.[dev]'")
from gradio_client import Client, handle_file  # noqa: E402
from test_space_project import claims  # noqa: E402

META = {"_type": "gradio.FileData"}
LIMIT = 16 * 2**20  # of the page's uploads


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The app in this process, on a free port: (its address, a client)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        import app

        from studio import projecting
        from studio.scratch import Scratch

        scratch = Scratch()  # of its own: another test's end removes the app's
        patch.setattr(app, "SCRATCH", scratch)
        patch.setenv("GRADIO_TEMP_DIR", str(scratch.root))

        patch.setattr(projecting, "STEPS", (1, 500))  # so that a search may be short
        patch.setattr(projecting, "STARTS", 4)
        demo = app.make(app.arguments(["--device", "cpu"]))
        _, address, _ = app.launch(demo, app.arguments([]), prevent_thread_lock=True, quiet=True)
        client = Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
        yield address.rstrip("/"), client
        demo.close()
        scratch.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "church.png"
    GANPipeline.from_pretrained("toy-church")([4]).images[0].save(path)
    return path


def raw(address, name, data):
    """What an endpoint answers to data that no client of gradio's would send: "complete" or "error", and the
    words."""
    body = json.dumps({"data": data}).encode()
    call = urllib.request.Request(
        f"{address}/gradio_api/call/{name}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/{name}/{event}", timeout=60) as answer:
        words = answer.read().decode()
    return words.split("event: ")[-1].split("\n")[0], words


def alive(address):
    kind, _ = raw(address, "inside", [0, 0.7, 4, 1, 0.5, 0.5, False, "toy-church"])
    return kind == "complete"


def test_project_and_inside_work(served, photo):
    """So that what is refused below is refused for what it is."""
    _, client = served
    picture, styles, psnr, sentence = client.predict(
        handle_file(str(photo)), 2, "w", "toy-church", api_name="/project"
    )
    pipeline = GANPipeline.from_pretrained("toy-church")
    ws, about = load_styles(styles, pipeline.generator)
    with PIL.Image.open(picture) as image:
        assert np.array_equal(np.asarray(image), np.asarray(pipeline.draw(ws)[0]))
        assert image.text["space"] == about["space"] == "w"
    assert f"{psnr:.1f} dB" in sentence and "*" not in sentence
    picture, panels, sentence = client.predict(seed=1, x=0.2, y=0.9, api_name="/inside")
    assert PIL.Image.open(picture).size == (768, 768) and len(panels) == 3 and "32 px" in sentence


PHOTOS = {
    "text": (b"<script>alert(1)</script>", "cannot read the picture"),
    "pixels": (claims(30_000, 30_000), "900,000,000 pixels"),
    "cut": (claims(64, 64), "cannot read the picture"),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_uploads_that_are_no_pictures(served, tmp_path, kind):
    address, client = served
    content, says = PHOTOS[kind]
    (tmp_path / "<script>.png").write_bytes(content)
    with pytest.raises(Exception) as caught:
        client.predict(handle_file(str(tmp_path / "<script>.png")), 50, api_name="/project")
    assert says in str(caught.value)
    assert "<script>" not in str(caught.value) and "stylenat-space-" not in str(caught.value)
    assert alive(address)


def test_a_whole_picture_of_30_000_px(served, tmp_path):
    """A real one, 900 million pixels in a file of 110 kB."""
    address, client = served
    row = bytes(1 + 30_000 // 8)
    squeeze = zlib.compressobj(9)
    data = b"".join(squeeze.compress(row) for _ in range(30_000)) + squeeze.flush()
    head = claims(30_000, 30_000)[:33]
    header = head[12:24] + bytes((1, 0, 0, 0, 0))  # one bit of grey
    chunks = [(header[:4], header[4:]), (b"IDAT", data), (b"IEND", b"")]
    with (tmp_path / "bomb.png").open("wb") as file:
        file.write(head[:8])
        for name, body in chunks:
            check = zlib.crc32(name + body).to_bytes(4, "big")
            file.write(len(body).to_bytes(4, "big") + name + body + check)
    with pytest.raises(Exception, match="900,000,000 pixels"):
        client.predict(handle_file(str(tmp_path / "bomb.png")), 50, api_name="/project")
    assert alive(address)


def test_files_of_the_machine_are_no_photos(served):
    """A path in a file field is one of this server's: only what was uploaded may be named."""
    import app

    address, _ = served
    secret = next(iter(sorted((ROOT / "model_cards").rglob("*.png"))), ROOT / "README.md")
    folder = app.SCRATCH.root
    places = ["/etc/passwd", "../../../../etc/passwd", str(secret), "/dev/zero", str(folder), f"{folder}/.."]
    for place in places:
        for sent in (
            {"path": place, "meta": META},
            {"path": place},
            {"url": f"file://{place}", "meta": META},
        ):
            kind, words = raw(address, "project", [sent, 2, "w", "toy-church"])
            assert kind == "error" and "root:" not in words, (sent, words)
            assert "cannot read" not in words  # it was not even opened
    assert alive(address)


def test_nobody_gets_past_the_queue(served):
    address, _ = served
    data = json.dumps({"data": [0, 1, 0.7, 0, 0, "toy-church"]}).encode()
    request = urllib.request.Request(
        f"{address}/gradio_api/run/generate", data, {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=30)
    assert alive(address)


def test_nothing_is_fetched_for_a_visitor(served):
    asked = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    address, _ = served
    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/x.png"
        for sent in ({"path": place, "meta": META}, {"path": place.upper(), "meta": META}):
            kind, words = raw(address, "project", [sent, 2, "w", "toy-church"])
            assert kind == "error" and ("not its address" in words or "not uploaded" in words)
        assert raw(address, "project", [{"url": place, "meta": META}, 2, "w", "toy-church"])[0] == "error"
        server.shutdown()
    assert not asked


@pytest.mark.parametrize(
    "sent", [None, 5, "x", [], {}, {"path": 5, "meta": META}, {"path": "", "meta": META}]
)
def test_a_photo_that_is_none(served, sent):
    address, _ = served
    assert raw(address, "project", [sent, 2, "w", "toy-church"])[0] == "error"


NUMBERS = [
    ("project", 1, 10**9, "the number of steps is 1000000000"),
    ("project", 1, -1, "the number of steps is -1"),
    ("project", 1, "<script>", "the number of steps is"),
    ("project", 2, "<script>alert(1)</script>", "the space is"),
    ("project", 3, "../../etc", "does not offer"),
    ("inside", 0, -1, "the seed is -1"),
    ("inside", 1, 1e308, "the truncation is"),
    ("inside", 2, 10**30, "the level is"),
    ("inside", 3, "<script>alert(1)</script>", "the block is"),
    ("inside", 4, 1.5, "x is 1.5"),
    ("inside", 5, [0.5], "y is [0.5]"),
    ("inside", 6, "yes", "every_head is"),
    ("inside", 7, "<script>alert(1)</script>", "does not offer"),
    ("inside", 7, {"path": "/etc/passwd"}, "the model is"),
]


@pytest.mark.parametrize(
    ("name", "place", "sent", "says"), NUMBERS, ids=[f"{n[0]}-{n[1]}-{n[2]!r:.20}" for n in NUMBERS]
)
def test_values_out_of_their_range(served, photo, name, place, sent, says):
    address, client = served
    data = {"project": [None, 2, "w", "toy-church"], "inside": [0, 0.7, 4, 1, 0.5, 0.5, False, "toy-church"]}[
        name
    ]
    data[place] = sent
    if name == "project":
        with pytest.raises(Exception) as caught:
            client.predict(handle_file(str(photo)), *data[1:], api_name="/project")
        words = str(caught.value)
    else:
        kind, words = raw(address, name, data)
        assert kind == "error"
    assert says in words and "<script>" not in words
    assert alive(address)


def test_large_uploads_are_refused(served):
    address, _ = served
    border = "b0undary"
    body = (
        f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="../../evil.png"\r\n\r\n'
    ).encode()
    body += bytes(LIMIT + 1) + f"\r\n--{border}--\r\n".encode()
    head = {"Content-Type": f"multipart/form-data; boundary={border}"}
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError, ConnectionError)) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, head), timeout=30)
    assert getattr(caught.value, "code", 413) == 413
    assert alive(address)


def test_names_of_uploads_stay_in_their_folder(served):
    import app

    address, _ = served
    border = "b0undary"
    body = (
        f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="../../../evil.png"\r\n\r\n'
        f"x\r\n--{border}--\r\n"
    ).encode()
    head = {"Content-Type": f"multipart/form-data; boundary={border}"}
    ask = urllib.request.Request(f"{address}/gradio_api/upload", body, head)
    with urllib.request.urlopen(ask, timeout=30) as answer:
        (place,) = json.load(answer)
    assert Path(place).resolve().is_relative_to(app.SCRATCH.root) and Path(place).name == "evil.png"
