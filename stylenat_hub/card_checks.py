"""Whose card a push takes along, what licence it states, and whether the Hub takes it."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, constants, get_session
from huggingface_hub.utils import hf_raise_for_status

from stylenat_hub import cards
from stylenat_hub.errors import ConfigError, HubError, InputError, KeptCardWarning
from stylenat_hub.remote import pushing, retried
from stylenat_hub.uploads import repository_card


def licence(name: str, license: str | None, options: dict[str, Any]) -> str | None:
    """What the new card says of it: without a word of the user what the repository's card says. Warns where
    that card is somebody's own, and so stays without."""
    card = repository_card(name, token=options.get("token"), revision=options.get("revision"))
    if card is None:
        return license
    if cards.MARK in card and license is None:
        with contextlib.suppress(Exception):  # a header that cannot be read states none
            return ModelCard(card).data.license
    if cards.MARK not in card and license is not None:
        warnings.warn(
            f"the card of {name!r} was written by hand and is kept: state the licence {license!r} there",
            KeptCardWarning,
            stacklevel=2,
        )
    return license


def own_card(path: Path, name: str, license: str | None) -> str | None:
    """The folder's card if it is somebody's own. Raises `ConfigError` for one that cannot be a card,
    `InputError` if a licence is given beside it."""
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    # The zoo's card of a checkpoint is about that one, and wrong in another repository.
    others = cards.ZOO_MARK in text and f"\n# {name.split('/')[-1]}\n" not in text
    if cards.MARK in text or others:
        return None
    if license:
        raise InputError(
            "the folder has a README.md of its own: state the licence there, and leave out license"
        )
    try:
        ModelCard(text, ignore_metadata_errors=True)
    except Exception as error:  # the YAML parser has kinds of its own
        why = " ".join(str(error).split())
        raise ConfigError(
            f"the header of {str(path)!r}, between its lines '---', is no YAML mapping ({why:.200}); mend "
            "it, or remove the file to have a card written"
        ) from error
    return text


def check_card(text: str, name: str) -> None:
    """Raise `HubError` if the Hub would not take this card, before anything is made there."""
    with pushing(name):
        errors = retried(lambda: card_errors(text))
    if errors:
        told = " ".join("; ".join(errors).replace('"', "'").split())
        raise HubError(f"the Hub does not take the card of {name!r}: {told[:300]}{'...' * (len(told) > 300)}")


def card_errors(text: str) -> list[str]:
    """What the Hub says is wrong with a card."""
    # Not `ModelCard.validate`, which in some versions asks huggingface.co, whatever the endpoint is.
    response = get_session().post(
        f"{constants.ENDPOINT}/api/validate-yaml",
        json={"repoType": "model", "content": text},
        headers={"Accept": "application/json"},
    )
    if response.status_code != 400:
        hf_raise_for_status(response)
        return []
    try:
        return [str(error["message"]) for error in response.json()["errors"]] or [response.text]
    except (ValueError, LookupError, TypeError):
        return [response.text]
