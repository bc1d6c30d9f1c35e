"""The tab Project without its page: a photo's styles, sought while one watches, for a bounded time."""

from __future__ import annotations

import math
import struct
import sys
import threading
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.latents.styles import load_styles
from stylenat_hub.photos import open_photo
from stylenat_hub.pipeline import GANPipeline

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "spaces"))  # as when app.py is run

from studio import projecting, uploads
from studio.engine import Engine
from studio.projecting import Projector, judged


@pytest.fixture(scope="module")
def engine():
    made = Engine(device="cpu")
    made.use("toy-church")
    yield made
    made.scratch.close()


@pytest.fixture
def projector(engine, monkeypatch):
    monkeypatch.setattr(projecting, "STEPS", (1, 500))  # so that a search may be short
    monkeypatch.setattr(projecting, "STARTS", 8)
    monkeypatch.setattr(projecting, "EVERY", 0.0)
    return Projector(engine)


@pytest.fixture(scope="module")
def photo(engine):
    """A wide picture, most of it a church that the model can draw, uploaded."""
    path = engine.scratch.folder() / "wide.png"
    wide = PIL.Image.new("RGB", (96, 64), "gray")
    church = engine.use("toy-church").pipeline([11]).images[0]
    wide.paste(church.resize((64, 64), PIL.Image.Resampling.NEAREST), (16, 0))
    wide.save(path)
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def searches():
    return [thread for thread in threading.enumerate() if thread.name == "projection"]


def test_what_is_found_and_downloaded(projector, photo, tmp_path, monkeypatch):
    *way, found = projector.run("toy-church", photo, 6, "w+")
    assert [one.step for one in way] == [0, 1, 2, 3, 4, 5, 6] and found.done
    assert not any(one.done or one.image_file for one in way)
    assert found.decibels > way[0].decibels  # and so the pictures of the way come nearer
    assert all(later.decibels >= one.decibels - 1 for one, later in pairwise(way))
    target = open_photo(photo["path"], 32)[0]
    assert np.array_equal(np.asarray(found.target), np.asarray(target))

    with PIL.Image.open(found.image_file) as image:
        pixels = np.asarray(image)
        assert image.text["model"] == "toy-church" and image.text["space"] == "w+"
        assert image.text["steps"] == "6" and image.text["psnr"] == f"{found.decibels:.2f}"
    assert np.array_equal(pixels, np.asarray(found.picture))
    error = np.mean((pixels.astype(float) - np.asarray(target, float)) ** 2)
    assert found.decibels == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)
    assert f"{found.decibels:.1f} dB" in found.sentence and "cropped to the square" in found.sentence

    (tmp_path / "w.safetensors").write_bytes(found.styles_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(found.code, "code", "exec"), {})
    assert np.array_equal(np.asarray(PIL.Image.open("projected.png")), pixels)


def test_called_off_keeps_what_there_is(projector, photo):
    ticket = projector.ticket()
    run = projector.run("toy-church", photo, 500, "w", ticket)
    next(run)
    projector.call_off(ticket)
    found = list(run)[-1]
    assert found.done and found.step < 20 and "called off" in found.sentence
    assert found.styles_file.is_file() and not searches()
    with pytest.raises(InputError, match="called off before it began"):
        next(projector.run("toy-church", photo, 500, "w", ticket))
    next(projector.run("toy-church", photo, 1, "w", projector.ticket()))  # another one is not


def test_it_remembers_only_so_many(projector):
    for _ in range(1100):
        projector.call_off(projector.ticket())
    projector.call_off("x" * 10_000)
    projector.call_off({"a": 1})
    assert len(projector._off) == 1000


def test_time_is_bounded(engine, projector, photo):
    hurried = Projector(engine, seconds=1e-3)
    found = list(hurried.run("toy-church", photo, 500, "w"))[-1]
    assert found.done and found.step < 20 and "seconds that this page gives" in found.sentence


def test_who_leaves_ends_the_search(projector, photo):
    run = projector.run("toy-church", photo, 500, "w")
    next(run)
    assert searches()
    run.close()
    assert not searches()
    assert next(projector.run("toy-church", photo, 1, "w")).step == 0  # and the turn is free


def test_one_at_a_time_and_others_do_not_wait(engine, projector, photo, monkeypatch):
    monkeypatch.setattr(projecting, "TURN", 0.05)
    run = projector.run("toy-church", photo, 500, "w")
    next(run)
    with pytest.raises(InputError, match="another photo is being projected"):
        next(projector.run("toy-church", photo, 500, "w"))
    loaded = engine.pool.find("toy-church")
    assert loaded.lock.acquire(timeout=1)  # the model that all others draw with
    loaded.lock.release()
    assert all(weight.requires_grad for weight in loaded.generator.parameters())
    run.close()


def test_a_failure_in_the_search_is_raised(projector, photo, monkeypatch):
    def fail(*_, **__):
        raise InputError("the loss is no longer finite")

    monkeypatch.setattr(projecting, "project", fail)
    with pytest.raises(InputError, match="no longer finite"):
        list(projector.run("toy-church", photo, 50, "w"))
    assert not searches() and projector._turn.acquire(blocking=False)


def test_a_large_model_is_explained(projector, photo, monkeypatch):
    assert projector.why_not("toy-church") is None
    monkeypatch.setattr(projecting, "LARGEST", {"cpu": 16})
    with pytest.raises(InputError, match="stylenat project PHOTO toy-church"):
        next(projector.run("toy-church", photo, 50, "w"))


def test_slow_models_look_at_no_starts(engine, projector, photo, monkeypatch):
    asked = []
    monkeypatch.setattr(projecting, "project", lambda *_, starts, **__: asked.append(starts))
    for px in (32, None):
        monkeypatch.setattr(engine.pool.find("toy-church"), "preview_px", px)
        with pytest.raises(AssertionError):  # nothing was found
            list(projector.run("toy-church", photo, 50, "w"))
    assert asked == [8, 0]


@pytest.mark.parametrize("family", ["styleswin", "hit"])
def test_every_family(family, engine, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(projecting, "STEPS", (1, 500))
    monkeypatch.setattr(projecting, "STARTS", 2)
    GANPipeline(generator=tiny_generator(family)).save_pretrained(tmp_path / "model")
    engine = Engine(str(tmp_path / "model"), device="cpu", scratch=engine.scratch)
    projector, name = Projector(engine), engine.catalog.start
    assert projector.spaces(name) == (("w",) if family == "hit" else ("w", "w+"))
    found = list(projector.run(name, photo, 1, projector.spaces(name)[-1]))[-1]
    ws, _ = load_styles(found.styles_file, engine.use(name).generator)
    assert np.array_equal(
        np.asarray(engine.use(name).pipeline.draw(ws)[0]), np.asarray(PIL.Image.open(found.image_file))
    )
    if family == "hit":
        with pytest.raises(InputError, match=r"the space is 'w\+'; allowed: w$"):
            next(projector.run(name, photo, 1, "w+"))


WRONG = [
    ({"steps": 49}, "the number of steps is 49; allowed: a whole number from 50 to 500"),
    ({"steps": 501}, "the number of steps is 501"),
    ({"steps": 50.5}, "the number of steps is 50.5"),
    ({"steps": float("nan")}, "the number of steps is nan"),
    ({"steps": "<script>"}, "the number of steps is '<script>'"),
    ({"space": "z"}, "the space is 'z'; allowed: w, w+"),
    ({"space": ["w"]}, "the space is"),
    ({"space": None}, "the space is None"),
    ({"model": "../x"}, "does not offer"),
    ({"photo": None}, "there is no photo yet"),
    ({"photo": 5}, "the photo is 5"),
    ({"photo": {"path": None}}, "the photo is"),
    ({"photo": {"path": ["a"]}}, "the photo is"),
    ({"photo": {"path": "/nowhere/at/all.png"}}, "was not uploaded here"),
    ({"photo": {"path": "/etc/passwd"}}, "was not uploaded here"),
    ({"photo": {"path": "../../../etc/passwd"}}, "was not uploaded here"),
    ({"photo": "/dev/zero"}, "was not uploaded here"),
    ({"photo": {"path": "a\0b"}}, "was not uploaded here"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[f"{w[0]!r:.40}" for w in WRONG])
def test_wrong_input_is_one_sentence(engine, photo, change, says):
    given = {"model": "toy-church", "photo": photo, "steps": 50, "space": "w", **change}
    with pytest.raises(Exception) as caught:
        next(Projector(engine).run(**given))
    assert says in str(caught.value) and len(str(caught.value)) < 1000
    assert isinstance(caught.value, (InputError, LookupError))
    assert not searches()


def claims(width, height):
    """The beginning of a PNG that says it is so large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 9) + b"IDAT" + bytes(13)


BAD_FILES = {
    "text": (b"<script>alert(1)</script>", "cannot read the picture 'bad.png'"),
    "empty": (b"", "is empty"),
    "huge": (claims(30_000, 30_000), "has 900,000,000 pixels; allowed: up to 100,000,000"),
    "cut": (claims(40, 40), "cannot read the picture 'bad.png'"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "cannot read the picture"),
    "long": (bytes(uploads.MAX_BYTES + 1), "has more than 16,777,216 bytes"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_pictures(engine, kind):
    content, says = BAD_FILES[kind]
    path = engine.scratch.folder() / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Projector(engine).target("toy-church", {"path": str(path)})
    assert says in str(caught.value)
    assert str(engine.scratch.root) not in str(caught.value)  # where it lies here is nobody's business


def test_a_link_out_of_the_uploads_leads_nowhere(engine, tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = engine.scratch.folder()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (folder / "link.png", folder / ".." / ".." / tmp_path.name / "secret.png", folder / "no.png"):
        with pytest.raises(InputError, match=r"was not uploaded here|there is no file 'no\.png'"):
            Projector(engine).target("toy-church", {"path": str(path)})


def test_what_the_numbers_mean():
    assert "cannot draw your photo" in judged(9.0) and "still another" in judged(9.0, early=True)
    assert "rough" in judged(17.0) and "not the same" in judged(25.0) and "look twice" in judged(31.0)
    assert "every pixel is equal" in judged(math.inf)
