"""Pictures measured against data: what is worse is told so, reports say how, files are not mistaken."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from pathlib import Path

import PIL.Image
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from typer.testing import CliRunner

from stylenat_hub import GANPipeline, create_model
from stylenat_hub.benchmark import in_fresh_process, resident_peak
from stylenat_hub.cli import app
from stylenat_hub.cli_evaluate import parse_sweep
from stylenat_hub.errors import InputError
from stylenat_hub.metrics.evaluate import Evaluation, drawn_by
from stylenat_hub.metrics.features import load_extractor
from stylenat_hub.metrics.processes import Processes
from stylenat_hub.metrics.reference import RealPictures, cached_at, real_summary
from stylenat_hub.metrics.score import METRICS
from stylenat_hub.sources import open_source
from training.toy_churches import write_churches

COUNT = 160
LOWER = ("fid", "kid", "swd")  # a worse model has more of it; of all others less
ALL = (*METRICS, "swd")


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for name, start in (("real", 0), ("held-out", 100_000)):
        write_churches(folder / f"{name}.zip", count=COUNT, start=start, size=32, progress=False)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STYLENAT_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def real_of(zips, name="real", count=None):
    return RealPictures(open_source(str(zips / f"{name}.zip")), 32, count)


def evaluation(zips, names=ALL, **options):
    return Evaluation(names, real_of(zips), load_extractor("random-conv"), Processes(), quiet=True, **options)


def pictures(zips):
    """Held-out scenes: what a perfect model would draw."""
    real = real_of(zips, "held-out")
    return torch.cat([images for _, images in real.batches(Processes())])


def broken(kind, images):
    chance = torch.Generator().manual_seed(0)
    if kind == "noise":
        return torch.randint(0, 256, images.shape, generator=chance, dtype=torch.uint8)
    if kind == "one mode":
        return images[:1].expand_as(images)
    places = torch.randperm(32 * 32, generator=chance)
    return images.flatten(2)[..., places].view_as(images)


@pytest.mark.parametrize("kind", ["noise", "one mode", "shuffled pixels"])
def test_broken_models_are_worse_by_every_metric_that_sees_it(zips, cache, kind):
    good = pictures(zips)
    bad = broken(kind, good)
    one = evaluation(zips)
    well, ill = (one.score(lambda a, b, p=p: p[a:b], COUNT) for p in (good, bad))
    for name in well:
        plain = name.partition("[")[0]
        if plain.endswith(("_std", "_pictures")) or plain in blind(kind):
            continue
        if plain.startswith(LOWER):
            assert ill[name] > 1.2 * well[name], name
        else:
            assert ill[name] < well[name], name


def blind(kind):
    """What cannot see it. Random classes say nothing of quality; precision is about single pictures, and a
    single mode may be a good one, while the density of copies of one picture may be anything."""
    return ("is", "precision", "density") if kind == "one mode" else ("is",)


def test_one_mode_has_the_lowest_inception_score(zips, cache):
    good = pictures(zips)
    one = evaluation(zips, ("is",))
    well, ill = (one.score(lambda a, b, p=p: p[a:b], COUNT) for p in (good, broken("one mode", good)))
    assert ill["is[random-conv]"] == pytest.approx(1, abs=1e-6) and well["is[random-conv]"] > 1


def test_the_same_pictures_are_at_no_distance(zips, cache):
    same = torch.cat([images for _, images in real_of(zips).batches(Processes())])
    scores = evaluation(zips, ("fid", "pr", "dc", "swd")).score(lambda a, b: same[a:b], COUNT)
    assert abs(scores["fid[random-conv]"]) < 1e-6
    assert scores["precision[random-conv]"] == scores["recall[random-conv]"] == 1
    assert scores["coverage[random-conv]"] == 1 and scores["swd"] == 0


def test_figures_of_another_network_never_have_the_papers_names(zips, cache):
    good = pictures(zips)
    scores = evaluation(zips, ("fid", "pr")).score(lambda a, b: good[a:b], COUNT)
    assert set(scores) == {"fid[random-conv]", "precision[random-conv]", "recall[random-conv]"}


def scored_by(rank, world, zips, port, output):
    """One of several processes that are connected as a launcher does it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes, good = Processes.joined("cpu"), pictures(zips)
    measured = Evaluation(
        ALL, real_of(zips), load_extractor("random-conv"), processes, output + ".stats", True
    )
    measured.score(lambda a, b: good[a:b], COUNT)
    again = dataclasses.replace(measured)  # whose real side is in the file, which the first process reads
    for _ in range(2):  # as a sweep does
        scores = again.score(lambda a, b: good[a:b], COUNT)
    if rank == 0:
        Path(output).write_text(json.dumps(scores))
    processes.each(lambda: None)  # nobody goes while another still reads
    processes.leave()


@pytest.mark.parametrize("world", [2, 3])
def test_the_number_of_processes_changes_nothing(zips, cache, tmp_path, world):
    good = pictures(zips)
    alone = evaluation(zips).score(lambda a, b: good[a:b], COUNT)
    output = str(tmp_path / "scores.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(scored_by, (world, zips, port, output), nprocs=world)
    together = json.loads(Path(output).read_text())
    for name, value in alone.items():
        if name.startswith(("precision", "recall", "density", "coverage", "kid", "swd")):
            assert together[name] == value, name  # the same features, in the same order
        else:
            assert together[name] == pytest.approx(value, rel=1e-6), name


def test_statistics_are_kept_and_used_again(zips, cache, monkeypatch):
    real, network = real_of(zips), load_extractor("random-conv")
    first = real_summary(real, network, [METRICS["fid"]])
    assert cached_at(real, network).is_file()
    monkeypatch.setattr(type(network), "__call__", lambda *_: pytest.fail("it was computed again"))
    again = real_summary(real, network, [METRICS["fid"]])
    assert torch.equal(first.statistics.mean, again.statistics.mean) and again.features is None
    monkeypatch.undo()
    with_features = real_summary(real, network, [METRICS["pr"]])  # the file had none, and has them now
    assert with_features.features.shape == (COUNT, network.dim)
    assert real_summary(real, network, [METRICS["pr"]]).features.shape == (COUNT, network.dim)


def test_statistics_of_something_else_are_refused(zips, cache, tmp_path):
    file, network = tmp_path / "stats.safetensors", load_extractor("random-conv")
    real_summary(real_of(zips), network, [METRICS["fid"]], file=file)
    for other, says in (
        (real_of(zips, "held-out"), "data.content is"),
        (real_of(zips, count=100), "data.used is 160 there and 100 here"),
    ):
        with pytest.raises(InputError, match="of something else") as error:
            real_summary(other, network, [METRICS["fid"]], file=file)
        assert says in str(error.value) or "chosen_by_seed" in str(error.value)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="no file of statistics that can be read"):
        real_summary(real_of(zips), network, [METRICS["fid"]], file=file)


def test_other_pictures_under_the_same_names_and_lengths_are_noticed(cache, tmp_path):
    """BMP files are as long whatever is on them."""
    network = load_extractor("random-conv")
    for name, colour in (("one", "red"), ("two", "blue")):
        (tmp_path / name).mkdir()
        for number in range(4):
            PIL.Image.new("RGB", (32, 32), colour).save(tmp_path / name / f"{number}.bmp")
    one, two = (RealPictures(open_source(str(tmp_path / name)), 32) for name in ("one", "two"))
    assert one.source.fingerprint == two.source.fingerprint
    means = [real_summary(real, network, [METRICS["fid"]]).statistics.mean for real in (one, two)]
    assert not torch.equal(*means)


def test_a_named_file_without_features_is_not_replaced(zips, cache, tmp_path):
    file, network = tmp_path / "stats.safetensors", load_extractor("random-conv")
    real_summary(real_of(zips), network, [METRICS["fid"]], file=file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="was made without features"):
        real_summary(real_of(zips), network, [METRICS["pr"]], file=file)
    assert file.read_bytes() == before


def test_a_cache_that_cannot_be_written_shows_before_the_real_pictures(zips, monkeypatch):
    monkeypatch.setenv("STYLENAT_HUB_CACHE", str(zips / "real.zip"))
    monkeypatch.setattr(RealPictures, "picture", lambda *_: pytest.fail("it began to read"))
    with pytest.raises(InputError, match=r"real\.zip"):
        evaluation(zips, ("fid",)).score(lambda a, b: None, COUNT)


def test_a_file_of_statistics_stands_for_pictures_that_are_not_at_hand(zips, cache, tmp_path):
    file, good = str(tmp_path / "stats.safetensors"), pictures(zips)
    wanted = evaluation(zips, ("fid", "pr"), stats=file).score(lambda a, b: good[a:b], COUNT)
    alone = Evaluation(("fid", "pr"), None, load_extractor("random-conv"), Processes(), file, quiet=True)
    assert alone.score(lambda a, b: good[a:b], COUNT) == wanted
    assert alone.shipped["used"] == COUNT
    line = ["toy-church", "--stats", file, "--metrics", "fid", "--extractor", "random-conv", "--num", "40"]
    code, said = run(*line)
    assert code == 0 and "against all 160 of stats.safetensors" in said and "warning: FID of 40" in said


def test_an_extractor_cannot_take_the_papers_name_nor_leave_the_cache(zips, cache):
    class Impostor(type(load_extractor("random-conv"))):
        def __init__(self):
            super().__init__()
            self.protocol = {**self.protocol, "extractor": "inception"}

    network = load_extractor("random-conv")
    network.protocol = {**network.protocol, "extractor": "../../out:net"}
    assert cached_at(real_of(zips), network).parent == cache / "statistics"
    good = pictures(zips)
    one = Evaluation(("fid",), real_of(zips), load_extractor(Impostor()), Processes(), quiet=True)
    assert "fid" not in one.score(lambda a, b: good[a:b], COUNT)


def test_sets_that_are_too_small_and_pictures_that_are_none_are_refused(zips, cache):
    with pytest.raises(InputError, match="needs 4 pictures or more of each set, and there are 3"):
        evaluation(zips, ("pr",)).score(lambda a, b: pictures(zips)[a:b], 3)
    generator = create_model("stylenat-tiny").eval()
    generator.to_rgb[-1].bias.data.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        evaluation(zips, ("fid",)).score(drawn_by(generator, range(8)), 8)


def test_a_choice_of_real_pictures_is_the_same_one_in_every_run(zips):
    chosen = [real_of(zips, count=40).indices().tolist() for _ in range(2)]
    assert chosen[0] == chosen[1] and len(set(chosen[0])) == 40 and max(chosen[0]) > 100
    with pytest.raises(InputError, match=r"161 real pictures are asked for, and .* has 160"):
        real_of(zips, count=161)


def test_the_pictures_are_the_pipelines(zips):
    pipeline = GANPipeline.from_pretrained("toy-church")
    pipeline.set_progress_bar_config(disable=True)
    drawn = drawn_by(pipeline.generator, range(5, 9), truncation_psi=0.7)(0, 4)
    wanted = pipeline(seeds=range(5, 9), truncation_psi=0.7, output_type="pt").images
    assert (drawn.float() / 255 - wanted).abs().max() <= 0.5 / 255 + 1e-5  # nothing but the rounding


def run(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_reports_everything_that_repeats_it(zips, cache, tmp_path):
    card = tmp_path / "README.md"
    mine = EvalResult("unconditional-image-generation", "custom", "elsewhere", "fid", 7.5)
    data = ModelCardData(license="mit", model_name="mine", eval_results=[mine])
    card.write_text(f"---\n{data.to_yaml()}\n---\n# mine\n")
    begin = [
        "toy-church",
        "--data",
        zips / "real.zip",
        "--metrics",
        "fid,pr,swd",
        "--extractor",
        "random-conv",
    ]
    more = ["--num", "64", "--truncation", "0.7", "--output", tmp_path / "report.json", "--update-card", card]
    code, said = run(*begin, *more)
    assert code == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["generated"] | {"num": 64, "first_seed": 0, "truncation_psi": 0.7} == report["generated"]
    assert report["real"]["pictures"] == COUNT and len(report["real"]["fingerprint"]) == 64
    assert all(len(digest) == 64 for digest in report["model"]["weights"].values())
    assert report["versions"]["torch"] and report["extractor"]["name"] == "random-conv"
    assert "| toy-church | 0.7 | 64 |" in said and "fid[random-conv]" in said
    written = ModelCard.load(card).data.eval_results
    assert [r.metric_value for r in written if r.dataset_name == "elsewhere"] == [7.5]  # others' stay
    results = {r.metric_type: r for r in written if r.dataset_name != "elsewhere"}
    assert "features" not in results["swd"].metric_args["protocol"]  # it has no network
    assert "truncation 0.7" in results["fid-random-conv"].metric_args["protocol"]
    assert report["metrics"]["pr"] == {"k": 3} and report["versions"]["pillow"]
    assert results["swd"].metric_value == pytest.approx(report["scores"]["swd"], abs=0.01)
    assert "random-conv" in results["fid-random-conv"].metric_name and "fid" not in results
    assert "# mine" in card.read_text()
    assert run(*begin, *more)[0] == 0  # again: the figures are replaced
    assert len(ModelCard.load(card).data.eval_results) == len(written)
    assert run(*begin, *more, "--truncation", "0.6")[0] == 0  # another protocol stands beside it
    assert len(ModelCard.load(card).data.eval_results) == 2 * len(written) - 1


def test_a_sweep_draws_its_curve_and_neighbours_a_sheet(zips, cache, tmp_path):
    begin = ["toy-church", "--data", zips / "real.zip", "--metrics", "fid,pr", "--extractor", "random-conv"]
    figure, sheet = tmp_path / "curve.png", tmp_path / "near.png"
    more = ["--num", "48", "--sweep", "truncation=0.5:1.0:0.25", "--figure", figure, "--neighbours", sheet]
    code, said = run(*begin, *more, "--seeds", "0-2", "--json")
    assert code == 0, said
    assert PIL.Image.open(figure).size == (840, 540)
    assert PIL.Image.open(sheet).size[0] > 6 * 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metrics", "fud"], "the metric is 'fud'; allowed: fid"),
        (["--metrics", "fid,"], "has an empty name"),
        (["--sweep", "truncation=1:0.5:0.1"], "example: truncation=0.5:1.0:0.1"),
        (["--figure", "x.png"], "--figure is the curve of a sweep"),
        (["--num", "8", "--first-seed", str(2**32 - 4)], "seeds go up to"),
        (["--output", "/dev/null/report.json"], "/dev/null"),
        (["--neighbours", "."], "'.' is a folder; name a file"),
        (
            ["--metrics", "swd", "--neighbours", "near.png"],
            "neighbours need real pictures (--data) and a metric",
        ),
        (["--update-card", "nowhere"], "there is no card 'nowhere'"),
        (["--output", "a.json", "--stats", "./a.json"], "is named twice"),
        (["--neighbours", "near.png", "--seeds", "0-64"], "a row per seed: 65; allowed: 64"),
        (["--sweep", "truncation=0:1:0." + 310 * "0" + "1"], "is no sweep of 1 to 100 values"),
        (["--sweep", f"truncation={'9' * 400}:{'9' * 400}:1"], "is no sweep of 1 to 100 values"),
        (["--update-card", ".", "--sweep", "truncation=0.5:1:0.5"], "a card states one measurement"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_drawn(zips, cache, monkeypatch, arguments, says):
    monkeypatch.setattr(Evaluation, "score", lambda *_: pytest.fail("it began to measure"))
    data = ["--data", zips / "real.zip", "--extractor", "random-conv"]
    code, said = run("toy-church", *data, *arguments)
    assert code in (1, 2) and says in " ".join(said.split()), said


def test_data_is_needed(cache):
    code, said = run("toy-church", "--extractor", "random-conv", "--num", "16")
    assert code == 1 and "name them with --data" in said


def test_sweeps_have_both_ends():
    assert parse_sweep("truncation=0.5:1.0:0.1") == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def peak_of(count, zips):
    """Peak resident memory, in MiB, of a fresh process that draws and measures so many pictures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = create_model("stylenat-tiny").eval()
    one = Evaluation(("fid", "is"), real_of(zips), load_extractor("random-conv"), Processes(), quiet=True)
    one.score(drawn_by(generator, range(count)), count)
    return resident_peak()


def test_memory_does_not_grow_with_the_number_of_pictures(zips, cache):
    few, many = (in_fresh_process(peak_of, count, zips) for count in (320, 1600))
    assert many < few + 12  # the pictures alone, as numbers, would be 15 MiB more in float32
