"""Every kind of source gives the same pictures, whatever their format; what is wrong is named."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from drawings import (
    COUNT,
    KINDS,
    NAMES,
    drawing,
    encoded,
    files,
    pngs,
    write_dataset,
    write_folder,
    write_lmdb,
    write_zip,
)
from PIL import Image, ImageOps

from stylenat_hub.errors import InputError
from stylenat_hub.sources import BrokenImage, open_source


@pytest.fixture
def folder(tmp_path) -> str:
    return write_folder(tmp_path / "photos", files())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_pictures(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path / "data"))
    source.image(0)  # whatever is open now must not travel along
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == COUNT and source.name == str(tmp_path / "data")
    for index in range(COUNT):
        picture = source.image(index)
        assert picture.mode == "RGB" and picture.tobytes() == drawing(index).tobytes()
        assert copy.image(index).tobytes() == picture.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_is_of_the_data_not_of_the_place(kind, tmp_path):
    first = KINDS[kind](tmp_path / "here")
    fingerprint = open_source(first).fingerprint
    shutil.move(first, tmp_path / "there")
    source = open_source(str(tmp_path / "there"))
    assert source.fingerprint == fingerprint and re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert pickle.loads(pickle.dumps(source)).fingerprint == fingerprint


def test_a_fingerprint_changes_with_names_sizes_and_number(tmp_path):
    changed = [
        files(),
        files(COUNT - 1),
        {**files(), NAMES[3]: encoded(drawing(3, (13, 8)))},
        {("c" + name[1:] if name == NAMES[0] else name): data for name, data in files().items()},
    ]
    places = [write_folder(tmp_path / str(i), content) for i, content in enumerate(changed)]
    assert len({open_source(place).fingerprint for place in places}) == len(changed)


@pytest.mark.parametrize("write", [write_lmdb, write_dataset])
def test_a_fingerprint_of_keys_or_rows_changes_with_sizes_and_number(write, tmp_path):
    sizes = ((2, 8), (3, 8), (2, 9))
    places = [write(tmp_path / f"{count}{side}", pngs(count, (12, side))) for count, side in sizes]
    assert len({open_source(place).fingerprint for place in places}) == len(sizes)


LABELS = {"folder": "a/deep/6.png", "zip": "a/deep/6.png", "lmdb": "256-00003", "dataset": "row 3"}


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_pictures_own(kind, tmp_path):
    source = open_source(KINDS[kind](tmp_path / "data"))
    assert source.label(3) == LABELS[kind]
    assert len({source.label(i) for i in range(COUNT)}) == COUNT


def test_what_is_no_picture_is_left_alone(tmp_path):
    others = {"dataset.json": b"{}", "notes.txt": b"x", ".hidden.png": b"x", "a/.b/c.png": b"x"}
    others |= {"__MACOSX/a.png": b"x", "a/._0.png": b"x", "print.eps": b"x", "film.mpg": b"x"}
    pictures = {"b/UPPER.JPG": encoded(drawing(0), "JPEG"), "c.webp": encoded(drawing(1), "WEBP")}
    for place in (
        write_folder(tmp_path / "f", others | pictures),
        write_zip(tmp_path / "z", others | pictures),
    ):
        source = open_source(place)
        assert [source.label(i) for i in range(len(source))] == ["b/UPPER.JPG", "c.webp"]
        assert source.image(0).size == (12, 8)


def test_linked_folders_are_read_and_circles_end(tmp_path, folder):
    links = tmp_path / "links"
    links.mkdir()
    (links / "all").symlink_to(folder, target_is_directory=True)
    (links / "self").symlink_to(links, target_is_directory=True)
    (links / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(str(links))
    assert len(source) == COUNT + 1 and source.image(0).tobytes() == drawing(0).tobytes()
    with pytest.raises(BrokenImage, match=r"gone\.png"):
        source.image(COUNT)
    assert len(source.fingerprint) == 64


def test_an_lmdb_of_several_resolutions(tmp_path):
    pytest.importorskip("lmdb")
    place = write_lmdb(tmp_path / "l", pngs(3), (64, 1024, 256))
    assert open_source(place).label(0) == "1024-00000"
    assert open_source(place, resolution=64).label(2) == "64-00002"
    with pytest.raises(InputError, match="no pictures of 128 px; it has: 64, 256, 1024"):
        open_source(place, resolution=128)


def test_splits_and_the_column_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {}
    for split, first in (("train", 0), ("test", 3)):
        write_dataset(tmp_path / split, pngs()[first : first + 2], "image")
        data = datasets.load_from_disk(str(tmp_path / split))
        mask = [{"bytes": pngs()[6]}] * 2
        data = data.add_column("mask", mask, feature=datasets.Image())
        parts[split] = data.select_columns(["mask", "image"])
    place = str(tmp_path / "both")
    datasets.DatasetDict(parts).save_to_disk(place)
    assert open_source(place).image(1).tobytes() == drawing(1).tobytes()
    assert open_source(place, "test").image(1).tobytes() == drawing(4).tobytes()
    with pytest.raises(InputError, match="no split 'rain'; it has: train, test"):
        open_source(place, "rain")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    place = write_lmdb(tmp_path / "l", pngs(1))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install lmdb"):
        open_source(place)
    with pytest.raises(InputError, match="pip install datasets"):
        open_source("hf:org/name")


def no_length(place: Path) -> str:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(place)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"b1946ac9", b"a raw LSUN key")
    return str(place)


def cut_lmdb(place: Path) -> str:
    write_lmdb(place, [bytes(9000)] * 200)
    os.truncate(place / "data.mdb", 100_000)
    return str(place)


def no_images(place: Path) -> str:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(place))
    return str(place)


WRONG = {
    "nothing": (lambda place: str(place), "no file or folder .*; name a folder of images"),
    "a Hub id": (lambda place: "org/name", "data set of that name is hf:org/name"),
    "empty folder": (lambda place: write_folder(place, {"a.txt": b""}), r"holds no images; .*\.jpg .*\.png"),
    "no zip": (lambda place: write_folder(place, {"f": b"text"}) + "/f", "is not a zip"),
    "cut zip": (
        lambda place: (
            write_folder(place, {"f": Path(write_zip(place.parent / "z", files())).read_bytes()[:-30]}) + "/f"
        ),
        "is not a zip, or is damaged",
    ),
    "empty zip": (lambda place: write_zip(place, {"dataset.json": b""}), "the zip .* holds no images"),
    "other LMDB": (no_length, "has no key 'length'"),
    "no LMDB": (
        lambda place: pytest.importorskip("lmdb") and write_folder(place, {"data.mdb": b"junk" * 3000}),
        "cannot open the LMDB",
    ),
    "cut LMDB": (cut_lmdb, "is cut short at 100000 bytes"),
    "data set without pictures": (no_images, r"1 rows of text \(Value\); needed is a column"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_source_is_refused_in_one_sentence(case, tmp_path):
    make, says = WRONG[case]
    with pytest.raises(InputError, match=says) as caught:
        open_source(make(tmp_path / "x"))
    assert "\n" not in str(caught.value)


# Formats and modes.


def grey(bits: int) -> np.ndarray:
    return (np.arange(96).reshape(8, 12) * (2**bits // 96)).astype(np.uint16 if bits == 16 else np.uint8)


def odd_pictures() -> dict[str, tuple[bytes, Image.Image]]:
    """Name -> (file, the RGB picture that it shows)."""
    palette = drawing(0).quantize(16)
    clear = encoded(palette, transparency=bytes(range(0, 256, 16)))
    alpha = drawing(1).convert("RGBA")
    alpha.putalpha(Image.fromarray(grey(8)))
    light = Image.merge("LA", (Image.fromarray(grey(8)), Image.fromarray(255 - grey(8))))
    wide = Image.fromarray((grey(16).astype(int) * 255 / 65535).round().astype(np.uint8)).convert("RGB")
    plain = Image.fromarray(grey(8)).convert("RGB")
    print_colours = drawing(2).convert("CMYK")
    return {
        "palette, transparent": (clear, palette.convert("RGB")),
        "palette, one clear colour": (encoded(palette, "GIF", transparency=3), palette.convert("RGB")),
        "alpha": (encoded(alpha), drawing(1)),
        "grey, alpha": (encoded(light), plain),
        "grey": (encoded(plain.convert("L")), plain),
        "grey, one clear tone": (encoded(plain.convert("L"), transparency=0), plain),
        "16 bits": (encoded(Image.fromarray(grey(16))), wide),
        "16 bits, TIFF": (encoded(Image.fromarray(grey(16).astype(">u2")), "TIFF"), wide),
        "16 bits, PGM": (encoded(Image.fromarray(grey(16)), "PPM"), wide),
        "CMYK": (encoded(print_colours, "TIFF"), print_colours.convert("RGB")),
        "1 bit": (encoded(plain.convert("1")), plain.convert("1").convert("RGB")),
        "animation": (
            encoded(palette, "GIF", save_all=True, append_images=[palette]),
            palette.convert("RGB"),
        ),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_every_mode_becomes_rgb(name, tmp_path):
    data, expected = odd_pictures()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns about palettes with transparency
        picture = open_source(write_folder(tmp_path, {"a.png": data})).image(0)
    assert picture.mode == "RGB" and picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(drawing(0), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture = open_source(write_folder(tmp_path, {"a.png": data})).image(0)
    assert picture.size == ((12, 8) if orientation < 5 else (8, 12))
    assert picture.tobytes() == expected.tobytes()


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    data = encoded(drawing(0), "JPEG", exif=exif)
    place = data.index((0x011A).to_bytes(2, "big"))
    damaged = data[: place + 2] + b"\x00\x02" + data[place + 4 :]  # a number that says it is a text
    assert open_source(write_folder(tmp_path, {"a.jpg": damaged})).image(0).size == (8, 12)


def broken_files() -> dict[str, tuple[bytes, str]]:
    bomb = bytearray(encoded(drawing(0), "BMP"))
    bomb[18:26] = (40_000).to_bytes(4, "little") * 2
    return {
        "empty.png": (b"", "it is empty"),
        "text.png": (b"not a picture", "not a picture in a format that Pillow reads"),
        "cut.png": (pngs(1, (64, 64))[0][:900], "truncated"),
        "cut.jpg": (encoded(drawing(0, (64, 64)), "JPEG")[:900], "truncated"),
        "bomb.bmp": (bytes(bomb), "exceeds limit"),
        "float.tif": (encoded(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_file_is_named(name, tmp_path):
    data, says = broken_files()[name]
    source = open_source(write_folder(tmp_path, {f"sub/{name}": data}))
    with pytest.raises(BrokenImage, match=f"cannot read 'sub/{name}' of .*: .*{says}") as caught:
        source.image(0)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


BROKEN = {
    "b.png": lambda place, both: write_zip(place, dict(zip(("a.png", "b.png"), both, strict=True))),
    "256-00001": write_lmdb,
    "row 1": write_dataset,
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_members_keys_and_rows_are_named(name, tmp_path):
    source = open_source(BROKEN[name](tmp_path / "data", [pngs()[0], b"junk"]))
    assert source.image(0).size == (12, 8)
    with pytest.raises(BrokenImage, match=f"cannot read '{name}'"):
        source.image(1)


def test_a_folder_that_vanishes_is_not_a_broken_picture(folder):
    source = open_source(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="is gone") as caught:
        source.image(0)
    assert not isinstance(caught.value, BrokenImage)
