"""Build the cards of all checkpoints, and the table of models in the README, from the registry.

    python -m model_cards.build            # write what is not as it should be
    python -m model_cards.build --check    # only say so, exit code 1

Every figure comes from the registry, from `papers.json`, from `benchmarks/`, or from the `training.json` of a
checkpoint that ships; the Markdown in `words/` has the rest: a file per data set, and one per checkpoint on
how it was made.
A card is what the repository of that checkpoint on the Hub has as README.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub import EvalResult, ModelCard

from model_cards.tables import measurements, model_table, original_table, speed_table, speeds
from stylenat_hub import cards, papers, signals
from stylenat_hub.errors import InputError
from stylenat_hub.files import whole_file
from stylenat_hub.locations import BUILTIN, builtin_models, status
from stylenat_hub.models.base import MEAN_LATENTS
from stylenat_hub.models.family import Checkpoint, Dataset
from stylenat_hub.options import one_sentence
from stylenat_hub.registry import CHECKPOINTS, FAMILIES

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
SPEEDS = HERE.parent / "spaces" / "studio" / "speeds.json"
PICTURE = "pictures.png"
SECTIONS = ("data", "use", "not_for", "limits", "bias", "ethics")  # of `words/data-ID.md`
TABLES = {  # of the README, between marks of these names
    "models": model_table,
    "speed": speed_table,
    "originals": original_table,
}


def build() -> dict[Path, str]:
    """All files that are built: path -> text. Raises `InputError` if the README lost the table's marks."""
    files = {}
    for name, record in CHECKPOINTS.items():
        folder = HERE / name
        picture = PICTURE if (folder / PICTURE).is_file() else None
        files[folder / "README.md"] = f"{card(record, picture)}\n"
        if name in builtin_models():
            files[BUILTIN / name / "README.md"] = f"{card(record)}\n"
    files[README] = _with_tables(README.read_text(encoding="utf-8"))
    files[SPEEDS] = speeds()
    return files


def _with_tables(text: str) -> str:
    for name, table in TABLES.items():
        marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        if not marked.search(text):
            raise InputError(f"README.md lost its marks <!-- {name} --> and <!-- /{name} -->; put them back")
        text = marked.sub(lambda _, table=table: table(), text)
    return text


def card(record: Checkpoint, picture: str | None = None) -> ModelCard:
    """The card of a checkpoint. picture: a file beside it to show."""
    family = FAMILIES[record.family]
    named = {"license_name": f"{record.name}-weights", "license_link": "README.md"}
    data = cards.card_data(
        [family],
        license=record.license,
        name=record.name,
        evaluation=_results(record),
        datasets=[record.dataset.id],
        **(named if record.license == "other" else {}),
    )
    return ModelCard.from_template(
        data,
        template_str=(HERE / "template.md").read_text(encoding="utf-8"),
        record=record,
        family=family,
        parameters=f"{record.parameters / 1e6:.2f} M",
        status=_STATUS[status(record.name)],
        picture=picture,
        gpu=any("NVIDIA" in row["machine"] for row in _benchmarks(record.name)),
        use=_use(record),
        origin=_ORIGIN[_by(record)].format(**_source(record)),
        data=_link(record.dataset),
        words=words(record.dataset),
        made=_text(record.name),
        recipe=_recipe(record),
        benchmarks=_benchmarks(record.name),
        compared=_compared(record),
        shown=lambda value: papers.shown(value or None),
    )


def _compared(record: Checkpoint) -> list[dict[str, Any]]:
    """What papers state of the models of this data set and size, with links to where."""
    rows = papers.compared(record.dataset.id, record.resolution)
    return [{**row, "links": _links(row["read_in"]), "notes": "; ".join(row["notes"])} for row in rows]


def _links(read_in: dict[str, str]) -> str:
    """Each source once, with the figures that were read there."""
    parts = []
    for key in dict.fromkeys(read_in[measure] for measure in papers.MEASURES if measure in read_in):
        names = ", ".join(
            papers.MEASURES[measure] for measure in papers.MEASURES if read_in.get(measure) == key
        )
        source = papers.sources()[key]
        parts.append(f"{names}: [{source['title']}]({source['url']})")
    return "; ".join(parts)


def words(dataset: Dataset) -> dict[str, str]:
    """What `words/data-ID.md` says: section -> Markdown."""
    parts = re.split(r"^## (\w+)\n", _text(f"data-{dataset.id}"), flags=re.MULTILINE)[1:]
    found = {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    missing = [name for name in SECTIONS if not found.get(name)]
    if missing:
        raise InputError(f"words/data-{dataset.id}.md has no section(s) {', '.join(missing)}; write them")
    return found


def _text(name: str) -> str:
    """A file of `words/`. Raises `InputError` if it is not there."""
    path = HERE / "words" / f"{name}.md"
    if not path.is_file():
        raise InputError(
            f"the cards need {str(path.relative_to(HERE.parent))!r}; CONTRIBUTING.md says what is in it"
        )
    return path.read_text(encoding="utf-8").strip()


_STATUS = {
    "ships": "Its weights are in the package.",
    "on the Hub": "The weights are in this repository.",
    "convert": "Its authors published the weights; convert their file once, by the one command below.",
    "none published": "**No weights were ever published**: this describes the shape.",
}


def _python(*lines: str) -> str:
    return "\n".join(("```python", *lines, "```"))


def _use(record: Checkpoint) -> str:
    if status(record.name) == "none published":
        return _python(
            "from stylenat_hub import create_model",
            "",
            f'create_model("{record.name}")  # random weights, to be trained',
        )
    if status(record.name) == "convert":
        command = f"python -m conversion.convert --from {record.name} --output {record.name}"
        return (
            f"Once, in a clone of the project:\n\n```\n{command}\n```\n\nThen, beside that folder:\n\n"
            + _python(cards.snippet(FAMILIES[record.family], record.name))
        )
    return _python(cards.snippet(FAMILIES[record.family], record.name))


_ORIGIN = {
    "here": "They were trained by this project.",
    "nobody": "There are none: the authors published no file.",
    "authors": (
        "From the authors' file [{file}]({url}) ({known}).{copy} `conversion.convert` reads it without "
        "executing anything in it, renames the tensors, estimates the mean style from {latents:,} latents, "
        "writes safetensors, loads them again, and compares the picture. What it does is tested against "
        "tensors recorded from the original code with random weights."
    ),
}


def _by(record: Checkpoint) -> str:
    """Who made the weights."""
    return "here" if record.trained_here else "authors" if record.origin_url else "nobody"


def _source(record: Checkpoint) -> dict[str, Any]:
    known = (
        f"its SHA-256 is `{record.source_sha256}`"
        if record.source_sha256
        else "its SHA-256 is not stated here, because nobody of this project has opened it; the conversion "
        "writes the one that it finds into `conversion.json`"
    )
    url, page = record.origin_url or "", record.origin_page
    copy = (
        f" This is a copy: the authors' own links are on [their page]({page}), and a file from there is "
        f"converted with `python -m conversion.convert FILE --output {record.name}`."
    )
    return {
        "file": Path(url).name,
        "url": url,
        "known": known,
        "copy": copy if page else "",
        "latents": MEAN_LATENTS,
    }


def _results(record: Checkpoint) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=cards.TASK,
            dataset_type=record.dataset.id,
            dataset_name=f"{record.dataset.name} {record.resolution}x{record.resolution}",
            metric_type=metric.id,
            metric_name=metric.name,
            metric_value=metric.value,
            source_name=None if metric.measured_here else metric.source,
            source_url=None if metric.measured_here else metric.url,
        )
        for metric in record.metrics
    ]


def _link(dataset: Dataset) -> str:
    return f"[{dataset.name}]({dataset.url})" if "://" in dataset.url else dataset.name


def _recipe(record: Checkpoint) -> str | None:
    path = BUILTIN / record.name / "training.json"
    if record.name not in builtin_models() or not path.is_file():
        return None
    return json.dumps(json.loads(path.read_text(encoding="utf-8"))["recipe"], indent=1)


def _benchmarks(name: str) -> list[dict[str, Any]]:
    """The committed measurements of a checkpoint's shape, float32 first."""
    rows = [
        {
            "batch": result["batch"],
            "machine": f"{result['machine']['device']}, torch {result['machine']['torch']}",
            "dtype": result["dtype"],
            "threads": result["threads"],
            "seconds": f"{result['seconds']['tiled'] / result['batch']:.3g}",
            "memory": f"{result['peak_memory_mib']['tiled']:,.0f} MiB",
        }
        for result in measurements()
        if result.get("model") == name
    ]
    return sorted(rows, key=lambda row: (row["dtype"] != "float32", row["machine"]))


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with 1 if something is old.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Build the cards and the README's table of models."""
    with one_sentence(debug):
        old = [
            (path, text)
            for path, text in build().items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        for path, text in old:
            typer.echo(f"{'old' if check else 'wrote'}: {path.relative_to(HERE.parent)}")
            if not check:
                path.parent.mkdir(exist_ok=True)
                with whole_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        if check and old:
            raise InputError("run `python -m model_cards.build`, and commit what it writes")


if __name__ == "__main__":
    with signals.caught("interrupted; each file is as it was, or whole"):
        app(prog_name="python -m model_cards.build")
