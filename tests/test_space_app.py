"""The Space as programs meet it: gradio's page around the engine, and the command that starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from stylenat_hub import cli, cli_demo
from stylenat_hub.latents import closed_form, mix, styles_at
from stylenat_hub.pipeline import GANPipeline

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "spaces"))  # as when app.py is run

gradio = pytest.importorskip("gradio", reason="needs gradio: pip install -c constraints.txt -e '.[dev]'")
from gradio_client import Client  # noqa: E402


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The app in this process, on a free port: (its address, a client)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        import app

        demo = app.make(app.arguments(["--device", "cpu"]))
        _, address, _ = app.launch(demo, app.arguments([]), prevent_thread_lock=True, quiet=True)
        client = Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
        yield address.rstrip("/"), client
        demo.close()
        app.SCRATCH.close()


def test_generate_gives_the_pipelines_pictures(served):
    _, client = served
    pictures, code = client.predict(seed=21, count=2, truncation=0.55, api_name="/generate")
    expected = GANPipeline.from_pretrained("toy-church")([21, 22], truncation_psi=0.55).images
    assert [one["caption"] for one in pictures] == ["seed 21", "seed 22"]
    for one, image in zip(pictures, expected, strict=True):
        with PIL.Image.open(one["image"]) as got:
            assert np.array_equal(np.asarray(got), np.asarray(image))
            assert got.text["model"] == "toy-church" and got.text["seed"] == one["caption"].split()[1]
    assert "range(21, 23)" in code


def test_only_what_is_useful_is_in_the_api(served):
    _, client = served
    endpoints = client.view_api(return_format="dict")
    wanted = {"/generate", "/mix", "/travel", "/edit", "/project", "/inside"}
    assert set(endpoints["named_endpoints"]) == wanted
    assert not endpoints["unnamed_endpoints"]
    parameters = endpoints["named_endpoints"]["/generate"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == [
        *("seed", "count", "truncation", "cutoff", "centers", "model")
    ]


def test_mix_and_edit_give_the_packages_pictures(served):
    _, client = served
    pipeline = GANPipeline.from_pretrained("toy-church")
    rows, columns = pipeline.styles([3, 8], truncation_psi=0.6).split(1)
    mixed = pipeline.draw(mix(rows, columns, styles_at(pipeline.generator, "coarse"))[0])[0]
    picture, code = client.predict(3, 8, "coarse", 0.6, api_name="/mix")
    with PIL.Image.open(picture) as got:
        assert np.array_equal(np.asarray(got), np.asarray(mixed)) and got.text["levels"] == "4,8"
    assert "[3, 8]" in code
    moved = closed_form(pipeline.generator, 6).edit({"sefa-1": 2, "sefa-3": -1})
    edited = pipeline([3], truncation_psi=0.6, edit=moved).images[0]
    picture, code = client.predict(3, "2,0,-1", truncation=0.6, api_name="/edit")
    with PIL.Image.open(picture) as got:
        assert np.array_equal(np.asarray(got), np.asarray(edited)) and got.text["seed"] == "3"
    assert "'sefa-3': -1.0" in code


def test_travel_gives_a_video(served):
    pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    _, client = served
    film, code = client.predict("1, 2", 24, api_name="/travel")
    assert film.endswith("travel.mp4") and Path(film).read_bytes()[4:8] == b"ftyp"
    assert "StylePath(pipe, [1, 2], 24" in code


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("/mix", {"seed_b": -1}, "seed B is -1"),
        ("/mix", {"levels": "<script>alert(1)</script>"}, "&lt;script&gt;"),
        ("/mix", {"levels": {"path": "/etc/passwd"}}, "the list of levels is"),
        ("/mix", {"levels": [1, 1, 1]}, "the list of levels is"),
        ("/travel", {"seeds": "1,<script>"}, "the key seeds are '1,&lt;script&gt;'"),
        ("/travel", {"frames": 10**9}, "the number of frames is"),
        ("/travel", {"kind": "../x"}, "the path is"),
        ("/travel", {"fps": -1}, "the speed is"),
        ("/edit", {"strengths": "1e999"}, "the strength of direction 1 is inf"),
        ("/edit", {"strengths": "<script>"}, "&lt;script&gt;"),
        ("/edit", {"strengths": [1]}, "the strengths are"),
        ("/edit", {"method": "eval"}, "the method is"),
        ("/edit", {"model": "/etc"}, "does not offer"),
    ],
)
def test_hostile_steering_is_refused(served, name, change, says):
    _, client = served
    with pytest.raises(Exception) as caught:
        client.predict(**change, api_name=name)
    assert says in str(caught.value) and "<script>" not in str(caught.value)


HOSTILE = [
    ({"seed": -1}, "the seed is -1"),
    ({"seed": 2**40}, "the seed is"),
    ({"seed": "<script>alert(1)</script>"}, "the seed is"),
    ({"count": 1_000_000}, "the number of pictures is 1000000"),
    ({"truncation": 1e300}, "the truncation is"),
    ({"model": "../../../etc/passwd"}, "does not offer"),
    ({"model": "<script>alert(1)</script>"}, "&lt;script&gt;"),
    ({"model": {"path": "/etc/passwd"}}, "the model is"),
    ({"cutoff": [1, 2]}, "the cutoff is"),
]


@pytest.mark.parametrize(("change", "says"), HOSTILE, ids=[f"{h[0]!r:.40}" for h in HOSTILE])
def test_hostile_input_is_refused_and_the_page_lives_on(served, change, says):
    _, client = served
    with pytest.raises(Exception) as caught:
        client.predict(**{"seed": 0, **change}, api_name="/generate")
    words = str(caught.value)
    assert says in words and "<script>" not in words and "root:" not in words
    assert client.predict(seed=0, api_name="/generate")[0]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(ROOT / "pyproject.toml"), "spaces/app.py", "../../etc/passwd"]
)
def test_files_of_the_machine_are_not_served(served, path):
    address, _ = served
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{address}/gradio_api/file={urllib.parse.quote(path)}", timeout=10)
    assert caught.value.code in (400, 403, 404)


def test_the_page_asks_nothing_of_elsewhere(served):
    """No analytics, no fonts from elsewhere; that a browser asks for nothing else is the browser test's."""
    address, client = served
    with urllib.request.urlopen(f"{address}/", timeout=10) as answer:
        page = answer.read().decode()
    assert "fonts.googleapis" not in page and "cdnjs" not in page
    assert client.config["analytics_enabled"] is False and client.config["title"] == "StyleNAT"


def test_every_control_has_a_label(served):
    _, client = served
    controls = ("slider", "number", "dropdown", "textbox", "checkbox", "radio", "image", "gallery", "code")
    for component in client.config["components"]:
        if component["type"] in controls:
            assert component["props"].get("label"), component
        if component["type"] in ("button", "downloadbutton") and component["props"].get("visible", True):
            assert component["props"].get("value") or component["props"].get("label"), component


# -- stylenat demo


@pytest.mark.slow
def test_demo_starts_the_page_and_ends_when_told(tiny, tmp_path):
    from browser import free_port

    port = free_port()
    line = [
        sys.executable,
        "-m",
        "stylenat_hub.cli",
        "demo",
        str(tiny),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        line,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 90
        page = ""
        while not page and time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                page = answer.read().decode()
            time.sleep(0.2)
        assert "named at the start" in page, process.stderr.read() if process.poll() else "too slow"
        process.terminate()  # the command alone: it passes it on
        _, errors = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 1 and "Traceback" not in errors.decode()
    assert not list(tmp_path.glob("stylenat-space-*"))  # its files are gone


def test_demo_says_that_gradio_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = CliRunner().invoke(cli.app, ["demo"])
    assert result.exit_code == 1 and 'pip install "stylenat-hub[demo]"' in result.stderr


def test_demo_passes_its_options_on(monkeypatch):
    seen = []
    monkeypatch.setattr(cli_demo, "run_app", lambda line: seen.append(line) or 3)
    options = ["--port", "7000", "--host", "0.0.0.0", "--open", "--allow-any-model", "--device", "cpu"]
    result = CliRunner().invoke(cli.app, ["demo", "-x", *options])
    assert result.exit_code == 2  # an option that does not exist
    result = CliRunner().invoke(cli.app, ["demo", "some/model", *options])
    assert result.exit_code == 3
    import app

    (line,) = seen
    options = app.arguments(line)
    assert (options.model, options.port, options.host) == ("some/model", 7000, "0.0.0.0")
    assert options.open and options.allow_any_model and options.device == "cpu"


def test_demo_without_the_page_in_the_installation(monkeypatch, tmp_path):
    monkeypatch.setattr(cli_demo, "_PLACES", (tmp_path / "app.py",))
    result = CliRunner().invoke(cli.app, ["demo"])
    assert result.exit_code == 1 and "install stylenat-hub again" in result.stderr
