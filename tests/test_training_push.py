"""Training that pushes its checkpoints: every one a commit, in order, whatever the Hub does meanwhile."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from commands import FAST, here, wrong
from typer.testing import CliRunner

from stylenat_hub import GANPipeline, WaveletDiscriminator
from stylenat_hub.errors import HubError, TrainingError
from training import checkpoints, export, loop, publisher
from training.publisher import FOLDER, Publisher
from training.toy_churches import write_churches


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "churches.zip"
    write_churches(path, count=12, size=32, progress=False)
    return path


class Inside:
    """A push that is over when it begins, in this process: quicker than one of its own."""

    def __init__(self, command, *, stderr, **_options):
        result = CliRunner().invoke(export.app, command[3:])
        stderr.write(result.output.encode())
        self.returncode = result.exit_code

    def poll(self):
        return self.returncode

    def wait(self, _timeout=None):
        return self.returncode


class Stuck:
    """A push that never ends by itself. endings: what its `wait`s do."""

    def __init__(self, *endings):
        self.endings, self.asked, self.returncode = list(endings), [], None

    def __call__(self, _command, **_options):
        return self

    def poll(self):
        return self.returncode

    def wait(self, _timeout=None):
        if self.endings and (ending := self.endings.pop(0)):
            raise ending
        return 0

    def terminate(self):
        self.asked.append("terminate")

    def kill(self):
        self.asked.append("kill")


def pushes_by(monkeypatch, kind):
    monkeypatch.setattr(publisher, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": kind}))


@pytest.fixture
def quick(monkeypatch):
    pushes_by(monkeypatch, Inside)


def training(output, data, *more, stop=24, every=8):
    begin = ["--preset", "tiny", "--data", data, "--output", output, *FAST]
    return [*begin, "--stop-at", stop, "--checkpoint-every", every, "--push-to-hub", "me/run", *more]


def titles(hub, name="me/run"):
    return [one.title for one in hub.commits(name)][1:]


def saved(output):
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def weights(output, images):
    folder = output / "checkpoints" / checkpoints.checkpoint_name(images)
    loaded = checkpoints.load_checkpoint(folder).tensors
    return {f"{file}/{key}": tensor for file, group in loaded.items() for key, tensor in group.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k].nan_to_num(), other[k].nan_to_num())] == []


def test_a_run_goes_on_from_the_hub_on_another_machine(hub, tmp_path, data):
    """With pushes in processes of their own; to the bit like the run that was never stopped."""
    whole = [*training(tmp_path / "whole", data, stop=32)[:-2]]
    assert here(*whole).exit_code == 0
    result = here(*training(tmp_path / "first", data, "--license", "mit", stop=16))
    assert result.exit_code == 0, result.output
    assert titles(hub) == ["8 images seen", "16 images seen"]
    assert not (tmp_path / "first" / FOLDER).exists()
    card = hub.files("me/run")["README.md"].decode()
    assert "license: mit" in card and "16 images seen, of 12 training pictures" in card
    older = hub.commits("me/run")[1].sha
    drawn = [GANPipeline.from_pretrained("me/run", revision=r).generator.constant for r in (older, "main")]
    kept = [weights(tmp_path / "whole", images)["average/constant"] for images in (8, 16)]
    assert all(torch.equal(*pair) for pair in zip(drawn, kept, strict=True))
    WaveletDiscriminator.from_pretrained("me/run")
    for name, source in {"again": "hf:me/run", "older": f"hf:me/run@{older}"}.items():
        begin = [*whole[:5], tmp_path / name, *whole[6:]]
        result = here(*begin, "--resume", source)
        assert result.exit_code == 0, result.output
        assert saved(tmp_path / name)[-1] == "images-000000032"
        assert_same(weights(tmp_path / name, 32), weights(tmp_path / "whole", 32))
    for path, content in hub.files("me/run").items():
        assert str(tmp_path.parent).encode() not in content, path


def test_what_went_on_from_the_hub_goes_on_pushing(hub, tmp_path, data, quick):
    assert here(*training(tmp_path / "a", data, stop=8)).exit_code == 0
    result = here(*training(tmp_path / "b", data, "--resume", "hf:me/run", stop=24))
    assert result.exit_code == 0, result.output
    assert titles(hub) == ["8 images seen", "16 images seen", "24 images seen"]
    inside = {path for path in hub.files("me/run") if path.startswith("checkpoint/")}
    state = json.loads(hub.files("me/run")["checkpoint/state.json"])
    assert state["images"] == 24 and inside == {"checkpoint/state.json"} | {
        f"checkpoint/{name}" for name in state["files"]
    }


def test_what_was_not_pushed_before_the_run_ended_is_pushed_when_it_goes_on(hub, tmp_path, data, quick):
    output = tmp_path / "run"
    assert here(*training(output, data, stop=8)[:-2]).exit_code == 0  # killed before it pushed, so to say
    for stop in (16, 24):
        result = here(*training(output, data, "--resume", "latest", stop=stop))
        assert result.exit_code == 0, result.output
    assert titles(hub) == ["8 images seen", "16 images seen", "24 images seen"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf:me/model", "has no checkpoint to go on from"),
        ("hf:me/run@nothing", "has no revision 'nothing'"),
        ("hf:me/none", "the Hub has no repository of that name"),
        ("hf:", "cannot be a Hub id"),
        ("hf:me/broken", "is damaged"),
    ],
)
def test_what_cannot_be_gone_on_from_is_one_sentence(hub, tmp_path, data, quick, source, says):
    hub.add_repo("me/model", {"config.json": b"{}"})
    assert here(*training(tmp_path / "a", data, stop=8)).exit_code == 0
    files = hub.files("me/run")
    hub.add_repo(
        "me/broken", {**files, "checkpoint/average.safetensors": files["checkpoint/rng.safetensors"]}
    )
    wrong(*training(tmp_path / "b", data, "--resume", source), says=says)
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_a_hub_that_is_down_for_a_while_gets_everything_in_order(hub, tmp_path, data, quick):
    hub.fail("503", path="/preupload/", times=1_000)
    save, seen = checkpoints.save_checkpoint, []

    def repaired(*arguments, **options):
        seen.append(1)
        if len(seen) == 3:
            hub.clear_faults()
        return save(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", repaired)
        result = here(*training(tmp_path / "run", data, "--checkpoints-total-limit", "1", stop=32))
    assert result.exit_code == 0, result.output
    assert "warning: images-000000008 was not pushed: the push to 'me/run' failed (HTTP 503)" in result.output
    assert titles(hub) == [f"{images} images seen" for images in range(8, 33, 8)]
    assert saved(tmp_path / "run") == ["images-000000032"] and not (tmp_path / "run" / FOLDER).exists()


def test_a_hub_that_stays_down_costs_no_training_and_the_sentence_says_how_to_push(
    hub, tmp_path, data, quick
):
    hub.fail("503", path="/preupload/", times=None)
    output = tmp_path / "my run"
    result = here(*training(output, data, "--private", "--license", "mit"))
    assert result.exit_code == 1 and titles(hub) == []
    assert f"the last checkpoint is {output}/checkpoints/images-000000024" in result.output
    told = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert " is written" not in result.output  # by the push, into a folder of its own
    assert len(told) == 1 and "3 checkpoint(s) could not be pushed to 'me/run'" in told[0]
    assert all(checkpoints.load_checkpoint(path) for path in checkpoints.list_checkpoints(output))
    assert len(saved(output)) == 3 and not (output / FOLDER).exists()
    hub.clear_faults()
    command = shlex.split(told[0].split("`")[1])
    assert command[:3] == ["python", "-m", "training.export"]
    result = here(*command[3:], command=export.app)
    assert result.exit_code == 0, result.output
    assert hub.repo("me/run").private and b"license: mit" in hub.files("me/run")["README.md"]
    assert json.loads(hub.files("me/run")["checkpoint/state.json"])["images"] == 24


def test_a_new_run_does_not_replace_another_one(hub, tmp_path, data, quick):
    assert here(*training(tmp_path / "a", data, stop=8)).exit_code == 0
    says = "'me/run' holds a run of 8 images; go on with it by --resume hf:me/run, or name another"
    wrong(*training(tmp_path / "b", data, stop=8), says=says)
    wrong(*training(tmp_path / "b", data, "--resume", "auto", stop=8), says=says)
    assert not (tmp_path / "b" / "checkpoints").exists()
    alone = {name: data for name, data in hub.files("me/run").items() if "checkpoint" not in name}
    hub.add_repo("me/run", alone)
    wrong(*training(tmp_path / "b", data, stop=8), says="holds a run of 8 images; start from it by --from")
    hub.add_repo("me/run", {"config.json": b'{"_class_name": "UNet2DModel"}'})
    for resume in ([], ["--resume", "latest"]):
        wrong(*training(tmp_path / ("a" if resume else "b"), data, *resume), says="holds a UNet2DModel")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_pushes_its_last_checkpoint(
    hub, tmp_path, data, quick, number, monkeypatch
):
    step = loop.Trainer.step

    def signalled(self, pictures):
        step(self, pictures)
        if self.images == 16:
            signal.raise_signal(number)

    monkeypatch.setattr(loop.Trainer, "step", signalled)
    result = here(*training(tmp_path, data, every=0))
    assert result.exit_code == 0 and f"stopped by {number.name}" in result.output, result.output
    assert saved(tmp_path) == ["images-000000016"] and titles(hub) == ["16 images seen"]


def test_who_may_not_push_is_told_before_the_training(hub, tmp_path, data, monkeypatch):
    hub.add_repo("other/run", {"a.txt": b"a"})
    hub.add_repo("me/public", {"a.txt": b"a"})
    elsewhere = [*training(tmp_path, data)[:-1], "other/run"]
    wrong(*elsewhere, says="the Hub does not let you write to 'other/run'")
    public = [*training(tmp_path, data)[:-1], "me/public", "--private"]
    wrong(*public, says="'me/public' exists already and is public")
    wrong(*training(tmp_path, data)[:-1], "no name", says="cannot be a Hub id")
    monkeypatch.delenv("HF_TOKEN")
    wrong(*training(tmp_path, data), says="the Hub does not know who you are")
    assert len(hub.repos) == 2 and not (tmp_path / "checkpoints").exists()


def test_what_a_killed_run_left_is_removed(hub, tmp_path, data, quick):
    assert here(*training(tmp_path, data, stop=8)).exit_code == 0
    shutil.copytree(tmp_path / "checkpoints" / "images-000000008", tmp_path / FOLDER / "images-000000008")
    (tmp_path / FOLDER / "images-000000016").mkdir()
    result = here(*training(tmp_path, data, "--resume", "latest", stop=16))
    assert result.exit_code == 0, result.output
    assert titles(hub) == ["8 images seen", "16 images seen"] and not (tmp_path / FOLDER).exists()


def test_ctrl_c_while_it_waits_for_the_hub_leaves_no_process(hub, tmp_path, data, monkeypatch):
    push = Stuck(KeyboardInterrupt(), None)
    pushes_by(monkeypatch, push)
    result = here(*training(tmp_path, data, stop=8))
    assert result.exit_code == 1 and push.asked == ["terminate"]
    assert "interrupted: 1 checkpoint(s) could not be pushed to 'me/run'" in result.output
    assert not (tmp_path / FOLDER).exists() and saved(tmp_path) == ["images-000000008"]


def test_a_run_that_fails_leaves_no_process(hub, tmp_path, data, monkeypatch):
    push = Stuck(subprocess.TimeoutExpired("push", 10), None)
    pushes_by(monkeypatch, push)
    monkeypatch.setattr(loop.Trainer, "_sample", lambda self: 1 / 0)
    result = here(*training(tmp_path, data, "--sample-every", "16"))
    assert result.exit_code == 1 and push.asked == []  # nothing had been saved
    step = loop.Trainer.step

    def diverging(self, pictures):
        step(self, pictures)
        if self.images == 16:
            raise TrainingError("the training diverged")

    monkeypatch.setattr(loop.Trainer, "step", diverging)
    result = here(*training(tmp_path / "b", data))
    assert result.exit_code == 1 and push.asked == ["terminate", "kill"]
    assert "error: the training diverged" in result.output
    assert "2 checkpoint(s) were not pushed, because the run failed" in result.output
    assert not (tmp_path / "b" / FOLDER).exists()


def test_a_system_that_refuses_a_push_does_not_end_the_training(hub, tmp_path, data, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publisher.shutil, "copytree", full)
        result = here(*training(tmp_path / "a", data, stop=8))
    assert result.exit_code == 0, result.output
    assert "warning: images-000000008 will not be pushed" in result.output
    pushes_by(monkeypatch, full)
    result = here(*training(tmp_path / "b", data, stop=8))
    assert result.exit_code == 1 and saved(tmp_path / "b") == ["images-000000008"]
    assert "could not be pushed to 'me/run' (the system refuses: No space left" in result.output


def queue(tmp_path, monkeypatch, outcomes):
    """A publisher whose pushes end as listed, then well; what was pushed, and a clock."""
    pushed, clock = [], SimpleNamespace(now=0.0)

    class Listed(Stuck):
        def __call__(self, command, *, stderr, **_options):
            self.returncode = outcomes.pop(0) if outcomes else 0
            stderr.write(b"error: no\n")
            pushed.append((command[3].rsplit("/", 1)[-1], self.returncode))
            return self

    pushes_by(monkeypatch, Listed())
    monkeypatch.setattr(publisher, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for images in (8, 16):
        (tmp_path / checkpoints.checkpoint_name(images)).mkdir()
    said = []
    return Publisher("me/run", tmp_path, private=False, license=None, say=said.append), pushed, clock, said


def test_while_the_hub_is_down_there_are_pauses(tmp_path, monkeypatch):
    queued, pushed, clock, said = queue(tmp_path, monkeypatch, [1, 1, 1])
    queued.add(tmp_path / "images-000000008")
    for _ in range(50):
        queued.poll()
    assert len(pushed) == 1 and len(said) == 1
    clock.now = 3600
    for _ in range(50):
        queued.poll()
    assert len(pushed) == 2
    queued.add(tmp_path / "images-000000016")  # a new one is worth an attempt at once
    queued.poll()
    assert [code for _, code in pushed] == [1, 1, 1]
    queued.close()
    assert pushed[3:] == [("images-000000008", 0), ("images-000000016", 0)]


def test_at_the_end_it_tries_again_however_often_it_failed_before(tmp_path, monkeypatch):
    queued, pushed, clock, _ = queue(tmp_path, monkeypatch, [1] * 4)
    queued.add(tmp_path / "images-000000008")
    for _ in range(5):
        queued.poll()
        clock.now += 10_000
    assert len(pushed) >= 3
    queued.close()
    assert pushed[-1][1] == 0


def test_at_the_end_it_does_not_try_for_ever(tmp_path, monkeypatch):
    queued, pushed, _, _ = queue(tmp_path, monkeypatch, [1] * 99)
    queued.add(tmp_path / "images-000000008")
    with pytest.raises(HubError, match=r"1 checkpoint\(s\) could not be pushed to 'me/run' \(no\)"):
        queued.close()
    assert len(pushed) <= 4
