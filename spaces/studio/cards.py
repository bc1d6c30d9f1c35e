"""A model's card as the page shows it: without its YAML header, with its pictures inside, or left out."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

from studio.catalog import Entry
from stylenat_hub.locations import BUILTIN
from stylenat_hub.models.family import Checkpoint
from stylenat_hub.registry import CHECKPOINTS, FAMILIES

LARGEST = 1 << 20  # bytes of a picture inside a card
LONGEST = 200_000  # characters
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)")


def shown(entry: Entry) -> str:
    """The card beside the weights, else what the zoo's record says, else one sentence; Markdown."""
    folder = BUILTIN / entry.name if (BUILTIN / entry.name).is_dir() else Path(entry.source)
    path = folder / "README.md"
    if (folder.parent == BUILTIN or os.path.isdir(entry.source)) and path.is_file():
        return rendered(path.read_text(encoding="utf-8", errors="replace")[:LONGEST], folder)
    if entry.name in CHECKPOINTS:
        return from_record(CHECKPOINTS[entry.name])
    return f"# {entry.name}\n\nThis model has no card. Ask whoever published it what it may be used for."


def rendered(text: str, folder: Path) -> str:
    """The text without its header and comments; pictures in `folder` become part of it, all others go."""

    def picture(match: re.Match[str]) -> str:
        path = (folder / match[2]).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
        if not inside or path.suffix.lower() not in KINDS or path.stat().st_size > LARGEST:
            return ""
        data = base64.b64encode(path.read_bytes()).decode()
        return f"![{match[1]}](data:{KINDS[path.suffix.lower()]};base64,{data})"

    return _PICTURE.sub(picture, _COMMENT.sub("", _HEADER.sub("", text))).strip() + "\n"


def from_record(record: Checkpoint) -> str:
    """What is known of a checkpoint whose card is not here."""
    family = FAMILIES[record.family]
    figures = [
        f"| {m.name} | {m.shown} | {m.protocol} | {m.source}{', measured here' * m.measured_here} |"
        for m in record.metrics
    ]
    table = [
        "## Figures",
        "",
        "| metric | value | what was compared | source |",
        "|---|---|---|---|",
        *figures,
        "",
    ]
    return "\n".join(
        [
            f"# {record.name}",
            "",
            f"{record.description} {record.parameters / 1e6:.2f} M parameters, {record.resolution} px.",
            "",
            *(table if figures else []),
            "## Licence",
            "",
            "| of | licence |",
            "|---|---|",
            f"| the authors' code | {record.code_license} |",
            f"| the weights | {record.weights_license} |",
            f"| the data ({record.dataset.name}) | {record.dataset.license} |",
            "",
            "## Citation",
            "",
            f"[arXiv {record.paper}](https://arxiv.org/abs/{record.paper})",
            "",
            f"```bibtex\n{family.citation.strip()}\n```",
            "",
        ]
    )
