"""`python -m spaces.requirements`: write requirements.txt, what the Space needs beside what is sent there.

It follows from pyproject.toml: what the package depends on, and the extras that the page uses. The package
itself is not in it: its folder goes along, so that a Space needs neither PyPI's copy of it nor a build.
"""

from __future__ import annotations

import re
from pathlib import Path

from stylenat_hub.errors import InputError
from stylenat_hub.files import whole_file

HERE = Path(__file__).resolve().parent
FILE = HERE / "requirements.txt"
EXTRAS = ("demo", "video", "metrics")  # the page, MP4 for its videos, figures
_HEAD = (
    "# Written by `python -m spaces.requirements` from pyproject.toml; stylenat_hub lies beside this file.\n"
)


def requirements() -> str:
    """The text of requirements.txt. Raises `InputError` on Python 3.10, which cannot read pyproject.toml."""
    try:
        import tomllib
    except ImportError:
        raise InputError("pyproject.toml is read by Python 3.11 and newer; use one of these") from None

    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(r for e in EXTRAS for r in project["optional-dependencies"][e])]
    return _HEAD + "".join(f"{line}\n" for line in lines)


def named(text: str) -> set[str]:
    """The projects that a requirements.txt names, in lower case."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {re.match(r"[\w.-]+", line)[0].lower() for line in lines if line}


def main() -> None:
    try:
        text = requirements()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    with whole_file(FILE) as path:
        Path(path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
