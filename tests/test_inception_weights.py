"""The file of the FID network's weights: found, fetched, read, and refused where it is another.

The real one is not here: files are made with random weights in the layout of pytorch-fid's.
"""

import hashlib
import http.server
import os
import pickle
import threading
from contextlib import contextmanager

import pytest
import torch
from inception_reference import NAME, blank_weights, fixed_images, layout, random_weights
from safetensors.torch import save_file

from stylenat_hub.errors import UnknownModelError, UnsafeCheckpointError, WeightsError
from stylenat_hub.metrics import inception_weights
from stylenat_hub.metrics.inception import InceptionExtractor


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights as pytorch-fid's kind of file, the older kind of it, and safetensors."""
    state = random_weights()
    folder = tmp_path_factory.mktemp("inception")
    torch.save(state, folder / "weights.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def extractor(files):
    return InceptionExtractor(files / "weights.safetensors")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine that has the weights nowhere."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth"])
def test_the_same_weights_in_any_file_are_the_same(files, extractor, name):
    other = InceptionExtractor(files / name)
    assert other.protocol == extractor.protocol
    digest = hashlib.sha256((files / name).read_bytes()).hexdigest()
    assert other.weights_file["file"] == name and other.weights_file["sha256"] == digest
    for key, tensor in extractor.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[key])


def test_the_counters_of_norms_are_passed_over(tmp_path):
    counters = {f"{name}.bn.num_batches_tracked": torch.tensor(7) for name in layout()}
    torch.save(blank_weights() | counters, tmp_path / "counted.pth")
    torch.save(blank_weights(), tmp_path / "plain.pth")
    counted, plain = (InceptionExtractor(tmp_path / name) for name in ("counted.pth", "plain.pth"))
    assert counted.protocol == plain.protocol


def changed(change):
    state = blank_weights()
    change(state)
    return state


DAMAGED = [
    (lambda s: s.pop("Mixed_6b.branch_pool.bn.bias"), r"1 missing \(Mixed_6b\.branch_pool\.bn\.bias\)"),
    (lambda s: s.update({"AuxLogits.fc.weight": torch.ones(2)}), r"1 unexpected \(AuxLogits\.fc\.weight\)"),
    (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048)}), r"'fc\.weight' .* \[1000, 2048\]"),
    (lambda s: s.update({"fc.bias": torch.zeros(1008).half()}), r"'fc\.bias' .* torch\.float16"),
    (lambda s: s.update({"fc.bias": torch.full((1008,), torch.nan)}), r"'fc\.bias' .* NaN"),
    (lambda s: s.update({"epoch": 3}), "other things than tensors"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_other_tensors_are_refused_by_name(change, message, tmp_path):
    torch.save(changed(change), tmp_path / "changed.pth")
    with pytest.raises(WeightsError, match=message):
        InceptionExtractor(tmp_path / "changed.pth")


class Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_executed(zipped, tmp_path):
    evil = Evil()
    evil.path = str(tmp_path / "executed")
    torch.save({"fc.bias": evil}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeCheckpointError, match="nothing of it was executed"):
        InceptionExtractor(tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(evil))
    with pytest.raises((UnsafeCheckpointError, WeightsError)):
        InceptionExtractor(tmp_path / "bare.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth", "weights.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 100_000])
def test_a_cut_file_is_refused(files, name, keep, tmp_path):
    with (files / name).open("rb") as file:
        (tmp_path / name).write_bytes(file.read(keep))
    with pytest.raises(WeightsError, match="cut off, damaged or no file of weights") as caught:
        InceptionExtractor(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_page_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>\n<html>sign in</html>" * 100)
    with pytest.raises(WeightsError, match="no file of weights"):
        InceptionExtractor(tmp_path / "page.pth")


def test_the_hash_in_a_name_is_checked(tmp_path):
    torch.save(blank_weights(), tmp_path / NAME)
    with pytest.raises(WeightsError, match=r"its name says 6726825d; download it again from https://"):
        InceptionExtractor(tmp_path / NAME)
    digest = hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest()
    good = (tmp_path / NAME).rename(tmp_path / f"weights-{digest[:8]}.pth")
    assert InceptionExtractor(good).weights_file["sha256"] == digest


def test_missing_weights_say_which_file_and_where_to_put_it(nowhere):
    with pytest.raises(WeightsError) as caught:
        InceptionExtractor()
    place = nowhere / "hf" / "stylenat_hub" / "metrics" / NAME
    for part in (NAME, f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"):
        assert part in str(caught.value)
    assert str(place) in str(caught.value) and "'download'" in str(caught.value)
    with pytest.raises(WeightsError, match=r"there is no file 'no/such\.pth'.*6726825d\.pth"):
        InceptionExtractor("no/such.pth")


@pytest.mark.parametrize(
    "place",
    [
        f"hf/stylenat_hub/metrics/{NAME}",
        f"torch/checkpoints/{NAME}",
        "torch/checkpoints/weights-inception-2015-12-05-6726825d.pth",
    ],
)
def test_the_known_places_are_looked_in(place, nowhere, monkeypatch):
    monkeypatch.setattr(inception_weights, "_check_hash", lambda *_: None)  # this file has another
    (nowhere / place).parent.mkdir(parents=True)
    torch.save(blank_weights(), nowhere / place)
    assert InceptionExtractor().weights_file["file"] == (nowhere / place).name


@contextmanager
def served(content, status=200, claims=None):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(claims or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_download_is_kept_if_its_hash_is_right(nowhere, monkeypatch):
    torch.save(blank_weights(), nowhere / "own.pth")
    content = (nowhere / "own.pth").read_bytes()
    name = f"pt_inception-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(inception_weights, "FILE", name)
    with served(content) as url:
        monkeypatch.setattr(inception_weights, "URL", url + name)
        first = InceptionExtractor("download")
    kept = nowhere / "hf" / "stylenat_hub" / "metrics" / name
    assert kept.read_bytes() == content
    # The server is gone: it is not fetched again, and found without being named.
    for again in (InceptionExtractor("download"), InceptionExtractor()):
        assert again.protocol == first.protocol


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"content": b"something else"}, "its name says 6726825d"),
        ({"content": b"half", "claims": 8}, "its name says 6726825d|cannot be fetched"),
        ({"content": b"", "status": 404}, "cannot be fetched .*Not Found"),
    ],
)
def test_a_bad_download_leaves_nothing(answer, message, nowhere, monkeypatch):
    with served(**answer) as url:
        monkeypatch.setattr(inception_weights, "URL", url + NAME)
        with pytest.raises(WeightsError, match=message):
            InceptionExtractor("download")
    assert not [path for path in (nowhere / "hf").rglob("*") if path.is_file()]


def test_weights_from_the_hub(hub, tmp_path):
    torch.save(blank_weights(), tmp_path / "weights.pth")  # a small file, as no safetensors would be
    save_file({"fc.bias": torch.zeros(1008)}, tmp_path / "only.safetensors")
    content = {name: (tmp_path / name).read_bytes() for name in ("weights.pth", "only.safetensors")}
    hub.add_repo("org/fid", content)
    expected = InceptionExtractor(tmp_path / "weights.pth").protocol
    assert InceptionExtractor("org/fid:weights.pth").protocol == expected
    with pytest.raises(WeightsError, match=r"only\.safetensors' does not hold .* 471 missing"):
        InceptionExtractor("org/fid")  # its one safetensors file is meant
    with pytest.raises(WeightsError, match=r"'org/fid' has no file 'other\.pth'"):
        InceptionExtractor("org/fid:other.pth")
    hub.add_repo("org/two", {"a.safetensors": b"a", "b.safetensors": b"b", "c.pt": b"c"})
    with pytest.raises(WeightsError, match=r"2 safetensors files \(a\.safetensors, b\.safetensors\)"):
        InceptionExtractor("org/two")
    with pytest.raises(UnknownModelError, match="no repository of that name"):
        InceptionExtractor("org/none")


# --- TorchScript, as NVIDIA's file has it ---


class Script(torch.nn.Module):
    """The names and calls of that file, around few numbers."""

    def __init__(self, features=2048):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.AvgPool2d(23), torch.nn.Conv2d(3, features, 13), torch.nn.Softplus()
        )
        self.output = torch.nn.Linear(features, 1008)

    def forward(self, img: torch.Tensor, return_features: bool = False):
        features = self.layers(img).flatten(1)
        return features if return_features else self.output(features).softmax(1)


def test_torchscript(tmp_path):
    torch.manual_seed(0)
    script = Script()
    torch.jit.script(script).save(tmp_path / "inception-2015-12-05.pt")
    extractor = InceptionExtractor(tmp_path / "inception-2015-12-05.pt", resize="torch-fidelity")
    images = fixed_images(32, 32)
    features, logits = extractor(images)
    with torch.no_grad():
        expected = script.layers(extractor.preprocess(images)).flatten(1)
        classes = expected @ script.output.weight.T
    # Sums of about 500 float32 in two orders.
    assert torch.allclose(features, expected, rtol=0, atol=1e-5)
    assert torch.allclose(logits, classes, rtol=0, atol=1e-4)
    assert extractor.protocol["weights_layout"] == "NVIDIA's TorchScript"
    assert torch.equal(extractor(images[1:2])[0][0], features[1])


def test_other_torchscript_is_refused(tmp_path):
    torch.jit.script(Script(100)).save(tmp_path / "small.pt")
    with pytest.raises(WeightsError, match=r"gives features \[1, 100\]"):
        InceptionExtractor(tmp_path / "small.pt")
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="not the FID network as NVIDIA's"):
        InceptionExtractor(tmp_path / "other.pt")
