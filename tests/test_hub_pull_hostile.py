"""Pulling where the cache has no links, from repositories that lie, and with odd arguments."""

from __future__ import annotations

import json
import shutil

import pytest
from pulls import CONFIG, WEIGHTS, fetched, files_of, finish, pull, refused, same, start
from test_hub_pull_faults import DAMAGES, as_in_a_new_process, snapshot, works

from stylenat_hub import download, snapshots
from stylenat_hub.errors import ConfigError, InputError, UnknownModelError, WeightsError
from stylenat_hub.models.stylenat.generator import StyleNATGenerator


@pytest.fixture
def church(hub, tiny):
    hub.add_repo("org/church", tiny)
    return hub


# A cache without links.


@pytest.fixture(params=["never had links", "copied"])
def unlinked(church, tmp_path, monkeypatch, request):
    """The cache's folder of a repository whose snapshot holds the files themselves."""
    if request.param == "never had links":
        monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_a, **_o: False)
    pull()
    folder = tmp_path / "cache" / "models--org--church"
    if request.param == "copied":
        shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(folder)
        (tmp_path / "copy").rename(folder)
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    church.requests.clear()
    return folder


@pytest.mark.parametrize("name", [f"generator/{WEIGHTS}", f"generator/{CONFIG}", "model_index.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_without_links(church, unlinked, pipeline, name, damage):
    DAMAGES[damage](snapshot(unlinked) / name)
    as_in_a_new_process()
    assert same(pull().generator, pipeline.generator)
    assert same(pull(local_files_only=True).generator, pipeline.generator)
    works(church, pipeline.generator)


@pytest.mark.parametrize("name", [f"generator/{WEIGHTS}", f"generator/{CONFIG}"])
def test_a_damaged_blob_behind_a_copy_is_mended_too(church, unlinked, pipeline, name):
    for blob in (unlinked / "blobs").iterdir() if (unlinked / "blobs").is_dir() else ():
        DAMAGES["flipped"](blob)
    DAMAGES["flipped"](snapshot(unlinked) / name)
    assert same(pull().generator, pipeline.generator)
    assert fetched(church) == [name]
    works(church, pipeline.generator)


def test_flipped_bits_are_found_offline_where_there_is_a_listing(church, unlinked):
    if not (unlinked / "trees").is_dir():
        pytest.skip("this client keeps no listing")
    DAMAGES["flipped"](snapshot(unlinked) / "generator" / WEIGHTS)
    refused(f"'{WEIGHTS}'", "damaged in the download cache", kind=WeightsError, local_files_only=True)


def test_a_link_to_other_bytes_is_mended(church, tmp_path, pipeline):
    """Each blob is what its name says, but not what the Hub has in this place."""
    pull()
    folder = snapshot(tmp_path / "cache" / "models--org--church")
    link = folder / "generator" / CONFIG
    link.unlink()
    link.symlink_to((folder / "model_index.json").resolve())
    assert same(pull().generator, pipeline.generator)
    works(church, pipeline.generator)


# Repositories that lie.


@pytest.mark.parametrize(
    "name", ["generator/x/../../../../../victim", "/victim", "generator//x", "generator/./x", "a\\b", "a\0b"]
)
def test_a_listed_name_that_leads_elsewhere(church, tmp_path, monkeypatch, name):
    about = download.HfApi.model_info

    def lying(*arguments, **options):
        info = about(*arguments, **options)
        info.siblings[0].rfilename = name
        return info

    monkeypatch.setattr(download.HfApi, "model_info", lying)
    refused("'org/church'", "lead out of its folder", kind=WeightsError)
    assert fetched(church) == []


def test_nothing_outside_of_the_repository_is_removed(tmp_path):
    folder = tmp_path / "cache" / "models--org--church" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("")
    (folder / "link").symlink_to(victim)
    (folder / "away").symlink_to(tmp_path)
    for name in ("link", "../../../../victim", "away/victim", str(victim)):
        snapshots.remove(folder, name)
        assert victim.is_file(), name
    assert not (folder / "link").is_symlink()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({f"key{i}": 1 for i in range(100_000)}, "'key0'"),
        ({"_class_name": "y" * 5_000_000}, "yyy"),
        ({"_class_name": ["y" * 5_000_000]}, "yyy"),
        ({"channels": "y" * 5_000_000}, "channels is 'yyy"),
        ({"channels": ["y" * 5_000_000] * 3}, "channels is ('yyy"),
    ],
)
def test_a_config_that_is_long(hub, tiny, values, words):
    config = {**json.loads((tiny / "generator" / CONFIG).read_text()), **values}
    files = {**files_of(tiny / "generator"), CONFIG: json.dumps(config).encode()}
    hub.add_repo("org/church", files)
    message = refused(words, kind=ConfigError)
    assert len(message) < 1_200, len(message)


def test_an_index_that_is_long(hub, tiny):
    def message(weight_map):
        index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        files = {**files_of(tiny / "generator"), f"{WEIGHTS}.index.json": index}
        hub.add_repo("org/church", files)
        return refused(kind=WeightsError)

    assert len(message({"constant": "y" * 2_000_000})) < 1_200
    assert len(message({"constant": WEIGHTS})) < 1_200


# Odd arguments.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("cache_dir", "a\0b"),
            ("subfolder", "x" * 5_000),
            ("subfolder", "x/" * 5_000),
            ("subfolder", "a\0"),
        ),
        *(("variant", "x" * 5_000), ("variant", []), ("variant", 0), ("namespace", ""), ("namespace", 5)),
    ],
)
def test_odd_arguments_are_named(church, tiny, name, value):
    refused(f"{name} is ", "allowed", kind=InputError, **{name: value})
    if name in ("subfolder", "variant"):
        refused(f"{name} is ", "allowed", kind=InputError, source=str(tiny), **{name: value})
    assert not church.requests


def test_a_namespace_goes_with_a_name_of_the_zoo(church, tiny):
    for source in ("org/church", str(tiny)):
        refused("namespace is 'me'", "leave namespace out", kind=InputError, source=source, namespace="me")
    refused("namespace is 5", kind=InputError, source="toy-church", namespace=5)
    refused("did you mean", kind=UnknownModelError, source="toy-chuch", namespace="me")
    assert not church.requests


def test_arguments_of_diffusers_that_cannot_be(tiny):
    load = StyleNATGenerator.from_pretrained
    refused("quantization_config", kind=InputError, load=load, source=tiny, quantization_config={"a": 1})
    refused("output_loading_info", kind=InputError, source=tiny, output_loading_info=True)
    assert len(load(tiny, output_loading_info=True)) == 2


def test_a_token_of_the_environment_that_cannot_be_sent(church, tmp_path):
    attempts = ["org/church", {}], ["org/church", {"token": False}], ["org/church", {"token": "hf_me"}]
    bad, none, other = finish(start(church, tmp_path / "home", *attempts, token="hf_\N{SNOWMAN}"))
    assert bad[0] == "InputError" and "HF_TOKEN" in bad[1] and "is no token" in bad[1]
    assert "\N{SNOWMAN}" not in bad[1] and none == other and isinstance(none, float)
