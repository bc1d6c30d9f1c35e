"""What is said about options that are allowed, and yet hardly meant."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from stylenat_hub import cli


@pytest.mark.parametrize("command", ["generate", "mix", "interpolate", "directions", "evaluate"])
def test_a_truncation_far_from_any_picture_is_noticed(command):
    """As of 0,5, which is 0 and 5 to `generate`. Another wrong option ends each command here."""

    def said(psi):
        return CliRunner().invoke(cli.app, [command, f"--truncation={psi}", "--device", "none"]).stderr

    psi = "0,5" if command == "generate" else 5
    assert "notice: psi 5 is far outside what models draw; one half is 0.5" in said(psi)
    assert "notice" not in said(2) and "notice" not in said(-1)
