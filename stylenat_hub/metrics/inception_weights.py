"""The file of the FID network's weights: where it is looked for, fetched from, and how it is read.

A pickle is read with `torch.load(weights_only=True)`, which builds tensors and plain data and runs nothing.
TorchScript is a program by design: it is loaded only when the user names the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm

from stylenat_hub import download
from stylenat_hub.errors import InputError, UnsafeCheckpointError, WeightsError, listed
from stylenat_hub.files import user_path, whole_file
from stylenat_hub.weights import fingerprint

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SOURCE = "TensorFlow's inception-2015-12-05.tgz, converted by pytorch-fid"
DOWNLOAD = "download"  # what to give as weights to have it fetched

_TWIN = "weights-inception-2015-12-05-6726825d.pth"  # the same tensors under torch-fidelity's name
_ENDINGS = (".pth", ".pt", ".safetensors")
_HUB_FILE = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<file>[^:]+))?")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth")
_TIMEOUT = 30.0  # seconds without a byte
_FOREIGN = re.compile(r"unsupported (global|class)", re.IGNORECASE)
# What torch.load raises for files of all kinds; it reads a .safetensors by its ending, whatever is in it.
_UNREADABLE = (
    *(AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SafetensorError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Weights:
    """What a file holds: `tensors` by name, or a `script`. name: as messages call it. facts: the file's name
    and hash, for reports; not part of a protocol, because the same tensors come in several files."""

    name: str
    facts: Mapping[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    script: Any = None

    @property
    def kind(self) -> str:
        return "NVIDIA's TorchScript" if self.script is not None else "pytorch-fid's state dict"


def cache_folder() -> Path:
    """Where the download is kept: `stylenat_hub/metrics` in the Hugging Face cache (`HF_HOME`)."""
    return Path(constants.HF_HOME).expanduser() / "stylenat_hub" / "metrics"


def known_places() -> list[Path]:
    """Where the file is looked for when none is named: our download, then pytorch-fid's and
    torch-fidelity's."""
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    return [cache_folder() / FILE, hub / FILE, hub / _TWIN]


def read_weights(weights: str | os.PathLike[str] | None = None) -> Weights:
    """The FID network's weights.

    weights: a path (pytorch-fid's `.pth`, safetensors with the same names, NVIDIA's TorchScript `.pt`; which
    of them follows from its content), a Hub id `org/name` (its safetensors file, if it has one only, or the
    `.pth` by its known name) or `org/name:file`, "download" (fetches pytorch-fid's file by https and keeps
    it), or None: the first of `known_places` that is there. Where a name ends in a hash, as torch's downloads
    do, it is checked.

    Raises:
        WeightsError: there is no such file (it says which one is needed and where to put it), it is damaged,
            its hash is not the one in its name, or it holds something else than tensors by name.
        UnsafeCheckpointError: a pickle with more than tensors in it; nothing was executed.
        UnknownModelError: the Hub has no such repository or cannot be asked.
    """
    path = _found(weights)
    facts = {"file": path.name, **_checked_hash(path)}
    name = repr(str(path))
    kind = _content(path)
    if kind == "TorchScript":
        return Weights(name, facts, script=_read_script(path))
    tensors = _read_safetensors(path) if kind == "safetensors" else _read_pickle(path)
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(f"{name} holds other things than tensors by name; give pytorch-fid's {FILE}")
    # A counter that torch's batch norm keeps while training; older files have none, and nothing reads it.
    tensors = {key: value for key, value in tensors.items() if not key.endswith(".num_batches_tracked")}
    return Weights(name, facts, tensors)


def _found(weights: str | os.PathLike[str] | None) -> Path:
    if weights is None:
        places = known_places()
        for place in places:
            if place.is_file():
                return place
        raise WeightsError(_missing(places))
    text = os.fspath(weights)
    if text == DOWNLOAD:
        return fetch()
    path = user_path(text)
    if path.is_file():
        return path
    match = _HUB_FILE.fullmatch(text)
    if match and not path.exists() and (match["file"] or not text.endswith(_ENDINGS)):
        return _from_hub(match["id"], match["file"])
    raise WeightsError(
        f"there is no file {text!r}; give pytorch-fid's {FILE} (from {URL}), a safetensors file with the "
        f"same names, a Hub id (org/name or org/name:file), or {DOWNLOAD!r} to have it fetched"
    )


def _missing(places: list[Path]) -> str:
    return (
        f"the weights of the FID network are not on this machine: {FILE} is needed, which is at {URL} "
        f"(95 MB); download it to {str(places[0])!r}, or give as weights its path, or {DOWNLOAD!r} "
        f"to have it fetched there (looked for it in: {', '.join(repr(str(place)) for place in places)})"
    )


def _from_hub(name: str, file: str | None) -> Path:
    if file:
        snapshot = download.pull(name, [_escaped(file)])
        if not (snapshot.folder / file).is_file():
            raise WeightsError(f"the Hub repository {name!r} has no file {file!r}; name one that it has")
        return snapshot.folder / file
    snapshot = download.pull(name, ["*.safetensors", FILE])
    found = sorted(path for path in snapshot.folder.iterdir() if path.suffix == ".safetensors")
    if len(found) == 1:
        return found[0]
    if (snapshot.folder / FILE).is_file():
        return snapshot.folder / FILE
    what = f"{len(found)} safetensors files ({listed([path.name for path in found])})" if found else "neither"
    raise WeightsError(
        f"which file of the Hub repository {name!r} holds the FID network's weights? It has {what} of: one "
        f"safetensors file, {FILE}; name the file as {name}:FILE"
    )


def _escaped(file: str) -> str:
    """A file's name as a pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", file)


def fetch() -> Path:
    """Download pytorch-fid's file into `cache_folder` and return it; what is there already is not fetched.

    Raises:
        WeightsError: it cannot be reached, or what came has not the hash in its name (and is not kept).
        InputError: the folder cannot be written.
    """
    target = cache_folder() / FILE
    if target.is_file():
        return target
    with whole_file(target) as temporary:
        try:
            with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response:
                _save(response, temporary)
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise WeightsError(
                f"{URL} cannot be fetched ({reason}); try again, or download it elsewhere and put it at "
                f"{str(target)!r}"
            ) from error
        _check_hash(FILE, fingerprint(temporary)["sha256"], URL)
    return target


def _save(response: Any, path: Path) -> None:
    total = response.headers.get("Content-Length", "")
    size = int(total) if total.isdigit() else None
    with path.open("wb") as file, tqdm(total=size, unit="B", unit_scale=True, desc=FILE, disable=None) as bar:
        while chunk := response.read(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))


def _checked_hash(path: Path) -> dict[str, Any]:
    try:
        found = fingerprint(path)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}; check its path") from error
    _check_hash(path.name, found["sha256"], repr(str(path)))
    return found


def _check_hash(name: str, digest: str, where: str) -> None:
    match = _HASH_IN_NAME.search(name)
    if match and not digest.startswith(match[1]):
        raise WeightsError(
            f"{where} is damaged or another file: its SHA-256 begins with {digest[: len(match[1])]}, and "
            f"its name says {match[1]}; download it again from {URL}, or rename it if it should be another"
        )


def _content(path: Path) -> str:
    """What a file is, by its bytes: "TorchScript", "safetensors" or "pickle"."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise WeightsError(_damaged(path, error)) from error
        return "TorchScript" if any(name.count("/") >= 2 and "/code/" in name for name in names) else "pickle"
    with path.open("rb") as file:
        head = file.read(9)
    return "safetensors" if head[8:] == b"{" and head[:1] != b"\x80" else "pickle"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        # Copies: what is loaded stays as it is, whatever becomes of the file.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(_damaged(path, error)) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if _FOREIGN.search(str(error)):
            raise UnsafeCheckpointError(
                f"{str(path)!r} carries more than tensors, and nothing of it was executed; give "
                f"pytorch-fid's {FILE}, which holds tensors only"
            ) from error
        # Its own words advise to switch the safety off.
        raise WeightsError(_damaged(path, "torch.load finds no tensors in it")) from error
    except _UNREADABLE as error:
        raise WeightsError(_damaged(path, error)) from error
    return dict(content) if isinstance(content, Mapping) else {}


def _read_script(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
            return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception | str) -> str:
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return f"{str(path)!r} is cut off, damaged or no file of weights ({first[:200]}); download it again"


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of the tensors by name, shape, type and value: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{list(tensor.shape)}:{tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
