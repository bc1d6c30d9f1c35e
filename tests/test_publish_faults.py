"""What must not be pushed, and what ends in one commit all the same: each failure is one sentence."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import constants
from test_publish_checks import WEIGHTS, refused

from stylenat_hub import GANPipeline, publish, uploads
from stylenat_hub.errors import HubError, InputError
from stylenat_hub.signals import Interrupted

STEPS = {  # of a push to a new repository, with a tag and a branch
    "create": ("POST", "/api/repos/create"),
    "refs": ("GET", "/refs"),
    "branch": ("POST", "/branch/"),
    "info": ("GET", "/api/models/me/church/revision/next"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/info/lfs/objects/batch"),
    "upload": ("PUT", "/lfs/"),
    "verify": ("POST", "/info/lfs/objects/verify"),
    "commit": ("POST", "/commit/"),
    "tag": ("POST", "/tag/"),
}


@pytest.fixture
def small(tmp_path):
    """What is uploaded in no time, with a file that goes to LFS."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text('{"_class_name": "StyleNATGenerator"}')
    (tmp_path / "small" / WEIGHTS).write_bytes(b"weights")
    return tmp_path / "small"


def picture(source, **options):
    return GANPipeline.from_pretrained(source, **options)([3], output_type="pt").images


@pytest.mark.parametrize(
    "name",
    ["", None, 3, "a/b/c", "me/a b", "me/x.git", "/me/x", "me/", "-x", "me/ä", "http://x/me/y", "x" * 97],
)
def test_bad_names(hub, pipeline, tiny, name):
    for push in (pipeline.push_to_hub, pipeline.generator.push_to_hub):
        refused(InputError, "Hub id", lambda p=push: p(name))
    refused(InputError, "Hub id", lambda: publish.push_folder(tiny, name))
    refused(InputError, "Hub id", lambda: uploads.make_repository(name))
    assert not hub.repos


@pytest.mark.parametrize(
    "token",
    ["hf_wrong", "", " ", "hf_ä", "hf_new\nline", False],
    ids=["wrong", "empty", "space", "ä", "line", "off"],
)
def test_tokens_that_are_none(hub, pipeline, token):
    for name in ("me/church", "church"):
        refused(
            HubError,
            "does not know who you are",
            lambda n=name: pipeline.push_to_hub(n, token=token, license="mit"),
        )
    refused(HubError, "hf auth login", lambda: uploads.make_repository("me/church", token=token))
    assert not hub.repos


def test_no_token(hub, pipeline, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    for name, token in (("me/church", None), ("church", None), ("me/church", True)):
        says = f"'{name}' cannot be pushed: the Hub does not know who you are; log in with `hf auth login`"
        refused(HubError, says, lambda n=name, t=token: pipeline.push_to_hub(n, token=t))
    assert not hub.repos


def test_a_token_that_may_only_read(hub, pipeline):
    hub.add_user("me", "hf_reads", role="read")
    hub.add_repo("me/there", {"a.txt": b"a"})
    for name in ("me/new", "me/there"):
        refused(HubError, "does not let you write", lambda n=name: pipeline.push_to_hub(n, token="hf_reads"))
        refused(
            HubError, "does not let you write", lambda n=name: uploads.make_repository(n, token="hf_reads")
        )
    assert len(hub.repos) == 1 and len(hub.commits("me/there")) == 1 and not hub.objects


def test_somebody_elses_namespace(hub, pipeline):
    hub.add_repo("other/there", {"a.txt": b"a"})
    for name in ("other/new", "other/there"):
        refused(HubError, "create_pr=True", lambda n=name: pipeline.push_to_hub(n))
        refused(HubError, "does not let you write", lambda n=name: uploads.make_repository(n))
    hub.add_repo("other/secret", {"a.txt": b"a"}, private=True)
    refused(HubError, "'other/secret'", lambda: pipeline.push_to_hub("other/secret", create_pr=True))
    assert len(hub.repos) == 2 and len(hub.commits("other/there")) == 1 and not hub.objects


def test_offline(hub, pipeline, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("me/church", "church"):
        refused(HubError, "HF_HUB_OFFLINE switches the Hub off", lambda n=name: pipeline.push_to_hub(n))
    refused(HubError, "HF_HUB_OFFLINE", lambda: uploads.make_repository("me/church"))
    assert not hub.requests


def test_no_network(hub, pipeline, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("me/church", "church"):
        text = refused(HubError, "failed (", lambda n=name: pipeline.push_to_hub(n))
        assert "push again" in text
    assert not hub.requests


def test_a_pull_request_that_is_not_there(hub, pipeline):
    hub.add_repo("me/church", {"a.txt": b"a"})
    refused(HubError, "no such revision", lambda: pipeline.push_to_hub("me/church", revision="refs/pr/7"))
    assert len(hub.commits("me/church")) == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "refuses the push"),
        (401, "does not know who you are"),
        (403, "does not let you write"),
        (404, "has no repository"),
        (409, "was changed while"),
        (412, "was changed while"),
        (413, "refuses the push"),
    ],
)
@pytest.mark.parametrize("step", ["branch", "preupload", "batch", "upload", "verify", "commit"])
def test_each_refusal_is_one_sentence_and_the_next_push_succeeds(hub, small, step, status, says):
    method, path = STEPS[step]
    hub.fail(str(status), method=method, path=path, times=None)
    if (step, status) == ("branch", 409):
        says = "has no such revision"  # a server that says that it is there, and it is not
    refused(HubError, says, lambda: uploads.upload(small, "me/church", revision="next"))
    assert [c.title for r in hub.repos.values() for c in r.log("main")] in ([], ["initial commit"])
    hub.clear_faults()
    uploads.upload(small, "me/church")
    assert hub.files("me/church")[WEIGHTS] == b"weights"


@pytest.mark.parametrize("kind", ["500", "cut", "lost"])
@pytest.mark.parametrize("step", STEPS)
def test_what_passes_ends_in_one_commit(hub, small, step, kind):
    method, path = STEPS[step]
    fault = hub.fail(kind, method=method, path=path, **({"retry_after": 0} if kind == "429" else {}))
    commit = uploads.upload(small, "me/church", revision="next", tag="v1")
    assert fault.hits == 1
    assert [one.title for one in hub.commits("me/church", "next")] == ["initial commit", "Upload files"]
    repo = hub.repo("me/church")
    assert repo.tags["v1"] == repo.branches["next"] == commit.oid
    assert hub.files("me/church", "v1")[WEIGHTS] == b"weights"


@pytest.mark.parametrize("kind", ["500", "503", "429", "cut", "lost"])
def test_a_fault_at_each_step_of_a_whole_push(hub, pipeline, kind):
    steps = [*STEPS.values(), ("POST", "/api/validate-yaml"), ("GET", "/api/whoami-v2")]
    faults = [hub.fail(kind, method=method, path=path) for method, path in steps]
    for fault in faults:
        fault.details |= {"retry_after": 0} if kind == "429" else {}
    commit = pipeline.push_to_hub("church", revision="next", tag="v1")
    assert [one.title for one in hub.commits("me/church", "next")] == ["initial commit", "Upload pipeline"]
    assert all(fault.hits for fault in faults) and hub.repo("me/church").tags == {"v1": commit.oid}
    assert torch.equal(picture("me/church", revision="v1"), pipeline([3], output_type="pt").images)


def test_a_lost_answer_to_a_commit_that_also_removes_files(hub, pipeline):
    pipeline.push_to_hub("me/church", max_shard_size="100KB")
    hub.fail("lost", path="/commit/")
    pipeline.push_to_hub("me/church")
    assert len(hub.commits("me/church")) == 3
    assert torch.equal(picture("me/church"), pipeline([3], output_type="pt").images)


def test_a_lost_answer_does_not_open_two_pull_requests(hub, pipeline):
    hub.add_repo("other/church", {"a.txt": b"a"})
    hub.fail("503", path="/commit/")
    pipeline.push_to_hub("other/church", create_pr=True)
    hub.fail("lost", path="/commit/")
    says = "has not answered whether it opened the pull request"
    refused(HubError, says, lambda: pipeline.push_to_hub("other/church", create_pr=True))
    assert len(hub.repo("other/church").pulls) == 2


@pytest.mark.parametrize(
    "step", [step for step in STEPS if step != "verify"]
)  # the store has it: one may go on
def test_a_server_that_stays_busy_is_one_sentence_and_nothing_is_sent_twice(hub, small, step):
    method, path = STEPS[step]
    hub.fail("503", method=method, path=path, times=None)
    says = "but not the tag 'v1' (HTTP 503)" if step == "tag" else "HTTP 503"
    text = refused(HubError, says, lambda: uploads.upload(small, "me/church", revision="next", tag="v1"))
    assert ("nothing changed there: push again" in text) == (step != "tag")
    hub.clear_faults()
    sent, hub.requests = set(hub.objects), []
    uploads.upload(small, "me/church", revision="next", tag="v1" if step != "tag" else "v2")
    again = {r.path.rsplit("/", 1)[-1] for r in hub.requests if r.method == "PUT"}
    assert not again & sent and bool(sent) == (step in ("commit", "tag"))
    assert len(hub.commits("me/church", "next")) == 2
    assert hub.files("me/church", "next")[WEIGHTS] == b"weights"


def test_the_error_after_the_commit_says_how_to_tag_it(hub, pipeline):
    hub.fail("403", path="/tag/", times=None)
    text = refused(HubError, "not the tag", lambda: pipeline.push_to_hub("me/church", tag="v1"))
    assert hub.commits("me/church")[-1].sha[:10] in text and "hf repos tag create me/church v1" in text


def test_a_change_in_between_is_not_overwritten(hub, pipeline, monkeypatch):
    """Somebody commits after the repository was looked at."""
    pipeline.push_to_hub("me/church")
    send = uploads._commit

    def late(*arguments, **options):
        hub.add_repo("me/church", {"README.md": b"mine\n"})
        return send(*arguments, **options)

    monkeypatch.setattr(uploads, "_commit", late)
    refused(HubError, "was changed while it was being pushed to", lambda: pipeline.push_to_hub("me/church"))
    assert hub.files("me/church") == {"README.md": b"mine\n"}


UNSURE = "may or may not have arrived: look at {}/me/church before you push again"


def test_a_commit_whose_answer_was_lost_may_have_arrived(hub, small):
    """And the Hub is down when it is asked whether it has."""
    uploads.upload(small, "me/church")
    (small / "config.json").write_text('{"_class_name": "StyleNATGenerator", "depth": 2}')
    lost = hub.fail("lost", path="/commit/")
    text, commit = None, uploads._commit

    def down_after(*arguments, **options):
        try:
            return commit(*arguments, **options)
        finally:
            hub.fail("503", times=None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads, "_commit", down_after)
        says = UNSURE.format(hub.url)
        text = refused(HubError, says, lambda: uploads.upload(small, "me/church"))
    assert "nothing changed" not in text and lost.hits == 1 and len(hub.commits("me/church")) == 3
    hub.clear_faults()


@pytest.mark.parametrize("status", ["502", "504"])
def test_what_a_gateway_says_of_a_commit_is_no_answer_of_the_hub(hub, small, status):
    hub.fail(status, path="/commit/", times=None)
    refused(HubError, UNSURE.format(hub.url), lambda: uploads.upload(small, "me/church"))


def test_ctrl_c_after_sending_began(hub, small, monkeypatch):
    def stopped(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(uploads, "_commit", stopped)
    with pytest.raises(KeyboardInterrupt, match="may or may not have arrived: look at") as caught:
        uploads.upload(small, "me/church")
    assert isinstance(caught.value, Interrupted)
    monkeypatch.setattr(uploads, "_send", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        uploads.upload(small, "me/church")
    assert not isinstance(caught.value, Interrupted)  # nothing can have changed
    monkeypatch.setattr(publish, "push_folder", lambda *_, **__: uploads.upload(small, "me/church"))
    with pytest.raises(Interrupted, match="is written, but not pushed"):
        publish.push_written(small, "me/church")
    monkeypatch.setattr(uploads, "_send", lambda *_, **__: None)
    with pytest.raises(Interrupted, match=r"is written; the push to .* may or may not have arrived"):
        publish.push_written(small, "me/church")


def test_cards_are_checked_where_the_endpoint_says(hub, pipeline):
    """Whichever version of the client this is."""
    pipeline.push_to_hub("me/church")
    asked = [one for one in hub.requests if one.path == "/api/validate-yaml"]
    assert asked and asked[0] is next(one for one in hub.requests if one.method == "POST")
