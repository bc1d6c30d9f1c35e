"""The command line of `conversion.convert`: thin, and every error is one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylenat_hub import signals
from stylenat_hub.errors import InputError
from stylenat_hub.options import License, Private, PushTo, one_sentence, parse_path

if TYPE_CHECKING:
    from conversion.convert import Report

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CKPT",
            help="Original checkpoint: a file (.pt, .pth), or TensorFlow's folder.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            parser=parse_path,
            metavar="DIR",
            help="Folder to write; new or empty.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Download a published original by its zoo name."),
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model family; default: the tensors tell.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset that states what no tensor tells.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with config fields, such as 'dilations'.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Generator: g_ema (averaged) or g; TensorFlow's: ema_generator or generator.",
            show_default="the averaged one",
        ),
    ] = None,
    skip_discriminator: Annotated[bool, typer.Option("--skip-discriminator", help="Do not keep it.")] = False,
    ignore_metadata: Annotated[
        bool, typer.Option("--ignore-metadata", help="Read unknown metadata types as inert stand-ins.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")] = False,
    push_to_hub: PushTo = None,
    license_: License = None,
    private: Private = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Convert an original checkpoint to safetensors, config and pipeline layout."""
    if (checkpoint is None) == (source is None):
        raise typer.BadParameter("name a checkpoint file or --from NAME, one of the two")
    if output is None:
        raise typer.BadParameter("name the folder to write with --output DIR")
    if preset is not None and config is not None:
        raise typer.BadParameter("--preset and --config exclude each other")
    if weights not in (None, "g_ema", "g", "ema_generator", "generator"):
        raise typer.BadParameter(
            f"--weights is {weights!r}; allowed: g_ema, g (PyTorch), ema_generator, generator (TensorFlow)"
        )
    with one_sentence(debug, "interrupted; nothing was written"):
        # Imported here, because it is heavy: `--help` is quick.
        from conversion import convert as conversion

        if signals.received():  # an import may have swallowed it
            raise KeyboardInterrupt
        if source is not None:
            conversion.check_output(output, overwrite=overwrite)  # before a long download
            checkpoint, published = _published(source)
            preset = preset if preset or config else published
        report = conversion.convert(
            checkpoint,
            output,
            family=family,
            preset=preset,
            config=conversion.read_config_file(config) if config else None,
            weights=weights,
            skip_discriminator=skip_discriminator,
            ignore_metadata=ignore_metadata,
            overwrite=overwrite,
            zoo=source,
        )
        _print(report)
        if push_to_hub:
            _push(report.output, push_to_hub, license=license_, private=private or None)


def _push(folder: Path, name: str, **options: Any) -> None:
    """Publish the result. An error says that the folder is written all the same."""
    from stylenat_hub import publish

    commit = publish.push_written(folder, name, commit_message="Upload converted pipeline", **options)
    typer.echo(publish.report(commit))


def _print(report: Report) -> None:
    """Print the report. An error says that the folder is written all the same."""
    written = f"{report.output} is written, and whole"
    try:
        typer.echo(str(report))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"the report cannot be printed ({error.strerror}), but {written}") from error
    except KeyboardInterrupt:
        raise signals.Interrupted(written) from None


def _published(name: str) -> tuple[Path, str]:
    """Download the authors' file of a zoo name: (file, the preset of its shape). Raises `WeightsError` if it
    is not the file whose SHA-256 the zoo has recorded."""
    from conversion.download import download
    from stylenat_hub.errors import UnknownModelError, WeightsError
    from stylenat_hub.registry import CHECKPOINTS, find_checkpoint
    from stylenat_hub.weights import fingerprint

    record = find_checkpoint(name)
    if record.origin_url is None:
        published = ", ".join(known for known, other in CHECKPOINTS.items() if other.origin_url)
        raise UnknownModelError(f"the authors published no file for {name!r} (they did for: {published})")
    try:
        file = download(record.origin_url)
    except KeyboardInterrupt:
        raise signals.Interrupted("the same command goes on with the download from here") from None
    found = fingerprint(file)["sha256"] if record.source_sha256 else None
    if found != record.source_sha256:
        raise WeightsError(
            f"{str(file)!r} is not the file that the zoo knows as {name!r}: its SHA-256 is {found}, not "
            f"{record.source_sha256}; delete it to download it again, or convert it by its path"
        )
    return file, record.preset


def main() -> None:
    app(prog_name="python -m conversion.convert")
