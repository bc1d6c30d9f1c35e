"""The records that describe what the zoo holds. The zoo itself is `stylenat_hub.registry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stylenat_hub.models.base import Discriminator, Generator
from stylenat_hub.models.config import ModelConfig


@dataclass(frozen=True)
class Dataset:
    """What a checkpoint was trained on.

    name: as people say it. id: the Hub's name for it, lower case. license: of the data, in words. url: where
    it is described.
    """

    name: str
    id: str
    license: str
    url: str


FFHQ = Dataset(
    name="FFHQ",
    id="ffhq",
    license="CC BY-NC-SA 4.0 (the data set; each photograph also has a licence of its own)",
    url="https://github.com/NVlabs/ffhq-dataset",
)
CELEBA_HQ = Dataset(
    name="CelebA-HQ",
    id="celeba-hq",
    license=(
        "non-commercial research only, say the authors of CelebA, from whose photographs it is made; read "
        "their agreement before any use"
    ),
    url="https://github.com/tkarras/progressive_growing_of_gans",
)
LSUN_CHURCH = Dataset(
    name="LSUN Church",
    id="lsun-church",
    license="none stated by its authors that we know of",
    url="https://www.yf.io/p/lsun",
)


@dataclass(frozen=True)
class Metric:
    """A figure that somebody measured.

    name, id: as people and as the Hub call the metric. value: with as many decimals (`digits`) as the source
    prints. protocol: what was compared with what. source: where the figure stands: a paper's table, or a file
    of this project; url: its address, if it has one. lower_is_better: what a good value is. measured_here: by
    this project, and not only cited?
    """

    name: str
    id: str
    value: float
    protocol: str
    source: str
    url: str | None = None
    digits: int = 2
    lower_is_better: bool = True
    measured_here: bool = False

    @property
    def shown(self) -> str:
        return f"{self.value:.{self.digits}f}"


@dataclass(frozen=True)
class Checkpoint:
    """One set of published, shipped or described weights.

    name: zoo name, `architecture-dataset-resolution`. preset: the family's preset with the same shapes.
    paper: arXiv id. license: what the Hub's list of licences calls that of the weights, "other" if it has no
    name, None if there are no weights; code_license, weights_license: in words. origin_url: the authors'
    original file, or None if they published none; origin_page: their page, if what is at origin_url is
    somebody's copy; source_sha256: of that file, where known. trained_here: by this project, and not by the
    authors? published: are the weights on the Hub, in the zoo's own namespace? revision: the commit there
    that was checked. sha256: of the weights of a pipeline folder's parts, where known:
    `generator/diffusion_pytorch_model.safetensors` -> hexadecimal.
    """

    name: str
    family: str
    preset: str
    resolution: int
    dataset: Dataset
    parameters: int
    paper: str
    license: str | None
    code_license: str
    weights_license: str
    description: str
    origin_url: str | None = None
    origin_page: str | None = None
    source_sha256: str | None = None
    trained_here: bool = False
    published: bool = False
    revision: str | None = None
    sha256: Mapping[str, str] | None = None
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True)
class Family:
    """One model family: a folder under `models/` and one line in `registry.FAMILIES`.

    tags: what the Hub's search should find it by, beside its name. paper: arXiv id; citation: the same, as
    BibTeX. truncation: what pictures for show are drawn with.
    generator: the `Generator` subclass. config: its config class, whose `presets` include `tiny`.
    recognise: does this original state dict of a generator belong to the family? State dicts are name ->
    tensor; of a TensorFlow checkpoint the names are the variables' paths below the network.
    infer_config: `(original state dict, *, args, preset, config) -> config`: args are the checkpoint's own
    record as plain data, preset and config what the user said; each may be None, contradictions raise.
    convert_state_dict: original generator state dict -> ours; `w_avg` [w_dim] only where the original
    recorded its mean style: otherwise it is estimated.
    discriminator: the class that the family is trained against, with presets of the same names.
    convert_discriminator: `(original discriminator state dict, *, config) -> the model with its weights`:
    config has the fields of its config that the user said, or is None.
    """

    name: str
    title: str
    tags: tuple[str, ...]
    paper: str
    citation: str
    truncation: float
    generator: type[Generator]
    config: type[ModelConfig]
    checkpoints: tuple[Checkpoint, ...]
    recognise: Callable[[Mapping[str, Any]], bool]
    infer_config: Callable[..., ModelConfig]
    convert_state_dict: Callable[[Mapping[str, Any]], dict[str, Any]]
    discriminator: type[Discriminator]
    convert_discriminator: Callable[..., Discriminator]
