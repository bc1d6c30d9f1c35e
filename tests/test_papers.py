"""The papers' figures: whole, from somewhere, the same as the registry's, and shown by `stylenat list`."""

from __future__ import annotations

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from model_cards.build import HERE
from stylenat_hub import papers
from stylenat_hub.cli import app
from stylenat_hub.registry import CHECKPOINTS, FAMILIES
from training.recipes import RECIPES

ROWS = [(table, row) for table in papers.paper_tables() for row in table["rows"]]


def listed(*arguments):
    result = CliRunner().invoke(app, ["list", "--papers", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_figure_says_where_it_was_read():
    assert {table["paper"] for table in papers.paper_tables()} <= set(FAMILIES)
    for _, row in ROWS:
        source = papers.sources()[row["source"]]
        assert source["url"].startswith("https://") and source["title"] and source["by"]
        assert any(measure in row for measure in papers.MEASURES)
        fields = {"model", "data", "px", "source", "note", "recipe", "checkpoint", *papers.MEASURES}
        assert set(row) <= fields, set(row) - fields


def test_a_table_is_whole_or_says_what_is_missing():
    for table in papers.paper_tables():
        assert table["complete"] == (table["missing"] is None)
        assert table["rows"] or not table["complete"]


def test_no_two_tables_contradict_each_other():
    seen: dict = {}
    for table, row in ROWS:
        for measure in papers.MEASURES:
            key = (row["model"], row["data"], row["px"], measure)
            if measure in row and table["kind"] == "comparison":
                assert seen.setdefault(key, row[measure]) == row[measure], key


def test_every_published_checkpoint_has_its_row():
    published = {record.name for record in CHECKPOINTS.values() if not record.trained_here}
    assert published == {row["checkpoint"] for _, row in ROWS if "checkpoint" in row}
    for record in map(CHECKPOINTS.get, published):
        figures = papers.compared(record.dataset.id, record.resolution)
        called = {record.name, FAMILIES[record.family].title}
        mine = [row for row in figures if row["model"] in called]
        assert [row["fid"] for row in mine] == [metric.value for metric in record.metrics], record.name


def test_recipes_that_rows_name_are_there():
    named = {row["recipe"] for _, row in ROWS if "recipe" in row}
    assert named and named <= set(RECIPES)


def made_up(monkeypatch, *rows):
    """One comparison of ffhq-256 with these rows in the place of the papers' tables."""
    same = {"data": "ffhq", "px": 256, "source": "there"}
    rows = [{**({} if "checkpoint" in row else same), "source": "there", **row} for row in rows]
    tables = [{"kind": "comparison", "rows": rows}, {"kind": "ablation", "rows": [{**same, "model": "no"}]}]
    monkeypatch.setattr(papers, "_read", lambda: {"tables": tables})


def test_models_are_put_together_best_first(monkeypatch):
    made_up(
        monkeypatch,
        {"model": "none", "images_per_s": 9.0},
        {"model": "worse", "fid": 3.5, "source": "here"},
        {"model": "small", "fid": 1.0, "px": 32},
        {"model": "best", "fid": 1.5},
        {"model": "worse", "images_per_s": 2.0},
    )
    rows = papers.compared("ffhq", 256)
    assert [row["model"] for row in rows] == ["best", "worse", "none"]
    assert (rows[1]["fid"], rows[1]["images_per_s"]) == (3.5, 2.0)
    assert rows[1]["read_in"] == {"fid": "here", "images_per_s": "there"}


def test_two_checkpoints_of_a_family_are_two_models(monkeypatch):
    """Of the same data and size, under their own names; the family's title would make them one."""
    record = CHECKPOINTS["stylenat-ffhq-256"]
    other = dataclasses.replace(
        record, name="stylenat-ffhq-256-na", metrics=(dataclasses.replace(record.metrics[0], value=2.74),)
    )
    monkeypatch.setitem(CHECKPOINTS, other.name, other)
    alone = {"checkpoint": record.name}
    made_up(monkeypatch, alone, alone, {"checkpoint": "stylenat-church-256"}, {"model": "StyleNAT", "fid": 9})
    assert [row["model"] for row in papers.compared("ffhq", 256)] == ["StyleNAT"]
    made_up(monkeypatch, alone, {"checkpoint": other.name}, {"checkpoint": "stylenat-church-256"})
    rows = papers.compared("ffhq", 256)
    assert [(row["model"], row["fid"]) for row in rows] == [(record.name, 2.046), (other.name, 2.74)]
    assert [row["model"] for row in papers.compared("lsun-church", 256)] == ["StyleNAT"]


def test_the_command_shows_figures_sources_and_what_is_missing():
    text = listed()
    assert "2.046" in text and "48.92" in text and "https://arxiv.org/abs/2106.07631" in text
    assert text.count("not here:") == sum(not table["complete"] for table in papers.paper_tables())


@pytest.mark.parametrize(
    ("pattern", "models"),
    [
        ("hit-*", {"HiT-S", "HiT-B", "HiT-L"}),
        ("styleswin-ffhq-256", {"StyleSwin"}),  # a name of the zoo
        ("lsun-church-*", None),
        ("LSUN-church", None),
    ],
)
def test_a_pattern_picks_models_or_data(pattern, models):
    tables = json.loads(listed(pattern, "--json"))["tables"]
    rows = [row for table in tables for row in table["rows"]]
    assert rows and all(table["rows"] for table in tables)
    if models:
        assert {row["model"] for row in rows} == models
    else:
        assert {row["data"] for row in rows} == {"lsun-church"}


def test_a_papers_name_shows_its_tables_whole_and_the_missing_ones():
    tables = json.loads(listed("hit", "--json"))["tables"]
    assert [t for t in papers.paper_tables() if t["paper"] == "hit"] == [
        t for t in tables if t["paper"] == "hit"
    ]
    assert any(not table["rows"] for table in tables)
    assert "VQ-HiT" in listed("*vq*")


def test_figures_that_do_not_compare_say_so():
    """The authors of HiT measured with other Inception weights than everybody else here."""
    rows = [
        row for table, row in ROWS if table["paper"] == "hit" and "fid" in row and row["source"] != "maxvit"
    ]
    assert rows and all("Keras" in row["note"] for row in rows)
    assert "Keras" in listed("hit*") and "Keras" in (HERE / "styleswin-ffhq-256" / "README.md").read_text()


def test_a_pattern_without_a_match_is_told():
    for more in ([], ["--json"]):
        result = CliRunner().invoke(app, ["list", "--papers", "biggan", *more])
        assert result.exit_code == 1 and "matches 'biggan'; `stylenat list --papers`" in result.output
