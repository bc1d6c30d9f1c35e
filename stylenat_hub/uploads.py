"""A folder -> one commit on the Hub: the repository, its branches and tags, and what a push replaces there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub import errors as hub_errors

from stylenat_hub import cards
from stylenat_hub.errors import InputError
from stylenat_hub.remote import pushing, retried
from stylenat_hub.weights import superseded

CODE = re.compile(r"(generator/stylenat_hub\.[\w.]+|pipeline)\.py")  # what `bundle_code` adds


def upload(
    folder: str | os.PathLike[str],
    name: str,
    *,
    path_in_repo: str | None = None,
    repo_type: str = "model",
    space_sdk: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    replaceable: Sequence[str] = (),
) -> CommitInfo:
    """Send all files of a folder as one commit, and remove from the repository the weights they supersede.

    The repository is made if it is not there. private: True makes a new one private, and refuses to push
    into a public one; None leaves it to the account's settings. create_pr: propose the change instead.
    revision: a branch, made if it is not there. tag: a name for the new state. replaceable: files that keep
    the repository's own text if that lacks this package's mark. Returns the client's `CommitInfo`, which is
    also the commit's address.

    Raises `HubError`, `InputError`: one sentence; nothing has changed on the Hub then, except that a new,
    empty repository or branch may be there.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"the repository is {name!r}; give a Hub id, such as me/my-church")
    api = HfApi(token=token)
    with pushing(name):
        where = _repository(api, name, repo_type, space_sdk, private, create_pr)
        if tag is not None:
            _check_tag(api, where, repo_type, tag, create_pr)
        if revision is not None and not create_pr:
            retried(lambda: api.create_branch(where, branch=revision, repo_type=repo_type, exist_ok=True))
        there = set(retried(lambda: api.list_repo_files(where, revision=revision, repo_type=repo_type)))
        files = _named(Path(folder), path_in_repo)
        for file in replaceable:
            if file in there and not _ours(where, file, revision, repo_type, token):
                files.pop(file, None)
        operations = [
            CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=file) for file in _obsolete(there, files)]
        commit = retried(
            lambda: api.create_commit(
                where,
                operations,
                commit_message=commit_message or "Upload files",
                commit_description=commit_description,
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
            )
        )
        if tag is not None:
            retried(lambda: api.create_tag(where, tag=tag, revision=commit.oid, repo_type=repo_type))
    return commit


def make_repository(name: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
    """Make a model repository if it is not there; returns its full id. To be asked before long work.

    Raises `HubError`, `InputError`: whoever is logged in may not write there.
    """
    with pushing(name):
        return _repository(HfApi(token=token), name, "model", None, private, create_pr=False)


def _repository(
    api: HfApi, name: str, repo_type: str, space_sdk: str | None, private: bool | None, create_pr: bool
) -> str:
    """The full id of the repository, made if it is not there. Raises `InputError` for a public one that
    should be private."""
    if create_pr and "/" in name and retried(lambda: api.repo_exists(name, repo_type=repo_type)):
        return name  # somebody else's, perhaps, where one may propose but not create
    made = retried(
        lambda: api.create_repo(
            name, repo_type=repo_type, space_sdk=space_sdk, private=private, exist_ok=True
        )
    )
    if private and not retried(lambda: api.repo_info(made.repo_id, repo_type=repo_type)).private:
        raise InputError(
            f"{made.repo_id!r} exists already and is public: private=True would not hide what is pushed; "
            "make it private in its settings on the Hub, or push to another name"
        )
    return made.repo_id


def _check_tag(api: HfApi, where: str, repo_type: str, tag: str, create_pr: bool) -> None:
    if create_pr:
        raise InputError("a pull request cannot be tagged; leave out tag, or create_pr")
    if tag in {ref.name for ref in retried(lambda: api.list_repo_refs(where, repo_type=repo_type)).tags}:
        raise InputError(f"{where!r} has a tag {tag!r} already; name another, or delete it on the Hub first")


def _named(folder: Path, path_in_repo: str | None) -> dict[str, Path]:
    at = f"{path_in_repo.strip('/')}/" if path_in_repo else ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{at}{path.relative_to(folder).as_posix()}": path for path in files}


def _obsolete(there: set[str], files: dict[str, Path]) -> list[str]:
    """What the repository has and this push replaces by other names: shards by a file, an older checkpoint's
    files, code where none is bundled any more."""
    old = superseded(there, files)
    if any(file.startswith("checkpoint/") for file in files):
        old |= {file for file in there if file.startswith("checkpoint/")}
    if "model_index.json" in files and any(file.startswith("generator/stylenat_hub.") for file in there):
        old |= {file for file in there if CODE.fullmatch(file)}
    return sorted(old - set(files))


def _ours(where: str, file: str, revision: str | None, repo_type: str, token: str | bool | None) -> bool:
    """Has this package written that file of the repository?"""
    try:
        path = retried(
            lambda: hf_hub_download(where, file, revision=revision, repo_type=repo_type, token=token)
        )
    except hub_errors.EntryNotFoundError:
        return True
    return cards.MARK in Path(path).read_text(encoding="utf-8", errors="replace")


def address(commit: CommitInfo) -> str:
    """Where to look at what was pushed: the pull request, or else the repository."""
    return commit.pr_url or str(commit.repo_url)
