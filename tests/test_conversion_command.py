"""The command `python -m conversion.convert`: where it writes, how it ends, and what it never touches."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tensorflow_files import entry, header, write_index
from test_conversion import MIXED, PLAIN, ROOT, refused, run

import conversion.convert
from conversion.convert import convert
from stylenat_hub.errors import WeightsError
from stylenat_hub.pipeline import GANPipeline

MODULE = [sys.executable, "-m", "conversion.convert"]
QUIET = {"cwd": ROOT, "capture_output": True, "text": True}
PIPES = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_a_folder_with_something_in_it_is_replaced_only_on_request(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    refused(run(MIXED, "--output", tmp_path / "out"), "is not empty")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    refused(run(MIXED, "--output", tmp_path / "out", "--overwrite"), "holds 'mine.txt'")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    (tmp_path / "out" / "mine.txt").unlink()
    assert run(MIXED, "--output", tmp_path / "out").exit_code == 0
    result = run(PLAIN, "--output", tmp_path / "out", "--overwrite", "--skip-discriminator")
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "conversion.json",
        "model_index.json",
        "generator",
    }


@pytest.mark.parametrize("place", ["README.md", "generator/notes.txt", "discriminator/sub/thesis.tex"])
def test_files_that_others_put_into_an_earlier_result_are_not_lost(place, tmp_path):
    out = tmp_path / "out"
    convert(MIXED, out)
    (out / place).parent.mkdir(exist_ok=True)
    (out / place).write_text("mine")
    refused(run(MIXED, "--output", out, "--overwrite"), f"holds {place!r}")
    assert (out / place).read_text() == "mine"


def test_the_input_and_the_current_folder_are_never_overwritten(tmp_path, monkeypatch):
    out = tmp_path / "out"
    convert(MIXED, out)
    (out / "discriminator" / "original.pt").write_bytes(MIXED.read_bytes())
    before = {path: path.stat() for path in out.rglob("*")}
    refused(run(out / "discriminator" / "original.pt", "--output", out, "--overwrite"), "holds the input")
    monkeypatch.chdir(out)
    refused(run(MIXED, "--output", ".", "--overwrite"), "is the current folder")
    assert {path: path.stat() for path in out.rglob("*")} == before


def test_the_output_is_checked_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.convert, "read_checkpoint", None)
    monkeypatch.setattr("conversion.download.download", None)
    (tmp_path / "mine.txt").write_text("")
    for source in ([MIXED], ["--from", "stylenat-ffhq-256"]):
        refused(run(*source, "--output", tmp_path), "is not empty")
        refused(run(*source, "--output", tmp_path / ("x" * 300)), "the name is too long")
        refused(run(*source, "--output", "~nosuchuser/x"), "the home folder")


def test_a_home_folder_and_a_link_as_output(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert run(MIXED, "--output", "~/link").exit_code == 0
    assert (tmp_path / "there" / "model_index.json").exists() and (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]
    (tmp_path / "new").touch()  # the weights are for the same people to read as any new file
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}


def test_no_error_comes_after_the_folder_appeared(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.convert.GANPipeline, "from_pretrained", lambda *arguments: 1 / 0)
    refused(run(MIXED, "--output", tmp_path / "out"), "ZeroDivisionError")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(conversion.convert, "Report", lambda **fields: 1 / 0)
    refused(run(MIXED, "--output", tmp_path / "out"), "ZeroDivisionError")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_output_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    refused(run(MIXED, "--output", tmp_path / "file"), "is a file")
    refused(run(MIXED, "--output", tmp_path / "file" / "out"), "is a file, not a folder")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(error, tmp_path, monkeypatch):
    def full(self, folder, **kwargs):
        (Path(folder) / "half.bin").write_bytes(b"half")
        raise error

    monkeypatch.setattr(GANPipeline, "save_pretrained", full)
    refused(run(MIXED, "--output", tmp_path / "out"), "the disk is full")
    assert list(tmp_path.iterdir()) == []


def test_what_reloads_to_something_else_is_not_kept(tmp_path, monkeypatch):
    save = GANPipeline.save_pretrained

    def wrong(self, folder, **kwargs):
        state = {name: tensor.clone() for name, tensor in self.generator.state_dict().items()}
        with torch.no_grad():
            self.generator.constant.add_(1e-3)
        save(self, folder, **kwargs)
        self.generator.load_state_dict(state)

    monkeypatch.setattr(GANPipeline, "save_pretrained", wrong)
    with pytest.raises(WeightsError, match="reloads to other weights"):
        convert(MIXED, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "out"],
        [MIXED],
        [MIXED, "--output", "out", "--from", "stylenat-ffhq-256"],
        [MIXED, "--output", "out", "--weights", "ema"],
        [MIXED, "--output", "out", "--preset", "tiny", "--config", "x.json"],
        [MIXED, "--output", "out", "--unknown"],
        [MIXED, "--output", ""],
    ],
)
def test_wrong_usage_ends_with_2(arguments):
    refused(run(*arguments), "Usage:", code=2)


def test_debug_shows_the_traceback(tmp_path):
    result = run(tmp_path / "none.pt", "--output", tmp_path / "out", "--debug")
    assert isinstance(result.exception, WeightsError)


def test_an_unexpected_error_is_one_line_too(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.convert, "read_checkpoint", lambda *a, **k: 1 / 0)
    refused(
        run(MIXED, "--output", tmp_path / "out"),
        "ZeroDivisionError: division by zero (a bug; --debug shows where)",
    )


def test_ctrl_c_half_way_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion.convert, "_check_reload", interrupt)
    result = run(MIXED, "--output", tmp_path / "out")
    assert (result.exit_code, result.output) == (1, "interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_the_module_runs_from_the_repository(tmp_path):
    done = subprocess.run([*MODULE, str(MIXED), "--output", str(tmp_path / "out")], **QUIET, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "32 x 32 px" in done.stdout
    assert (tmp_path / "out" / "model_index.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_report_that_cannot_be_printed(tmp_path):
    line = [*MODULE, str(MIXED), "--output", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"error: the report cannot be printed (No space left on device), but {tmp_path}" in done.stderr
    assert (tmp_path / "out" / "model_index.json").exists()


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    with subprocess.Popen([*MODULE, str(MIXED), "--output", str(tmp_path / "out")], **PIPES) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=120) == 1
    assert (tmp_path / "out" / "model_index.json").exists()


def test_ctrl_c_after_the_last_moment_says_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.convert.Report, "__str__", lambda self: signal.raise_signal(signal.SIGINT))
    result = run(MIXED, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output == f"interrupted: {tmp_path / 'out'} is written, and whole\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_reads_ends_it_in_one_line(tmp_path, number):
    os.mkfifo(tmp_path / "slow.json")
    line = [*MODULE, str(MIXED), "--output", str(tmp_path / "out"), "--config", str(tmp_path / "slow.json")]
    with (
        subprocess.Popen(line, **PIPES) as process,
        (tmp_path / "slow.json").open("wb"),
    ):  # opens when the other side does: it waits for the first bytes now
        time.sleep(0.2)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (1, "", "interrupted; nothing was written\n")
    assert [file.name for file in tmp_path.iterdir()] == ["slow.json"]


@pytest.mark.parametrize("name", ["x.pt", "ckpt-1.index"])
def test_a_pipe_is_no_checkpoint_and_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    end = os.open(tmp_path / name, os.O_RDWR)  # so that whoever opens it to read finds it open, and empty
    try:
        os.write(end, b"x" * 4096)
        refused(run(tmp_path / name, "--output", tmp_path / "out"), f"{name}' is not a file, but a pipe or a")
    finally:
        os.close(end)


@pytest.mark.parametrize("length", [249, 250, 255, 256, 5000])
def test_a_name_too_long_for_what_is_added_to_it_is_not_there(tmp_path, length):
    name = "x" * length
    message = "there is no file" if length > 255 else f"there is no file '{tmp_path / name}'; name"
    refused(run(tmp_path / name, "--output", tmp_path / "out"), message)
    if length == 249:
        write_index(tmp_path / f"{name}.index", {b"": header(), b"x": entry()})
        refused(run(tmp_path / name, "--output", tmp_path / "out"), ".data-00000-of-00001' is missing beside")
