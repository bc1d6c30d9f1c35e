"""The `stylenat` command as a user meets it: files, words, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import typer
from typer.testing import CliRunner

from stylenat_hub import __version__, cli, hub, locations, options, pictures
from stylenat_hub.errors import InputError, OldCopyWarning
from stylenat_hub.options import one_sentence
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import CHECKPOINTS

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    """In this process: the same code paths, without two seconds of imports."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def command(*arguments, **kwargs):
    """The real thing, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})}
    line = [sys.executable, "-m", "stylenat_hub.cli", *map(str, arguments)]
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kwargs}
    return subprocess.Popen(line, env=environment, **kwargs)


def fails(*arguments, code=1):
    """The one line on standard error."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert code == 2 or line.startswith("error: ")
    return line


def pixels(path):
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pictures_and_grid(tiny, pipeline, tmp_path):
    seeds = "12,0-1, 100"
    arguments = ("--seeds", seeds, "--truncation", 0.7, "--cutoff", 3, "--output", tmp_path, "--grid")
    result = run("generate", tiny, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"wrote 4 pictures and grid.png to {tmp_path}"
    files = ["seed0000000000.png", "seed0000000001.png", "seed0000000012.png", "seed0000000100.png"]
    assert names(tmp_path) == ["grid.png", *files]
    expected = pipeline([12, 0, 1, 100], truncation_psi=0.7, truncation_cutoff=3).images
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (192, 192, 3)  # three times as large, so that one sees something
    for place, (seed, image) in enumerate(zip([12, 0, 1, 100], expected, strict=True)):
        path = tmp_path / f"seed{seed:010d}.png"
        assert np.array_equal(pixels(path), np.asarray(image))
        y, x = 96 * (place // 2), 96 * (place % 2)
        cell = grid[y : y + 96, x : x + 96]
        assert np.array_equal(cell, np.asarray(image).repeat(3, 0).repeat(3, 1))
        with PIL.Image.open(path) as picture:
            assert picture.text == {
                "model": "tiny",
                "seed": str(seed),
                "truncation_psi": "0.7",
                "truncation_cutoff": "3",
                "version": f"stylenat_hub {__version__}",
            }
    with PIL.Image.open(tmp_path / "grid.png") as picture:
        assert picture.text["seeds"] == "12,0,1,100" and picture.text["model"] == "tiny"


def test_the_batch_does_not_change_a_picture(tiny, tmp_path):
    for batch_size in (1, 3):
        out = tmp_path / str(batch_size)
        arguments = ("--seeds", "0-4", "--batch-size", batch_size, "--output", out, "--device", "cpu")
        assert run("generate", tiny, *arguments).exit_code == 0
    for name in names(tmp_path / "1"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_truncation_zero_is_one_picture(tiny, tmp_path):
    run("generate", tiny, "--seeds", "1,2", "--truncation", 0, "--output", tmp_path, "--dtype", "bfloat16")
    first, second = (pixels(tmp_path / name) for name in names(tmp_path))
    assert np.array_equal(first, second) and first.std() > 1


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (3, (2, 2)), (5, (2, 3)), (7, (3, 3)), (12, (3, 4))]
)
def test_grids_are_near_square(count, shape):
    grid = pictures.Grid(count, 32)
    assert (grid.rows, grid.columns) == shape
    for level in range(1, count + 1):
        grid.add(PIL.Image.new("L", (32, 32), level))
    cells = np.asarray(grid.image)[::32, ::32, 0].flatten()
    assert cells.tolist() == [*range(1, count + 1), *[0] * (len(cells) - count)]  # in reading order


@pytest.mark.parametrize(
    ("count", "resolution", "cell"), [(4, 32, 96), (4, 40, 120), (4, 96, 96), (4, 256, 256), (3600, 32, 64)]
)
def test_grids_of_few_small_pictures_are_enlarged(count, resolution, cell):
    assert pictures.Grid(count, resolution, smallest=96).cell == cell
    assert pictures.Grid(count, resolution).cell == resolution


def test_a_large_grid_shrinks_its_cells():
    grid = pictures.Grid(100, 1024)
    assert grid.cell == 819 and grid.image.size == (8190, 8190)
    grid.add(PIL.Image.new("RGB", (1024, 1024), "red"))
    assert grid.image.getpixel((818, 818)) == (255, 0, 0) and grid.image.getpixel((819, 818)) == (0, 0, 0)


def test_names_sort_as_seeds_do():
    seeds = [0, 9, 10, 10**9 - 1, 10**9, 2**32 - 1]
    written = [pictures.picture_name(seed) for seed in seeds]
    assert written == sorted(written) and pictures.picture_name(7) == "seed0000000007.png"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("1,5,9-11", [1, 5, 9, 10, 11]),
        ("7", [7]),
        ("2\u20134", [2, 3, 4]),  # the dash that word processors make of it
        ("3,1-3", [3, 1, 2]),
        (" 2 - 3 ,0", [2, 3, 0]),
    ],
)
def test_seeds(text, seeds):
    assert options.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "part", ["x", "-3", "5-", "1.5", "", "3-1", "9223372036854775808", "0-99999999999", "²"]
)
def test_bad_seeds(part):
    with pytest.raises(typer.BadParameter) as caught:
        options.parse_seeds(f"0,{part},2")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0,a-b"], "'a-b'"),
        (["--truncation", "nan"], "nan is not a finite number"),
        (["--truncation", "1e308"], "1e+308 is out of range"),
        (["--truncation", "-1000001"], "allowed: -1000000 to 1000000"),
        (["--edit", "a=1e9"], "1000000000.0 is out of range; allowed: -1000000 to 1000000, usually -3 to 3"),
        (["--edit", "a=x"], "'x' in 'a=x' is no number; example: sefa-1=2.5,sefa-3=-1"),
        (["--format", "x"], "'--format': 'x' is not one of"),
        (["--output", ""], "the name is empty"),
        (["--truncation", "much"], "--truncation"),
        (["--batch-size", "0"], "batch-size"),
        (["--cutoff", "-1"], "cutoff"),
        (["--device", "tpu"], "'tpu' is no device"),
        (["--dtype", "int8"], "int8"),
        (["--sedes", "1"], "--sedes"),
    ],
)
def test_wrong_usage(tiny, arguments, says):
    assert says in fails("generate", tiny, *arguments, code=2)


def test_errors_of_models(tiny, tmp_path):
    out = ("--output", tmp_path / "out")
    assert "'stylenat-ffhq-256'" in fails("generate", "stylenat-fhq-256", *out)
    assert "conversion.convert --from stylenat-ffhq-256" in fails("generate", "stylenat-ffhq-256", *out)
    assert "no config.json" in fails("generate", tmp_path, *out)
    assert "no device 'cuda:99'" in fails("generate", tiny, *out, "--device", "cuda:99")
    assert "truncation_cutoff is 99" in fails("generate", tiny, *out, "--cutoff", 99)
    assert "no model of the zoo matches 'zzz'" in fails("list", "zzz")
    assert not (tmp_path / "out").exists()


def test_without_a_model_the_builtin_is_used(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "BUILTIN", tmp_path)
    assert "ships no trained model yet" in fails("generate", "--output", tmp_path / "out")
    assert "ships no trained model yet" in fails("info")
    (tmp_path / "small").symlink_to(tiny)
    assert run("generate", "--seeds", "5", "--output", tmp_path / "out").exit_code == 0
    with PIL.Image.open(tmp_path / "out" / "seed0000000005.png") as picture:
        assert picture.text["model"] == "small"


def test_outputs_that_cannot_be_written(tiny, pipeline, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("keep me")
    assert "the name is too long" in fails("generate", tiny, "--output", tmp_path / ("x" * 300))
    assert "the home folder" in fails("generate", tiny, "--output", "~nosuchuser/x")
    assert "is a file; name a folder" in fails("generate", tiny, "--output", tmp_path / "file")
    assert "is a file, not a folder" in fails("generate", tiny, "--output", tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "keep me"
    with pytest.raises(InputError, match="is a file"), monkeypatch.context() as patch:
        patch.setattr(
            GANPipeline, "iterate", None
        )  # nothing is drawn before the output is known to be writable
        pictures.write_pictures(pipeline, [0], tmp_path / "file")
    monkeypatch.setattr(pictures.os, "access", lambda *_: False)  # root may write anywhere
    assert "permission denied" in fails("generate", tiny, "--output", tmp_path / "out")
    assert names(tmp_path) == ["file"]


def test_a_folder_with_the_name_of_a_picture(tiny, tmp_path, monkeypatch):
    for name in ("seed0000000003.png", "grid.png", "seed0000000099.png"):  # the last is not asked for
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(GANPipeline, "iterate", None)  # nothing is drawn before
        arguments = ("generate", tiny, "--output", tmp_path, "--seeds")
        assert "grid.png': a folder of that name is there" in fails(*arguments, "0", "--grid")
        (tmp_path / "grid.png").rmdir()
        assert "seed0000000003.png': a folder of that name" in fails(*arguments, "0-9", "--grid")
    assert run(*arguments, "0-2", "--grid").exit_code == 0


def test_a_full_disk(tiny, tmp_path, monkeypatch):
    save = PIL.Image.Image.save

    def full(image, path, *args, **kwargs):
        save(image, path, *args, **kwargs)
        if "000000001" in Path(path).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    line = fails("generate", tiny, "--seeds", "0-3", "--output", tmp_path)
    assert f"cannot write {str(tmp_path / 'seed0000000001.png')!r}: the disk is full" in line
    assert names(tmp_path) == ["seed0000000000.png"]  # whole, and no half file beside it


def test_ctrl_c_keeps_whole_pictures_only(tiny, tmp_path, monkeypatch):
    save = PIL.Image.Image.save

    def interrupt(image, path, *args, **kwargs):
        save(image, path, *args, **kwargs)
        if "000000002" in Path(path).name:
            raise KeyboardInterrupt

    monkeypatch.setattr(PIL.Image.Image, "save", interrupt)
    result = run("generate", tiny, "--seeds", "0-9", "--output", tmp_path, "--grid")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"interrupted: 2 of 10 pictures are in {tmp_path}"
    assert names(tmp_path) == ["seed0000000000.png", "seed0000000001.png"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_process(tiny, tmp_path, number):
    process = command("generate", tiny, "--seeds", "0-99999", "--output", tmp_path, "--batch-size", 1)
    while not list(tmp_path.glob("seed*.png")) and process.poll() is None:
        os.sched_yield()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors and errors.splitlines()[-1].startswith("interrupted: ")
    assert all(pixels(path).shape == (32, 32, 3) for path in tmp_path.iterdir())
    assert all(name.startswith("seed") for name in names(tmp_path))


@pytest.mark.parametrize("then", ["raise", "raise ImportError", "raise RecursionError('cut off')", "pass"])
@pytest.mark.parametrize(
    ("line", "module"),
    [
        (["-m", "stylenat_hub.cli", "info"], "torch"),
        (["-m", "conversion.convert", "x.pt"], "torch"),
        (["-m", "conversion.convert", "x.pt"], "typer"),
    ],
)
def test_a_signal_during_an_import_is_one_line(tmp_path, line, then, module):
    """However the import takes it: a stand-in raises it on, swallows it, or turns it into something else."""
    code = f"import signal\ntry:\n    signal.raise_signal(2)\nexcept KeyboardInterrupt:\n    {then}\n"
    (tmp_path / f"{module}.py").write_text(code + "def __getattr__(name): return type\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    line = [sys.executable, *line, *(["--output", tmp_path / "out"] if "x.pt" in line else [])]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("interrupted") and len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_wherever_it_stands():
    for arguments in (["info", "nope", "--debug"], ["--debug", "info", "nope"], ["info", "nope"]):
        process = command(*arguments)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 1 and output == ""
        assert errors.startswith("Traceback") == ("--debug" in arguments)
        assert "no model 'nope'" in errors.splitlines()[-1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_on_a_full_disk():
    with open("/dev/full", "w") as full:
        process = command("list", stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("error: the system refuses: No space left") and len(errors.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    process = command("list")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 1


def test_an_unexpected_error_is_one_line_too(monkeypatch):
    monkeypatch.setattr(cli, "builtin_model", lambda: 1 / 0)
    assert fails("info") == "error: ZeroDivisionError: division by zero (a bug; --debug shows where)"


def test_list():
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *sorted(CHECKPOINTS)]
    records = json.loads(run("list", "*ffhq*", "--json").stdout)
    assert [record["name"] for record in records] == [name for name in sorted(CHECKPOINTS) if "ffhq" in name]


def test_info_of_a_folder(tiny, pipeline):
    facts = json.loads(run("info", tiny, "--json").stdout)
    generator = pipeline.generator
    file = tiny / "generator" / "diffusion_pytorch_model.safetensors"
    assert facts["parameters"] == sum(p.numel() for p in generator.parameters())
    assert facts["weights"] == {"bytes": file.stat().st_size, "types": ["F32"], "w_avg": "known"}
    rest = sum(p.numel() for p in generator.mapping_network.parameters()) + generator.constant.numel()
    assert sum(level["parameters"] for level in facts["levels"]) + rest == facts["parameters"]
    assert [level["px"] for level in facts["levels"]] == [4, 8, 16, 32]
    assert facts["levels"][2]["dilations"] == [1, 2] and facts["config"]["z_dim"] == 32
    text = run("info", tiny).stdout
    assert "known" in text and f"{facts['parameters']:,} parameters" in text and "7 7 7" in text


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_info_of_a_zoo_name(name):
    result = run("info", name)
    assert result.exit_code == 0
    assert (
        f"{CHECKPOINTS[name].parameters:,} parameters" in result.stdout
    )  # the record against the model itself
    if name in hub.builtin_models():
        assert "bytes, F16" in result.stdout
        assert CHECKPOINTS[name].description in result.stdout
    else:
        advice = f"convert --from {name}" if CHECKPOINTS[name].origin_url else "never published"
        assert advice in result.stdout


def test_version():
    assert run("--version").stdout == f"stylenat {__version__}\n"


def test_what_a_command_imports(tiny, tmp_path):
    """Stand-ins on the path make an import of what is not wanted succeed, so that it shows.

    transformers has no stand-in: diffusers itself imports it where it is installed, but must do without it.
    """
    unwanted = ("gradio", "natten", "torchvision")
    for name in unwanted:
        (tmp_path / f"{name}.py").write_text("")
    code = (
        "import sys\nfrom stylenat_hub import cli\n"
        f"try:\n    cli.main(['generate', {str(tiny)!r}, '--seeds', '1', '--output', "
        f"{str(tmp_path / 'out')!r}])\n"
        f"finally:\n    print([name for name in {unwanted!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_copy_that_may_be_old_is_said_in_a_line(hub, tiny, tmp_path):
    hub.add_repo("me/tiny", tiny)
    assert run("generate", "me/tiny", "--seeds", "1", "--output", tmp_path / "a").exit_code == 0
    hub.fail("503", times=None)
    with pytest.warns(OldCopyWarning, match="HTTP 503.*may be older"):
        assert run("generate", "me/tiny", "--seeds", "1", "--output", tmp_path / "b").exit_code == 0
    with one_sentence(debug=False):
        assert warnings.formatwarning("x", OldCopyWarning, "file.py", 3) == "warning: x\n"
        assert "file.py:3" in warnings.formatwarning("x", UserWarning, "file.py", 3)
