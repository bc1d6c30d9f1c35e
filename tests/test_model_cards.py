"""The cards of the zoo: as the registry says, taken by the Hub, and true to what they promise."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from model_cards import build as cards
from stylenat_hub.cards import card_data
from stylenat_hub.registry import CHECKPOINTS, FAMILIES

SECTIONS = (
    *("Use it", "Where the weights come from", "Training", "Figures", "Speed and memory"),
    *("Use and limits", "Ethical considerations", "Licence", "Citation"),
)


def committed(name):
    return ModelCard.load(cards.HERE / name / "README.md")


def test_what_is_committed_is_what_the_registry_gives():
    """Cards and the README's table of models: `python -m model_cards.build` mends this."""
    old = [path for path, text in cards.build().items() if path.read_text(encoding="utf-8") != text]
    assert not old


def test_a_figure_is_written_once(monkeypatch):
    """Another figure in the registry, another card and another table."""
    record = CHECKPOINTS["stylenat-ffhq-256"]
    metric = dataclasses.replace(record.metrics[0], value=77.123)
    changed = dataclasses.replace(record, metrics=(metric,))
    monkeypatch.setitem(CHECKPOINTS, record.name, changed)
    files = cards.build()
    for path in (cards.HERE / record.name / "README.md", cards.README):
        assert "77.123" in files[path] and "2.046" not in files[path]


def test_the_command_says_what_is_old_and_mends_it(tmp_path, monkeypatch):
    target = tmp_path / "card" / "README.md"
    monkeypatch.setattr(cards, "HERE", tmp_path / "cards")
    monkeypatch.setattr(cards, "build", lambda: {target: "new\n"})
    checked = CliRunner().invoke(cards.app, ["--check"])
    assert checked.exit_code == 1 and "model_cards.build" in checked.output and not target.exists()
    assert CliRunner().invoke(cards.app, []).exit_code == 0
    assert target.read_text() == "new\n"
    assert CliRunner().invoke(cards.app, ["--check"]).exit_code == 0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_hub_takes_the_card(hub, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what the Hub only warns of
        committed(name).validate()
    assert [request.path for request in hub.requests] == ["/api/validate-yaml"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_card_says_what_it_has_to(name):
    record, card = CHECKPOINTS[name], committed(name)
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", card.text, re.DOTALL | re.MULTILINE))
    assert tuple(parts) == SECTIONS
    assert all(len(text.split()) > 5 for text in parts.values())
    assert "None" not in card.text and "{{" not in card.text
    for metric, result in zip(record.metrics, card.data.eval_results, strict=True):
        assert (result.metric_type, result.metric_value) == (metric.id, metric.value)
        assert metric.shown in parts["Figures"] and metric.protocol in parts["Figures"]
        assert metric.source in parts["Figures"]
    for text in (record.weights_license, record.dataset.license, record.code_license):
        assert text in parts["Licence"]
    assert card.data.library_name == "stylenat_hub" and record.paper in parts["Citation"]
    for word in ("For", "Not for", "Limits", "Bias"):
        assert f"**{word}**" in parts["Use and limits"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_speed_in_a_card_is_the_measured_one(name):
    paths = (cards.HERE / "benchmarks").glob("*.json")
    measured = [result for path in paths if (result := json.loads(path.read_text())).get("model") == name]
    text = committed(name).text
    assert ("Not measured:" in text) == (not measured)
    for result in measured:
        assert f"| {result['seconds']['tiled'] / result['batch']:.3g} |" in text


def test_the_built_in_models_figure_is_the_measured_one():
    """What the registry says is typed there; the run's own figures are beside the curve."""
    figures = json.loads((cards.HERE / "toy-church" / "figures.json").read_text())
    metric = CHECKPOINTS["toy-church"].metrics[0]
    shipped = figures["toy-church (shipped, float16)"][0]["swd"]
    untrained, drawings = figures["toy-church"][0]["swd"], figures["drawings against drawings"][0]["swd"]
    assert metric.shown == f"{shipped:.1f}"
    assert f"{untrained:.1f} away" in metric.protocol and f"same kind {drawings:.1f}" in metric.protocol


def test_the_three_lines_of_the_built_in_models_card_run():
    code = re.search(r"```python\n(.*?)```", committed("toy-church").text, re.DOTALL)[1]
    *first, last = code.strip().splitlines()
    names: dict = {}
    exec("\n".join(first), names)
    assert len(eval(last, names)) == 8


def test_a_missing_text_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "HERE", tmp_path)
    with pytest.raises(cards.InputError, match=r"words/data-ffhq\.md"):
        cards.words(CHECKPOINTS["stylenat-ffhq-256"].dataset)


def test_what_kind_of_network_it_is_follows_from_the_familys_tags():
    """Not every GAN is a transformer; a tag that families share stands once, before the first one's name."""

    def tags(**families):
        own = [dataclasses.replace(FAMILIES["stylenat"], name=n, tags=t) for n, t in families.items()]
        return card_data(own, license=None, name="m").tags

    assert tags(a=("convolutional",)) == ["gan", "convolutional", "a"]
    assert tags(a=("transformer", "x"), b=("transformer", "y")) == ["gan", "transformer", "a", "x", "b", "y"]
    assert tags(a=()) == ["gan", "a"]
