"""The routes of the tests' Hub that change something; each runs while the Hub's lock is held."""

from __future__ import annotations

import base64
import binascii
import json

from hub_calls import Answer, Call, find, log_in, may_commit, may_write
from hub_cards import check_card
from hub_store import ATTRIBUTES, Blob, HubError, Repo, stored_in_lfs

SDKS = ("gradio", "docker", "static")


def _named(call: Call) -> tuple[str, str, dict]:
    asked = call.json()
    log_in(call)
    kind = asked.get("type") or "model"
    return kind, f"{asked.get('organization') or call.user}/{asked.get('name')}", asked


def create_repo(call: Call) -> Answer:
    kind, repo_id, asked = _named(call)
    namespace = repo_id.split("/")[0]
    may_write(
        call, namespace, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
    )
    repo = Repo(
        repo_id, kind, asked.get("private") is True or asked.get("visibility") == "private", asked.get("sdk")
    )
    url = f"{call.hub.url}/{repo.prefix}{repo_id}"
    if (kind, repo_id.lower()) in call.hub.repos:
        raise HubError(409, f"You already created this {kind} repo", url=url)
    if kind == "space" and repo.sdk not in SDKS:
        raise HubError(400, f'"sdk" must be one of [{", ".join(SDKS)}]')
    first = repo.add({".gitattributes": Blob(ATTRIBUTES.encode())}, "initial commit", "", call.user, None)
    repo.branches["main"] = first.sha
    call.hub.repos[kind, repo_id.lower()] = repo
    return Answer.json({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(call: Call) -> Answer:
    kind, repo_id, _ = _named(call)
    repo = find(call, kind, repo_id)
    may_write(call, repo.namespace)
    del call.hub.repos[kind, repo_id.lower()]
    return Answer(200, b"OK")


def settings(call: Call, repo: Repo) -> Answer:
    may_write(call, repo.namespace)
    asked = call.json()
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or asked.get("private") is True
    repo.gated = asked.get("gated", repo.gated)
    return Answer.json({"private": repo.private, "gated": repo.gated})


def runtime_of(repo: Repo) -> dict:
    if repo.type != "space":
        raise HubError(404, "Only a Space runs on anything")
    return {"stage": "RUNNING", "hardware": {"current": repo.hardware, "requested": repo.hardware}}


def hardware(call: Call, repo: Repo) -> Answer:
    """Whatever is asked for; the Hub itself asks who pays for it."""
    may_write(call, repo.namespace)
    runtime_of(repo)
    repo.hardware = call.json()["flavor"]
    return Answer.json(runtime_of(repo))


def preupload(call: Call, repo: Repo, revision: str) -> Answer:
    may_commit(call, repo, revision)
    blobs = repo.commit(revision).blobs
    attributes = blobs[".gitattributes"].content if ".gitattributes" in blobs else None
    told = []
    for file in call.json()["files"]:
        path = file["path"]
        lfs = stored_in_lfs(path, file["size"], base64.b64decode(file.get("sample", "")), attributes)
        mode = "lfs" if lfs else "regular"
        one = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        told.append({**one, "oid": blobs[path].etag if path in blobs else None})
    return Answer.json({"files": told, "commitOid": repo.commit(revision).sha})


def lfs_batch(call: Call, repo: Repo) -> Answer:
    asked = call.json()
    may_commit(call, repo, asked.get("ref", {}).get("name"))
    told = []
    for wanted in asked["objects"]:
        told.append({"oid": wanted["oid"], "size": wanted["size"]})
        if wanted["oid"] not in call.hub.objects:
            call.hub.promised[wanted["oid"]] = wanted["size"]
            verify = f"{call.hub.url}/{repo.prefix}{repo.id}.git/info/lfs/objects/verify"
            upload = f"{call.hub.url}/lfs/{wanted['oid']}"
            told[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return Answer.json({"transfer": "basic", "objects": told})


def put_object(call: Call, oid: str) -> Answer:
    """Like a signed address of a store: anyone may bring an announced object, but only the right bytes."""
    if oid not in call.hub.promised:
        raise HubError(403, "No upload of this object was announced")
    blob = Blob(call.body, lfs=True)
    if blob.sha256 != oid or len(call.body) != call.hub.promised[oid]:
        raise HubError(400, "The content does not have the announced sha256 and size")
    call.hub.objects[oid] = blob
    return Answer(200, b"", {"ETag": f'"{oid}"'})


def lfs_verify(call: Call, repo: Repo) -> Answer:
    log_in(call)
    asked = call.json()
    blob = call.hub.objects.get(asked["oid"])
    if blob is None or len(blob.content) != asked["size"]:
        raise HubError(404, "The object was not uploaded")
    return Answer.json({})


def commit(call: Call, repo: Repo, revision: str) -> Answer:
    """Carries out all operations or none. Like the Hub it does not mind a commit that changes nothing."""
    may_commit(call, repo, revision)
    try:
        lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    except ValueError:
        raise HubError(400, "The body is no list of JSON lines") from None
    head = next((line["value"] for line in lines if line["key"] == "header"), {})
    if not head.get("summary"):
        raise HubError(400, "A commit needs a summary")
    before = repo.commit(revision)
    pull = str(len(repo.pulls) + 1) if call.asked("create_pr") else None
    target = (repo.pulls, pull) if pull else repo.ref(revision)
    if target is None or target[0] is repo.tags:
        raise HubError(400, f"{revision} is neither a branch nor a pull request")
    if head.get("parentCommit") not in (None, before.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    blobs = dict(before.blobs)
    for line in lines:
        if line["key"] != "header":
            OPERATIONS[line["key"]](call, blobs, line["value"])
    if "README.md" in blobs and blobs["README.md"] != before.blobs.get("README.md"):
        errors, _ = check_card(blobs["README.md"].content.decode(errors="replace"), repo.type)
        if errors:
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
    made = repo.add(blobs, head["summary"], head.get("description") or "", call.user, before.sha)
    target[0][target[1]] = made.sha
    page = f"{call.hub.url}/{repo.prefix}{repo.id}"
    told = {
        "success": True,
        "commitOid": made.sha,
        "commitUrl": f"{page}/commit/{made.sha}",
        "hookOutput": "",
    }
    return Answer.json({**told, **({"pullRequestUrl": f"{page}/discussions/{pull}"} if pull else {})})


def _inside(path: object) -> str:
    parts = str(path).split("/")
    if not path or ".." in parts or "." in parts or "" in parts or parts[0] == ".git":
        raise HubError(400, f"{path!r} is no path inside a repository")
    return str(path)


def _file(_call: Call, blobs: dict[str, Blob], value: dict):
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error:
        raise HubError(400, f"The content of {value['path']} is not base64") from None
    blobs[_inside(value["path"])] = Blob(content)


def _lfs_file(call: Call, blobs: dict[str, Blob], value: dict):
    if value["oid"] not in call.hub.objects:
        raise HubError(400, f"The LFS object of {value['path']}, {value['oid']}, was not uploaded")
    blobs[_inside(value["path"])] = call.hub.objects[value["oid"]]


def _deleted_file(_call: Call, blobs: dict[str, Blob], value: dict):
    if blobs.pop(value["path"], None) is None:
        raise HubError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")


def _deleted_folder(_call: Call, blobs: dict[str, Blob], value: dict):
    below = [path for path in blobs if path.startswith(value["path"].rstrip("/") + "/")]
    if not below:
        raise HubError(404, f"A folder with this name doesn't exist: {value['path']}", "EntryNotFound")
    for path in below:
        del blobs[path]


OPERATIONS = {
    "file": _file,
    "lfsFile": _lfs_file,
    "deletedFile": _deleted_file,
    "deletedFolder": _deleted_folder,
}


def create_branch(call: Call, repo: Repo, name: str) -> Answer:
    may_write(call, repo.namespace)
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    repo.branches[name] = repo.commit(call.json().get("startingPoint") or "main").sha
    return Answer.json({})


def delete_branch(call: Call, repo: Repo, name: str) -> Answer:
    may_write(call, repo.namespace)
    if name == "main":
        raise HubError(403, "The branch main cannot be deleted")
    if repo.branches.pop(name, None) is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer.json({})


def create_tag(call: Call, repo: Repo, revision: str) -> Answer:
    may_write(call, repo.namespace)
    name = call.json()["tag"]
    if name in repo.tags:
        raise HubError(409, f"Tag reference exists already: {name}")
    repo.tags[name] = repo.commit(revision).sha
    return Answer.json({})


def delete_tag(call: Call, repo: Repo, name: str) -> Answer:
    may_write(call, repo.namespace)
    if repo.tags.pop(name, None) is None:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer.json({})
