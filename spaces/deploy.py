"""This clone's page -> a Space on Hugging Face, in one commit.

    python -m spaces.deploy me/stylenat
    python -m spaces.deploy me/stylenat --model me/stylenat-ffhq-256 --preload --hardware zero-a10g

`deploy` does the work and can be imported. This file is not sent to the Space. Run it in the clone's root:
Hugging Face's own package for ZeroGPU is called `spaces`, too.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before all other imports, so that Ctrl-C during them is one line too. It never returns.
    from stylenat_hub.signals import caught

    with caught():
        from spaces.cli import main

        main()

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, SpaceHardware
from huggingface_hub import errors as hub_errors

from spaces import contents
from spaces.models import find_model
from stylenat_hub.errors import HubError, InputError, KeptCardWarning, listed
from stylenat_hub.push_options import check_options
from stylenat_hub.remote import Failures, pushing, reason, retried
from stylenat_hub.targets import Target, look
from stylenat_hub.uploads import address, full_id, upload

HARDWARE = tuple(hardware.value for hardware in SpaceHardware)
ON_CREATION = {".gitattributes", "README.md"}  # what the Hub itself puts into a new Space
_ITS_README = b"spaces-config-reference"  # what the Hub's own names


@dataclass(frozen=True)
class Deployed:
    """What a deployment did. url: the Space's page. news: what changed there: "created", "updated" or
    "unchanged". files, size: how many it has of this clone, and their bytes. hardware: what was asked for
    now; None if nothing was, or it has that already."""

    url: str
    news: str
    files: int
    size: int
    hardware: str | None = None


def deploy(
    name: str,
    *,
    model: str | None = None,
    preload: bool = False,
    hardware: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
    root: Path = contents.ROOT,
) -> Deployed:
    """Make or update a Space so that it is this clone's page.

    name: without a slash in your own namespace. model: what the page starts with, a zoo name or a Hub id;
    default: the built-in one. preload: have the Hub fetch it while it builds the Space, not when that starts.
    hardware: one of `HARDWARE`; None leaves it as it is, which for a new one is "cpu-basic". private: only
    into a private Space.

    Raises `InputError`, `HubError`, `UnknownModelError`: one sentence; the Space is then as it was, except
    that a new, empty one may be there, or if it says so. Warns `KeptCardWarning`: a README.md written by hand
    stays.
    """
    check_options({"private": private or None, "token": token}, ("private", "token"))
    if hardware is not None and hardware not in HARDWARE:
        raise InputError(f"the hardware is {hardware!r}; allowed: {', '.join(HARDWARE)}")
    if preload and model is None:
        raise InputError(
            "the built-in model is always there; name another by --model, or leave out --preload"
        )
    found = find_model(model, token)
    start = contents.Start(found.id, found.files if preload else ()) if found else contents.Start()
    where, api = full_id(name, token), HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="stylenat-deploy-") as temporary, _own_words(where):
        folder = Path(temporary)
        names = contents.write(folder, start, root)
        size = sum((folder / file).stat().st_size for file in names)
        with pushing(where):
            there = retried(lambda: _there(api, where))
        commit = upload(
            folder,
            where,
            repo_type="space",
            space_sdk="gradio",
            private=private or None,
            token=token,
            commit_message="Update the page"
            if there and contents.MANIFEST in there.names
            else "Add the page",
            replaceable=() if there is None or _is_the_hubs(there) else ("README.md",),
            drops=lambda target: outdated(target, names),
        )
        news = "created" if there is None else "unchanged" if commit.unchanged else "updated"
    asked = None if hardware is None else _set_hardware(api, where, hardware, address(commit))
    _tell_of_card(there, start)
    return Deployed(address(commit), news, len(names), size, asked)


def outdated(target: Target, names: list[str]) -> list[str]:
    """Of a Space's files those that an earlier deployment wrote and this one has no longer.

    Raises `InputError` if it has files by somebody else that would be overwritten, or none by this command.
    """
    manifest = target.json(contents.MANIFEST)
    written = manifest.get("files")
    ours = manifest.get("written_by") == contents.BY and isinstance(written, list)
    others = sorted(target.names - ON_CREATION)
    if not ours and (others or not _is_the_hubs(target)):
        raise InputError(
            f"the Space {target.where!r} holds other files ({listed(others or ['README.md'], 3)}), not "
            "a page of this command; name another Space, or empty that one first"
        )
    known = {file for file in written if isinstance(file, str)} if ours else set()
    if strange := sorted((target.names & set(names)) - known - ON_CREATION):
        raise InputError(
            f"the Space {target.where!r} has a {listed(strange, 1)} that this command has not written, and "
            "that would be overwritten; rename it there, or name another Space"
        )
    # The Hub's own settings for git stay, and so does whatever a manifest was made to name by hand.
    return sorted(file for file in known - set(names) if file not in ON_CREATION)


def _there(api: HfApi, where: str) -> Target | None:
    """The Space as it is; None if there is none. Raises `InputError` if it is of another kind."""
    try:
        info = api.space_info(where)
    except hub_errors.RepositoryNotFoundError:
        return None
    if info.sdk not in (None, "gradio"):
        raise InputError(f"the Space {where!r} is made with {info.sdk!r}, not gradio; name another Space")
    api.auth_check(where, repo_type="space", write=True)
    return look(api, where, None, "space")


def _is_the_hubs(target: Target) -> bool:
    """Has nobody written a README.md for it yet?"""
    return "README.md" not in target.names or (
        _ITS_README in target.read("README.md") and target.names <= ON_CREATION
    )


def _tell_of_card(there: Target | None, start: contents.Start) -> None:
    if there is None or _is_the_hubs(there) or there.own_card() is None:
        return
    lost = " (so that it does not say which model to fetch while building)" if start.preload else ""
    warnings.warn(
        f"the README.md of {there.where!r} was written by hand and stays{lost}", KeptCardWarning, stacklevel=3
    )


@contextlib.contextmanager
def _own_words(where: str) -> Iterator[None]:
    """What a push advises to who may not write is not possible here."""
    try:
        yield
    except HubError as error:
        if _status(error.__cause__) == 403:
            raise HubError(
                f"the Hub does not let you write to the Space {where!r}: it is somebody else's, or your "
                "token may only read; deploy to your own namespace, with a token that may write"
            ) from error.__cause__
        raise


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _set_hardware(api: HfApi, where: str, hardware: str, url: str) -> str | None:
    """Ask for it, unless the Space has it. Raises `HubError`, which says that the files are there."""
    try:
        runtime = retried(lambda: api.get_space_runtime(where))
        if hardware == (runtime.requested_hardware or runtime.hardware):
            return None
        retried(lambda: api.request_space_hardware(where, hardware))
        return hardware
    except Failures as error:
        said = " ".join(str(getattr(error, "server_message", None) or "").split())
        paid = ", which your account may have to pay for" if _status(error) == 402 else ""
        raise HubError(
            f"{url} has the page, but not the hardware {hardware!r}{paid} ({reason(error)}"
            f"{': ' + said if said else ''}); choose it at {url}/settings, or run this again"
        ) from error
