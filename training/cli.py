"""The command line of the training, see `train.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stylenat_hub import signals
from stylenat_hub.errors import InputError
from stylenat_hub.launch import end_with_launcher, start_missing, together_on_cpu
from stylenat_hub.options import License, Private, PushTo, one_sentence, parse_path

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def parse_set(pairs: list[str]) -> dict[str, Any]:
    """`["r1=2", "clip_d=null", "loss=logistic"]` -> values: JSON where it is JSON, otherwise text."""
    values = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"--set {pair!r} is not NAME=VALUE, such as r1=2")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


@app.command()
def train(
    data: Annotated[
        str, typer.Option(metavar="PATH", help="Pictures: a folder, a zip, an LMDB, or hf:ORG/NAME.")
    ],
    output: Annotated[Path, typer.Option(parser=parse_path, metavar="DIR", help="The run's folder.")],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Recipe, see --list-presets; default: tiny, with --from fine-tune."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="Fine-tune: zoo name, folder or Hub id.")
    ] = None,
    discriminator: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Where its discriminator is, if not in --from.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="latest|auto|DIR|hf:ORG/NAME",
            help="Go on: latest wants a checkpoint, auto starts anew without one, hf: takes a pushed one.",
        ),
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Length of the training, in images.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures per step over all processes.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="logistic, hinge or relativistic (R3GAN; set r2 too).")
    ] = None,
    augment: Annotated[str | None, typer.Option(help="none, diffaugment or ada.")] = None,
    freeze_d: Annotated[
        int | None, typer.Option(min=0, help="Finest scales of the discriminator to keep.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, data order and every draw.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any field of the recipe (training/recipes.py); repeat."
        ),
    ] = None,
    mixed_precision: Annotated[
        str | None, typer.Option(help="no, bf16 or fp16; default: what accelerate launch says.")
    ] = None,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Forward and backward passes per step and process.")
    ] = 1,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the generator; minutes to warm up.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures.")] = 2,
    strict_data: Annotated[bool, typer.Option("--strict-data", help="Stop at a broken picture.")] = False,
    allow_upscaling: Annotated[
        bool, typer.Option("--allow-upscaling", help="Take pictures smaller than the model's.")
    ] = False,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Resume with other pictures than before.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(min=0, help="Images between checkpoints.")] = 50_000,
    checkpoints_total_limit: Annotated[int | None, typer.Option(min=1, help="Keep only the newest.")] = None,
    sample_every: Annotated[int, typer.Option(min=0, help="Images between grids; 0: none.")] = 20_000,
    samples: Annotated[int, typer.Option(min=1, max=4096, help="Pictures in a grid.")] = 64,
    metric: Annotated[
        str, typer.Option("--metric", "--metrics", help="Of swd, fid, kid, is, pr, dc, with commas; or none.")
    ] = "swd",
    metric_extractor: Annotated[
        str, typer.Option(metavar="NAME", help="Network of fid and its like, as of stylenat evaluate.")
    ] = "inception",
    metric_weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its weights: a file, a Hub id, or download.")
    ] = None,
    metric_every: Annotated[int, typer.Option(min=0, help="Images between metrics; 0: none.")] = 50_000,
    metric_images: Annotated[
        int | None, typer.Option(min=2, help="Pictures that the metric compares; default: 1000, or all.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Pictures that the metric compares with.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    log_every: Annotated[int, typer.Option(min=1, help="Steps between rows of metrics.jsonl.")] = 20,
    tracker: Annotated[str, typer.Option(help="tensorboard, wandb or none.")] = "tensorboard",
    push_to_hub: PushTo = None,
    license_: License = None,
    private: Private = False,
    stop_at: Annotated[
        int | None, typer.Option(min=1, help="End after so many images, to go on later.")
    ] = None,
    list_presets: Annotated[
        bool,
        typer.Option(
            "--list-presets", is_eager=True, callback=lambda on: _list_presets(on), help="Show the recipes."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a generator from scratch, go on with a run, or fine-tune trained weights."""
    flags = {
        "images": images,
        "batch": batch,
        "loss": loss,
        "augment": augment,
        "freeze_d": freeze_d,
        "seed": seed,
    }
    overrides = {name: value for name, value in flags.items() if value is not None}
    overrides |= parse_set(set_ or [])
    with one_sentence(debug, "interrupted; the checkpoints that are there are whole"):
        from training import loop, recipes
        from training import train as training

        if signals.received():  # an import may have swallowed it
            raise KeyboardInterrupt
        schedule = loop.Schedule(
            log_every=log_every,
            checkpoint_every=checkpoint_every,
            checkpoints_total_limit=checkpoints_total_limit,
            sample_every=sample_every,
            samples=samples,
            metric_every=metric_every,
            stop_at=stop_at,
        )
        options = training.Options(
            schedule=schedule,
            mixed_precision=mixed_precision,
            accumulate=accumulate,
            gradient_checkpointing=gradient_checkpointing,
            compiled=compiled,
            workers=workers,
            strict_data=strict_data,
            allow_upscaling=allow_upscaling,
            accept_changed_data=accept_changed_data,
            tracker=tracker,
            metric=metric,
            metric_extractor=metric_extractor,
            metric_weights=metric_weights,
            metric_images=metric_images,
            eval_data=eval_data,
            split=split,
            push_to_hub=push_to_hub,
            private=private,
            license=license_,
        )
        training.train(
            recipes.Recipe.preset(preset, **overrides) if preset else None,
            data,
            output,
            source=source,
            discriminator=discriminator,
            resume=resume,
            overrides=overrides,
            options=options,
        )


def _list_presets(wanted: bool) -> None:
    if wanted:
        from training.recipes import RECIPES

        for name, recipe in RECIPES.items():
            of = f"{recipe.get('family', 'stylenat')}-{recipe['shape']}" if recipe["shape"] else "any model"
            typer.echo(f"{name:25} {of:25} batch {recipe['batch']:>4}, {recipe['images']:>11,} images")
        raise typer.Exit


def main() -> None:
    end_with_launcher()
    together_on_cpu()
    try:
        start_missing("training.train")
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    app(prog_name="python -m training.train")


if __name__ == "__main__":
    main()
