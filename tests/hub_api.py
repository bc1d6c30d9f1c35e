"""What the Hub of the tests answers: the table of routes, and those that only look."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qs

import hub_changes as changes
from hub_calls import Answer, Call, find, log_in, may_read_files, may_write, owns
from hub_cards import card_data, check_card
from hub_store import Blob, Commit, HubError, Repo

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


def answer(call: Call) -> Answer:
    """Find the route; a path that no route serves gets a 404 that names it."""
    try:
        if call.token and call.user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return _route(call)
    except HubError as error:
        return Answer.of(error)
    except (LookupError, TypeError, ValueError) as error:
        return Answer.of(HubError(400, f"Malformed request: {error!r}"))


def _route(call: Call) -> Answer:
    parts, method = call.parts, call.method
    if parts[0] == "lfs" and method == "PUT":
        return changes.put_object(call, parts[1])
    if parts[0] != "api":
        kind = KINDS[parts[0]] if parts[0] in ("datasets", "spaces") else "model"
        rest = parts if kind == "model" else parts[1:]
        if "resolve" in rest[1:3] and method in ("GET", "HEAD"):
            at = rest.index("resolve", 1)
            return resolve(
                call, find(call, kind, "/".join(rest[:at])), rest[at + 1], "/".join(rest[at + 2 :])
            )
        if rest[2:5] == ["info", "lfs", "objects"] and method == "POST":
            repo = find(call, kind, f"{rest[0]}/{rest[1].removesuffix('.git')}")
            return {"batch": changes.lfs_batch, "verify": changes.lfs_verify}[rest[5]](call, repo)
    elif (method, "/".join(parts[1:])) in PLAIN:
        return PLAIN[method, "/".join(parts[1:])](call)
    elif parts[1] in KINDS and len(parts) == 2:
        return list_repos(call, KINDS[parts[1]])
    elif parts[1] in KINDS:
        repo = find(call, KINDS[parts[1]], "/".join(parts[2:4]))
        action, rest = (parts[4] if len(parts) > 4 else ""), parts[5:]
        if (method, action) in ROUTES:
            return ROUTES[method, action](call, repo, *rest)
    raise HubError(404, f"This Hub of the tests does not serve {method} /{'/'.join(parts)}")


# Routes without a repository in the path.


def whoami(call: Call) -> Answer:
    log_in(call)
    organizations = sorted(call.hub.organizations[call.user])
    role = "read" if call.token in call.hub.readers else "write"
    about = {"type": "user", "id": call.user, "name": call.user, "fullname": call.user, "isPro": False}
    about["orgs"] = [{"type": "org", "id": name, "name": name, "fullname": name} for name in organizations]
    about["auth"] = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
    return Answer.json(about)


def validate_yaml(call: Call) -> Answer:
    asked = call.json()
    errors, warnings = check_card(asked.get("content", ""), asked.get("repoType") or "model")
    told = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    return Answer.json(told, 400 if errors else 200)


def list_repos(call: Call, kind: str) -> Answer:
    wanted = {name: call.query.get(name, [None])[0] for name in ("author", "search", "limit")}
    found = []
    for repo in call.hub.repos.values():
        seen = repo.type == kind and (not repo.private or owns(call, repo.namespace))
        if not seen or (wanted["author"] or repo.namespace) != repo.namespace:
            continue
        about = _about(repo, repo.commit("main"))
        if (wanted["search"] or "").lower() in repo.id.lower() and set(call.query.get("filter", [])) <= set(
            about["tags"]
        ):
            found.append(about)
    return Answer.json(found[: int(wanted["limit"] or len(found))])


# Looking at a repository.


def _about(repo: Repo, commit: Commit, blobs: bool = False) -> dict:
    card = card_data(commit.files.get("README.md", b"").decode(errors="replace"))
    library = card.get("library_name") or ("diffusers" if "model_index.json" in commit.blobs else None)
    siblings = []
    for path, blob in sorted(commit.blobs.items()):
        siblings.append({"rfilename": path})
        if blobs:
            siblings[-1].update(size=len(blob.content), blobId=blob.oid)
        if blobs and blob.lfs:
            siblings[-1]["lfs"] = {**_lfs(blob), "sha256": blob.sha256}
    about = {
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": next(iter(repo.history.values())).date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card, library),
        "siblings": siblings,
        "cardData": card,
    }
    if repo.type == "model":
        about |= {"modelId": repo.id, "library_name": library, "pipeline_tag": card.get("pipeline_tag")}
        about["model-index"] = card.get("model-index")
    if repo.type == "space":
        about |= {"sdk": repo.sdk, "runtime": changes.runtime_of(repo)}
    return about


def _tags(card: dict, library: str | None) -> list[str]:
    def many(name: str) -> list[str]:
        value = card.get(name) or []
        return [str(x) for x in (value if isinstance(value, list) else [value])]

    tags = [x for x in (library, card.get("pipeline_tag"), *many("tags"), *many("language")) if x]
    for name, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
        tags += [f"{prefix}:{x}" for x in many(name)]
    return list(dict.fromkeys(tags))


def info(call: Call, repo: Repo, revision: str = "main") -> Answer:
    return Answer.json(_about(repo, repo.commit(revision), call.asked("blobs")))


def runtime(_call: Call, repo: Repo) -> Answer:
    return Answer.json(changes.runtime_of(repo))


def _lfs(blob: Blob) -> dict:
    return {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict | None:
    """A file or a folder, as tree and paths-info list it."""
    blob = commit.blobs.get(path)
    below = sorted(f"{p} {b.oid}" for p, b in commit.blobs.items() if p.startswith(path + "/"))
    if blob is not None:
        entry = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
        entry |= {"lfs": _lfs(blob)} if blob.lfs else {}
    elif below:
        oid = hashlib.sha1("\n".join(below).encode()).hexdigest()
        entry = {"type": "directory", "path": path, "oid": oid, "size": 0}
    else:
        return None
    if expand:
        last = repo.last_change(commit, path)
        entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
    return entry


def tree(call: Call, repo: Repo, revision: str = "main", *folder: str) -> Answer:
    commit = repo.commit(revision)
    start = "".join(f"{name}/" for name in folder)
    paths = set()
    for path in (p for p in commit.blobs if p.startswith(start)):
        names = path[len(start) :].split("/")
        depth = len(names) if call.asked("recursive") else 1
        paths |= {start + "/".join(names[:i]) for i in range(1, depth + 1)}
    if start and not paths:
        raise HubError(404, f'{start[:-1]} does not exist on "{revision}"', "EntryNotFound")
    return Answer.json([_entry(repo, commit, path, call.asked("expand")) for path in sorted(paths)])


def paths_info(call: Call, repo: Repo, revision: str = "main") -> Answer:
    is_json = "json" in call.headers.get("Content-Type", "")
    asked = call.json() if is_json else parse_qs(call.body.decode())
    expand = str(asked.get("expand", "")).lower().strip("[]'") == "true"
    commit = repo.commit(revision)
    entries = [_entry(repo, commit, path.rstrip("/"), expand) for path in asked.get("paths", [])]
    return Answer.json([entry for entry in entries if entry])


def commits(call: Call, repo: Repo, revision: str = "main") -> Answer:
    told = []
    for commit in reversed(repo.log(revision)):
        one = {"id": commit.sha, "title": commit.title, "message": commit.description, "date": commit.date}
        told.append({**one, "authors": [{"user": commit.author}]})
    return Answer.json(told)


def refs(call: Call, repo: Repo) -> Answer:
    def told(table: dict[str, str], prefix: str) -> list[dict]:
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in table.items()]

    found = {
        "branches": told(repo.branches, "refs/heads/"),
        "tags": told(repo.tags, "refs/tags/"),
        "converts": [],
    }
    if call.asked("include_prs"):
        found["pullRequests"] = told(repo.pulls, "refs/pr/")
    return Answer.json(found)


def auth_check(call: Call, repo: Repo, mode: str = "read") -> Answer:
    may_write(call, repo.namespace) if mode == "write" else may_read_files(call, repo)
    return Answer.json({})


def resolve(call: Call, repo: Repo, revision: str, path: str) -> Answer:
    may_read_files(call, repo)
    commit = repo.commit(revision)
    blob = commit.blobs.get(path)
    if blob is None:
        error = HubError(404, "Entry not found", "EntryNotFound")
        error.headers["X-Repo-Commit"] = commit.sha
        raise error
    size = len(blob.content)
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream" if blob.lfs else "text/plain"
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(size)}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not asked or asked.groups() == ("", ""):
        return Answer(200, blob.content, headers)
    first, last = (int(x) if x else None for x in asked.groups())
    start, stop = (
        (max(0, size - last), size) if first is None else (first, size if last is None else last + 1)
    )
    if start >= size or stop <= start:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    stop = min(stop, size)
    return Answer(
        206, blob.content[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    )


PLAIN = {
    ("GET", "whoami-v2"): whoami,
    ("POST", "validate-yaml"): validate_yaml,
    ("POST", "repos/create"): changes.create_repo,
    ("DELETE", "repos/delete"): changes.delete_repo,
}
ROUTES = {  # what follows the id in the path, then the arguments: a revision, a name or a path
    ("GET", ""): info,
    ("GET", "revision"): info,
    ("GET", "tree"): tree,
    ("POST", "paths-info"): paths_info,
    ("GET", "commits"): commits,
    ("GET", "refs"): refs,
    ("GET", "auth-check"): auth_check,
    ("PUT", "settings"): changes.settings,
    ("GET", "runtime"): runtime,
    ("POST", "hardware"): changes.hardware,
    ("POST", "preupload"): changes.preupload,
    ("POST", "commit"): changes.commit,
    ("POST", "branch"): changes.create_branch,
    ("DELETE", "branch"): changes.delete_branch,
    ("POST", "tag"): changes.create_tag,
    ("DELETE", "tag"): changes.delete_tag,
}
