"""Pictures of many seeds as files: shards of equally many seeds, each written whole or not at all.

    FOLDER/manifest.json           which pictures these are; nothing else may be added to them
    FOLDER/shard-000000.tar        the first `shard_size` seeds; or .zip, .parquet, or a folder of PNG files
    FOLDER/.unfinished/            what is being written; after a kill the next run removes it
    FOLDER/.lock                   held while a run writes

What a shard holds follows from the manifest alone, down to the byte: no times, no names of users or machines.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stylenat_hub.errors import InputError, shown
from stylenat_hub.files import explained
from stylenat_hub.pictures import picture_name
from stylenat_hub.signals import held

MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
LOCK = ".lock"
VERSION = 1
ROW_GROUP = 100  # pictures that a parquet shard keeps in memory before it writes them
_HARMLESS = frozenset({UNFINISHED, LOCK, ".DS_Store"})

Add = Callable[[int, bytes], None]  # a seed and its picture as PNG


@dataclass(frozen=True)
class Manifest:
    """Everything that fixes the bytes of a run's shards.

    model, weights: its name, and `sampling.weights_hash` of it. truncation_psi, truncation_cutoff, dtype: as
    the pipeline takes them. device: "cpu", "cuda" or "mps"; threads: torch's, on a CPU, where they change
    rounding; batch_size: pictures per step elsewhere, where that does. resolution: pixels. first_seed, num:
    the seeds. format: of `FORMATS`. shard_size: seeds per shard, of which the last may have fewer. software:
    versions by name.
    """

    model: str
    weights: str
    truncation_psi: float
    truncation_cutoff: int | None
    dtype: str
    device: str
    threads: int | None
    batch_size: int | None
    resolution: int
    first_seed: int
    num: int
    format: str
    shard_size: int
    software: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    @property
    def shards(self) -> int:
        return -(-self.num // self.shard_size)

    def seeds(self, shard: int) -> range:
        """The seeds of one shard, ascending."""
        start = self.first_seed + shard * self.shard_size
        return range(start, min(start + self.shard_size, self.first_seed + self.num))

    def name(self, shard: int) -> str:
        return f"shard-{shard:06d}{FORMATS[self.format].suffix}"

    def label(self, seed: int) -> dict[str, Any]:
        """What made a picture, as plain data."""
        return {
            "seed": seed,
            "model": self.model,
            "truncation_psi": self.truncation_psi,
            "truncation_cutoff": self.truncation_cutoff,
            "version": f"stylenat_hub {self.software['stylenat_hub']}",
        }


def prepare(folder: Path, manifest: Manifest) -> list[int]:
    """Make `folder` ready for this run, or for the rest of it, and return the shards that it has not yet.

    Raises `InputError`: another run's pictures are there, or anything else; or it cannot be written.
    """
    check_same_run(folder, manifest)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder)
        if not (folder / MANIFEST).exists():
            text = json.dumps(asdict(manifest), indent=2) + "\n"
            with _published(folder, MANIFEST) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return missing(folder, manifest)


def check_same_run(folder: Path, manifest: Manifest) -> None:
    """Raise `InputError` unless the folder is new, empty, or holds this very run."""
    with explained(folder):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names - _HARMLESS:
        return
    if MANIFEST not in names:
        found = min(names - _HARMLESS)
        raise InputError(
            f"the output folder {str(folder)!r} holds {shown(found)!r} and no {MANIFEST}, so it is no "
            "earlier part of this run; name another folder"
        )
    there, now = _stored(folder / MANIFEST), asdict(manifest)
    changed = [name for name in (*now, *(name for name in there if name not in now))]
    changed = [name for name in changed if there.get(name) != now.get(name)]
    if changed:
        differences = "; ".join(f"{n} is {there.get(n)!r} there and {now.get(n)!r} now" for n in changed)
        advice = ""
        if changed == ["threads"]:
            advice = f" (set OMP_NUM_THREADS={there.get('threads')} for every process)"
        raise InputError(
            f"{str(folder)!r} holds another run: {differences}; ask for the same to go on with it{advice}, "
            "or name another output"
        )


def _stored(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); name another output") from error
    if not isinstance(stored, dict):
        raise InputError(f"{str(path)!r} is no manifest of pictures; name another output")
    return stored


def missing(folder: Path, manifest: Manifest) -> list[int]:
    """The shards that are not in the folder, ascending."""
    with explained(folder):
        names = {path.name for path in folder.iterdir()}
    return [shard for shard in range(manifest.shards) if manifest.name(shard) not in names]


def clear(folder: Path) -> None:
    """Remove what an earlier run has left unfinished."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


@contextlib.contextmanager
def whole_shard(folder: Path, manifest: Manifest, shard: int) -> Iterator[Add]:
    """Yield a function that adds a seed's PNG, seeds ascending. On success the shard is in the folder; on any
    error, Ctrl-C included, nothing of it is.

    Raises `InputError` when the system refuses: no space, no permission.
    """
    open_shard = FORMATS[manifest.format].open
    with (
        explained(folder),
        _published(folder, manifest.name(shard)) as temporary,
        open_shard(temporary, manifest) as add,
    ):
        yield add


@contextlib.contextmanager
def _published(folder: Path, name: str) -> Iterator[Path]:
    """Yield a temporary path inside `folder`, for a file or a folder that is then flushed and renamed."""
    temporary = folder / UNFINISHED / name
    temporary.parent.mkdir(exist_ok=True)
    try:
        yield temporary
        for path in (*(temporary.iterdir() if temporary.is_dir() else ()), temporary):
            _flush(path)
        with held():
            os.replace(temporary, folder / name)
    finally:
        with held():
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """To the disk, so that after a power cut no file has its name without its content."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _folder(path: Path, _manifest: Manifest) -> Iterator[Add]:
    """`seed0000000007.png`, ..."""
    path.mkdir()

    def add(seed: int, png: bytes) -> None:
        (path / picture_name(seed)).write_bytes(png)

    yield add


@contextlib.contextmanager
def _zip(path: Path, _manifest: Manifest) -> Iterator[Add]:
    """The same names, stored: PNG is compressed already."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:

        def add(seed: int, png: bytes) -> None:
            member = zipfile.ZipInfo(picture_name(seed))  # its date is 1980
            member.create_system = 3  # as on Unix, so that Windows writes the same bytes
            member.external_attr = 0o100644 << 16
            file.writestr(member, png)

        yield add


@contextlib.contextmanager
def _webdataset(path: Path, manifest: Manifest) -> Iterator[Add]:
    """`0000000007.png` and `0000000007.json`, one sample of WebDataset; the key has all digits of a seed."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:

        def add(seed: int, png: bytes) -> None:
            label = json.dumps(manifest.label(seed)).encode()
            for suffix, content in (("png", png), ("json", label)):
                member = tarfile.TarInfo(f"{seed:010d}.{suffix}")  # of time 0 and user 0
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))

        yield add


@contextlib.contextmanager
def _parquet(path: Path, manifest: Manifest) -> Iterator[Add]:
    """Columns seed (int64) and image (PNG as bytes); the rest of the label is in the schema's metadata."""
    arrow, parquet = _pyarrow()
    label = {key: str(value) for key, value in manifest.label(0).items() if key != "seed"}
    columns = [("seed", arrow.int64()), ("image", arrow.binary())]
    schema = arrow.schema(columns, metadata=label)
    rows: list[tuple[int, bytes]] = []
    with path.open("wb") as file, parquet.ParquetWriter(file, schema, compression="none") as writer:

        def write() -> None:
            seeds, images = zip(*rows, strict=True)
            writer.write_table(arrow.table([seeds, images], schema=schema))
            rows.clear()

        def add(seed: int, png: bytes) -> None:
            rows.append((seed, png))
            if len(rows) == ROW_GROUP:
                write()

        yield add
        if rows:
            write()


def _pyarrow() -> Sequence[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            "the format parquet needs pyarrow, which is not installed: `pip install pyarrow`; or choose "
            "png, zip or webdataset, which need nothing"
        ) from error
    return pyarrow, pyarrow.parquet


@dataclass(frozen=True)
class Format:
    """A kind of shard. suffix: of its name. open: gives the function that adds pictures."""

    suffix: str
    open: Callable[[Path, Manifest], contextlib.AbstractContextManager[Add]]


FORMATS: Mapping[str, Format] = {
    "png": Format("", _folder),
    "zip": Format(".zip", _zip),
    "parquet": Format(".parquet", _parquet),
    "webdataset": Format(".tar", _webdataset),
}


def format_software(name: str) -> dict[str, str]:
    """Versions of what a format needs besides. Raises `InputError` for a format that is not there."""
    if name not in FORMATS:
        raise InputError(f"format is {name!r}; allowed: {', '.join(FORMATS)}")
    return {"pyarrow": _pyarrow()[0].__version__} if name == "parquet" else {}
