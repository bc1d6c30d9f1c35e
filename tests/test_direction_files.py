"""Directions in files and on the Hub: read back as they were, and whatever is wrong gets one sentence."""

from __future__ import annotations

import json
import struct
import warnings

import pytest
import torch
from pulls import fetched, files_of
from safetensors.torch import load_file, save_file
from small_models import tiny_generator
from typer.testing import CliRunner

from stylenat_hub import cli
from stylenat_hub.errors import (
    HubError,
    InputError,
    OldCopyWarning,
    OtherModelWarning,
    StyleNATHubError,
    UnknownModelError,
    WeightsError,
)
from stylenat_hub.latents.direction_files import FILE, KEY, load_directions
from stylenat_hub.latents.factorise import closed_form
from stylenat_hub.options import one_sentence
from stylenat_hub.publish_directions import push_directions

CHURCH = "me/church-directions"
NAMED = {"sefa-1": "light"}


@pytest.fixture(scope="module")
def model():
    return tiny_generator()


@pytest.fixture(scope="module")
def found(model):
    return closed_form(model, 3).renamed(NAMED).described(model="org/church", version="1")


@pytest.fixture
def saved(found, tmp_path):
    found.save(tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def same(one, other):
    tensors = all(torch.equal(getattr(one, key), getattr(other, key)) for key in ("vectors", "deviations"))
    return tensors and (one.names, one.styles, one.about) == (other.names, other.styles, other.about)


def sentence(kind, *words, source, **options):
    """Loading raises an error of this kind, on one readable line with these words in it."""
    with pytest.raises(StyleNATHubError) as caught:
        load_directions(source, **options)
    text = str(caught.value)
    assert type(caught.value) is kind, repr(caught.value)
    assert text.isprintable() and len(text) < 700 and all(word in text for word in words), text


def test_a_file_and_a_folder_are_read_as_they_were_saved(model, found, saved, tmp_path, recwarn):
    assert same(load_directions(saved, model), found) and same(load_directions(str(saved)), found)
    found.save(tmp_path / "folder" / FILE)
    assert same(load_directions(tmp_path / "folder"), found)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [FILE]
    assert not recwarn.list


def test_what_is_not_there(tmp_path, saved):
    sentence(InputError, "no file or folder 'nowhere'", source="nowhere")
    sentence(InputError, "no file or folder", source=tmp_path / "nowhere")
    sentence(InputError, f"has no '{FILE}'", source=tmp_path)
    sentence(InputError, "no file or folder", source="x" * 5000)
    sentence(InputError, "no file or folder", source="a\0b")
    sentence(InputError, "a path is empty", source="")
    sentence(InputError, "give a file", source=3)
    sentence(InputError, "give it with a Hub id", source=saved, revision="v1")


def test_of_another_model(saved):
    sentence(InputError, "org/church", "styles 0 to 0 of 32", source=saved, generator=tiny_generator("hit"))
    with pytest.warns(OtherModelWarning, match="other weights"):
        load_directions(saved, tiny_generator(seed=1))


def rewritten(path, metadata=None, **tensors):
    """The file with other tensors (None: without) or another header."""
    mine = {**load_file(path), **tensors}
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    save_file({k: t for k, t in mine.items() if t is not None}, path, metadata=metadata or header)


def header(path, **fields):
    data = path.read_bytes()
    text = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"][KEY]
    rewritten(path, metadata={KEY: json.dumps({**json.loads(text), **fields})})


HOSTILE = {
    "not a number": lambda p: rewritten(p, vectors=torch.full((3, 32), torch.nan)),
    "half": lambda p: rewritten(p, vectors=load_file(p)["vectors"].half()),
    "whole numbers": lambda p: rewritten(p, deviations=torch.ones(3, dtype=torch.int64)),
    "no vectors": lambda p: rewritten(p, vectors=None),
    "another shape": lambda p: rewritten(p, shares=torch.ones(3, 1)),
    "another count": lambda p: rewritten(p, deviations=torch.ones(2)),
    "too long": lambda p: rewritten(p, vectors=2 * load_file(p)["vectors"]),
    "too wide": lambda p: rewritten(p, vectors=torch.ones(3, 5000)),
    "no header": lambda p: rewritten(p, metadata={"x": "y"}),
    "no JSON": lambda p: rewritten(p, metadata={KEY: "{"}),
    "deep JSON": lambda p: rewritten(p, metadata={KEY: "[" * 100_000}),
    "a list": lambda p: rewritten(p, metadata={KEY: "[]"}),
    "a later format": lambda p: header(p, format=2),
    "one name twice": lambda p: header(p, names=["a", "b", "a"]),
    "a name that leads out": lambda p: header(p, names=["../../a", "b", "c"]),
    "a name of another kind": lambda p: header(p, names=[1, "b", "c"]),
    "names in a text": lambda p: header(p, names="abc"),
    "a style below 0": lambda p: header(p, styles=[[-1], [0], [0]]),
    "a style far off": lambda p: header(p, styles=[[10**12], [0], [0]]),
    "a style of another kind": lambda p: header(p, styles=["0", [0], [0]]),
    "styles that are none": lambda p: header(p, styles=[None, [0], [0]]),
    "about of another kind": lambda p: header(p, about={"model": ["x"]}),
    "empty": lambda p: p.write_bytes(b""),
    "cut off": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "a huge header": lambda p: p.write_bytes(struct.pack("<Q", 50_000_000) + b" " * 5_000_000),
    "a long header": lambda p: header(p, padding=" " * 5_000_000),
    "a text": lambda p: p.write_text("these are my directions\n" * 20),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_or_damaged_file(saved, kind):
    HOSTILE[kind](saved)
    sentence(WeightsError, "no file of directions, or is damaged", "mine.safetensors", source=saved)


def test_pushed_they_are_loaded_by_their_id(hub, model, found):
    commit = push_directions(found, CHURCH, license="mit")
    assert set(hub.files(CHURCH)) - {".gitattributes"} == {FILE, "README.md"}
    assert [one.title for one in hub.commits(CHURCH)][-1] == "Upload directions"
    card = hub.files(CHURCH)["README.md"].decode()
    for words in ("license: mit", "base_model: org/church", f'load_directions("{CHURCH}"', "| `light` |"):
        assert words in card, card
    assert f"generate org/church --directions {CHURCH} --edit light=2" in card and "SeFa" in card
    assert same(load_directions(CHURCH, model), found)
    assert fetched(hub) == [FILE]
    again = push_directions(found, CHURCH)
    assert again.unchanged and again.oid == commit.oid  # the licence stays, too
    push_directions(found, "mine", private=True)
    assert hub.repo("me/mine").private


def test_a_revision(hub, found):
    push_directions(found, CHURCH, tag="v1")
    push_directions(found.renamed({"light": "dusk"}), CHURCH)
    assert load_directions(CHURCH).names[0] == "dusk"
    assert (
        load_directions(f"{CHURCH}@v1").names[0] == load_directions(CHURCH, revision="v1").names[0] == "light"
    )
    sentence(UnknownModelError, "no revision 'v2'", source=f"{CHURCH}@v2")
    sentence(InputError, "and once", source=f"{CHURCH}@v1", revision="v1")


def test_what_the_hub_does_not_have(hub, found, tiny):
    with pytest.raises(UnknownModelError, match="the Hub has no repository"):
        load_directions("me/nothing")
    hub.add_repo("me/church", tiny)
    sentence(InputError, f"has no '{FILE}'", source="me/church")
    hub.add_repo("me/odd", {FILE: b"no safetensors at all"})
    sentence(WeightsError, "me/odd", source="me/odd")
    push_directions(found, CHURCH)
    with pytest.raises(UnknownModelError, match="switched off"):
        load_directions(CHURCH, local_files_only=True)
    load_directions(CHURCH)
    hub.fail("503", times=100)
    with pytest.warns(OldCopyWarning):
        assert same(load_directions(CHURCH), found)


def test_a_repository_holds_a_model_or_directions(hub, pipeline, found):
    pipeline.push_to_hub("me/church")
    before = hub.files("me/church")
    with pytest.raises(InputError, match=r"holds a model; .* such as me/church-directions"):
        push_directions(found, "me/church")
    assert hub.files("me/church") == before
    push_directions(found, CHURCH)
    before = hub.files(CHURCH)
    with pytest.raises(InputError, match="holds directions; push a model"):
        pipeline.push_to_hub(CHURCH)
    assert hub.files(CHURCH) == before


def test_a_card_of_somebody_s_own_stays(hub, found):
    own = b"---\nlicense: mit\n---\n# What I saw\n"
    hub.add_repo(CHURCH, {"README.md": own})
    push_directions(found, CHURCH)
    assert hub.files(CHURCH)["README.md"] == own and FILE in hub.files(CHURCH)


def test_what_cannot_be_pushed(hub, found):
    for options, says in (
        ({"private": "yes"}, "private is"),
        ({"folder": "x"}, "does not know the argument"),
        ({"license": "of my own"}, "does not take the card"),
    ):
        with pytest.raises((InputError, HubError), match=says):
            push_directions(found, CHURCH, **options)
    with pytest.raises(HubError, match="does not let you write"):
        push_directions(found, "other/church-directions")
    assert not hub.repos


def test_a_model_whose_name_is_markup_is_not_named_on_the_card(hub, found):
    push_directions(found.described(model='x"); import os; ("`'), CHURCH)
    card = hub.files(CHURCH)["README.md"].decode()
    assert "import os" not in card and 'from_pretrained("MODEL")' in card and "base_model" not in card


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_command_pushes_and_generate_takes_the_id(hub, tmp_path):
    few = ("directions", "--top", 1, "--seeds", 0, "--strengths", "1", "--output")
    result = run(*few, tmp_path / "out", "--push-to-hub", CHURCH, "--license", "mit")
    assert result.exit_code == 0 and f"pushed to {hub.url}/{CHURCH}" in result.stdout, result.output
    assert hub.files(CHURCH)[FILE] == files_of(tmp_path / "out")[FILE]
    assert "generate toy-church --directions" in hub.files(CHURCH)["README.md"].decode()
    drawn = ("generate", "--seeds", 0, "--directions", CHURCH, "--edit", "sefa-1=2", "--output")
    result = run(*drawn, tmp_path / "drawn")
    assert result.exit_code == 0 and result.stderr.count("warning") == 0, result.output
    result = run(*few, tmp_path / "again", "--push-to-hub", "other/church")
    assert result.exit_code == 1 and f"'{tmp_path / 'again'}' is written" in result.stderr
    assert (tmp_path / "again" / FILE).is_file()


def test_the_command_warns_in_one_line_of_other_weights(saved, tiny, tmp_path):
    load_directions(saved).described(weights="0").save(saved)
    steer = ("--directions", saved, "--edit", "light=1")
    with pytest.warns(OtherModelWarning, match="found in other weights"):
        assert run("generate", tiny, "--seeds", 0, *steer, "--output", tmp_path / "out").exit_code == 0
    with one_sentence(debug=False):
        assert warnings.formatwarning("x", OtherModelWarning, "file.py", 3) == "warning: x\n"
