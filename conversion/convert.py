"""Original checkpoint -> a folder that `GANPipeline.from_pretrained` reads.

    python -m conversion.convert CKPT --output DIR
    python -m conversion.convert --from stylenat-ffhq-256 --output DIR

`convert` does the work and can be imported; the command line prints what it found
and turns errors into one line.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before all other imports, so that Ctrl-C during them is one line too. It never returns.
    from stylenat_hub.signals import caught

    with caught("interrupted; nothing was written"):
        from conversion.cli import main

        main()

import difflib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import stylenat_hub
from conversion.containers import WEIGHTS, Container, read_checkpoint
from stylenat_hub.errors import ConfigError, InputError, UnknownModelError, WeightsError, listed, shown
from stylenat_hub.files import check_folder, user_path, whole_folder
from stylenat_hub.models.base import MEAN_SEED
from stylenat_hub.models.config import ModelConfig
from stylenat_hub.models.family import Family
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES
from stylenat_hub.summary import table
from stylenat_hub.weights import check_same_weights, fingerprint, pipeline_files, system_errors

# What a conversion leaves in its folder, and what may be added to it; the first is in every one.
RESULT = pipeline_files("conversion.json")


@dataclass(frozen=True)
class Report:
    """What was found in a checkpoint and written.

    family: its name in the zoo. layout: the container's. weights: which generator was taken. discriminator:
    was one written? ignored: names of types read as inert stand-ins; left: what the container has beside
    networks and records, such as optimizers. levels: `Generator.level_rows`.
    """

    output: Path
    family: str
    layout: str
    weights: str
    config: ModelConfig
    parameters: int
    levels: tuple[dict[str, Any], ...]
    discriminator: bool
    ignored: tuple[str, ...]
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"container   {self.layout}, weights {self.weights!r}",
            f"family      {self.family}, {self.config.resolution} x {self.config.resolution} px",
            f"parameters  {self.parameters:,}",
            "",
            *table(list(self.levels)),
        ]
        if self.ignored:
            lines += ["", f"read as inert stand-ins: {', '.join(self.ignored)}"]
        if self.left:
            lines += ["", f"in the file and not converted: {listed([repr(name) for name in self.left])}"]
        kept = "with the discriminator" if self.discriminator else "without a discriminator"
        return "\n".join([*lines, "", f"written to {self.output} ({kept}); it reloads to the same picture"])


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    family: str | None = None,
    preset: str | None = None,
    config: ModelConfig | Mapping[str, Any] | None = None,
    weights: str | None = None,
    skip_discriminator: bool = False,
    ignore_metadata: bool = False,
    overwrite: bool = False,
    zoo: str | None = None,
) -> Report:
    """Convert an original checkpoint to the pipeline layout, whole or not at all.

    checkpoint: the file; of a TensorFlow checkpoint also its prefix (`ckpt-12`) or its folder, which means
    the latest. output: a folder that does not exist or is empty; with `overwrite` also an earlier result,
    with nothing else in it. family: its name in the zoo; by default the tensors tell. preset, config: what
    no tensor tells and the file does not record, such as dilations or the sides of blocks; checked against
    the tensors in any case; what config has under "discriminator" is the discriminator's. weights: "g_ema"
    (the averaged generator) or "g", in TensorFlow's checkpoints "ema_generator" or "generator"; by default
    the averaged one, in these the other if it is the only one. skip_discriminator: do not keep the
    discriminator's tensors. ignore_metadata: read unknown metadata types as inert stand-ins instead of
    refusing the file. zoo: the checkpoint's name in the zoo, where the file is the authors' own, for the
    record.

    Raises:
        UnsafeCheckpointError, UnknownModelError, WeightsError, ConfigError, InputError: one sentence; nothing
            is written then. Interrupted: Ctrl-C came too late to stop it: the folder is whole.
    """
    if weights not in (None, *WEIGHTS):
        raise InputError(
            f"weights is {weights!r}; allowed: 'g_ema' (the averaged generator) or 'g', of a TensorFlow "
            "checkpoint 'ema_generator' or 'generator'"
        )
    if preset is not None and not isinstance(preset, str):
        raise ConfigError(f"preset is {shown(repr(preset))}; allowed: the name of one, such as 'ffhq-256'")
    config, judge_config = _split(config)
    families = _families(family)
    source = user_path(checkpoint)
    check_output(output, overwrite=overwrite, inputs=(source,))
    container = read_checkpoint(source, ignore_metadata=ignore_metadata)
    weights = weights or container.default
    original = container.network(weights)
    found = _family_of(original, container.files[0].name, families)
    if preset is not None:
        preset = preset.removeprefix(f"{found.name}-")  # the zoo's names are taken too
    if isinstance(config, ModelConfig) and not isinstance(config, found.config):
        raise ConfigError(
            f"the config is a {type(config).__name__}, but the checkpoint is {found.title}'s; allowed: a "
            f"{found.config.__name__}, or a mapping with some of its fields"
        )
    values = found.infer_config(original, args=container.args, preset=preset, config=config)
    converted = found.convert_state_dict(original)
    generator = _build(found, values, converted)
    drawn = 0 if "w_avg" in converted else generator.estimate_w_avg()
    discriminator = None
    if not skip_discriminator and container.discriminator in container.networks:
        state = container.networks[container.discriminator]
        discriminator = found.convert_discriminator(state, config=judge_config)
        _check_sizes(generator, discriminator)
    elif judge_config is not None:
        raise ConfigError("the config states a 'discriminator', but none is converted; leave that out")
    record = json.dumps(_record(container, found, weights, zoo, drawn), indent=2) + "\n"
    # All of it before the folder appears, so that no error comes after that.
    report = Report(
        output=user_path(output),
        family=found.name,
        layout=container.layout,
        weights=weights,
        config=values,
        parameters=sum(parameter.numel() for parameter in generator.parameters()),
        levels=tuple(generator.level_rows()),
        discriminator=discriminator is not None,
        ignored=container.ignored,
        left=container.left,
    )
    allowed = RESULT if overwrite else None
    with whole_folder(output, overwrite=allowed, inputs=(source,)) as folder, system_errors():
        GANPipeline(generator=generator).save_pretrained(folder)
        if discriminator is not None:
            discriminator.save_pretrained(folder / discriminator.component)
        (folder / RESULT[0]).write_text(record, encoding="utf-8")
        _check_reload(generator, folder)
        if discriminator is not None:
            check_same_weights(discriminator, type(discriminator).from_pretrained(folder))
    return report


def check_output(output: str | Path, *, overwrite: bool = False, inputs: Sequence[Path] = ()) -> None:
    """Raise `InputError` if `convert` could not write there; see `stylenat_hub.files.check_folder`."""
    check_folder(output, overwrite=RESULT if overwrite else None, inputs=inputs)


def _families(name: str | None) -> list[Family]:
    """The families to try: all, or the one of this name. Raises `UnknownModelError`."""
    if name is None:
        return list(FAMILIES.values())
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(FAMILIES))}"
        raise UnknownModelError(f"there is no family {name!r}; {hint}")
    return [FAMILIES[name]]


def _family_of(state: Mapping[str, Any], name: str, families: Sequence[Family]) -> Family:
    for family in families:
        if family.recognise(state):
            return family
    if len(families) < len(FAMILIES) and any(other.recognise(state) for other in FAMILIES.values()):
        other = _family_of(state, name, list(FAMILIES.values()))
        raise WeightsError(
            f"{name!r} is not a checkpoint of {families[0].title}, but of {other.title}; pass --family "
            f"{other.name}, or leave it out"
        )
    some = ", ".join(map(repr, list(state)[:4])) or "none"
    raise WeightsError(
        f"{name!r} is a checkpoint of another project: its generator has the tensors {some}, ...; allowed "
        f"are original checkpoints of {', '.join(family.title for family in families)}"
    )


def _build(family: Family, config: ModelConfig, state: dict[str, torch.Tensor]) -> Any:
    """The generator with exactly these weights; every tensor must be there and fit, `w_avg` if the original
    recorded it. Evaluation mode."""
    generator = family.generator(config)
    needed = generator.state_dict()
    if "w_avg" not in state:
        needed.pop("w_avg")
    elif not torch.isfinite(state["w_avg"]).all():
        raise WeightsError(
            "the mean style 'w_avg' (name after conversion) holds NaN or infinite values; the checkpoint is "
            "damaged: take an earlier one"
        )
    missing, unexpected = sorted(needed.keys() - state.keys()), sorted(state.keys() - needed.keys())
    if missing or unexpected:
        what = f"lacks {missing[0]!r}" if missing else f"has {unexpected[0]!r}, which the model does not have"
        more = len(missing) + len(unexpected) - 1
        raise WeightsError(
            f"the checkpoint {what}{f' ({more} more tensors do not fit)' if more else ''} (names after "
            "conversion); it is incomplete or of a variant that is not supported"
        )
    for name, tensor in state.items():
        if tensor.shape != needed[name].shape:
            raise WeightsError(
                f"the tensor {name!r} (name after conversion) has the shape {list(tensor.shape)}, but the "
                f"other tensors make it {list(needed[name].shape)}; the checkpoint is damaged or of a "
                "variant that is not supported"
            )
    generator.load_state_dict({"w_avg": generator.w_avg, **state})
    return generator.eval()


@torch.inference_mode()
def _check_reload(generator: Any, folder: Path) -> None:
    latent = torch.randn(1, generator.z_dim, generator=torch.Generator().manual_seed(MEAN_SEED))
    # Truncation, so that the mean style takes part as every weight does.
    picture = generator(latent, truncation_psi=0.7)
    if not torch.isfinite(picture).all():
        raise WeightsError(
            "the generator's picture holds NaN or infinite values; its training run had diverged"
        )
    reloaded = GANPipeline.from_pretrained(folder).generator.eval()
    check_same_weights(generator, reloaded)
    # The picture up to the rounding of sums, which may differ between two calls.
    again = reloaded(latent, truncation_psi=0.7)
    if not torch.allclose(picture, again, rtol=0, atol=1e-5 * picture.abs().max().item()):
        raise WeightsError(
            "what was written reloads to another picture, so it was dropped; please report this"
        )


def _check_sizes(generator: Any, discriminator: Any) -> None:
    side, other = generator.resolution, discriminator.resolution
    if side != other:
        raise WeightsError(
            f"the generator draws {side} x {side} px, but the discriminator beside it judges {other} x "
            f"{other} px; they are not of one training run: leave it out (--skip-discriminator)"
        )


def _split(
    config: ModelConfig | Mapping[str, Any] | None,
) -> tuple[ModelConfig | Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """What the user said of the generator, and of the discriminator. Raises `ConfigError`."""
    if config is not None and not isinstance(config, ModelConfig):
        _check_fields("config", config)
    if not isinstance(config, Mapping) or "discriminator" not in config:
        return config, None
    judge = config["discriminator"]
    _check_fields("config's 'discriminator'", judge)
    return {key: value for key, value in config.items() if key != "discriminator"} or None, judge


def _check_fields(what: str, fields: Any) -> None:
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise ConfigError(
            f"the {what} is {shown(repr(fields))}; it must hold the fields of one by their names, such as "
            "'resolution'"
        )


def _record(
    container: Container, family: Family, weights: str, zoo: str | None, drawn: int
) -> dict[str, Any]:
    """Where the weights come from: no times and no folders in it, so equal input gives equal bytes.

    known: is the mean style one that the original recorded, or that needs no estimate?
    """
    source, *data = [{"file": path.name, **fingerprint(path)} for path in container.files]
    return {
        **({"zoo": zoo} if zoo else {}),
        "source": source,
        **({"data": data} if data else {}),
        "family": family.name,
        "container": container.layout,
        "weights": weights,
        "recorded": json.loads(json.dumps(container.facts), parse_constant=str),
        "types_read_as_stand_ins": list(container.ignored),
        "w_avg": {"latents": drawn, "seed": MEAN_SEED} if drawn else {"known": True},
        "versions": {
            "stylenat_hub": stylenat_hub.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The config fields in a JSON file, all or some (`{"dilations": [[1], [1], ...]}`).

    Raises `ConfigError` if it cannot be read or holds something else.
    """
    try:
        values = json.loads(user_path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config file {str(path)!r} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"the config file {str(path)!r} must hold a JSON object, such as a model's config.json"
        )
    return values
