"""Files and folders appear whole or not at all, and nothing that was there before is lost."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stylenat_hub import files, signals
from stylenat_hub.errors import InputError
from stylenat_hub.files import check_folder, whole_file, whole_folder
from stylenat_hub.signals import Interrupted

ROOT = Path(__file__).parent.parent
RESULT = ("mark.json", "part")
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def fill(folder, text="new"):
    (folder / "part").mkdir()
    (folder / "part" / "data").write_text(text)
    (folder / "mark.json").write_text(text)


def content(folder):
    """Every file below a folder, hidden ones too, by its relative path."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


NEW = {"part/data": "new", "mark.json": "new"}
OLD = {"part/data": "old", "mark.json": "old"}


@pytest.fixture
def earlier(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    return tmp_path / "out"


def write(path, **kwargs):
    with whole_folder(path, **kwargs) as folder:
        fill(folder)


def test_an_earlier_result_is_replaced_and_stays_the_same_folder(earlier):
    (earlier / ".DS_Store").write_text("a file browser was here")
    number = earlier.stat().st_ino
    write(earlier, overwrite=(*RESULT, "extra"))
    assert content(earlier) == {**NEW, ".DS_Store": "a file browser was here"}
    assert earlier.stat().st_ino == number and os.listdir(earlier.parent) == ["out"]


def test_what_only_the_earlier_result_had_goes(earlier):
    (earlier / "extra").write_text("old")
    write(earlier, overwrite=(*RESULT, "extra"))
    assert content(earlier) == NEW


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda out: (out / "thesis.tex").write_text("years"), "holds 'thesis.tex'"),
        (lambda out: (out / ".git").mkdir(), "holds '.git'"),
        (lambda out: (out / "mark.json").unlink(), "has no 'mark.json'"),
    ],
)
def test_another_folder_is_never_replaced(earlier, change, says):
    change(earlier)
    before = content(earlier)
    with pytest.raises(InputError, match=says):
        write(earlier, overwrite=RESULT)
    with pytest.raises(InputError, match="is not empty"):
        write(earlier)
    assert content(earlier) == before


def test_places_that_are_never_replaced(earlier, tmp_path, monkeypatch):
    def refused(path, says, **kwargs):
        with pytest.raises(InputError, match=says):
            check_folder(path, overwrite=RESULT, **kwargs)
        assert content(earlier) == OLD

    (tmp_path / "link").symlink_to(earlier)
    (tmp_path / "elsewhere.pt").write_text("")
    refused("/", "holds the current folder|is the current folder|is a mount point")
    refused(earlier, "holds the input", inputs=[earlier / "part" / "data"])
    refused(earlier, "holds the input", inputs=[tmp_path / "link" / "mark.json"])
    refused(tmp_path / "link", "holds the input", inputs=[earlier / "mark.json"])
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(earlier))
        refused(earlier, "is your home folder")
        refused("~", "is your home folder")
        patch.setenv("HOME", str(earlier / "part"))
        refused(earlier, "holds your home folder")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: str(path) == str(earlier))
        refused(earlier, "is a mount point")
    monkeypatch.chdir(earlier / "part")
    refused(earlier, "holds the current folder")
    monkeypatch.chdir(earlier)
    refused(earlier, "is the current folder")
    refused(".", "is the current folder")


def test_an_empty_folder_is_filled_where_it_stands(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    number = (tmp_path / "here").stat().st_ino
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(tmp_path / "link") as folder:
        assert folder.parent == tmp_path / "here"  # on its own disk, which may not be that of its parent
        fill(folder)
    assert content(Path.cwd()) == NEW and os.stat(".").st_ino == number
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path)) == ["here", "link"]


def test_a_link_to_nothing_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "there") == NEW


def failing_rename(monkeypatch, number, error):
    """The rename of that number, from 1, fails; those that put back do not."""
    rename, calls = os.rename, []

    def fail(old, new):
        calls.append(old)
        if len(calls) == number:
            raise error
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    return calls


@pytest.mark.parametrize("error", [OSError(errno.EXDEV, "cross-device"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_failed_rename_is_rolled_back(earlier, monkeypatch, number, error):
    calls = failing_rename(monkeypatch, number, error)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        write(earlier, overwrite=RESULT)
    assert len(calls) >= number and not isinstance(caught.value, Interrupted)
    assert content(earlier) == OLD and os.listdir(earlier.parent) == ["out"]
    if isinstance(error, OSError):
        assert "another disk" in str(caught.value) and files._HIDDEN not in str(caught.value)


def test_what_cannot_be_put_back_is_kept_and_named(earlier, monkeypatch):
    rename, calls = os.rename, []

    def fail(old, new):
        calls.append(old)
        if len(calls) > 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(InputError, match=r"what is missing is in '.*replaced-"):
        write(earlier, overwrite=RESULT)
    assert sorted(content(earlier).values()).count("old") == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_between_the_renames_waits_for_the_last(earlier, monkeypatch, number):
    rename = os.rename

    def signalled(old, new):
        signal.raise_signal(number)
        rename(old, new)

    monkeypatch.setattr(os, "rename", signalled)
    with pytest.raises(SystemExit) as end, signals.caught():
        try:
            write(earlier, overwrite=RESULT)
        except Interrupted as interrupted:
            assert str(interrupted) == f"{earlier} is written, and whole"
            raise
    assert end.value.code == 1
    assert content(earlier) == NEW and os.listdir(earlier.parent) == ["out"]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_signal_before_leaves_nothing(tmp_path, existing, number, capsys):
    if existing:
        (tmp_path / "a" / "b" / "out").mkdir(parents=True)
    with pytest.raises(SystemExit) as end, signals.caught(), whole_folder(tmp_path / "a/b/out") as folder:
        fill(folder)
        signal.raise_signal(number)
    assert end.value.code == 1 and capsys.readouterr().err == "interrupted\n"
    assert content(tmp_path) == {} and len(list(tmp_path.rglob("*"))) == 3 * existing


def test_an_error_after_a_swallowed_signal_is_its_echo(capsys):
    with pytest.raises(SystemExit) as end, signals.caught("stopped"):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RecursionError("in an import") from None
    assert end.value.code == 1 and capsys.readouterr().err == "stopped\n"
    with pytest.raises(RecursionError), signals.caught():
        raise RecursionError("of its own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_adds_nothing():
    """Neither while the first is reported nor while the interpreter ends, wherever the first came."""
    code = (
        "import atexit, signal, sys\n"
        "from stylenat_hub import signals\n"
        "again = lambda *_: [signal.raise_signal(n) for n in (2, 15)]\n"
        "with signals.caught():\n"
        "    sys.stderr.write = lambda text, write=sys.stderr.write: (again(), write(text))\n"
        "    atexit.register(again)\n"
        "    exec('signal.raise_signal(15)')\n"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "interrupted\n")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.caught(), signals.held():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EFBIG, "larger than the system allows"),
        (errno.EBUSY, "in use by the system"),
        (errno.EIO, "error"),
    ],
)
def test_the_systems_refusals_name_the_output(tmp_path, number, says):
    for manager, target in ((whole_folder, tmp_path / "out"), (whole_file, tmp_path / "out.txt")):
        with pytest.raises(InputError, match=says) as caught, manager(target) as temporary:
            raise OSError(number, os.strerror(number), str(temporary / "inside"))
        assert repr(str(target)) in str(caught.value)
        # Also where one folder is written inside another.
        with (
            pytest.raises(InputError, match=says) as caught,
            manager(target) as temporary,
            whole_folder(temporary.parent / ".stylenat-x" / "inner"),
        ):
            raise OSError(number, os.strerror(number))
        assert repr(str(target)) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_error_of_another_file_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), whole_folder(tmp_path / "out"):
        (tmp_path / "input").read_bytes()


def test_names_that_are_too_long(tmp_path):
    for name in ("x" * 300, "y/" + "x" * 300):
        for manager in (whole_folder, whole_file):
            with pytest.raises(InputError, match="the name is too long"), manager(tmp_path / name):
                pass
    assert os.listdir(tmp_path) == []
    write(tmp_path / ("x" * 255))  # the temporary name must not be longer
    with whole_file(tmp_path / ("y" * 251 + ".png")) as temporary:
        assert temporary.suffix == ".png"
    assert len(os.listdir(tmp_path)) == 2


def test_paths_that_mean_nothing(tmp_path):
    for path, says in (("", "a path is empty"), ("~nosuchuser/x", "the home folder in '~nosuchuser/x'")):
        for manager in (whole_folder, whole_file):
            with pytest.raises(InputError, match=says), manager(path):
                pass


def test_a_folder_or_a_device_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, says in ((tmp_path / "folder", "a folder of that name"), (os.devnull, "a device of that name")):
        with pytest.raises(InputError, match=says), whole_file(path):
            pass
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("existing", [False, True])
def test_modes_are_those_of_any_new_file(tmp_path, existing):
    if existing:
        (tmp_path / "out").mkdir()
    before = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "out") as folder:
            fill(folder)
            (folder / "part" / "data").chmod(0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")}
    assert modes == {"part": 0o750, "data": 0o640, "mark.json": 0o640}
