"""Many pictures: the pixels of the pipeline, by any number of processes, through kills and errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ONE_THREAD
from small_models import tiny_generator
from test_shards import contents
from typer.testing import CliRunner

from stylenat_hub import cli
from stylenat_hub.errors import InputError, ProcessError
from stylenat_hub.metrics import sampling
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.sampling import draw, weights_hash
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
CLI = ("-m", "stylenat_hub.cli")
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def started(*arguments, program=CLI):
    """A process of its own, on one thread."""
    line = [sys.executable, *program, *map(str, arguments)]
    environment = {**ONE_THREAD, "PYTHONPATH": str(ROOT), "TQDM_MININTERVAL": "0"}  # every step of a bar
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=environment, **pipes)


def ended(process, code=0):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    return output, errors


def folder_of(pipeline, seeds, **options):
    pictures = pipeline(seeds, **options).images
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pictures])


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_the_pixels_of_the_pipeline_in_every_batch(family):
    pipe = GANPipeline(tiny_generator(family))
    pipe.set_progress_bar_config(disable=True)
    expected = folder_of(pipe, range(5, 10), truncation_psi=0.7, truncation_cutoff=1)
    for batch_size in (1, 3, 8):
        drawn = list(draw(pipe, range(5, 10), truncation_psi=0.7, truncation_cutoff=1, batch_size=batch_size))
        assert [seed for seeds, _ in drawn for seed in seeds] == [5, 6, 7, 8, 9]
        images = torch.cat([images for _, images in drawn])
        assert images.dtype == torch.uint8 and images.device.type == "cpu" and torch.equal(images, expected)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_batches_of_one(pipeline, world):
    alone = [(seeds, images.tolist()) for seeds, images in draw(pipeline, range(7), batch_size=2)]
    shares = [list(draw(pipeline, range(7), batch_size=2, rank=rank, world=world)) for rank in range(world)]
    for rank, share in enumerate(shares):
        assert [(seeds, images.tolist()) for seeds, images in share] == alone[rank::world]


def test_never_more_than_a_batch_is_drawn(pipeline, monkeypatch):
    drawn = []
    before = GANPipeline._draw
    monkeypatch.setattr(
        GANPipeline, "_draw", lambda self, seeds, *a: drawn.append(seeds) or before(self, seeds, *a)
    )
    batches = draw(pipeline, range(2**32), batch_size=2)
    assert drawn == []
    assert [next(batches)[0], next(batches)[0]] == [[0, 1], [2, 3]] == drawn


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": range(2**32 + 1)}, "out of range"),
        ({"truncation_psi": float("inf")}, "truncation_psi is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world": 2}, "rank is 2 of 2 processes; allowed: 0 to 1"),
    ],
)
def test_arguments_are_checked_before_the_first_batch(pipeline, options, says):
    with pytest.raises(InputError) as caught:
        draw(pipeline, **{"seeds": range(4), **options})
    assert says in str(caught.value)


def test_the_hash_is_of_the_weights_and_not_of_their_file(tiny, pipeline):
    generator = tiny_generator()
    first = weights_hash(generator)
    assert first == weights_hash(pipeline.generator) and len(first) == 64
    assert first != weights_hash(tiny_generator(seed=1)) != weights_hash(tiny_generator("styleswin"))
    assert first != weights_hash(tiny_generator().to(torch.bfloat16))
    with torch.no_grad():
        generator.w_avg[0] += 1e-3
    assert first != weights_hash(generator)
    config = dict(generator.config)
    generator = tiny_generator()
    generator.register_to_config(**{**config, "image_mean": (0.4, 0.5, 0.5)})
    assert first != weights_hash(generator)


def test_the_command_writes_the_files_of_single_pictures(tiny, tmp_path):
    """To the byte, in every shard; without --num nothing has changed."""
    arguments = ("generate", tiny, "--truncation", 0.7, "--device", "cpu")
    assert run(*arguments, "--seeds", "3-7", "--output", tmp_path / "few").exit_code == 0
    many = ("--num", 5, "--first-seed", 3, "--shard-size", 2, "--output", tmp_path / "many")
    result = run(*arguments, *many)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote 5 pictures in 3 shards to {tmp_path / 'many'}\n"
    shards = {Path(name).name: content for name, content in contents(tmp_path / "many").items()}
    del shards["manifest.json"], shards[".lock"]
    assert shards == contents(tmp_path / "few")
    result = run(*arguments, *many)
    assert result.stdout == f"wrote 5 pictures in 3 shards (3 were there) to {tmp_path / 'many'}\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--format", "zip"], "--format goes with --num"),
        (["--shard-size", 5, "--first-seed", 0], "--first-seed goes with --num"),
        (["--num", 5, "--seeds", "0-15"], "--num goes without --seeds and --grid"),
        (["--num", 5, "--grid"], "--num goes without --seeds and --grid"),
        (["--num", 5, "--first-seed", 2**32 - 4], "the seed 4294967296 is out of range"),
    ],
)
def test_options_that_do_not_go_together(tiny, tmp_path, options, says):
    result = run("generate", tiny, "--output", tmp_path / "out", *options)
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and says in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_ctrl_c_keeps_whole_shards_only(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "text_chunks", lambda about: _interrupt(about["seed"] == "5"))
    arguments = ("generate", tiny, "--num", 9, "--shard-size", 2, "--output", tmp_path, "--format", "zip")
    result = run(*arguments)
    assert result.exit_code == 1
    last = f"interrupted: 2 of 5 shards are in {tmp_path}; the same command goes on"
    assert result.stderr.splitlines()[-1] == last
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "manifest.json", "shard-000000.zip", "shard-000001.zip"]


def _interrupt(now):
    if now:
        raise KeyboardInterrupt


# Runs that die by SIGKILL, each in a process that is forked before PyTorch has computed anything: after so
# many pictures, or at the so-many-th rename (the first is the manifest's), before it or after it.
DYING = """
import os, signal, sys
from stylenat_hub.metrics import sampling, shards
from stylenat_hub.pipeline import GANPipeline

model, output, *moments = sys.argv[1:]
replace, chunks = os.replace, sampling.text_chunks
pipeline = GANPipeline.from_pretrained(model)

def dying(kind, number):
    left = [int(number)]
    def die_if(this):
        left[0] -= this == kind
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def renamed(*names):
        die_if("before")
        replace(*names)
        die_if("after")
    os.replace = renamed
    sampling.text_chunks = lambda about: die_if("picture") or chunks(about)

def write(moment, rest):
    kind, number, format = moment.split("-")
    if not rest:
        dying(kind, number)
    options = {"num": 8, "shard_size": 3, "batch_size": 2, "format": format, "progress": False}
    sampling.write_shards(pipeline, os.path.join(output, moment), **options)

for moment in moments:
    for rest in (False, True):
        child = os.fork()
        if not child:
            write(moment, rest)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert status == 0 if rest else died, (moment, rest, status)
        if not rest:
            print(moment, *sorted(n for n in os.listdir(os.path.join(output, moment)) if n[0] == "s"))
"""
MOMENTS = {
    "before-0-zip": 0,
    "picture-1-zip": 0,
    "before-1-png": 0,
    "after-1-png": 1,
    "picture-5-png": 1,
    "before-3-webdataset": 2,
}


@pytest.fixture
def one_thread():
    """As in the processes that tests start: the number of threads changes rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@FORKS
def test_a_run_killed_at_any_moment_goes_on_as_if_nothing_had_happened(tiny, pipeline, tmp_path, one_thread):
    done = started(tiny, tmp_path, *MOMENTS, program=("-c", DYING))
    for format in ("zip", "png", "webdataset"):
        options = {"num": 8, "shard_size": 3, "format": format, "progress": False}
        sampling.write_shards(pipeline, tmp_path / format, **options)
    output, _ = ended(done)
    left = {line.split()[0]: len(line.split()) - 1 for line in output.splitlines()}
    assert left == MOMENTS  # whole shards when it died
    for moment in MOMENTS:
        assert contents(tmp_path / moment) == contents(tmp_path / moment.rpartition("-")[2])


def test_the_command_killed_from_outside_goes_on(tiny, tmp_path, one_thread):
    """At whatever picture it is."""
    arguments = ("generate", tiny, "--num", 60, "--shard-size", 10, "--format", "zip", "--device", "cpu")
    process = started(*arguments, "--output", tmp_path / "killed")
    while not list((tmp_path / "killed").glob("shard-000001*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    ended(process, code=-signal.SIGKILL)
    assert len(list((tmp_path / "killed").glob("shard-*"))) < 6
    for name in ("killed", "whole"):
        result = run(*arguments, "--output", tmp_path / name)
        assert result.exit_code == 0 and ("were there" in result.stdout) == (name == "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# The command in 1, 2, ... processes that are connected as a launcher does it, all forked from one, because
# importing PyTorch for each takes longer than the work. Prints their exit codes.
SHARED = """
import os, socket, sys
import accelerate, tarfile
from stylenat_hub.metrics import processes, sampling
from stylenat_hub.cli import main

def work(rank, world, port, fails, arguments):
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    if fails and rank == 1:
        add = tarfile.TarFile.addfile
        def full(file, member, *rest):
            if member.name == "0000000005.png":
                raise OSError(28, os.strerror(28))
            add(file, member, *rest)
        tarfile.TarFile.addfile = full
    try:
        main(arguments)
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(error.code or 0)

fails, output, *arguments = sys.argv[1:]
for world in (2,) if fails == "fails" else (1, 2, 3):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        children.append(os.fork())
        if not children[-1]:
            line = [*arguments, "--output", os.path.join(output, str(world))]
            work(rank, world, port, fails == "fails", line)
    print("ended", *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""
SOME = ["--num", 17, "--shard-size", 3, "--format", "webdataset", "--device", "cpu"]


@FORKS
def test_any_number_of_processes_writes_the_same_bytes(tiny, tmp_path):
    process = started("works", tmp_path, "generate", tiny, *SOME, program=("-c", SHARED))
    output, errors = ended(process)
    said = []
    for count in (1, 2, 3):
        said += [f"wrote 17 pictures in 6 shards to {tmp_path / str(count)}", "ended" + " 0" * count]
        assert contents(tmp_path / str(count)) == contents(tmp_path / "1")
    assert output.splitlines() == said
    assert errors.count(" 0/17") == 3  # a bar for all processes together


@FORKS
def test_an_error_of_one_process_ends_all_with_one_sentence(tiny, tmp_path):
    process = started("fails", tmp_path, "generate", tiny, *SOME, program=("-c", SHARED))
    output, errors = ended(process)
    assert output == "ended 1 0\n"  # the main one speaks for all
    says = f"error: process 2 of 2 failed: cannot write {str(tmp_path / '2')!r}: the disk is full"
    assert errors.splitlines()[-1].startswith(says) and errors.count("error: ") == 1
    names = sorted(path.name for path in (tmp_path / "2").iterdir())
    assert names == [".lock", "manifest.json"] + ["shard-000000.tar"] * ("shard-000000.tar" in names)


def test_accelerate_launch_on_cpus(tiny, tmp_path):
    """It starts one process there and leaves the others to mpirun, so that they are started here."""
    launch = ["launch", "--cpu", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", 1, *CLI]
    output = ("--output", tmp_path / "out")
    program = ("-m", "accelerate.commands.accelerate_cli")
    some = SOME[: SOME.index("--device")]  # each on the device that it is given
    line, errors = ended(started(*launch, "generate", tiny, *some, *output, program=program))
    assert line == f"wrote 17 pictures in 6 shards to {tmp_path / 'out'}\n"
    assert "6/17" in errors or "12/17" in errors  # both drew three at first
    assert len(list((tmp_path / "out").glob("*.tar"))) == 6


class Two(Processes):
    """A process that meets another, whose answers are given."""

    def __init__(self, *answers):
        super().__init__(0, 2, "cpu")
        self.answers = list(answers)
        self.told = []

    def _exchange(self, told):
        self.told.append(told)
        return [told, self.answers.pop(0)]


def test_processes_alone_and_together():
    alone = Processes.joined()
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
    assert alone.each(lambda: 3) == [3] and alone.main(lambda: 4) == 4 and alone.in_turn(lambda: 5) == 5
    assert alone.device("cuda:1") == "cuda:1"
    two = Two((7, None), (None, "the disk is full"))
    assert two.each(lambda: 3) == [3, 7]
    with pytest.raises(ProcessError, match="process 2 of 2 failed: the disk is full"):
        two.each(lambda: 3)
    two = Two((1, None), (1, None))
    for error, said in ((InputError("no"), "no"), (ValueError("no"), "ValueError: no")):
        with pytest.raises(type(error)):
            two.each(lambda error=error: _raise(error))
        assert two.told[-1] == (None, said)
    assert two.device("auto") == two.device("cpu") == "cpu"
    with pytest.raises(InputError, match="the device is 'cuda:1' for 2 processes"):
        two.device("cuda:1")


def _raise(error):
    raise error


def test_processes_with_different_models_are_refused(pipeline, tmp_path, monkeypatch):
    other = sampling._manifest(pipeline, 3, 0, "png", 2, {"truncation_psi": 1.0, "truncation_cutoff": 2}, 8)
    with pytest.raises(InputError, match="the processes do not agree"):
        sampling.write_shards(pipeline, tmp_path / "out", num=3, processes=Two((other, None)))
    assert not (tmp_path / "out").exists()
