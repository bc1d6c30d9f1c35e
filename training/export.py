"""A checkpoint of a run -> the folder that `GANPipeline.from_pretrained` reads, here or on the Hub.

python -m training.export runs/church --output my-church
python -m training.export runs/church/checkpoints/images-000100000 --output my-church --dtype float16
python -m training.export runs/church --output my-church --push-to-hub me/my-church --license mit
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub import signals
from stylenat_hub.errors import InputError, WeightsError
from stylenat_hub.files import check_folder, user_path, whole_folder
from stylenat_hub.options import License, Private, PushTo, one_sentence
from stylenat_hub.weights import check_same_weights, pipeline_files, system_errors

# What an export leaves in its folder; the first is in every one.
RESULT = pipeline_files("training.json")
DTYPES = ("float32", "bfloat16", "float16")


def export(
    source: str | Path,
    output: str | Path,
    *,
    weights: str = "average",
    dtype: str = "float32",
    skip_discriminator: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the pipeline folder of a checkpoint, whole or not at all. Returns the checkpoint's folder.

    source: a run's folder (its newest whole checkpoint) or a checkpoint. weights: "average" (the averaged
    generator) or "generator". dtype: what the weights are rounded to. skip_discriminator: without it nobody
    can fine-tune from the result as well as with it.

    Raises `InputError`, `WeightsError`: one sentence; nothing is written then.
    """
    import torch

    from stylenat_hub import hub
    from stylenat_hub.pipeline import GANPipeline
    from training.checkpoints import find_checkpoint, restore_model
    from training.recipes import Recipe
    from training.setup import stored_players

    if weights not in ("average", "generator"):
        raise InputError(f"weights is {weights!r}; allowed: average, generator")
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    check_folder(output, overwrite=RESULT if overwrite else None)
    checkpoint = find_checkpoint(user_path(source))
    players = stored_players(Recipe.from_dict(checkpoint.state["recipe"]), checkpoint.state)
    restore_model(players.average, checkpoint.tensors[weights], weights)
    restore_model(players.discriminator, checkpoint.tensors["discriminator"], "discriminator")
    generator = players.average
    if weights == "generator":
        generator.estimate_w_avg()
    kind = getattr(torch, dtype)
    _check_fits(generator, kind, dtype)
    allowed = RESULT if overwrite else None
    with whole_folder(output, overwrite=allowed) as folder, system_errors():
        GANPipeline(generator=generator.to(kind)).save_pretrained(folder)
        if not skip_discriminator:
            _check_fits(players.discriminator, kind, dtype)
            players.discriminator.to(kind).save_pretrained(folder / "discriminator")
        record = json.dumps(_record(checkpoint, weights, dtype), indent=2) + "\n"
        (folder / RESULT[0]).write_text(record, encoding="utf-8")
        check_same_weights(generator, hub.load_generator(folder, dtype=kind))
    return checkpoint.path


def _check_fits(model: Any, kind: Any, name: str) -> None:
    """float16 ends at 65,504: refuse to turn a larger weight into infinity."""
    lost = [key for key, value in model.state_dict().items() if not bool(value.to(kind).isfinite().all())]
    if lost:
        raise WeightsError(f"{lost[0]!r} has values that {name} cannot hold; export as bfloat16 or float32")


def _record(checkpoint: Any, weights: str, dtype: str) -> dict[str, Any]:
    kept = ("images", "recipe", "seconds", "processes", "data", "started_from", "versions")
    record = {name: checkpoint.state[name] for name in kept}
    measured = _last_measured(checkpoint.path.parent.parent / "metrics.jsonl", record["images"])
    return {**record, **({"metrics": measured} if measured else {}), "weights": weights, "dtype": dtype}


def _last_measured(log: Path, images: int) -> dict[str, float] | None:
    """The last row of a run's log, up to so many images, that a metric wrote; what it wrote before the
    training says nothing of what was learned."""
    from training.evaluate import METRICS

    last = None
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        row = json.loads(line)
        if 0 < row["images"] <= images and any(name.partition("[")[0] in METRICS for name in row):
            last = row
    return {name: value for name, value in last.items() if name != "seconds"} if last else None


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    weights: Annotated[str, typer.Option(help="average (of the run's weights) or generator.")] = "average",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    skip_discriminator: Annotated[bool, typer.Option("--skip-discriminator", help="Leave it out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    push_to_hub: PushTo = None,
    license_: License = None,
    private: Private = False,
    with_checkpoint: Annotated[
        bool, typer.Option("--with-checkpoint", help="Push all that --resume hf:ORG/NAME needs, too.")
    ] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the commit.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Turn a checkpoint of a run into a folder that `GANPipeline.from_pretrained` reads."""
    with one_sentence(debug, "interrupted; nothing was written"):
        options = {"skip_discriminator": skip_discriminator, "overwrite": overwrite}
        path = export(source, output, weights=weights, dtype=dtype, **options)
        typer.echo(f"wrote {output} from {path.name}; try: stylenat generate {output} --grid")
        if push_to_hub:
            message = message or f"Upload the checkpoint {path.name}"
            from stylenat_hub import publish

            about = {"license": license_, "private": private or None, "commit_message": message}
            kept = path if with_checkpoint else None
            commit = publish.push_written(user_path(output), push_to_hub, checkpoint=kept, **about)
            typer.echo(publish.report(commit))


if __name__ == "__main__":
    with signals.caught():
        app(prog_name="python -m training.export")
