"""What of this clone becomes a Space: by a list of what may go, so that nothing else that lies here does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from stylenat_hub import __version__
from stylenat_hub.cards import MARK
from stylenat_hub.errors import InputError
from stylenat_hub.staged import check_inside

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "space.json"  # what was put into a Space, by which its files are known as this command's
BY = "stylenat_hub"
# pattern in the clone -> folder in the Space. A clone also has caches, notes, whatever its owner keeps.
SENT = {
    "spaces/app.py": "",
    "spaces/requirements.txt": "",
    "spaces/studio/**/*.py": "studio",
    "spaces/studio/**/*.css": "studio",
    "spaces/studio/**/*.js": "studio",
    "spaces/studio/speeds.json": "studio",
    "stylenat_hub/**/*.py": "stylenat_hub",
    "stylenat_hub/*.md": "stylenat_hub",
    "stylenat_hub/builtin/*/README.md": "stylenat_hub",
    "stylenat_hub/builtin/*/*.json": "stylenat_hub",
    "stylenat_hub/builtin/*/generator/config.json": "stylenat_hub",
    "stylenat_hub/builtin/*/generator/*.safetensors": "stylenat_hub",
    "model_cards/papers.json": "stylenat_hub",  # where a wheel has it
    "LICENSE": "",
    "NOTICE": "",
}
_NEEDED = ("app.py", "requirements.txt", "studio/engine.py", "stylenat_hub/__init__.py")


@dataclass(frozen=True)
class Start:
    """What a Space starts with. model: a Hub id, None for the built-in one. preload: its files, if they are
    to be there before the Space starts."""

    model: str | None = None
    preload: Sequence[str] = ()


def files(root: Path = ROOT) -> dict[str, Path]:
    """Name in the Space -> file here, of all but the two that are written (`README.md`, `space.json`).

    Raises `InputError`: this is no whole clone; a link leads out of it.
    """
    found = {}
    for pattern, folder in SENT.items():
        base = root / ("spaces/studio" if folder == "studio" else folder)
        for path in sorted(root.glob(pattern)):
            inside = path.relative_to(root)
            if path.is_file() and not any(part[0] == "." or part == "__pycache__" for part in inside.parts):
                check_inside(path, root)
                name = path.relative_to(base) if folder and path.is_relative_to(base) else Path(path.name)
                found[(Path(folder) / name).as_posix()] = path
    if missing := [name for name in _NEEDED if name not in found]:
        raise InputError(f"{str(root)!r} lacks {missing[0]!r} of the Space; run this in a whole clone")
    return found


def write(folder: Path, start: Start, root: Path = ROOT) -> list[str]:
    """Fill an empty folder with the Space's files; returns their names, sorted."""
    found = files(root)
    for name, path in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    names = sorted([*found, "README.md", MANIFEST])
    text = (root / "spaces" / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(card(text, start), encoding="utf-8")
    manifest = {"written_by": BY, "version": __version__, "model": start.model, "files": names}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return names


def card(text: str, start: Start) -> str:
    """The Space's README.md: this folder's, with the model that it starts with, and marked as written.

    Lists that would be empty are left out.
    """
    written = SpaceCard(text, ignore_metadata_errors=False)
    fields = written.data.to_dict()
    fields["models"] = [start.model] if start.model else fields.get("models")
    if start.model and start.preload:
        fields["preload_from_hub"] = [f"{start.model} {','.join(start.preload)}"]
    data = SpaceCardData(**{name: value for name, value in fields.items() if value not in (None, [])})
    mark = (
        f"{MARK} {__version__}, and written anew by each deployment; remove this line to keep a text of your "
        "own. -->"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{mark}\n\n{written.text.strip()}\n"
