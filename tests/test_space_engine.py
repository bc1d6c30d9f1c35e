"""What the Space does, without its page: everything a visitor sends is checked, everything shown repeats."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import cli
from stylenat_hub.errors import InputError, UnknownModelError
from stylenat_hub.pipeline import MAX_SEED, GANPipeline
from stylenat_hub.registry import CHECKPOINTS, FAMILIES

SPACES = Path(__file__).resolve().parent.parent / "spaces"
sys.path.insert(0, str(SPACES))  # as when app.py is run

from studio import cards, catalog, checks, previews, snippet, zero  # noqa: E402
from studio.catalog import Catalog  # noqa: E402
from studio.engine import Engine, best_truncation, picture_of  # noqa: E402
from studio.pool import Loaded, Pool  # noqa: E402
from studio.scratch import Scratch  # noqa: E402


@pytest.fixture(scope="module")
def engine():
    made = Engine(device="cpu")
    yield made
    made.scratch.close()


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image)


# -- pictures


def test_files_are_those_of_the_command(engine, tmp_path):
    """Pixels and text chunks, so that a downloaded picture says how it was made."""
    drawn = engine.generate("toy-church", 7, 2, 0.6, 3)
    command = [
        "generate",
        "--seeds",
        "7-8",
        "--truncation",
        "0.6",
        "--cutoff",
        "3",
        "--output",
        str(tmp_path),
    ]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert [file.name for file in drawn.files] == sorted(path.name for path in tmp_path.iterdir())
    for file in drawn.files:
        with PIL.Image.open(file) as mine, PIL.Image.open(tmp_path / file.name) as theirs:
            assert mine.text == theirs.text and mine.text["seed"] == str(int(file.stem[4:]))
            assert np.array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize(("count", "cutoff"), [(1, None), (3, None), (2, 4)])
def test_the_code_repeats_the_pictures(engine, tmp_path, monkeypatch, count, cutoff):
    drawn = engine.generate("toy-church", 41, count, 0.85, cutoff)
    monkeypatch.chdir(tmp_path)
    exec(compile(drawn.code, "snippet", "exec"), {})
    assert sorted(os.listdir(tmp_path)) == [file.name for file in drawn.files]
    for file in drawn.files:
        assert np.array_equal(pixels(tmp_path / file.name), pixels(file))


def test_centers_are_in_picture_label_and_code(engine, tmp_path, monkeypatch):
    pytest.importorskip("stylenat_hub.latents.clusters")
    drawn = engine.generate("toy-church", 5, 1, 0.3, None, 2)
    with PIL.Image.open(drawn.files[0]) as image:
        assert image.text["truncation_centers"] == "2"
    assert not np.array_equal(
        pixels(drawn.files[0]), pixels(engine.generate("toy-church", 5, 1, 0.3).files[0])
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(drawn.code, "snippet", "exec"), {})
    assert np.array_equal(pixels(tmp_path / drawn.files[0].name), pixels(drawn.files[0]))


def test_a_name_stays_text_in_the_code():
    name = 'a"); import os; ("'
    code = snippet.drawing(name, [1], 1.0)
    assert repr(name) in code
    compile(code, "snippet", "exec")


def test_what_is_downloaded(engine):
    one, three = engine.generate("toy-church", 1), engine.generate("toy-church", 1, 3)
    assert one.bundle == one.files[0]
    with zipfile.ZipFile(three.bundle) as archive:
        assert archive.namelist() == [file.name for file in three.files]
        assert archive.read(one.files[0].name) == one.files[0].read_bytes()


def test_progress_is_told(engine):
    heard = []
    engine.generate("toy-church", 0, 3, told=lambda *what: heard.append(what))
    assert heard == [(0, 3, "Drawing"), (1, 3, "Drawing"), (2, 3, "Drawing")]


WRONG = [
    ({"seed": -1}, "the seed is -1"),
    ({"seed": MAX_SEED + 1}, "the seed is"),
    ({"seed": 0.5}, "the seed is 0.5"),
    ({"seed": "0"}, "the seed is '0'"),
    ({"seed": True}, "the seed is True"),
    ({"seed": None}, "the seed is None"),
    ({"seed": float("nan")}, "the seed is nan"),
    ({"seed": float("inf")}, "the seed is inf"),
    ({"seed": MAX_SEED, "count": 2}, "need seeds beyond"),
    ({"count": 0}, "the number of pictures is 0"),
    ({"count": 17}, "the number of pictures is 17"),
    ({"count": 10**400}, "the number of pictures is"),
    ({"psi": float("nan")}, "the truncation is nan"),
    ({"psi": 1e9}, "the truncation is"),
    ({"psi": [0.5]}, "the truncation is"),
    ({"cutoff": 9}, "the cutoff is 9"),
    ({"cutoff": -1}, "the cutoff is -1"),
    ({"centers": 9}, "the number of centres is 9"),
    ({"model": "../../etc"}, "does not offer"),
    ({"model": "someone/else"}, "does not offer"),
    ({"model": ["toy-church"]}, "the model is"),
    ({"model": "x" * 9999}, "the model is"),
    ({"model": "stylenat-ffhq-256"}, "python -m conversion.convert"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[f"{w[0]!r:.40}" for w in WRONG])
def test_wrong_input_is_one_sentence(engine, change, says):
    before = set(engine.scratch.root.iterdir())
    with pytest.raises((InputError, UnknownModelError)) as caught:
        engine.generate(**{"model": "toy-church", "seed": 0, **change})
    assert says in str(caught.value) and len(str(caught.value)) < 1000
    assert set(engine.scratch.root.iterdir()) == before
    assert engine.pool.names() == ["toy-church"] or not engine.pool.names()


def test_a_browsers_floats_are_whole_numbers(engine):
    assert list(engine.generate("toy-church", 3.0, 2.0, 1, 0.0, 0.0).seeds) == [3, 4]


# -- previews


def test_a_preview_is_the_picture_where_that_is_quick(engine):
    drawn = engine.generate("toy-church", 11, 2, 0.5)
    shown = engine.preview("toy-church", 11, 2, 0.5)
    assert np.array_equal(np.asarray(shown[0]), pixels(drawn.files[0]))


def test_a_preview_never_loads_and_never_waits_long(engine, monkeypatch):
    fresh = Engine(device="cpu", scratch=engine.scratch)
    assert fresh.preview("toy-church", 0) == [] and fresh.pool.names() == []
    monkeypatch.setattr("studio.engine.PREVIEW_PATIENCE", 0.05)
    loaded = engine.use("toy-church")
    held, done = threading.Event(), threading.Event()

    def hold():
        with loaded.at_work():
            held.set()
            done.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(10)
    try:
        assert engine.preview("toy-church", 0) == []
    finally:
        done.set()
        other.join()
    assert engine.preview("toy-church", 0)


def slow(monkeypatch, generator, early):
    """Full pictures take longer than the budget; smaller ones are what `early` makes of the whole one."""
    whole = type(generator).synthesis

    def preview(ws, px):
        if px == generator.resolution:
            time.sleep(previews.BUDGET + 0.05)
        return early(whole(generator, ws), px)

    monkeypatch.setattr(generator, "preview", preview)
    monkeypatch.setattr(previews, "SMALLEST", 8)


@pytest.mark.parametrize(("early", "chosen"), [("shrunk", 16), ("grey", None)])
def test_an_early_picture_counts_only_if_it_looks_like_the_whole(monkeypatch, early, chosen):
    pipeline = GANPipeline(tiny_generator())
    pipeline.set_progress_bar_config(disable=True)
    pool = {"shrunk": lambda images, px: torch.nn.functional.adaptive_avg_pool2d(images, px)}
    pool["grey"] = lambda images, px: torch.zeros(1, 3, px, px) if px < 32 else images
    real = pipeline.generator.synthesis(pipeline.styles([0]))
    monkeypatch.setattr(type(pipeline.generator), "synthesis", lambda self, ws: real)
    slow(monkeypatch, pipeline.generator, pool[early])
    loaded = Loaded("tiny", pipeline, 0.0, 0)
    previews.choose(loaded)
    assert loaded.preview_px == chosen


# -- models


def test_the_list_has_the_zoo_and_says_what_is_ready():
    choices = Catalog().choices()
    assert choices[0] == ("toy-church · 32 px · ready", "toy-church")
    assert {name for _, name in choices} == set(CHECKPOINTS)
    assert catalog.speeds().keys() == set(CHECKPOINTS)  # python -m model_cards.build
    assert (
        Catalog().facts("stylenat-ffhq-256").startswith("256 x 256 px · 48.92 M parameters · about 1 s per")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_from_the_command_line(family, tmp_path):
    """Visitors see its name and never where it lies; each family draws."""
    folder = tmp_path / "secret place" / "mine"
    GANPipeline(tiny_generator(family)).save_pretrained(folder)
    engine = Engine(str(folder), device="cpu")
    try:
        drawn = engine.generate("mine", 2, 1, 0.9)
        assert pixels(drawn.files[0]).shape == (32, 32, 3)
        with PIL.Image.open(drawn.files[0]) as image:
            texts = [
                *image.text.values(),
                drawn.code,
                *map(str, engine.catalog.choices()),
                engine.card("mine"),
            ]
        assert not any("secret" in text for text in texts) and 'from_pretrained("mine")' in drawn.code
        assert engine.default_truncation("mine") == FAMILIES[family].truncation
        assert engine.preview("mine", 2, 1, 0.9)
    finally:
        engine.scratch.close()


def test_without_a_mean_style_pictures_are_not_truncated():
    generator = tiny_generator()
    assert best_truncation(GANPipeline(generator)) == FAMILIES["stylenat"].truncation < 1
    generator.w_avg.fill_(float("nan"))
    assert best_truncation(GANPipeline(generator)) == 1.0


def test_any_model_only_where_it_was_allowed(tiny):
    with pytest.raises(UnknownModelError, match="does not offer"):
        Catalog().find(str(tiny))
    entry = Catalog(allow_any=True).find(str(tiny))
    assert entry.source == str(tiny) and entry.name == "tiny"
    with pytest.raises(UnknownModelError, match=r"conversion\.convert"):
        Catalog("stylenat-ffhq-256")


def pool_of(sizes, limit):
    """A pool of models of so many bytes; a name loads when asked for, and the log says when."""
    log = []

    def load(name):
        log.append(name)
        time.sleep(0.05)
        pipeline = GANPipeline(tiny_generator())
        pipeline.generator.parameters = lambda: iter([torch.zeros(sizes[name], dtype=torch.uint8)])
        pipeline.generator.buffers = lambda: iter([])
        return pipeline

    return Pool(load, limit=limit), log


def test_memory_is_bounded_and_the_least_used_goes():
    pool, log = pool_of({"a": 40, "b": 40, "c": 40, "huge": 500}, 100)
    for name in ("a", "b", "a", "c"):
        pool.get(name)
    assert pool.names() == ["a", "c"] and log == ["a", "b", "c"]
    pool.get("huge")  # alone it may be larger: it was asked for
    assert pool.names() == ["huge"]


def test_many_visitors_load_a_model_once():
    pool, log = pool_of({"a": 1}, 100)
    found = []
    threads = [threading.Thread(target=lambda: found.append(pool.get("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log == ["a"] and len({id(one) for one in found}) == 1


def test_a_model_that_fails_to_load_is_tried_again_and_harms_nobody():
    pool, _ = pool_of({"a": 1}, 100)
    with pytest.raises(KeyError):
        pool.get("unknown")
    with pytest.raises(KeyError):
        pool.get("unknown")
    assert pool.get("a") and pool.names() == ["a"]


# -- cards, files, ZeroGPU


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_card_has_licence_and_citation(engine, name):
    card = cards.shown(engine.catalog._entries[name])
    assert card.startswith(f"# {name}\n") and "## Licence" in card and "## Citation" in card
    assert "library_name" not in card and "<!--" not in card


def test_a_cards_pictures_are_inside_or_left_out(tmp_path):
    PIL.Image.new("RGB", (2, 2)).save(tmp_path / "p.png")
    PIL.Image.new("RGB", (2, 2)).save(tmp_path.parent / "above.png")
    text = (
        "---\na: b\n---\n![one](p.png) ![two](../above.png) ![three](https://x.org/a.png) ![four](gone.png)"
    )
    shown = cards.rendered(text, tmp_path)
    assert shown.startswith("![one](data:image/png;base64,") and shown.count("![") == 1


def test_files_go_when_they_are_old_and_at_the_end():
    scratch = Scratch(keep=100)
    old, new = scratch.folder(), scratch.folder()
    os.utime(old, (1, 1))
    assert scratch.sweep() == 1 and not old.exists() and new.exists()
    scratch.close()
    assert not scratch.root.exists()


@pytest.mark.parametrize(("variable", "lent"), [(None, False), ("0", False), ("true", True), ("1", True)])
def test_only_where_a_gpu_is_lent_its_package_counts(monkeypatch, variable, lent):
    """Hugging Face installs it everywhere."""
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=len))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    if variable is not None:
        monkeypatch.setenv("SPACES_ZERO_GPU", variable)
    assert (zero._lender() is len) == lent


def test_what_draws_is_wrapped_where_a_gpu_is_lent(monkeypatch):
    assert zero.LENDER is None and zero.on_gpu(len) is len  # this project's own folder is called spaces, too
    calls = []
    monkeypatch.setattr(zero, "LENDER", lambda f: lambda *args: calls.append(args) or f(*args))
    engine = Engine.__new__(Engine)  # without a GPU for the models to be put on
    engine.pool = Pool(lambda name: GANPipeline(tiny_generator()))
    engine._compute_lent = zero.on_gpu(engine._compute_by_name)
    loaded, options = engine.pool.get("a"), {"truncation_psi": 0.5}
    picture = engine.compute(loaded, picture_of, 3, options)
    assert picture.tobytes() == loaded.pipeline([3], **options).images[0].tobytes()
    ((name, function, arguments),) = calls
    assert name == "a" and pickle.loads(pickle.dumps(function)) is picture_of and arguments == (3, options)


def test_limits_are_those_the_page_shows():
    assert checks.MAX_COUNT == 16 and checks.MAX_CENTERS == 8
