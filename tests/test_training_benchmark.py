"""The benchmark of a training step: what it counts, and what it reports."""

from __future__ import annotations

import json

import torch
from typer.testing import CliRunner

from training import benchmark


def test_it_replays_every_product_of_linear_layers_and_convolutions():
    linear, conv = torch.nn.Linear(3, 5), torch.nn.Conv2d(2, 4, 3)

    def step():
        linear(torch.randn(7, 3)).sum().backward()
        conv(torch.randn(1, 2, 8, 8)).sum().backward()

    recorder = benchmark._recorded(step)
    names = sorted(key[0].name().partition("::")[2] for key in recorder.calls)
    assert names == ["addmm", "convolution", "convolution_backward", "mm"]
    shapes = {
        key[0].name(): [a[0] for a in recorder.arguments[key] if isinstance(a, tuple)]
        for key in recorder.calls
    }
    assert shapes["aten::addmm"][1:] == [(7, 3), (3, 5)]
    again = benchmark._recorded(recorder.replay())
    assert again.calls == recorder.calls


def test_the_report_has_time_products_memory_and_the_command(tmp_path):
    arguments = [
        "--preset",
        "tiny",
        "--batch",
        "4",
        "--repeats",
        "1",
        "--threads",
        str(torch.get_num_threads()),
    ]
    result = CliRunner().invoke(benchmark.app, [*arguments, "--output", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    assert "| mean step |" in result.output and "MiB at most" in result.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["seconds"]) == {
        f"{kind}{end}" for kind in ("step", "penalty", "mean_step") for end in ("", "_products")
    }
    mean = found["seconds"]["step"] + found["seconds"]["penalty"] / 16
    assert abs(found["seconds"]["mean_step"] - mean) < 1e-9
    assert (
        found["ratio_to_products"] == found["seconds"]["mean_step"] / found["seconds"]["mean_step_products"]
    )
    assert found["peak_memory_mib"] > 100
    assert found["command"].startswith("python -m training.benchmark --preset tiny --batch 4")
