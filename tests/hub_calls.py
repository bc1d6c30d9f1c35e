"""A request as the routes of the tests' Hub see it, what they answer, and who may do what."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hub_store import HubError, Repo

if TYPE_CHECKING:
    from hub_server import HubServer


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        body = json.dumps(value, default=str).encode()
        return cls(status, body, {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def of(cls, error: HubError) -> Answer:
        headers = {"X-Error-Message": re.sub(r"\s+", " ", error.message), **error.headers}
        if error.code:
            headers["X-Error-Code"] = error.code
        return cls.json({"error": error.message, **error.body}, error.status, headers)


class Call(NamedTuple):
    hub: HubServer
    method: str
    parts: list[str]  # of the path, decoded
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    token: str
    user: str | None

    def json(self):
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "The body is no JSON") from None

    def asked(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


def find(call: Call, kind: str, repo_id: str) -> Repo:
    """A repository that the caller may see; a private one looks as if it did not exist, as on the Hub."""
    repo = call.hub.repos.get((kind, repo_id.lower()))
    if repo is not None and (not repo.private or owns(call, repo.namespace)):
        return repo
    if call.user is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    raise HubError(404, "Repository not found", "RepoNotFound")


def owns(call: Call, namespace: str) -> bool:
    return call.user is not None and namespace in {call.user, *call.hub.organizations[call.user]}


def log_in(call: Call):
    if call.user is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")


def may_write(call: Call, namespace: str, what: str = "Authorization error."):
    log_in(call)
    if not owns(call, namespace):
        raise HubError(403, what)
    if call.token in call.hub.readers:
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")


def may_read_files(call: Call, repo: Repo):
    if not repo.gated or owns(call, repo.namespace) or call.user in repo.allowed:
        return
    start = f"Access to {repo.type} {repo.id} is restricted"
    if call.user is None:
        log = "You must have access to it and be authenticated to access it. Please log in."
        raise HubError(401, f"{start}. {log}", "GatedRepo")
    page = f"{call.hub.url}/{repo.prefix}{repo.id}"
    raise HubError(
        403, f"{start} and you are not in the authorized list. Visit {page} to ask for access.", "GatedRepo"
    )


def may_commit(call: Call, repo: Repo, revision: str | None):
    """Anyone who is logged in may open a pull request, and write to one of their own; here, to any."""
    if revision is None or call.asked("create_pr") or revision.startswith("refs/pr/"):
        log_in(call)
    else:
        may_write(call, repo.namespace)
