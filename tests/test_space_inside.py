"""The tab Inside without its page: what a place of a picture takes from the others."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small_models import tiny_generator

from stylenat_hub.errors import InputError
from stylenat_hub.inside.maps import attention_maps
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "spaces"))  # as when app.py is run

from studio import looking
from studio.engine import Engine

LOOK = {"seed": 3, "psi": 0.7, "level": 32, "block": 2, "x": 0.3, "y": 0.8}


@pytest.fixture(scope="module")
def engine():
    made = Engine(device="cpu")
    made.use("toy-church")
    yield made
    made.scratch.close()


def look(engine, **change):
    return looking.look(engine, "toy-church", **{**LOOK, **change})


def test_a_panel_for_each_partition_with_the_models_own_weights(engine):
    seen = look(engine)
    pipeline = engine.use("toy-church").pipeline
    ws = pipeline.styles([3], truncation_psi=0.7)
    maps = attention_maps(pipeline.generator, ws, 32, block=2, queries=[(0.3, 0.8)])
    assert [panel.title for panel in seen.panels] == [part.label for part in maps.partitions]
    for number, panel in enumerate(seen.panels):
        most = 100 * maps.map(0, number).mean(dim=0).max()
        assert panel.words.endswith(f"up to {most:.1f} %")
    assert "mean of heads 3 to 4" in seen.panels[2].words
    assert "32 px" in seen.sentence and "block 2 of 2" in seen.sentence


def test_each_head_alone(engine):
    seen = look(engine, every_head=True)
    assert [panel.words.split(";")[0] for panel in seen.panels] == ["head 1", "head 2", "head 3", "head 4"]
    assert "each head" in seen.sentence
    assert not np.array_equal(np.asarray(seen.panels[2].picture), np.asarray(seen.panels[3].picture))


def test_the_picture_is_the_pipelines_with_a_ring_at_the_place(engine):
    seen = look(engine)
    plain = engine.use("toy-church").pipeline([3], truncation_psi=0.7).images[0]
    factor = seen.picture.width // 32
    assert seen.picture.size == (768, 768)
    large = np.repeat(np.repeat(np.asarray(plain), factor, 0), factor, 1)
    changed = np.argwhere((np.asarray(seen.picture) != large).any(axis=2))
    assert 0 < len(changed) < 0.02 * 768**2
    assert changed.mean(axis=0) == pytest.approx((0.8 * 768, 0.3 * 768), abs=2)  # row, column
    assert np.asarray(seen.picture)[tuple(changed.T)].max() > 240  # white ...
    assert np.asarray(seen.picture)[tuple(changed.T)].min() < 15  # ... in black


def test_brightest_is_where_most_is_taken(engine):
    """The panel's lightest token that is coloured is the map's largest weight."""
    pipeline = engine.use("toy-church").pipeline
    maps = attention_maps(
        pipeline.generator, pipeline.styles([3], truncation_psi=0.7), 4, block=1, queries=[(0.3, 0.8)]
    )
    weights = maps.map(0, 0).mean(dim=0).numpy()
    panel = np.asarray(look(engine, level=4, block=1).panels[0].picture, float)
    corners = panel[4::64, 4::64].sum(axis=2)  # of each of 4 x 4 tokens, away from the ring
    most, least = np.unravel_index(weights.argmax(), (4, 4)), np.unravel_index(weights.argmin(), (4, 4))
    assert corners[most] > corners[least]


def test_another_place_another_map(engine):
    one, other = look(engine), look(engine, x=0.31 + 2 / 32)
    assert not np.array_equal(np.asarray(one.panels[0].picture), np.asarray(other.panels[0].picture))


@pytest.mark.parametrize(
    ("index", "place"), [([0, 0], (0, 0)), ([768, 768], (1, 1)), ([384, 192], (0.5, 0.25))]
)
def test_a_click_is_a_place(engine, index, place):
    assert looking.clicked(engine, "toy-church", index) == pytest.approx(place, abs=1 / 768)


@pytest.mark.parametrize(
    "index", [None, [1], [1, 2, 3], [-1, 5], [5, 769], ["a", 1], [float("nan"), 1], {"0": 1}]
)
def test_a_click_beside_the_picture(engine, index):
    with pytest.raises(InputError, match="the click is"):
        looking.clicked(engine, "toy-church", index)


@pytest.mark.parametrize("resolution", [8, 32, 256, 512, 1024])
def test_the_picture_to_click_on_is_larger_than_the_page_shows_it(resolution):
    assert looking.side(resolution) >= 720 and looking.side(resolution) % resolution == 0


def test_levels_and_their_blocks(engine):
    assert looking.levels(engine, "toy-church") == {4: [1, 2], 8: [1, 2], 16: [1, 2], 32: [1, 2]}
    assert "4 px" in look(engine, level="4", block=1.0).sentence  # as browsers send numbers
    assert "32 px" in look(engine, level=None, block=None).sentence


WRONG = [
    ({"x": 1.01}, "x is 1.01; allowed: a number from 0 to 1"),
    ({"y": float("nan")}, "y is nan"),
    ({"y": "<script>"}, "y is '<script>'"),
    ({"level": 7}, "the level is 7; allowed: 4, 8, 16, 32"),
    ({"level": {"a": 1}}, "the level is"),
    ({"block": 3}, "the block is 3; allowed: 1, 2"),
    ({"block": True}, "the block is True"),
    ({"seed": -1}, "the seed is -1"),
    ({"psi": 99}, "the truncation is 99"),
    ({"every_head": "yes"}, "every_head is 'yes'"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[f"{w[0]!r:.40}" for w in WRONG])
def test_wrong_input_is_one_sentence(engine, change, says):
    with pytest.raises(InputError) as caught:
        look(engine, **change)
    assert says in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family(family, tmp_path):
    generator = tiny_generator(family)
    GANPipeline(generator=generator).save_pretrained(tmp_path / "model")
    engine = Engine(str(tmp_path / "model"), device="cpu")
    name = engine.catalog.start
    for level, blocks in looking.levels(engine, name).items():
        seen = looking.look(engine, name, 0, 1, level, blocks[0], 0.1, 0.9)
        site = next(s for s in generator.attention_sites() if (s.level, s.block) == (level, blocks[0]))
        assert [panel.title for panel in seen.panels] == [part.label for part in site.partitions]
    engine.scratch.close()


def test_a_model_without_self_attention(engine, monkeypatch):
    monkeypatch.setattr(engine.use("toy-church").generator, "attention_sites", lambda: [])
    assert looking.levels(engine, "toy-church") == {}
    with pytest.raises(InputError, match="has no self-attention"):
        look(engine, level=None, block=None)


def test_a_preview_comes_at_once_or_not_at_all(engine, monkeypatch):
    arguments = ("toy-church", *LOOK.values())
    loaded = engine.use("toy-church")
    assert looking.preview(engine, *arguments).panels
    monkeypatch.setattr("studio.engine.PREVIEW_PATIENCE", 0.05)
    held, done = threading.Event(), threading.Event()

    def hold():
        with loaded.lock:
            held.set()
            done.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    assert looking.preview(engine, *arguments) is None  # somebody else's picture is drawn
    done.set()
    other.join()
    monkeypatch.setattr(loaded, "preview_px", 16)
    assert looking.preview(engine, *arguments) is None  # a model too slow for it
    assert looking.preview(Engine(device="cpu", scratch=engine.scratch), *arguments) is None  # not loaded
