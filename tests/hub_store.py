"""Repositories in memory, as the Hub of the tests keeps them: blobs, commits, branches, tags, requests."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import cached_property

# What the Hub writes into a new repository (shortened).
_LARGE = (
    "7z arrow bin bz2 ckpt gz h5 msgpack npy npz onnx ot parquet pb pickle pkl pt pth safetensors tar zip"
)
ATTRIBUTES = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in _LARGE.split())
LFS_SIZE = 10 * 2**20  # beyond this even text goes to LFS
BINARY_SIZE = 1024  # below this binary files of no known kind stay in git


class HubError(Exception):
    """An answer that is not a success: a status, the Hub's code for it and a sentence."""

    def __init__(self, status: int, message: str, code: str | None = None, **body):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @cached_property
    def oid(self) -> str:
        """The id that git gives: for an LFS file that of its pointer."""
        content = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    description: str
    author: str
    parent: str | None
    date: str
    blobs: dict[str, Blob]

    @property
    def files(self) -> dict[str, bytes]:
        return {path: blob.content for path, blob in sorted(self.blobs.items())}


@dataclass
class Repo:
    id: str
    type: str = "model"
    private: bool = False
    sdk: str | None = None
    hardware: str = "cpu-basic"  # of a Space: what was requested last; it is there at once
    gated: str | bool = False
    allowed: set[str] = field(default_factory=set)  # who may read the files of a gated repository
    history: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # number -> sha

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def prefix(self) -> str:
        """What comes before the id in an address of the site."""
        return "" if self.type == "model" else f"{self.type}s/"

    def ref(self, revision: str) -> tuple[dict[str, str], str] | None:
        """The table and the key of a branch, a tag or a pull request."""
        tables = {"refs/heads/": self.branches, "refs/tags/": self.tags, "refs/pr/": self.pulls}
        for prefix, table in tables.items():
            if revision.startswith(prefix) and revision[len(prefix) :] in table:
                return table, revision[len(prefix) :]
        return next(((table, revision) for table in (self.branches, self.tags) if revision in table), None)

    def commit(self, revision: str) -> Commit:
        found = self.ref(revision)
        sha = found[0][found[1]] if found else revision
        if sha not in self.history:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.history[sha]

    def log(self, revision: str) -> list[Commit]:
        """The commits up to a revision, oldest first."""
        commits = [self.commit(revision)]
        while commits[-1].parent:
            commits.append(self.history[commits[-1].parent])
        return commits[::-1]

    def add(
        self, blobs: dict[str, Blob], title: str, description: str, author: str, parent: str | None
    ) -> Commit:
        """A commit that no branch shows yet; the number of commits in its hash tells equal ones apart."""
        told = [str(len(self.history)), self.type, self.id, parent, title, description, author]
        told += [f"{path} {blob.oid}" for path, blob in sorted(blobs.items())]
        sha = hashlib.sha1("\n".join(map(str, told)).encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        self.history[sha] = Commit(sha, title, description, author, parent, date, blobs)
        return self.history[sha]

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that gave a file, or a folder, what it holds at `commit`."""

        def below(at: Commit) -> dict[str, str]:
            return {p: b.oid for p, b in at.blobs.items() if p == path or p.startswith(path + "/")}

        found = commit
        while found.parent and below(self.history[found.parent]) == below(commit):
            found = self.history[found.parent]
        return found


def stored_in_lfs(path: str, size: int, sample: bytes, attributes: bytes | None) -> bool:
    """Whether a file belongs into LFS: by .gitattributes (the last line that fits wins), size or bytes."""
    if size == 0:
        return False  # an empty object cannot be uploaded
    text = ATTRIBUTES if attributes is None else attributes.decode(errors="replace")
    lfs = None
    for pattern, *settings in (line.split() for line in text.splitlines() if line.strip()):
        name = path if "/" in pattern else path.rsplit("/", 1)[-1]
        asked = [s for s in settings if re.fullmatch("[-!]?filter(=.*)?", s)]
        if asked and fnmatch(name, pattern.lstrip("/")):
            lfs = asked[-1] == "filter=lfs"
    binary = size >= BINARY_SIZE and b"\0" in sample
    return (binary or size > LFS_SIZE) if lfs is None else lfs
