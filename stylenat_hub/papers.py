"""What the papers of the zoo's families print, as data: `model_cards/papers.json`, which the wheel carries.

A table is a dict of `paper` (a family's name), `table` (its number, None where it is not known), `subject`,
`kind` ("comparison" of models, or "ablation": each row a change), `complete`, `missing` (what it lacks, in
words) and `rows`. A row has `model`, `data`, `px`, `source` (a key of `sources`), and of `MEASURES` those
that the source states. One of a `checkpoint` has its record's; its model is the family, or the checkpoint
where several of the family's for the same data and size have rows. None of these figures was measured here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from stylenat_hub.errors import InputError
from stylenat_hub.registry import CHECKPOINTS, FAMILIES, Checkpoint
from stylenat_hub.summary import table as aligned

MEASURES = {
    "fid": "FID",
    "inception_score": "Inception score",
    "parameters_m": "parameters, M",
    "images_per_s": "images/s",
}
_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "papers.json", _HERE.parent / "model_cards" / "papers.json")  # a wheel's, a clone's


@cache
def _read() -> dict[str, Any]:
    for path in _PLACES:
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise InputError(f"this installation has lost {str(_PLACES[0])!r}; install stylenat-hub again")


def sources() -> dict[str, dict[str, str]]:
    """Where figures were read: key -> `title`, `url`, and `by` whom the figures are quoted there."""
    return _read()["sources"]


def paper_tables(pattern: str = "*") -> list[dict[str, Any]]:
    """The tables whose paper or subject matches a shell pattern, whole; of the others the rows whose model,
    zoo name, data set (`ffhq`) or data set and size (`ffhq-256`) matches, where there are any.

    Upper and lower case are the same. Raises `InputError` if nothing matches.
    """
    wanted = pattern.lower()
    tables = []
    for table in _tables():
        whole = any(fnmatchcase(name.lower(), wanted) for name in (table["paper"], table["subject"]))
        rows = [r for r in table["rows"] if whole or any(fnmatchcase(name, wanted) for name in _names(r))]
        if rows or whole:
            tables.append({**table, "rows": rows})
    if not tables:
        raise InputError(
            f"no paper, model or data set of the papers' tables matches {pattern!r}; "
            "`stylenat list --papers` shows all"
        )
    return tables


def _tables() -> list[dict[str, Any]]:
    tables = _read()["tables"]
    named = {row["checkpoint"] for table in tables for row in table["rows"] if "checkpoint" in row}
    alike = Counter(_kind(CHECKPOINTS[name]) for name in named)
    return [{**table, "rows": [_filled(row, alike) for row in table["rows"]]} for table in tables]


def _kind(record: Checkpoint) -> tuple[str, str, int]:
    return record.family, record.dataset.id, record.resolution


def _filled(row: dict[str, Any], alike: Counter[tuple[str, str, int]]) -> dict[str, Any]:
    """A row of a checkpoint with what the registry says of it: its figures are written there alone.

    alike: how many checkpoints have rows, of each family on each data set and size.
    """
    if "checkpoint" not in row:
        return row
    record = CHECKPOINTS[row["checkpoint"]]
    return {
        "model": FAMILIES[record.family].title if alike[_kind(record)] == 1 else record.name,
        "data": record.dataset.id,
        "px": record.resolution,
        **{metric.id: metric.value for metric in record.metrics},
        **row,
    }


def _names(row: dict[str, Any]) -> Iterator[str]:
    yield row["model"].lower()
    yield row["data"]
    yield f"{row['data']}-{row['px']}"
    yield row.get("checkpoint", "")


def compared(data: str, px: int) -> list[dict[str, Any]]:
    """All models that the comparisons state for a data set and size, what they say of each put together.

    Best FID first; those without one last. `read_in` says of each figure the key of its source, `notes` what
    else there is to know.
    """
    models: dict[str, dict[str, Any]] = {}
    for table in _tables():
        for row in table["rows"] if table["kind"] == "comparison" else ():
            if (row["data"], row["px"]) == (data, px):
                empty = {"model": row["model"], "read_in": {}, "notes": []}
                known = models.setdefault(row["model"], empty)
                for measure in row.keys() & MEASURES.keys() - known.keys():
                    known[measure], known["read_in"][measure] = row[measure], row["source"]
                known["notes"] += [row["note"]] if "note" in row else []
    return sorted(models.values(), key=lambda row: row.get("fid", float("inf")))


def shown(value: float | None) -> str:
    """A figure with all its decimals, and two at least; nothing where there is none."""
    return "" if value is None else max(f"{value:.2f}", f"{value:.12g}", key=len)


def render(tables: list[dict[str, Any]]) -> str:
    """Tables as text: title, rows, where they were read, what is missing."""
    parts = []
    for entry in tables:
        number = f", table {entry['table']}" if entry["table"] else ""
        lines = [f"{entry['subject']} ({entry['paper']}{number})"]
        present = [measure for measure in MEASURES if any(measure in row for row in entry["rows"])]
        rows = [
            {
                "model": row["model"],
                "data": f"{row['data']}-{row['px']}",
                **{MEASURES[measure]: shown(row.get(measure)) for measure in present},
                "read in": row["source"],
            }
            for row in entry["rows"]
        ]
        lines += [f"  {line}" for line in aligned(rows)] if rows else []
        lines += [f"  note: {row['model']}: {row['note']}" for row in entry["rows"] if "note" in row]
        lines += [f"  not here: {entry['missing']}"] if entry["missing"] else []
        parts.append("\n".join(lines))
    used = {row["source"] for entry in tables for row in entry["rows"]}
    read = [f"  {key}: {s['title']}, {s['url']} ({s['by']})" for key, s in sources().items() if key in used]
    return "\n\n".join([*parts, "\n".join(["Read in (none of it was measured by this project):", *read])])
