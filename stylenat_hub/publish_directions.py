"""Directions -> a repository of their own on the Hub, in one commit with a short card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCardData

from stylenat_hub import __version__
from stylenat_hub.card_checks import check_card, licence
from stylenat_hub.cards import LIBRARY, MARK
from stylenat_hub.errors import HubError, InputError, cut, shown
from stylenat_hub.latents.direction_files import FILE
from stylenat_hub.latents.directions import Directions
from stylenat_hub.push_options import UPLOAD, check_options
from stylenat_hub.uploads import full_id, upload

_METHODS = {
    "sefa": "closed-form factorisation of the layers that read styles "
    "([SeFa](https://arxiv.org/abs/2007.06600))",
    "pca": "principal components of the styles ([GANSpace](https://arxiv.org/abs/2004.02546))",
}
_CARD = """---
{data}
---
{mark} {version}, and written anew by each push; remove this line to keep a text of your own. -->

# {title}

Directions in the styles of {model}, by {method}: each changes its pictures in one way.

## Use it

```
stylenat generate {command} --directions {name} --edit {first}=2
```

With the Python package `stylenat_hub`:

```python
from stylenat_hub import GANPipeline
from stylenat_hub.latents.direction_files import load_directions

pipe = GANPipeline.from_pretrained("{source}")
directions = load_directions("{name}", pipe.generator)
images = pipe(seeds=range(8), edit=directions.edit({{"{first}": 2.0}})).images
```

A strength is counted in standard deviations of the model's styles along the direction; usual ones are from
-4 to 4.

## Directions

| name | styles that it moves | standard deviation | share of the styles' variance |
|---|---|---|---|
{rows}

Their names say what somebody saw, or only how they were found. They belong to the weights with the
SHA-256 (of all tensors, as float32) `{weights}`;
in others they do little, or something else.
"""


def push_directions(
    directions: Directions,
    repo_id: str,
    *,
    license: str | None = None,
    commit_message: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Push directions as one commit of `directions.safetensors` and a card, which `load_directions` then
    takes by the id.

    repo_id: without a slash in your own namespace; made if it is not there. license: as the Hub's list calls
    it, for the card. options: private, token, create_pr, revision (a branch), tag, commit_description: see
    `uploads.upload`. A card on the Hub that somebody has written stays.

    Raises `InputError`: a bad argument, or the repository holds a model; `HubError`: the Hub refuses, or the
    network fails. Nothing has changed there then, unless it says so.
    """
    check_options({**options, "license": license, "commit_message": commit_message}, (*UPLOAD, "license"))
    name = full_id(repo_id, options.get("token"))
    text = card(directions, name, licence(name, license, options))
    check_card(text, name)
    with tempfile.TemporaryDirectory() as temporary:
        directions.save(Path(temporary, FILE))
        Path(temporary, "README.md").write_text(text, encoding="utf-8")
        message = commit_message or "Upload directions"
        return upload(temporary, name, commit_message=message, replaceable=("README.md",), **options)


def push_written(directions: Directions, folder: Path, name: str, **options: Any) -> CommitInfo:
    """`push_directions` for a command that has just written the folder: errors say that it is there."""
    try:
        return push_directions(directions, name, **options)
    except HubError as error:
        raise HubError(
            f"{error}; {str(folder)!r} is written: with --overwrite the command tries again"
        ) from error
    except InputError as error:
        raise InputError(f"{error}; {str(folder)!r} is written") from error


def card(directions: Directions, name: str, license: str | None = None) -> str:
    """The card (README.md) of directions that are to become the repository `name`."""
    about = directions.about
    model = " ".join(about.get("model", "").split())
    known = model and model.isprintable() and not set(model) & set("`\"'<>|$;&\\")
    source = cut(model) if known else "MODEL"
    data = ModelCardData(
        library_name=LIBRARY,
        license=license,
        tags=["gan", "latent-directions"],
        base_model=source if known and source.count("/") == 1 else None,
    )
    methods = [text for key, text in _METHODS.items() if key in about.get("method", "").split(", ")]
    return _CARD.format(
        data=data.to_yaml(),
        mark=MARK,
        version=__version__,
        title=name.split("/")[-1],
        model=f"`{source}`" if known else "a model whose name was not recorded",
        method=" and ".join(methods) or "a method that was not recorded",
        command=source,
        source=source,
        name=name,
        first=directions.names[0],
        rows="\n".join(_row(directions, place) for place in range(len(directions))),
        weights=shown(about.get("weights", "not recorded")),
    )


def _row(directions: Directions, place: int) -> str:
    moved = ", ".join(map(str, directions.styles[place]))
    deviation, share = float(directions.deviations[place]), float(directions.shares[place])
    return f"| `{directions.names[place]}` | {moved} | {deviation:.4g} | {100 * share:.2g}% |"
