"""HiT as a decoder, and VQ-HiT: shapes, gradients through the codes, saving, learning, the run's command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from stylenat_hub import HiTDecoder, HiTDecoderConfig, HiTGenerator, VQHiT, VQHiTConfig
from stylenat_hub.errors import ConfigError, InputError, WeightsError
from stylenat_hub.models.hit.config import HiTConfig
from training import checkpoints, reconstruct, toy_churches
from training.export import export
from training.recipes import Recipe
from training.steps import Shard


def model(**fields):
    torch.manual_seed(0)
    return VQHiT(VQHiTConfig.preset("tiny", **fields))


def pictures(count=4, seed=1):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_decoder_takes_features_of_its_grid():
    torch.manual_seed(0)
    decoder = HiTDecoder(HiTDecoderConfig.preset("tiny")).train()
    features = torch.randn(2, 16, 8, 8)
    images = decoder(features)
    assert images.shape == (2, 3, 32, 32) and images.isfinite().all()
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
    assert len(decoder.statistics()) > 0  # batch norm, as the generator's


@pytest.mark.parametrize("grid", [4, 16])
def test_the_grid_is_where_the_stages_begin(grid):
    stages = (32 // grid).bit_length()
    config = HiTDecoderConfig(
        32, (1,) * stages, (16,) * stages, (2,) * stages, (2, *((None,) * (stages - 1))), grid=grid
    )
    decoder = HiTDecoder(config)
    assert [stage.size for stage in decoder.stages] == [grid * 2**i for i in range(stages)]
    assert decoder(torch.randn(1, 256, grid, grid)).shape == (1, 3, 32, 32)


def test_the_stages_are_the_generators():
    """With the same weights, tokens and embedding, to the bit."""
    torch.manual_seed(0)
    generator = HiTGenerator(HiTConfig.preset("tiny")).eval()
    decoder = HiTDecoder(HiTDecoderConfig.preset("tiny")).eval()
    decoder.stages.load_state_dict(generator.stages.state_dict())
    z, features = torch.randn(2, 32), torch.randn(2, 16, 8, 8)
    tokens = generator.stem(z).unflatten(1, (8, 8, -1))
    embedding = generator.embedding(z)
    decoder.stem.forward = lambda x: tokens
    decoder.embedding.forward = lambda x: embedding
    assert torch.equal(decoder(features), generator(z))


def test_each_feature_has_its_place():
    """Without attention to others (its output is 0) a feature reaches the pixels above it, and no others."""
    decoder = HiTDecoder(HiTDecoderConfig.preset("tiny")).eval()
    for name, parameter in decoder.named_parameters():
        if "attn.proj" in name:
            parameter.data.zero_()
    features = torch.zeros(1, 16, 8, 8)
    changed = features.clone()
    changed[:, :, 2, 5] = 1
    difference = (decoder(changed) - decoder(features)).abs().sum(dim=(0, 1)) > 0
    assert difference[8:12, 20:24].all() and difference.sum() == 16


def test_indices_make_the_round_trip():
    vq, x = model().eval(), pictures()
    vq.seed_codebook(x)
    indices = vq.encode(x)
    assert indices.shape == (4, 8, 8) and indices.dtype == torch.int64 and len(indices.unique()) > 16
    codes = vq.lookup(indices)
    assert torch.equal(vq.quantize(codes)[2][2], indices)
    # The straight-through sum z + (code - z) is rounded, its codes are not.
    torch.testing.assert_close(vq.decode(indices), vq(x).images, rtol=0, atol=1e-5)
    assert torch.equal(vq.decode(indices), vq.decode(codes))
    assert torch.equal(vq(x).indices, indices)


def test_gradients_reach_encoder_codebook_and_decoder():
    vq = model().train()
    out = vq(pictures())
    (out.images.square().mean() + out.loss).backward()
    for name, parameter in vq.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    used = out.indices.unique()
    moved = vq.quantize.embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(moved, used)


def test_gradients_pass_the_codes_straight_through():
    vq = model().train()
    features = vq.features(pictures()).detach().requires_grad_()
    codes, loss, _ = vq.quantize(features)
    weights = torch.randn_like(codes)
    (codes * weights).sum().backward(retain_graph=True)
    assert torch.equal(features.grad, weights)
    assert vq.quantize.embedding.weight.grad is None  # only the codebook's loss moves codes
    loss.backward()
    assert vq.quantize.embedding.weight.grad.abs().sum() > 0


def test_commitment_weighs_the_encoders_way():
    """The encoder's gradient of the codebook's loss is 2 * commitment * (z - code) / elements."""
    vq = model(commitment=0.5)
    features = vq.features(pictures()).detach().requires_grad_()
    codes, loss, _ = vq.quantize(features)
    loss.backward()
    wanted = 2 * 0.5 * (features - codes).detach() / features.numel()
    torch.testing.assert_close(features.grad, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_codes_are_not_placed_by_a_picture_that_is_not_finite(value):
    vq, x = model(), pictures()
    before = vq.quantize.embedding.weight.clone()
    x[1, 2, 3, 4] = value
    for unused in (False, True):
        with pytest.raises(InputError, match="hold NaN or infinite values"):
            vq.seed_codebook(x, unused=unused)
    assert torch.equal(vq.quantize.embedding.weight, before)


@pytest.mark.parametrize("cls", [HiTDecoder, VQHiT])
def test_saves_and_loads_to_the_bit(cls, tmp_path):
    torch.manual_seed(0)
    saved = cls(cls.config_class.preset("tiny")).eval()
    saved.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert loaded.typed_config == saved.typed_config
    own = saved.state_dict()
    assert own.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())


def test_unused_codes_are_found_again():
    vq, x = model(), pictures(8)
    vq.seed_codebook(x)
    codes = vq.quantize.embedding.weight
    with torch.no_grad():
        codes[:10] += 1e-3  # so that no place says just that
        codes[10:] = 1e3  # nowhere near
    kept = codes[vq.encode(x).unique()].clone()
    assert len(kept) <= 10
    vq.seed_codebook(x, unused=True)
    assert codes.abs().max() < 100 and len(vq.encode(x).unique()) > 100
    assert all((codes == row).all(1).any() for row in kept)


def test_the_error_falls():
    vq, x = model().train(), torch.stack([torch.full((3, 32, 32), v) for v in (-0.8, -0.2, 0.3, 0.9)])
    x[:, 0, :16] *= -1
    vq.seed_codebook(x)
    optimizer = torch.optim.Adam(vq.parameters(), 1e-3)  # at three times that machines end far apart
    errors = []
    for _ in range(60):
        out = vq(x)
        error = (out.images - x).abs().mean()
        optimizer.zero_grad()
        (error + out.loss).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda vq: vq(torch.zeros(1, 3, 16, 16)), r"\[batch, 3, 32, 32\]"),
        (lambda vq: vq(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "real numbers"),
        (lambda vq: vq.decode(torch.zeros(1, 16, 4, 4)), r"\[batch, 16, 8, 8\]"),
        (lambda vq: vq.decode(torch.zeros(1, 4, 8, dtype=torch.long)), r"\[batch, 8, 8\]"),
        (lambda vq: vq.decode(torch.full((1, 8, 8), 256)), "256; the codebook has 0 to 255"),
        (lambda vq: vq.decode(torch.full((1, 8, 8), -1)), "from -1"),
        (lambda vq: vq.decode(torch.zeros(1, 8, 8, dtype=torch.bool)), "whole numbers"),
        (lambda vq: vq.decoder(torch.zeros(1, 16, 8, 8, dtype=torch.long)), "real numbers"),
        (lambda vq: vq(torch.zeros(0, 3, 32, 32)), r"\(0, 3, 32, 32\) .* at least one"),
        (lambda vq: vq.encode(torch.zeros(0, 3, 32, 32)), "at least one"),
        (lambda vq: vq.seed_codebook(torch.zeros(0, 3, 32, 32)), "at least one"),
        (lambda vq: vq.decode(torch.zeros(0, 16, 8, 8)), r"\(0, 16, 8, 8\) .* at least one"),
        (lambda vq: vq.decode(torch.zeros(0, 8, 8, dtype=torch.long)), r"\(0, 8, 8\) .* at least one"),
    ],
)
def test_bad_input_is_told(call, says):
    with pytest.raises(InputError, match=says):
        call(model())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"grid": 6}, "grid is 6"),
        ({"grid": 64}, "resolution is 32"),
        ({"codes": 1}, "codes is 1"),
        ({"encoder_channels": (16, 32)}, "3 multiples of 4"),
        ({"encoder_channels": (16, 32, 30)}, "3 multiples of 4"),
        ({"commitment": 0}, "commitment is 0"),
        ({"feature_dim": 0}, "feature_dim is 0"),
    ],
)
def test_bad_configs_are_told(fields, says):
    with pytest.raises(ConfigError, match=says):
        VQHiTConfig.preset("tiny", **fields)


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_step_moves_what_it_should(adversarial):
    """Without an adversarial loss the discriminator stays."""
    config = VQHiTConfig.preset("tiny")
    recipe = Recipe.preset("hit-tiny", **reconstruct.RECIPE, batch=4)
    players = reconstruct.new_players(config, recipe)
    before = {name: p.clone() for name, p in players.discriminator.named_parameters()}
    codes = players.generator.quantize.embedding.weight.clone()
    game = reconstruct.ReconstructionGame(recipe, players, adversarial=adversarial)
    x = pictures()
    scalars = game.step([Shard(x, x, x)], 0, penalise=True)
    assert all(value.isfinite() for value in scalars.values())
    same = [torch.equal(p, before[name]) for name, p in players.discriminator.named_parameters()]
    assert all(same) if adversarial == 0 else not any(same)
    assert not torch.equal(players.generator.quantize.embedding.weight, codes)


def _run(data, output, *more):
    arguments = ["--data", data, "--output", output, "--batch", "8", "--every", "16", "--samples", "3", *more]
    done = CliRunner().invoke(reconstruct.app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    return VQHiT.from_pretrained(output / "autoencoder").state_dict()


@pytest.fixture(scope="module")
def churches(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "churches.zip"
    assert (
        CliRunner()
        .invoke(toy_churches.app, ["--count", "16", "--size", "32", "--output", str(path)])
        .exit_code
        == 0
    )
    return path


@pytest.mark.parametrize("adversarial", [0, 0.1])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(churches, tmp_path, adversarial):
    whole = _run(churches, tmp_path / "whole", "--images", 32, "--adversarial", adversarial)
    _run(churches, tmp_path / "parts", "--images", 16, "--adversarial", adversarial)
    again = _run(churches, tmp_path / "parts", "--images", 32, "--resume", "latest")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert {"eval_l1", "eval_psnr", "eval_codes"} <= {
        name for row in rows if row["images"] == 32 for name in row
    }
    assert (tmp_path / "parts" / "samples" / "images-000000032.png").is_file()


def test_originals_are_above_their_reconstructions():
    originals = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    sheet = reconstruct.pairs(originals, originals + 100)
    assert sheet.size == (16, 8)
    assert [sheet.getpixel((2, y))[0] for y in (0, 2, 4, 6)] == [1, 101, 9, 109]
    assert sheet.getpixel((15, 7)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adversarial": "much"}, "has adversarial = 'much'; allowed: a number from 0"),
        ({"autoencoder": {"resolution": 1 << 40}}, "resolution"),
        ({"seconds": None}, "has seconds = None"),
    ],
)
def test_a_checkpoint_that_lies_is_not_gone_on_from(churches, tmp_path, changes, says):
    _run(churches, tmp_path / "run", "--images", 16)
    folder = checkpoints.newest_checkpoint(tmp_path / "run").path
    state = json.loads((folder / "state.json").read_text())
    if "autoencoder" in changes:
        changes = {"autoencoder": {**state["autoencoder"], **changes["autoencoder"]}}
    state.update(changes)
    state["sha256"] = checkpoints._state_hash(state)
    (folder / "state.json").write_text(json.dumps(state))
    arguments = ["--data", churches, "--output", tmp_path / "run", "--images", 32, "--resume", "latest"]
    done = CliRunner().invoke(reconstruct.app, [str(a) for a in arguments])
    assert done.exit_code == 1 and says in done.output and "Traceback" not in done.output


def test_weights_that_do_not_fit_the_checkpoints_config_are_named(churches, tmp_path):
    _run(churches, tmp_path / "run", "--images", 16)
    found = checkpoints.newest_checkpoint(tmp_path / "run")
    tensors = {part: dict(group) for part, group in found.tensors.items()}
    tensors["average"].popitem()
    with pytest.raises(WeightsError, match=r"average\.safetensors does not fit its config: '.*' is missing"):
        reconstruct._stored(dataclasses.replace(found, tensors=tensors), {})


@pytest.fixture(scope="module")
def saved(churches, tmp_path_factory):
    """A run of 16 images with a weight that is nobody's default."""
    output = tmp_path_factory.mktemp("saved") / "run"
    _run(churches, output, "--images", 16, "--adversarial", 0.3)
    return output


def test_unused_codes_start_again_in_the_first_half_of_a_run(churches, tmp_path, monkeypatch):
    seeded, seed = [], VQHiT.seed_codebook
    monkeypatch.setattr(reconstruct, "RESTART_EVERY", 16)
    monkeypatch.setattr(
        VQHiT,
        "seed_codebook",
        lambda self, x, unused=False: seeded.append(unused) or seed(self, x, unused=unused),
    )
    _run(churches, tmp_path / "run", "--images", 64)
    assert seeded == [False, False, True, True]  # model and average at 0; then at 16 and 32 of 64 images


def test_the_loss_weighs_the_discriminator_as_asked(saved):
    rows = [json.loads(line) for line in (saved / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "adversarial" in row]
    wanted = row["l1"] + row["codebook"] + 0.3 * row["adversarial"]
    assert row["g_loss"] == pytest.approx(wanted, abs=1e-5) and abs(row["adversarial"]) > 1e-2


def test_a_generators_checkpoint_is_not_gone_on_from(saved):
    found = checkpoints.newest_checkpoint(saved)
    state = {name: value for name, value in found.state.items() if name != "autoencoder"}
    with pytest.raises(InputError, match=r"is of a generator.*training\.train"):
        reconstruct._stored(dataclasses.replace(found, state=state), {})


def test_the_other_commands_name_the_one_for_its_checkpoints(saved, tmp_path):
    for load in (lambda: checkpoints.find_checkpoint(saved), lambda: export(saved, tmp_path / "model")):
        with pytest.raises(ConfigError, match=r"is of VQ-HiT.*training\.reconstruct --resume"):
            load()


def test_several_processes_are_refused(churches, tmp_path, monkeypatch):
    two = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(reconstruct.train, "make_accelerator", lambda *_: two)
    with pytest.raises(InputError, match="trains on one process"):
        reconstruct.reconstruct(str(churches), tmp_path / "run")


def test_a_resumed_run_keeps_its_networks_and_weight(churches, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    before = checkpoints.newest_checkpoint(tmp_path / "run").path
    for asked, says in (
        ({"preset": "b-256"}, "other networks than the preset 'b-256'; leave out --preset"),
        ({"adversarial": 0.2}, "adversarial = 0.3, not 0.2; leave out --adversarial"),
        ({"adversarial": 0.0}, "adversarial = 0.3, not 0.0"),
    ):
        with pytest.raises(ConfigError, match=says):
            reconstruct.reconstruct(str(churches), tmp_path / "run", resume="latest", **asked)
        assert checkpoints.newest_checkpoint(tmp_path / "run").path == before
    _run(
        churches,
        tmp_path / "run",
        "--images",
        32,
        "--resume",
        "latest",
        "--preset",
        "tiny",
        "--adversarial",
        0.3,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "freeze_d=2"], "freeze_d changes nothing in this training (set --preset); leave it out"),
        (["--set", "shape=b-256"], "shape changes nothing"),
        (["--set", "augment=ada"], "augment changes nothing in this training (without --adversarial"),
        (["--adversarial", "inf"], "adversarial is inf; allowed: a finite number from 0"),
        (["--resume", "best"], "resume is 'best'; allowed: latest or auto"),
        (["--resume", "latest"], "there is no checkpoint to go on from"),
    ],
)
def test_what_would_change_nothing_is_refused(churches, tmp_path, arguments, says):
    line = ["--data", churches, "--output", tmp_path / "run", "--images", 16, *arguments]
    done = CliRunner().invoke(reconstruct.app, [str(a) for a in line])
    assert done.exit_code == 1 and says in done.output
    assert not list((tmp_path / "run").glob("*.jsonl"))
