"""Talking to the Hub: what is tried again, and one sentence for each way in which it can fail.

The `huggingface_hub` client repeats some requests by itself (a cut download goes on where it stopped, 429 is
waited for) and others not, and its errors span several lines.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub import errors as hub_errors
from huggingface_hub import get_session
from huggingface_hub.utils import hf_raise_for_status

from stylenat_hub.errors import HubError, InputError, NotOnHubError, StyleNATHubError, UnknownModelError

WAITS = (1.0, 3.0)  # seconds before the second and the third attempt
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is not waited for
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))

T = TypeVar("T")
# What the client raises for servers, networks and disks; for uploads it wraps them in a RuntimeError.
Failures = (hub_errors.HTTPError, OSError, RuntimeError)


class NotTheHubError(ConnectionError):
    """What came makes no sense as an answer of the Hub, such as the log-in page of a hotel's network."""


def retried(work: Callable[[], T]) -> T:
    """Call `work`, again after a failure that may pass, three times in all."""
    for wait in WAITS:
        try:
            return work()
        except Failures as error:
            asked = _retry_after(error)
            if not passes(error) or asked > LONGEST_WAIT:
                raise
            time.sleep(max(wait, asked))
    return work()


def passes(error: BaseException | None) -> bool:
    """Is this a failure that may pass by itself: a busy server, a cut connection? No network is none."""
    if error is None or isinstance(error, hub_errors.OfflineModeIsEnabled):
        return False
    if (status := _status(error)) is not None:
        return status in _TRANSIENT
    if isinstance(error, (hub_errors.LocalEntryNotFoundError, RuntimeError)):  # words for several failures
        return passes(error.__cause__)
    if isinstance(error, hub_errors.HTTPError):
        return not no_network(error)
    # Without a number it is the client's own: what arrived has not the size that was announced.
    return isinstance(error, ConnectionError) or (type(error) is OSError and error.errno is None)


def unanswered(error: BaseException) -> bool:
    """May the server have done what it was asked to, and only its answer be lost?"""
    return passes(error) and _status(error) is None and _status(error.__cause__) is None


def no_network(error: BaseException) -> bool:
    """Could the server not even be connected to?"""
    # By name, because the client's HTTP library changes with its version.
    return type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError")


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _retry_after(error: BaseException) -> float:
    """The seconds that the server asks to wait, or 0."""
    return _asked_wait(getattr(error, "response", None))


def _asked_wait(response: Any) -> float:
    text = getattr(response, "headers", {}).get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def reason(error: BaseException) -> str:
    """`HTTP 503`, or the name of the error where there was no answer."""
    status = _status(error)
    if isinstance(error, NotTheHubError):
        return str(error)
    if type(error) is OSError and error.errno is None:
        return "less arrived than was announced"
    return f"HTTP {status}" if status is not None else type(error).__name__


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Fail at once where the server asks to wait for longer than `LONGEST_WAIT`: the client would wait as
    long as it is told to, be it hours, and say nothing."""

    def check(response: Any) -> None:
        if response.status_code == 429 and _asked_wait(response) > LONGEST_WAIT:
            response.read()
            hf_raise_for_status(response)

    session = get_session()  # the client keeps one for all its requests
    hooks = getattr(session, "event_hooks", {}).get("response", [])  # without such, it waits
    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


@contextlib.contextmanager
def pulling(name: str, revision: str | None, offline: bool) -> Iterator[None]:
    """One sentence for each failure of a download: `UnknownModelError`, for a full disk `InputError`."""
    no_folder = f"there is no folder {name!r} here"
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise UnknownModelError(
            f"{name!r} is gated on the Hub: accept its terms on its page, then log in with `hf auth login` "
            f"or pass token="
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UnknownModelError(
            f"the Hub repository {name!r} has no revision {revision or 'main'!r}; name a branch, a tag or a "
            f"commit of it"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise NotOnHubError(
            f"{no_folder}, and the Hub has no repository of that name, or it is private: check the "
            "spelling, or log in with `hf auth login`"
        ) from error
    except hub_errors.HFValidationError as error:
        raise UnknownModelError(f"{no_folder}, and it cannot be a Hub id: {error}") from error
    except hub_errors.LocalEntryNotFoundError as error:
        if offline or isinstance(error.__cause__, hub_errors.OfflineModeIsEnabled):
            raise UnknownModelError(
                f"{no_folder}, nor is it whole in the download cache, and the Hub is switched off "
                "(local_files_only or HF_HUB_OFFLINE): download it once while online"
            ) from error
        raise UnknownModelError(_unreachable(name, error.__cause__ or error)) from error
    except hub_errors.LocalTokenNotFoundError as error:
        raise UnknownModelError(
            f"token=True asks for the token that you logged in with, and there is none (for {name!r}); log "
            "in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except Failures as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk is full: {name!r} cannot be downloaded; free some space or set cache_dir"
            ) from error
        if number is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise InputError(
                f"{name!r} cannot be kept in the download cache: {error.strerror} ({error.filename!r}); give "
                "a folder that can be written to as cache_dir, or set HF_HOME"
            ) from error
        if _status(error) == 401:
            raise UnknownModelError(
                f"the Hub does not accept the token that was sent for {name!r}: log in again with "
                "`hf auth login`, or pass another token="
            ) from error
        raise UnknownModelError(_unreachable(name, error)) from error


def _unreachable(name: str, error: BaseException) -> str:
    wait = f", and asks to wait {_retry_after(error):.0f} s" if _retry_after(error) else ""
    return (
        f"there is no folder {name!r} here, and the Hub cannot be asked for it ({reason(error)}{wait}); "
        "check the network and try again, or give a folder"
    )


@contextlib.contextmanager
def pushing(name: str) -> Iterator[None]:
    """One sentence for each failure of an upload. Raises `HubError`, `InputError`."""
    try:
        yield
    except StyleNATHubError:
        raise
    except hub_errors.HFValidationError as error:
        raise InputError(f"{name!r} cannot be a Hub id (user/name or organisation/name): {error}") from error
    except hub_errors.OfflineModeIsEnabled as error:
        raise HubError(f"{name!r} cannot be pushed: HF_HUB_OFFLINE switches the Hub off; unset it") from error
    except hub_errors.LocalTokenNotFoundError as error:
        raise HubError(_not_logged_in(name)) from error
    except hub_errors.RevisionNotFoundError as error:
        raise HubError(f"the Hub repository {name!r} has no such revision; push to a branch of it") from error
    except (*Failures, ValueError) as error:
        found = _push_error(name, error)
        if found is error:
            raise
        raise found from error


def _push_error(name: str, error: Exception) -> Exception:
    """The sentence for an error of the client; an error that is not about the Hub as it is."""
    if isinstance(error, UnicodeEncodeError) or type(error).__name__ == "LocalProtocolError":
        # The client could not even send it. Its words would show the token.
        return HubError(_not_logged_in(name))
    if isinstance(error, (hub_errors.HTTPError, OSError)):
        return HubError(_refusal(name, error))
    if not isinstance(error.__cause__, (hub_errors.HTTPError, OSError)):
        return error
    if isinstance(error, ValueError):  # what the client makes of a card that the Hub does not take
        return HubError(f"the Hub does not take the card of {name!r}: {' '.join(str(error).split())}")
    return HubError(_refusal(name, error.__cause__))


def _not_logged_in(name: str) -> str:
    return (
        f"{name!r} cannot be pushed: the Hub does not know who you are; log in with `hf auth login`, set "
        "HF_TOKEN or pass token=, with a token that may write"
    )


def _refusal(name: str, error: BaseException) -> str:
    said = " ".join(str(getattr(error, "server_message", None) or "").split())
    details = f" ({said})" if said else ""
    status = _status(error)
    if status == 401:
        return _not_logged_in(name)
    if status == 403:
        return (
            f"the Hub does not let you write to {name!r}{details}; push to your own namespace, use a token "
            "that may write, or pass create_pr=True to propose the change"
        )
    if status == 404:
        return f"the Hub has no repository {name!r}, or you may not see it{details}"
    if status in (409, 412):
        return (
            f"{name!r} was changed while it was being pushed to ({reason(error)}{details}); look at it, then "
            "push again"
        )
    if status is not None and status not in _TRANSIENT:
        return f"the Hub refuses the push to {name!r} ({reason(error)}){details}"
    text = reason(error) if status is not None else " ".join(str(error).split()) or reason(error)
    return (
        f"the push to {name!r} failed ({text}); nothing changed there: push again, what is already uploaded "
        "is not sent twice"
    )
