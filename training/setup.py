"""From a recipe, or from trained weights, to the networks of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from stylenat_hub import hub
from stylenat_hub.errors import ConfigError, InputError, WeightsError
from stylenat_hub.models.family import Family
from stylenat_hub.registry import FAMILIES
from stylenat_hub.weights import read_json
from training.recipes import Recipe
from training.steps import Players


def new_players(recipe: Recipe) -> Players:
    """The recipe's networks with random weights, which follow from its seed.

    Raises `ConfigError` for a family or shape that is not in this version.
    """
    if recipe.shape is None:
        raise ConfigError(
            "this recipe is for trained weights: name them with --from, or take another preset to start from "
            "random ones"
        )
    if recipe.family not in FAMILIES:
        raise ConfigError(
            f"the recipe is for the family {recipe.family!r}, which this version does not have; there are: "
            f"{', '.join(FAMILIES)}"
        )
    family = FAMILIES[recipe.family]
    torch.manual_seed(recipe.seed)
    generator = family.generator(family.config.preset(recipe.shape, **recipe.generator))
    config = family.discriminator.config_class.preset(recipe.shape, **recipe.discriminator)
    return _players(generator, family.discriminator(config), recipe)


def _family_of(generator: Any) -> Family:
    return next(family for family in FAMILIES.values() if isinstance(generator, family.generator))


def trained_players(recipe: Recipe, source: str, discriminator: str | None = None) -> tuple[Players, str]:
    """The networks to fine-tune, and one line on where they come from.

    source: zoo name, folder or Hub id of a pipeline or a generator. discriminator: the same for the
    discriminator; by default that of `source`, or where it has none, a new one of random weights.

    Raises what `from_pretrained` raises; `InputError` if the two do not fit each other.
    """
    generator = hub.load_generator(source)
    family = _family_of(generator)
    _check_fits(recipe, generator, family, source)
    torch.manual_seed(recipe.seed)
    said = f"the generator of {source!r}"
    try:
        judge = family.discriminator.from_pretrained(discriminator or source)
        said += f", the discriminator of {discriminator!r}" if discriminator else " with its discriminator"
    except (WeightsError, ConfigError):
        if discriminator or _has_discriminator(source, family):
            raise
        judge = _matching_discriminator(family, recipe, generator.resolution, source)
        said += ", a new discriminator of random weights (expect worse pictures at first; --discriminator)"
    if judge.resolution != generator.resolution:
        raise InputError(
            f"the discriminator is for {judge.resolution} px and the generator of {source!r} for "
            f"{generator.resolution} px; give a discriminator of {generator.resolution} px"
        )
    return _players(generator, judge, recipe), said


def _check_fits(recipe: Recipe, generator: Any, family: Family, source: str) -> None:
    """A recipe for one shape is for that resolution (its penalties and rates do not fit others), and whatever
    it says of the network must be so."""
    if recipe.family not in (None, family.name):
        raise ConfigError(
            f"the recipe is for the family {recipe.family!r}, and {source!r} is a {family.name}"
        )
    for name, value in recipe.generator.items():
        own = generator.typed_config.to_dict().get(name)
        if own != value:
            raise ConfigError(
                f"the recipe's generator has {name} = {value!r}, and that of {source!r} has {own!r}; take "
                "another recipe, such as --preset fine-tune, which is for any"
            )
    if recipe.shape is None:
        return
    wanted = family.config.preset(recipe.shape, **recipe.generator).resolution
    if wanted != generator.resolution:
        raise ConfigError(
            f"the recipe is for {wanted} px, and {source!r} makes {generator.resolution} px; take a recipe "
            "for that resolution, or --preset fine-tune, which is for any"
        )


def _has_discriminator(source: str, family: Family) -> bool:
    try:
        location = hub.locate(source, component="discriminator")
    except WeightsError:
        return False
    # A folder that is a single model is found whichever model is asked for.
    return read_json(location.folder / "config.json").get("_class_name") == family.discriminator.__name__


def _matching_discriminator(family: Family, recipe: Recipe, resolution: int, source: str) -> Any:
    """A new discriminator for a generator that came without: the recipe's shape, or any preset that fits."""
    presets: Mapping[str, Mapping[str, Any]] = family.discriminator.config_class.presets
    fitting = [name for name, preset in presets.items() if preset["resolution"] == resolution]
    name = recipe.shape if recipe.shape in fitting else next(iter(fitting), None)
    if name is None:
        raise InputError(
            f"{source!r} has no discriminator, and no preset has one for {resolution} px; name one with "
            "--discriminator"
        )
    return family.discriminator(family.discriminator.config_class.preset(name, **recipe.discriminator))


def _players(generator: Any, discriminator: Any, recipe: Recipe) -> Players:
    if generator.resolution != discriminator.resolution:
        raise ConfigError(
            f"the recipe's generator makes {generator.resolution} px and its discriminator reads "
            f"{discriminator.resolution} px; allowed: equal resolutions"
        )
    if generator.statistics() and not recipe.average_buffers:
        raise ConfigError(
            "the generator keeps statistics of batch norm, and the recipe averages its weights only, so that "
            "the average would never know them; add --set average_buffers=true, or take a recipe of its "
            "family (--list-presets)"
        )
    average = copy.deepcopy(generator).eval().requires_grad_(False)
    generator.train().requires_grad_(True)
    discriminator.train().requires_grad_(True)
    for part in discriminator.finest_parts(recipe.freeze_d):
        part.requires_grad_(False)
    return Players(generator, discriminator, average)


def stored_players(recipe: Recipe, facts: Mapping[str, Any]) -> Players:
    """The networks of a checkpoint, whose weights are still to be copied in. facts: its `state.json`."""
    family = FAMILIES.get(facts["family"])
    if family is None:
        raise ConfigError(
            f"the checkpoint is of the family {facts['family']!r}, which is not in this version"
        )
    torch.manual_seed(recipe.seed)
    generator = family.generator(family.config.from_dict(facts["generator"]))
    judge = family.discriminator(family.discriminator.config_class.from_dict(facts["discriminator"]))
    return _players(generator, judge, recipe)


def facts_of(players: Players) -> dict[str, Any]:
    """What `stored_players` needs, as plain data."""
    family = _family_of(players.generator)
    return {
        "family": family.name,
        "generator": players.generator.typed_config.to_dict(),
        "discriminator": players.discriminator.typed_config.to_dict(),
    }
