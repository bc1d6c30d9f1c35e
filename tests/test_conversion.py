"""An original checkpoint file becomes a pipeline folder with the same pictures, or one clear sentence."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import conversion.convert
from conversion.cli import app
from conversion.containers import read_checkpoint
from conversion.convert import convert
from stylenat_hub.errors import InputError
from stylenat_hub.models.discriminator import WaveletDiscriminator
from stylenat_hub.pipeline import GANPipeline
from stylenat_hub.registry import FAMILIES

ROOT = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens"
NAMES = ["stylenat_legacy_ffhq_style_64", "stylenat_hydra_church_style_64", "stylenat_mixed_first_public_32"]
MIXED = GOLDENS / "stylenat_mixed_first_public_32.pt"
PLAIN = GOLDENS / "stylenat_hydra_church_style_64.pt"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, message, code=1):
    """One line, no traceback, the exit code."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    if code == 1:
        assert result.output.startswith("error: ")
        assert result.output.count("\n") == 1
    assert message in " ".join(result.output.split())


@pytest.fixture
def content():
    return torch.load(PLAIN, weights_only=True)


@pytest.fixture
def generator(content):
    return content["state_dicts"]["g_ema"]


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_checkpoint_converts_to_the_recorded_picture(name, tmp_path):
    report = convert(GOLDENS / f"{name}.pt", tmp_path / "out")
    generator = GANPipeline.from_pretrained(tmp_path / "out").generator.eval()
    recorded = load_file(GOLDENS / f"{name}.io.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(generator.mapping(recorded["z"])[:, 0], recorded["w"], atol=1e-5, rtol=0)
        # 5e-5: the float32 difference between two orders of summation that the recording allows for.
        torch.testing.assert_close(generator(recorded["z"]), recorded["image"], atol=5e-5, rtol=0)
    assert report.parameters == sum(p.numel() for p in generator.parameters())
    text = str(report)
    assert report.layout in text and f"{report.parameters:,}" in text
    assert [row["px"] for row in report.levels] == [4 * 2**i for i in range(len(report.levels))]
    for row in report.levels:  # its line, whatever the widths of the columns
        assert f"{row['px']} {row['channels']} {row['heads']} " in " ".join(text.split())


def test_the_mean_style_is_that_of_many_latents(tmp_path):
    convert(MIXED, tmp_path / "out")
    generator = GANPipeline.from_pretrained(tmp_path / "out").generator
    latents = torch.randn(10_000, generator.z_dim, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        styles = generator.mapping(latents)[:, 0].double()
    # Two independent means of 10,000 differ by sqrt(2 / 10,000) of the spread; six times that is certain.
    assert ((styles.mean(0) - generator.w_avg).abs() < 6 * styles.std(0) * 0.0142).all()


def with_mean(monkeypatch, mean):
    """StyleNAT as if its originals recorded their mean style."""
    known = FAMILIES["stylenat"]
    other = dataclasses.replace(
        known, convert_state_dict=lambda state: {**known.convert_state_dict(state), "w_avg": mean}
    )
    monkeypatch.setattr(conversion.convert, "FAMILIES", {"stylenat": other})


def test_a_mean_style_that_the_original_recorded_is_kept(tmp_path, monkeypatch):
    mean = torch.linspace(-1, 1, 48)
    with_mean(monkeypatch, mean)
    convert(PLAIN, tmp_path / "out", skip_discriminator=True)
    assert torch.equal(GANPipeline.from_pretrained(tmp_path / "out").generator.w_avg, mean)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["w_avg"] == {"known": True}


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (
            torch.full((48,), torch.nan),
            "the mean style 'w_avg' (name after conversion) holds NaN or infinite",
        ),
        (torch.zeros(47), "'w_avg' (name after conversion) has the shape [47]"),
    ],
)
def test_a_mean_style_that_cannot_be_one_is_refused(mean, message, tmp_path, monkeypatch):
    with_mean(monkeypatch, mean)
    refused(run(PLAIN, "--output", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_what_is_left_in_the_file_is_named(tmp_path, content):
    path = saved(tmp_path / "more.pt", {**content, "latent_avg": torch.zeros(48), 7: torch.zeros(1)})
    report = convert(path, tmp_path / "out", skip_discriminator=True)
    assert report.left == ("7", "latent_avg", "lr_dicts", "optim_dicts")
    assert "in the file and not converted: '7', 'latent_avg', 'lr_dicts', 'optim_dicts'" in str(report)
    bare = saved(tmp_path / "bare.pt", content["state_dicts"]["g_ema"])
    assert read_checkpoint(bare).left == ()


def test_equal_input_gives_equal_bytes(tmp_path):
    for folder in ("one", "two"):
        convert(MIXED, tmp_path / folder)
    files = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(files) >= 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_the_record_says_where_the_weights_come_from_and_names_no_folder(tmp_path):
    convert(PLAIN, tmp_path / "out")
    text = (tmp_path / "out" / "conversion.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["source"]["file"] == PLAIN.name
    assert record["source"]["sha256"] == hashlib.sha256(PLAIN.read_bytes()).hexdigest()
    assert record["weights"] == "g_ema"
    assert record["recorded"]["eval_info"]["fid @ 1.60M imgs"] == 3.4
    assert str(tmp_path) not in text and str(GOLDENS) not in text


def test_the_discriminator_becomes_a_model(tmp_path):
    assert convert(PLAIN, tmp_path / "out").discriminator
    discriminator = WaveletDiscriminator.from_pretrained(tmp_path / "out")
    recorded = load_file(GOLDENS / f"{PLAIN.stem}.io.safetensors")
    with torch.inference_mode():
        logits = discriminator(recorded["d_input"])
    torch.testing.assert_close(logits, recorded["d_logits_eval"], atol=2e-6, rtol=0)


def test_the_discriminator_can_be_left_out(tmp_path):
    assert not convert(PLAIN, tmp_path / "out", skip_discriminator=True).discriminator
    assert not (tmp_path / "out" / "discriminator").exists()


def test_the_raw_generator_can_be_taken_instead_of_the_average(tmp_path, content):
    for weights in ("g", "g_ema"):
        convert(PLAIN, tmp_path / weights, weights=weights, skip_discriminator=True)
        generator = GANPipeline.from_pretrained(tmp_path / weights).generator
        assert torch.equal(generator.constant, content["state_dicts"][weights]["input.input"])


def test_dilations_can_come_from_a_config_file(tmp_path, generator):
    bare = saved(tmp_path / "bare.pt", generator)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"dilations": [[1], [1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]}))
    refused(run(bare, "--output", tmp_path / "out"), "nothing states the dilations")
    result = run(bare, "--output", tmp_path / "out", "--config", config)
    assert result.exit_code == 0, result.output
    assert "bare state dict" in result.output and "1 2 4 8" in result.output
    config.write_text("{")
    refused(run(bare, "--output", tmp_path / "two", "--config", config), "is not JSON")
    refused(
        run(bare, "--output", tmp_path / "two", "--config", tmp_path / "none"), "cannot read the config file"
    )


def test_a_wrong_preset_names_the_level(tmp_path):
    result = run(PLAIN, "--output", tmp_path / "out", "--preset", "church-256")
    refused(result, "level 5 (128 px)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda g: g["layers.2.blocks.0.mlp.fc1.bias"].fill_(torch.nan),
            "'layers.2.blocks.0.mlp.fc1.bias' holds NaN",
        ),
        (lambda g: g.update(extra=torch.ones(1)), "'extra' that a StyleNAT generator does not have"),
        (lambda g: g.pop("to_rgbs.1.bias"), "lacks 'to_rgb.1.bias'"),
        (
            lambda g: g.update({"to_rgbs.1.bias": torch.ones(2)}),
            "'to_rgb.1.bias' (name after conversion) has the shape",
        ),
        (lambda g: [g.pop(k) for k in list(g) if k != "input.input"], "another project"),
        (lambda g: g.update({"style.8.weight": torch.full((48, 48), 3e38)}), "picture holds NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(
    change, message, tmp_path, content, generator
):
    change(generator)
    path = saved(tmp_path / "bad.pt", content)
    refused(run(path, "--output", tmp_path / "out"), message)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.pt"]


def test_a_missing_average_offers_the_raw_generator(tmp_path, content):
    del content["state_dicts"]["g_ema"]
    path = saved(tmp_path / "raw.pt", content)
    refused(run(path, "--output", tmp_path / "out"), "no 'g_ema' weights (it has 'g', 'd'); pass --weights g")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["final_conv.1.bias"].fill_(torch.inf), "'final_conv.1.bias' holds NaN or infinite"),
        (lambda d: d.clear(), "--skip-discriminator"),
    ],
)
def test_a_bad_discriminator_is_an_error_unless_left_out(change, message, tmp_path, content):
    change(content["state_dicts"]["d"])
    path = saved(tmp_path / "bad.pt", content)
    refused(run(path, "--output", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()
    assert run(path, "--output", tmp_path / "out", "--skip-discriminator").exit_code == 0


def test_a_discriminator_of_another_size_is_an_error_unless_left_out(tmp_path, content):
    content["state_dicts"]["d"] = read_checkpoint(MIXED).network("d")
    path = saved(tmp_path / "two.pt", content)
    refused(
        run(path, "--output", tmp_path / "out"),
        "draws 64 x 64 px, but the discriminator beside it judges 32 x 32 px; they are not of one training "
        "run: leave it out (--skip-discriminator)",
    )
    assert not (tmp_path / "out").exists()
    assert run(path, "--output", tmp_path / "out", "--skip-discriminator").exit_code == 0


def test_only_the_named_family_is_tried(tmp_path, monkeypatch):
    assert convert(MIXED, tmp_path / "out", family="stylenat").family == "stylenat"
    refused(run(MIXED, "--output", tmp_path / "two", "--family", "stylnat"), "did you mean 'stylenat'?")
    refused(
        run(MIXED, "--output", tmp_path / "two", "--family", "zzz"),
        f"there are: {', '.join(sorted(FAMILIES))}",
    )
    known = conversion.convert.FAMILIES["stylenat"]
    other = dataclasses.replace(known, name="other", title="Other", recognise=lambda state: False)
    monkeypatch.setattr(conversion.convert, "FAMILIES", {"stylenat": known, "other": other})
    refused(
        run(MIXED, "--output", tmp_path / "two", "--family", "other"),
        f"is not a checkpoint of Other, but of {known.title}; pass --family stylenat",
    )


def test_a_pickle_that_runs_code_is_refused_and_creates_nothing(tmp_path):
    marker = tmp_path / "created"

    class Evil:
        def __reduce__(self):
            return open, (str(marker), "w")

    path = saved(tmp_path / "evil.pt", {"g_ema": {}, "args": Evil()})
    refused(run(path, "--output", tmp_path / "out"), "nothing in it was executed")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path):
    (tmp_path / "text.pt").write_text("hello\n")
    refused(run(tmp_path / "text.pt", "--output", tmp_path / "out"), "is not a PyTorch checkpoint")
    refused(run(tmp_path / "none.pt", "--output", tmp_path / "out"), "there is no file")


def test_an_unknown_published_name_offers_the_nearest(tmp_path):
    refused(run("--from", "stylenat-ffhq-265", "--output", tmp_path / "out"), "stylenat-ffhq-256")
    refused(run("--from", "stylenat-church-256", "--output", tmp_path / "out"), "published no file")


def test_a_published_original_is_downloaded_and_converted(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("conversion.download.download", lambda url: asked.append(url) or PLAIN)
    result = run("--from", "stylenat-ffhq-1024", "--output", tmp_path / "out")
    # The file in its place is another model, which the published shape must not let pass.
    refused(result, "level 5 (128 px) is not in the tensors")
    assert asked == ["https://shi-labs.com/projects/stylenat/checkpoints/FFHQ1024_700k.pt"]


def test_only_the_two_generators_can_be_named(tmp_path):
    with pytest.raises(InputError, match=r"'g_ema' .* or 'g'"):
        convert(MIXED, tmp_path / "out", weights="d")
