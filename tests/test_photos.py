"""Any picture file becomes a square RGB picture, with notices; what cannot is refused in a sentence."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from drawings import drawing, encoded
from PIL import Image, features

from stylenat_hub import photos
from stylenat_hub.decoding import decode, square
from stylenat_hub.errors import InputError
from stylenat_hub.photos import open_photo

ROOT = Path(__file__).resolve().parent.parent


def smooth(size: tuple[int, int]) -> Image.Image:
    """Colours that change slowly, so that JPEG and averaging change them little."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).round().astype(np.uint8))


def saved(folder, image: Image.Image, kind: str = "PNG", **options) -> Path:
    path = folder / f"photo.{kind.lower()}"
    image.save(path, format=kind, **options)
    return path


def apart(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


@pytest.mark.parametrize("size", [(32, 32), (60, 44), (44, 60), (20, 14)])
def test_a_picture_is_that_of_the_training_data(size, tmp_path):
    picture, notices = open_photo(saved(tmp_path, drawing(1, size)), 32)
    wanted = square(decode(encoded(drawing(1, size))), 32, "", allow_upscaling=True)
    assert picture.mode == "RGB" and picture.tobytes() == wanted.tobytes()
    assert any("cropped" in notice for notice in notices) == (size[0] != size[1])
    assert any("enlarged" in notice for notice in notices) == (min(size) < 32)
    assert any("shrunk" in notice for notice in notices) == (min(size) > 32)


def test_notices_name_sizes(tmp_path):
    _, notices = open_photo(saved(tmp_path, drawing(1, (64, 48))), 32)
    assert notices == [
        "cropped to the square in its middle: 48 x 48 of 64 x 48 px",
        "shrunk from 48 to 32 px",
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_large_picture_is_averaged_down_to_what_the_whole_filter_gives(kind, tmp_path):
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    picture, _ = open_photo(saved(tmp_path, smooth((1203, 1000)), kind, **options), 32)
    wanted = square(smooth((1203, 1000)), 32, "")
    assert apart(picture, wanted) <= 4


def test_bands_do_not_show(tmp_path, monkeypatch):
    path = saved(tmp_path, drawing(3, (333, 301)))
    whole, _ = open_photo(path, 32)
    monkeypatch.setattr(photos, "_BAND", 1500)
    assert open_photo(path, 32)[0].tobytes() == whole.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(orientation, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(drawing(2, (40, 36)), exif=exif)
    (tmp_path / "turned.png").write_bytes(data)
    picture, notices = open_photo(tmp_path / "turned.png", 32)
    assert apart(picture, square(decode(data), 32, "")) <= 1
    assert ("36 x 40 px" in notices[0]) == (orientation >= 5)


def test_transparent_parts_are_white(tmp_path):
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    image.paste((0, 0, 0, 128), (0, 0, 16, 8))
    picture, notices = open_photo(saved(tmp_path, image), 32)
    assert picture.getpixel((4, 20)) == (255, 255, 255) and picture.getpixel((20, 4)) == (200, 0, 0)
    assert picture.getpixel((4, 4)) == (127, 127, 127)
    assert notices == ["its transparent parts are put on white"]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_white(mode, tmp_path):
    image = Image.new("RGB", (32, 32), (153, 153, 153)).convert(mode)
    image.paste(0, (0, 0, 16, 32))
    key = image.getpixel((0, 0))
    picture, notices = open_photo(saved(tmp_path, image, transparency=key), 32)
    assert picture.getpixel((0, 0)) == (255, 255, 255) and picture.getpixel((31, 0)) == (153,) * 3
    assert len(notices) == 1


def test_an_opaque_alpha_channel_is_no_news(tmp_path):
    assert open_photo(saved(tmp_path, drawing(1, (32, 32)).convert("RGBA")), 32)[1] == []


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind, tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = saved(tmp_path, frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture, notices = open_photo(path, 32)
    assert picture.getpixel((5, 5)) == (255, 0, 0)
    assert len(notices) == 1 and "the first one is used" in notices[0]


def test_cmyk(tmp_path):
    wanted = smooth((32, 32))
    picture, notices = open_photo(saved(tmp_path, wanted.convert("CMYK"), "TIFF"), 32)
    assert apart(picture, wanted) <= 1 and notices == []
    picture, _ = open_photo(saved(tmp_path, wanted.convert("CMYK"), "JPEG", quality=98, subsampling=0), 32)
    assert apart(picture, wanted) <= 12


@pytest.mark.parametrize("side", [32, 640])
def test_16_bits(side, tmp_path):
    wide = np.linspace(0, 65535, side).round().astype(np.uint16)[None].repeat(side, axis=0)
    picture, _ = open_photo(saved(tmp_path, Image.fromarray(wide)), 32)
    line = np.asarray(picture)[5]
    assert line[0, 0] <= 5 and line[-1, 0] >= 250 and abs(int(line[16, 1]) - 128) <= 6


def test_one_bit_and_palette(tmp_path):
    checks = Image.fromarray(np.indices((400, 400)).sum(axis=0) % 2 == 0)
    picture, _ = open_photo(saved(tmp_path, checks), 32)
    assert apart(picture, Image.new("RGB", (32, 32), (127,) * 3)) <= 1
    palette = smooth((400, 400)).quantize(200)
    picture, _ = open_photo(saved(tmp_path, palette), 32)
    assert apart(picture, square(smooth((400, 400)), 32, "")) < 30


def png(width: int, height: int) -> bytes:
    """A black PNG of one bit per pixel, whose rows are never all in memory."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    squeeze = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


CODE = """
import sys
from stylenat_hub.photos import open_photo
try:
    print(open_photo(sys.argv[1], 32)[1])
except ValueError as error:
    print(error)
if sys.platform == "linux":
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def opened_alone(path: Path) -> tuple[str, int]:
    """What a process of its own says of a photo, and the most memory that it took in kB (0: not known)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer, *peak = done.stdout.splitlines()
    return answer, int(peak[0]) if peak else 0


@pytest.mark.parametrize(
    ("width", "height", "says"),
    [
        (30_000, 30_000, "has 900,000,000 pixels; allowed: up to 100,000,000"),
        (12_000, 12_000, "has 144,000,000 pixels; allowed: up to 100,000,000"),
        (14_000, 13_000, "has 182,000,000 pixels; allowed: up to 100,000,000"),
        (9_000, 7_000, "shrunk from 7000 to 32 px"),
    ],
)
def test_memory_stays_bounded(width, height, says, tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png(width, height))
    answer, peak = opened_alone(path)
    assert says in answer
    assert peak < (100_000 if "allowed" in says else 150_000)  # what is decoded has a byte per pixel


def test_a_large_jpeg_is_never_whole_in_memory(tmp_path):
    answer, peak = opened_alone(saved(tmp_path, Image.new("RGB", (6000, 6000), "teal"), "JPEG"))
    assert "shrunk from 6000 to 32 px" in answer
    assert peak < 100_000  # decoded it has 144 MB


def tiff(*tags: tuple[int, int]) -> bytes:
    """A compressed grey TIFF of 10 x 10 px with these tags too, and hardly any data."""
    data = zlib.compress(b"grey")
    own = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1)]
    entries = [*own, *tags]
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    tiled = any(tag == 322 for tag, _ in tags)
    entries += [(324, start), (325, len(data))] if tiled else [(273, start), (279, len(data))]
    entries.sort(key=lambda entry: entry[0])
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4) + data


def refusal(folder, content: bytes) -> str:
    (folder / "photo").write_bytes(content)
    with pytest.raises(InputError) as raised:
        open_photo(folder / "photo", 32)
    return str(raised.value)


def test_a_tiff_has_small_parts_or_is_refused(tmp_path):
    parts = (
        "is stored in parts of 40,000 x 40,000 pixels, which take 1,600,000,000 bytes each; allowed: up to"
    )
    assert parts in refusal(tmp_path, tiff((322, 40_000), (323, 40_000)))
    twice = tiff((322, 40_000), (322, 16), (323, 40_000), (323, 16))
    assert "it names one property twice" in refusal(tmp_path, twice)
    assert "it is cut short or damaged" in refusal(tmp_path, tiff((322, 16), (323, 16)))
    assert "it is cut short or damaged" in refusal(tmp_path, tiff((278, 4_000_000_000)))  # rows of a strip


def test_a_picture_of_exactly_the_limit_is_taken(tmp_path):
    path = saved(tmp_path, Image.new("1", (10_000, 10_000)), "TIFF", compression="group4")
    answer, peak = opened_alone(path)
    assert "shrunk from 10000 to 32 px" in answer and peak < 200_000


def test_a_large_picture_in_an_icon_is_refused_before_it_is_decoded(tmp_path):
    large = png(10_001, 10_000)
    header = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 1, len(large), 22)
    (tmp_path / "icon.ico").write_bytes(header + large)
    answer, peak = opened_alone(tmp_path / "icon.ico")
    assert "has 100,010,000 pixels; allowed: up to 100,000,000" in answer and peak < 100_000


def test_what_is_heavy_to_decode_has_a_lower_limit(tmp_path):
    jpeg = encoded(smooth((64, 48)).convert("CMYK"), "JPEG", progressive=True)
    wide = jpeg.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 6_000, 10_001), 1)
    says = "has 10,001 x 6,000 = 60,006,000 pixels; allowed: up to 60,000,000"
    assert says in refusal(tmp_path, wide)
    if features.check("avif"):
        avif = encoded(smooth((64, 48)), "AVIF")
        wide = avif.replace(struct.pack(">II", 64, 48), struct.pack(">II", 8_000, 5_001))
        assert "allowed: up to 40,000,000" in refusal(tmp_path, wide)


def test_what_is_no_picture_is_refused(tmp_path, monkeypatch):
    def refused(path) -> str:
        with pytest.raises(InputError) as raised:
            open_photo(path, 32)
        assert str(path) in str(raised.value) and "0x" not in str(raised.value)
        return str(raised.value)

    data = encoded(drawing(0, (64, 64)))
    contents = {"text.png": b"no picture", "empty.png": b"", "cut.png": data[: len(data) // 2]}
    contents |= {"cut.jpg": encoded(smooth((300, 300)), "JPEG")[:900], "page.svg": b"<svg></svg>"}
    contents |= {"wide.webp": encoded(Image.new("RGB", (8000, 6000)), "WEBP", method=0)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert "not a picture" in refused(tmp_path / "text.png")
    assert "not a picture" in refused(tmp_path / "page.svg")
    assert "is empty" in refused(tmp_path / "empty.png")
    assert "cannot read" in refused(tmp_path / "cut.png")
    assert "truncated" in refused(tmp_path / "cut.jpg")
    assert "up to 40,000,000" in refused(tmp_path / "wide.webp")
    assert "is a folder" in refused(tmp_path)
    assert "there is no file" in refused(tmp_path / "nothing.png")
    assert "floating-point" in refused(saved(tmp_path, Image.new("F", (40, 40)), "TIFF"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert "device or a pipe" in refused(tmp_path / "pipe.png")  # and does not wait for it
    monkeypatch.setattr(photos, "MAX_BYTES", 100)
    (tmp_path / "whole.png").write_bytes(data)
    assert "allowed: up to 100" in refused(tmp_path / "whole.png")
