"""The `stylenat` command: the words on the command line; each command calls an importable function.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 one sentence says
why not (Ctrl-C among it), 2 wrong usage. PyTorch is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import traceback
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from stylenat_hub import signals
from stylenat_hub.errors import InputError, StyleNATHubError

if TYPE_CHECKING:
    import torch

MAX_SEEDS = 1_000_000  # in one command: a guard against typing mistakes
MAX_TRUNCATION = 1e6  # far beyond any picture; larger ones overflow in float32
_DEBUG = "--debug"
_USAGE = typer.BadParameter.__base__  # typer shows these itself, with the usage, and exits with 2


@contextlib.contextmanager
def one_sentence(debug: bool, interrupted: str = "interrupted") -> Iterator[None]:
    """Any error becomes one line and exit code 1, and so do Ctrl-C and SIGTERM (the line is `interrupted`).

    With `debug` errors pass, and an interruption shows where it came. Every command line here uses this.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own ways out; a reader that saw enough
        raise
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or signals.received():
            if debug:
                traceback.print_exc()
            signals.tell(interrupted, error)
            raise typer.Exit(signals.EXIT_CODE) from None
        if debug or isinstance(error, _USAGE):
            raise
        typer.echo(f"error: {_sentence(error)}", err=True)
        raise typer.Exit(1) from None


class _Commands(TyperGroup):
    """All commands, with their errors in one sentence."""

    def invoke(self, ctx: Any) -> Any:
        with one_sentence(ctx.params["debug"]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Pictures from transformer GANs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dtype(str, Enum):
    """Types that a model can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` -> [0, 1, 2, 3, 7], each seed once. Raises `typer.BadParameter`, naming the wrong part."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,30})\s*(?:-\s*([0-9]{1,30})\s*)?", part)
        if not match:
            raise typer.BadParameter(
                f"{part!r} in {text!r} is neither a seed nor a range; examples: 0-15 or 1,5,9-12"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise typer.BadParameter(f"the range {part.strip()!r} runs backwards; write {last}-{first}")
        if last >= 2**32:
            raise typer.BadParameter(f"{part.strip()!r} is out of range; seeds go from 0 to 2**32 - 1")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise typer.BadParameter(
                f"{text!r} is more than {MAX_SEEDS:,} seeds; ask for fewer in one command"
            )
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` -> the device. Raises `InputError` if it is not there."""
    import torch

    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    there = [
        "cpu",
        *(["cuda"] if cuda else []),
        *(f"cuda:{i}" for i in range(cuda)),
        *(["mps"] if mps else []),
    ]
    if name not in there:
        raise InputError(f"this machine has no device {name!r}; it has: auto, {', '.join(there)}")
    return torch.device(name)


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise typer.BadParameter(f"{text!r} is no device; allowed: auto, cpu, cuda, cuda:N, mps")
    return text


def _number(value: float) -> float:
    if value != value or abs(value) == float("inf"):
        raise typer.BadParameter(f"{value} is not a finite number; usual values are from 0 to 1")
    if abs(value) > MAX_TRUNCATION:
        raise typer.BadParameter(
            f"{value} is out of range; allowed: {-MAX_TRUNCATION:.0f} to {MAX_TRUNCATION:.0f}, usually 0 to 1"
        )
    return value


def parse_path(text: str | Path) -> Path:
    """A path as typed. Raises `typer.BadParameter` for an empty one, which would mean the current folder."""
    if not str(text):
        raise typer.BadParameter("the name is empty; write '.' for the current folder")
    return Path(text)


def builtin_model() -> str:
    """The model to use where none is named. Raises `InputError` while this version ships none."""
    from stylenat_hub.hub import builtin_models

    names = builtin_models()
    if not names:
        raise InputError(
            "this version ships no trained model yet, so name one: a folder that python -m "
            "conversion.convert wrote, or a Hub id (`stylenat list` shows the zoo)"
        )
    return names[0]


Debug = Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error.")]
Variant = Annotated[str | None, typer.Option(help="Weights saved under this name, such as bf16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        from stylenat_hub import __version__

        typer.echo(f"stylenat {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Pictures from transformer GANs: StyleNAT and its relatives."""


@app.command()
def generate(
    model: Annotated[
        str | None,
        typer.Argument(help="Zoo name, folder or Hub id; default: the built-in model.", show_default=False),
    ] = None,
    seeds: Annotated[
        Any, typer.Option(parser=parse_seeds, metavar="SEEDS", help="Such as 0-15 or 1,5,9-12.")
    ] = "0-15",
    truncation: Annotated[
        float, typer.Option(callback=_number, help="1: full variety; 0: the mean picture.")
    ] = 1.0,
    cutoff: Annotated[
        int | None, typer.Option(min=0, help="Truncate only so many of the styles, the coarse ones first.")
    ] = None,
    output: Annotated[
        Path, typer.Option(parser=parse_path, metavar="DIR", help="Folder for the PNG files.")
    ] = Path("pictures"),
    grid: Annotated[bool, typer.Option("--grid", help="Also write grid.png with all pictures.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 8,
    device: Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in.")] = Dtype.float32,
    variant: Variant = None,
    revision: Revision = None,
) -> None:
    """Draw one PNG picture per seed."""
    from stylenat_hub import pictures

    pictures.check_writable(output)
    source = {"variant": variant, "revision": revision}
    pipeline = load_pipeline(model or builtin_model(), device, dtype.value, **source)
    label = {"version": _software()}
    options = {
        "truncation_psi": truncation,
        "truncation_cutoff": cutoff,
        "batch_size": batch_size,
        "grid": grid,
    }
    written = pictures.write_pictures(pipeline, seeds, output, label=label, **options)
    also = f" and {written.grid.name}" if written.grid else ""
    typer.echo(f"wrote {written.count} picture{'s' * (written.count != 1)}{also} to {written.folder}")


def load_pipeline(model: str, device: str, dtype: str, **source: Any) -> Any:
    """A `GANPipeline` on a device (see `choose_device`), in a type named as torch names it.

    source: further arguments of `GANPipeline.from_pretrained`.
    """
    import torch

    from stylenat_hub.pipeline import GANPipeline

    chosen = choose_device(device)
    pipeline = GANPipeline.from_pretrained(model, dtype=getattr(torch, dtype), **source)
    if chosen.type != "cpu":  # where it is; diffusers would warn that float16 cannot run there, and it can
        pipeline.to(chosen)
    pipeline.set_progress_bar_config(desc="pictures", unit="", leave=False, file=sys.stderr)
    return pipeline


def _software() -> str:
    from stylenat_hub import __version__

    return f"stylenat_hub {__version__}"


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as '*ffhq*'.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the zoo."""
    from stylenat_hub.summary import list_checkpoints, table

    records = list_checkpoints(pattern)
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif not records:
        raise InputError(f"no model of the zoo matches {pattern!r}; `stylenat list` shows all")
    else:
        keys = ("name", "dataset", "resolution", "parameters", "description")
        typer.echo("\n".join(table([{key: record[key] for key in keys} for record in records])))


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Zoo name, folder or Hub id; default: the built-in model.", show_default=False),
    ] = None,
    variant: Variant = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's configuration, levels, parameters and weights."""
    from stylenat_hub.summary import describe, render

    facts = describe(model or builtin_model(), variant=variant, revision=revision)
    typer.echo(json.dumps(facts, indent=2) if as_json else render(facts))


@app.command()
def benchmark(
    model: Annotated[
        str,
        typer.Argument(help="Shape to build: a name of `stylenat list`, or stylenat-tiny (no folders)."),
    ] = "stylenat-ffhq-256",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per call.")] = 1,
    device: Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in.")] = Dtype.float32,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each kind; the median counts.")] = 5,
    gather: Annotated[bool, typer.Option(help="Measure the gather formulation of attention too.")] = True,
    output: Annotated[
        Path | None,
        typer.Option(parser=parse_path, metavar="FILE", help="Also write the result as JSON to this file."),
    ] = None,
) -> None:
    """Time a model's shape with random weights.

    Generation is timed against the matrix products of its blocks and against gathered attention.
    """
    import torch

    from stylenat_hub import benchmark as measure
    from stylenat_hub.files import whole_file

    options = {
        "batch": batch_size,
        "dtype": getattr(torch, dtype.value),
        "threads": threads,
        "repeats": repeats,
    }
    result = measure.benchmark(model, device=str(choose_device(device)), gather=gather, **options)
    typer.echo(measure.table(result))
    if output:
        with whole_file(output) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _sentence(error: Exception) -> str:
    """The error in one line; of a foreign one also its kind."""
    text = " ".join(str(error).split()) or "no details"
    if isinstance(error, StyleNATHubError):
        return text
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory; try a smaller --batch-size, --dtype bfloat16 or --device cpu"
    if isinstance(error, MemoryError):
        return "the machine is out of memory; close other programs, or use one with more"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return f"the system refuses: {text} (--debug shows where)"
    if isinstance(error, (OSError, RuntimeError)):
        return f"{type(error).__name__}: {text} (--debug shows where)"
    return f"{type(error).__name__}: {text} (a bug; --debug shows where)"


def main(arguments: list[str] | None = None) -> None:
    """The entry point; it ends with `SystemExit`. `--debug` may stand anywhere on the line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    rest = [argument for argument in arguments if argument != _DEBUG]
    debug = [_DEBUG] if len(rest) < len(arguments) else []
    with signals.caught():
        # Not `app(...)`, which puts typer's own excepthook in place.
        typer.main.get_command(app)([*debug, *rest], prog_name="stylenat")


if __name__ == "__main__":
    main()
