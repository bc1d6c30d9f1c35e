"""Download of the authors' original checkpoint files: resumable, whole or not at all, with a progress bar."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from tqdm.auto import tqdm

from stylenat_hub.errors import InputError, StyleNATHubError

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


class DownloadError(StyleNATHubError, OSError):
    """A file could not be fetched; what arrived is kept, and the same command goes on from there."""


def cache_folder() -> Path:
    """Where downloaded originals are kept: `stylenat_hub/originals` in the Hugging Face cache (`HF_HOME`)."""
    return Path(constants.HF_HOME) / "stylenat_hub" / "originals"


def download(url: str, folder: str | Path | None = None, *, progress: bool = True) -> Path:
    """Fetch `url` into `folder` (default: the cache) and return the file; one that is there already is not
    fetched.

    An interrupted transfer leaves `NAME.part`; the next call asks the server for the rest, and starts over if
    the server's file has changed meanwhile or the server cannot continue.

    Raises:
        DownloadError: no network, the server refuses, or the transfer ended early.
        InputError: `url` is not http(s), or the folder cannot be written.
    """
    parts = urllib.parse.urlsplit(url)
    name = Path(urllib.parse.unquote(parts.path)).name
    if parts.scheme not in ("http", "https") or not name:
        raise InputError(f"cannot download {url!r}; an http or https address of a file is needed")
    target = Path(folder or cache_folder()) / name
    if target.exists():
        return target
    part = target.with_name(f"{name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress)
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        raise DownloadError(_refusal(url, error)) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise DownloadError(
            f"cannot reach {parts.hostname} ({reason}); check the network and run the same command again, it "
            "goes on where it stopped"
        ) from error
    except DownloadError:
        raise
    except OSError as error:
        raise InputError(f"cannot write {str(part)!r}: {error.strerror or error}") from error
    _validator_file(part).unlink(missing_ok=True)
    return target


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Bring `part` to the full length, from its present end if the server's file is still the same."""
    have = part.stat().st_size if part.exists() else 0
    validator = _read_validator(part, url) if have else None
    headers = {"User-Agent": "stylenat_hub", "Accept-Encoding": "identity"}
    if validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not validator:
            raise
        # Nothing lies beyond what is here: it is whole if the server has as much, else of another file.
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return
        part.unlink()
        return _fetch(url, part, progress)
    with response:
        start, total = _extent(response, have if validator else 0, url)
        _write_validator(part, url, response)
        _append(response, part, start, total, progress)


def _extent(response: Any, asked: int, url: str) -> tuple[int, int | None]:
    """(offset of the first byte that follows, size of the whole file or None if the server does not say)."""
    if response.headers.get_content_type() == "text/html":
        raise DownloadError(
            f"{url} answers with a web page instead of the file; look there for where it has moved"
        )
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != asked:
            raise DownloadError(
                f"{url} answers with another part of the file than asked for; delete the .part file"
            )
        return asked, int(match[3])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _append(response: Any, part: Path, start: int, total: int | None, progress: bool) -> None:
    bar = tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=part.stem,
        disable=None if progress else True,
    )
    with bar, part.open("r+b" if start else "wb") as file:
        file.seek(start)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        end = file.tell()
    if total is not None and end != total:
        raise DownloadError(
            f"the transfer of {part.stem!r} ended after {end:,} of {total:,} bytes; run the same command "
            "again, it goes on where it stopped"
        )


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (404, 410):
        return (
            f"{url} does not exist any more (HTTP {error.code}); if you have the file, pass its path instead"
        )
    return (
        f"{url} cannot be fetched (HTTP {error.code} {error.reason}); try later, or pass the path of a copy"
    )


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_validator(part: Path, url: str, response: Any) -> None:
    """Remember which version of the file `part` belongs to: without that a transfer never goes on."""
    etag = response.headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes, so it cannot vouch for half a file.
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    _validator_file(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")


def _read_validator(part: Path, url: str) -> str | None:
    try:
        known = json.loads(_validator_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    valid = isinstance(known, dict) and known.get("url") == url
    return known.get("validator") if valid and isinstance(known.get("validator"), str) else None
