"""Small pictures in every kind of source, which several test files share."""

from __future__ import annotations

import io
import itertools
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import Pictures, open_source

COUNT = 7
NAMES = [f"{'ab'[i % 2]}/deep/{i}.png" for i in range(COUNT)]


def drawing(number: int, size: tuple[int, int] = (12, 8)) -> Image.Image:
    """Noise, which no crop, turn or mirroring leaves as it is."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def write_zip(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def write_lmdb(folder: Path, pictures: list[bytes], resolutions: tuple[int, ...] = (256,)) -> str:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"length", str(len(pictures)).encode())
        for resolution, (index, data) in itertools.product(resolutions, enumerate(pictures)):
            transaction.put(f"{resolution}-{str(index).zfill(5)}".encode(), data)
    return str(folder)


def write_dataset(folder: Path, pictures: list[bytes], column: str = "photo") -> str:
    datasets = pytest.importorskip("datasets")
    rows = {"caption": [str(i) for i in range(len(pictures))], column: [{"bytes": p} for p in pictures]}
    features = datasets.Features({"caption": datasets.Value("string"), column: datasets.Image()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of its own dependencies
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return str(folder)


def pngs(count: int = COUNT, size: tuple[int, int] = (12, 8)) -> list[bytes]:
    return [encoded(drawing(i, size)) for i in range(count)]


def files(count: int = COUNT, size: tuple[int, int] = (12, 8)) -> dict[str, bytes]:
    return dict(zip(sorted(NAMES)[:count], pngs(count, size), strict=True))


KINDS = {
    "folder": lambda place: write_folder(place, files()),
    "zip": lambda place: write_zip(place, dict(reversed(files().items()))),
    "lmdb": lambda place: write_lmdb(place, pngs()),
    "dataset": lambda place: write_dataset(place, pngs()),
}


def pictures(place: str, **options) -> Pictures:
    return Pictures(open_source(place), **{"resolution": 8, "flip": False, "seed": 1, **options})


def originals() -> list[bytes]:
    """The pictures of `folder` as samples of 8 x 8: the middle of each 12 x 8."""
    return [np.asarray(drawing(i).crop((2, 0, 10, 8))).transpose(2, 0, 1).tobytes() for i in range(COUNT)]


def seen(samples: Pictures, numbers: range) -> list[int]:
    """Which picture each sample is; mirrored ones count as the same."""
    known = originals()
    both = {data: i for i, data in enumerate(known)}
    both |= {np.frombuffer(d, np.uint8).reshape(3, 8, 8)[..., ::-1].tobytes(): i for i, d in enumerate(known)}
    return [both[samples[n].numpy().tobytes()] for n in numbers]
