"""Curves of runs: the values in the log, one line per run, and what is said where there are none."""

from __future__ import annotations

import PIL.Image
import pytest
from typer.testing import CliRunner

from training.curve import app, read_curve


@pytest.fixture
def runs(tmp_path):
    for name, scale in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [f'{{"images": {i}, "d_loss": 1}}\n{{"images": {i}, "swd": {scale * i}}}\n' for i in (8, 16)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(rows))
    return tmp_path


def test_a_curve_is_the_metric_of_the_log(runs):
    assert read_curve(runs / "b", "swd") == ([8, 16], [16.0, 32.0])


def test_one_line_per_run_in_its_own_colour(runs):
    pytest.importorskip("matplotlib")
    for count in (1, 2):
        arguments = [*(str(runs / name) for name in "ab"[:count]), "--output", str(runs / f"{count}.png")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    colours = []
    for count in (1, 2):
        with PIL.Image.open(runs / f"{count}.png") as picture:
            pixels = picture.convert("RGB").getcolors(1 << 20)
        colours.append(
            {colour for number, colour in pixels if number > 50 and max(colour) - min(colour) > 80}
        )
    assert colours[0] and len(colours[1]) > len(colours[0])


def test_what_is_missing_is_named(runs):
    for arguments, said in (
        ([runs / "a", "--metric", "fid"], "has no 'fid'; it has: d_loss, images, swd"),
        ([runs / "c"], "name the folder of a run"),
    ):
        result = CliRunner().invoke(app, [*map(str, arguments), "--output", str(runs / "x.png")])
        assert result.exit_code == 1 and said in result.output
        assert not (runs / "x.png").exists()
