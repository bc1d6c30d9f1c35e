"""A folder -> one commit on the Hub: repository, branches and tags, and what a push replaces there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from stylenat_hub.errors import HubError, InputError, StyleNATHubError
from stylenat_hub.locations import RECORDS
from stylenat_hub.push_options import COMMIT, UPLOAD, check_options, folder_path
from stylenat_hub.remote import Failures, pushing, reason, retried, unanswered
from stylenat_hub.signals import Interrupted
from stylenat_hub.staged import check_inside
from stylenat_hub.targets import Target, check_fresh, check_kind, check_ours, check_strangers, look, strangers
from stylenat_hub.weights import adds_variants, superseded, weights_kind

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
    drops: Callable[[Target], Collection[str]] | None = None,
) -> CommitInfo:
    """Send all files of a folder as one commit, and remove from the repository the weights they supersede.

    Hidden files stay here. The repository is made if it is not there. private: True makes a new one private,
    and refuses to push into a public one; None leaves it to the account's settings. create_pr: propose the
    change instead. revision: a branch, made if it is not there. tag: a name for the new state. replaceable:
    generated files about the whole; the repository's stay if its card lacks this package's mark, or if only a
    variant of the weights is added. drops: given the repository as it is, the names of files that go from it;
    it may raise `InputError` to refuse. Returns the client's `CommitInfo`, which is also the commit's
    address.

    Raises `HubError`, `InputError`: one sentence; nothing has changed on the Hub then, except that a new,
    empty repository or branch may be there, or if it says so. `Interrupted`: Ctrl-C came after it was sent.
    """
    given = {"token": token, "private": private, "create_pr": create_pr, "revision": revision, "tag": tag}
    about = {"commit_message": commit_message, "commit_description": commit_description}
    check_options({**given, **about}, UPLOAD)
    files = _named(folder_path(folder), path_in_repo)
    about["commit_message"] = commit_message or "Upload files"
    name, api = full_id(name, token), HfApi(token=token)
    with pushing(name):
        where = _repository(api, name, repo_type, space_sdk, private, create_pr)
        if tag is not None or revision is not None:
            _check_refs(api, where, repo_type, revision, tag)
        if revision is not None and not create_pr and not revision.startswith("refs/pr/"):
            retried(lambda: api.create_branch(where, branch=revision, exist_ok=True, repo_type=repo_type))
        at = {"revision": revision, "repo_type": repo_type, "create_pr": create_pr}
        commit = _Push(api, where, files, replaceable, at, about, drops).run()
        if tag is not None:
            _add_tag(api, where, repo_type, tag, commit.oid)
    return commit


@dataclass
class _Push:
    """Files on their way into one commit of a repository that is there.

    at: the branch, the type, and whether it is proposed only. unsure: may the commit be there, of which no
    answer came?
    """

    api: HfApi
    where: str
    files: dict[str, Path]
    replaceable: Sequence[str]
    at: dict[str, Any]
    about: dict[str, Any]
    drops: Callable[[Target], Collection[str]] | None = None
    unsure: bool = False

    def run(self) -> CommitInfo:
        target = retried(self._look)
        retried(lambda: self._plan(target))  # what it refuses, before anything is sent
        _send(self.api, self.where, self.files, **self.at)
        try:
            commit = retried(self._attempt)
            # The client makes no commit where nothing is new, and returns the newest one; without a word.
            commit.unchanged = commit.oid == target.commit
            return commit
        except KeyboardInterrupt:
            if not self.unsure:
                raise
            raise Interrupted(f"the push to {self.where!r} {self._perhaps()}") from None
        except Failures as error:
            if not self.unsure or isinstance(error, StyleNATHubError):
                raise
            raise HubError(
                f"the push to {self.where!r} failed ({reason(error)}) after it was sent: it {self._perhaps()}"
            ) from error

    def _look(self) -> Target:
        return look(self.api, self.where, self.at["revision"], self.at["repo_type"])

    def _plan(self, target: Target) -> tuple[dict[str, Path], list[str]]:
        """What is sent, and what is removed. Raises `InputError` if this would lose what is somebody's."""
        if self.at["repo_type"] == "model":
            check_ours(target, self.files)
            check_kind(target, self.files)
            check_strangers(target, self.files)
            _check_card(target, self.files, self.replaceable)
        kept = set(self.replaceable) & target.names
        if kept and not (adds_variants(target.names, self.files) or target.own_card() is not None):
            kept = set()
        sent = {file: path for file, path in self.files.items() if file not in kept}
        obsolete = _obsolete(target.names, sent)
        obsolete -= strangers(target, obsolete)
        if self.drops is not None:
            obsolete |= target.names & set(self.drops(target)) - set(self.files)
        return sent, sorted(obsolete)

    def _attempt(self) -> CommitInfo:
        # All of it anew each time: if the answer to a commit was lost, this finds that nothing is left.
        target = self._look()
        sent, obsolete = self._plan(target)
        before, self.unsure = self.unsure, True
        # The parent: what was listed above is what this is about.
        options = {**self.at, **self.about, "parent_commit": target.commit}
        try:
            return _commit(self.api, self.where, sent, obsolete, **options)
        except Failures as error:
            self.unsure = before or unanswered(error)
            raise

    def _perhaps(self) -> str:
        space = "spaces/" if self.at["repo_type"] == "space" else ""
        url = f"{self.api.endpoint}/{space}{self.where}"
        return f"may or may not have arrived: look at {url} before you push again"


def _check_card(target: Target, files: dict[str, Path], replaceable: Sequence[str]) -> None:
    """Raise `InputError` if two people have written a card: this one's folder and the repository."""
    if "README.md" in files and "README.md" not in replaceable:
        theirs = target.own_card()
        if theirs is not None and theirs != files["README.md"].read_bytes():
            raise InputError(
                f"{target.where!r} has a README.md of its own, and it is another than the folder's; pull "
                "that one into the folder first, or delete one of the two"
            )


def make_repository(
    name: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    run: Literal["new", "resumed"] | None = None,
) -> str:
    """Make a model repository if it is not there; returns its full id. To be asked before long work.

    run: a training that will push all that it has; a new one refuses a repository that has another's.

    Raises `HubError`, `InputError`: whoever is logged in may not write there; it holds something else.
    """
    check_options({"private": private, "token": token}, UPLOAD)
    name, api = full_id(name, token), HfApi(token=token)
    with pushing(name):
        where = _repository(api, name, "model", None, private, create_pr=False)
        # The client takes one that is there already for made, whoever owns it.
        retried(lambda: api.auth_check(where, write=True))
        target = retried(lambda: look(api, where, None, "model"))
        retried(lambda: _check_target(target, run))
    return where


def _check_target(target: Target, run: str | None) -> None:
    """Raise `InputError` if a pipeline, or a training with its checkpoints, cannot be pushed there."""
    check_ours(target, ["model_index.json"])
    if run is not None:
        inside = [name for name in target.names if name.startswith("checkpoint/")]
        check_strangers(target, ["training.json", *inside])
    if run == "new":
        check_fresh(target)


def full_id(name: str, token: str | bool | None = None) -> str:
    """A Hub id with its namespace: without a slash it is in the namespace of whoever is logged in.

    Raises `InputError` for what can be no id; `HubError` if the Hub does not know who asks.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"the repository is {name!r}; give a Hub id, such as me/my-church")
    with pushing(name):
        validate_repo_id(name)
        if "/" in name:
            return name
        if token is False:  # which the client takes for an error of the program
            raise hub_errors.LocalTokenNotFoundError
        return f"{retried(HfApi(token=token).whoami)['name']}/{name}"


def _repository(
    api: HfApi, name: str, repo_type: str, space_sdk: str | None, private: bool | None, create_pr: bool
) -> str:
    """The full id of the repository, made if it is not there. Raises `InputError` for a public one that
    should be private."""
    where = name
    # It may be somebody else's, where one may propose but not create.
    if not (create_pr and retried(lambda: api.repo_exists(name, repo_type=repo_type))):
        options = {"repo_type": repo_type, "space_sdk": space_sdk, "private": private}
        where = retried(lambda: api.create_repo(name, exist_ok=True, **options)).repo_id
    if private and not retried(lambda: api.repo_info(where, repo_type=repo_type)).private:
        raise InputError(
            f"{where!r} exists already and is public: --private (private=True) would not hide what is "
            "pushed; make it private in its settings on the Hub, or push to another name"
        )
    return where


def _check_refs(api: HfApi, where: str, repo_type: str, revision: str | None, tag: str | None) -> None:
    """Raise `InputError` for a tag that is there, and for a revision that cannot be pushed to."""
    tags = {ref.name for ref in retried(lambda: api.list_repo_refs(where, repo_type=repo_type)).tags}
    if tag in tags:
        raise InputError(f"{where!r} has a tag {tag!r} already; name another, or delete it on the Hub first")
    if revision in tags or COMMIT.fullmatch(revision or ""):
        raise InputError(f"{revision!r} is no branch of {where!r}; push to a branch: tags and commits stay")


def _send(api: HfApi, where: str, files: dict[str, Path], **options: object) -> None:
    """Send the large files, of which the commit only tells the names. Every request of this the client
    repeats by itself, for about half a minute: three times that would be long for who waits."""
    api.preupload_lfs_files(where, _additions(files), **options)


def _additions(files: dict[str, Path]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()]


def _commit(
    api: HfApi, where: str, files: dict[str, Path], obsolete: list[str], create_pr: bool, **options: object
) -> CommitInfo:
    drops = [CommitOperationDelete(path_in_repo=file) for file in obsolete]
    try:
        return api.create_commit(where, [*_additions(files), *drops], create_pr=create_pr, **options)
    except Failures as error:
        if create_pr and unanswered(error):  # a second attempt might open a second one
            raise HubError(
                f"the Hub has not answered whether it opened the pull request ({reason(error)}); look among "
                f"the pull requests of {where!r} before you push again"
            ) from error
        raise


def _add_tag(api: HfApi, where: str, repo_type: str, tag: str, commit: str) -> None:
    try:
        retried(lambda: api.create_tag(where, tag=tag, revision=commit, repo_type=repo_type))
    except Failures as error:
        with contextlib.suppress(*Failures):  # an earlier attempt may have made it, its answer lost
            refs = retried(lambda: api.list_repo_refs(where, repo_type=repo_type))
            if any(ref.name == tag and ref.target_commit == commit for ref in refs.tags):
                return
        raise HubError(
            f"{where!r} has what was pushed, as the commit {commit[:10]}, but not the tag {tag!r} "
            f"({reason(error)}); add it by `hf repos tag create {where} {tag} --revision {commit}`"
        ) from error


def _named(folder: Path, path_in_repo: str | None) -> dict[str, Path]:
    """The files of a folder by their names in the repository. Raises `InputError` if there are none."""
    at = f"{path_in_repo.strip('/')}/" if path_in_repo else ""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {f"{at}{name.as_posix()}": path for name, path in found.items() if not _hidden(name)}
    for path in files.values():
        check_inside(path, folder)
    if not files:
        raise InputError(f"the folder {str(folder)!r} has nothing in it to push")
    return files


def _hidden(name: Path) -> bool:
    """Is it git's, an editor's, or a secret?"""
    return (
        any(part[0] == "." or part == "__pycache__" for part in name.parts) and name.name != ".gitattributes"
    )


def _obsolete(there: Collection[str], files: dict[str, Path]) -> set[str]:
    """What the repository has and this push replaces by other names: shards by a file, an older checkpoint's
    files, code where none is bundled any more, what is said of weights that are no longer there."""
    old = superseded(there, files)
    kinds = {kind for file in files if (kind := weights_kind(file))}
    if any(file.startswith("checkpoint/") for file in files):
        old |= {file for file in there if file.startswith("checkpoint/")}
    if "model_index.json" in files:
        if any(file.startswith("generator/stylenat_hub.") for file in there):
            old |= {file for file in there if CODE.fullmatch(file)}
        if "model_index.json" not in there:  # the model by itself that was here
            old |= {file for file in there if file == "config.json" or (weights_kind(file) or "/")[0] == ""}
    if kinds & {("", None), ("generator", None)}:
        old |= set(there) & set(RECORDS)
    return old - set(files)


def address(commit: CommitInfo) -> str:
    """Where to look at what was pushed: the pull request, or else the repository."""
    return commit.pr_url or str(commit.repo_url)


def report(commit: CommitInfo) -> str:
    """One line on what a push did."""
    if getattr(commit, "unchanged", False):
        return f"nothing to push: {address(commit)} has all of it already"
    return f"pushed to {address(commit)}"


def repository_card(name: str, *, token: str | bool | None = None, revision: str | None = None) -> str | None:
    """The text of a model repository's card, or None if there is none, or no such repository or branch."""
    with pushing(name):
        try:
            target = retried(lambda: look(HfApi(token=token), name, revision, "model"))
        except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
            return None
        if "README.md" not in target.names:
            return None
        return retried(lambda: target.read("README.md")).decode("utf-8", errors="replace")
