"""StyleSwin (arXiv 2112.10762): the family's record and its checkpoints."""

from stylenat_hub.models.discriminator import WaveletDiscriminator
from stylenat_hub.models.discriminator_keys import convert_discriminator
from stylenat_hub.models.family import CELEBA_HQ, FFHQ, LSUN_CHURCH, Checkpoint, Dataset, Family, Metric
from stylenat_hub.models.styleswin.config import StyleSwinConfig
from stylenat_hub.models.styleswin.generator import StyleSwinGenerator
from stylenat_hub.models.styleswin.keys import convert_state_dict, infer_config, recognise

_PAPER = "2112.10762"
_REPOSITORY = "https://github.com/microsoft/StyleSwin"
# The authors' own links lead to drives, whose addresses expire or ask back. Their page names a demo, and its
# code takes the same five files from here.
_COPIES = "https://huggingface.co/public-data/StyleSwin/resolve/main/models/"
_FID_50K = "50,000 generated pictures against 50,000 real ones chosen at random, by the authors' code"
_FID_30K = "30,000 generated pictures against all 30,000 real ones, by the authors' code"
_DATA_TERMS = {
    CELEBA_HQ.id: "CelebA-HQ and CelebA are for non-commercial research only",
    FFHQ.id: "FFHQ itself is CC BY-NC-SA 4.0",
    LSUN_CHURCH.id: "LSUN Church states no terms that we know of",
}

CITATION = """\
@article{zhang2021styleswin,
  title  = {StyleSwin: Transformer-based GAN for High-resolution Image Generation},
  author = {Bowen Zhang and Shuyang Gu and Bo Zhang and Jianmin Bao and Dong Chen and Fang Wen and Yong Wang
            and Baining Guo},
  year   = {2021},
  eprint = {2112.10762},
  archiveprefix = {arXiv}
}"""


def _published(preset: str, file: str, dataset: Dataset, fid: float, what: str) -> Checkpoint:
    """One of the five published models; those of a size differ in nothing but their data."""
    size = StyleSwinConfig.preset(preset).resolution
    return Checkpoint(
        name=f"styleswin-{preset}",
        family="styleswin",
        preset=preset,
        resolution=size,
        dataset=dataset,
        parameters={256: 48_929_512, 1024: 40_862_990}[size],
        paper=_PAPER,
        license="other",
        code_license="MIT",
        weights_license=(
            f"MIT, as the authors' page says of code and models; {_DATA_TERMS[dataset.id]}: check before "
            "commercial use"
        ),
        description=f"{what} at {size} px, windows of 8 x 8",
        origin_url=_COPIES + file,
        origin_page=_REPOSITORY,
        metrics=(
            Metric(
                name="FID-30k" if dataset is CELEBA_HQ else "FID-50k",
                id="fid",
                value=fid,
                protocol=_FID_30K if dataset is CELEBA_HQ else _FID_50K,
                source=f"arXiv {_PAPER}, and the authors' page",
                url=f"https://arxiv.org/abs/{_PAPER}",
            ),
        ),
    )


FAMILY = Family(
    name="styleswin",
    title="StyleSwin",
    tags=(
        "transformer",
        "window-attention",
    ),
    paper=_PAPER,
    citation=CITATION,
    truncation=0.7,
    generator=StyleSwinGenerator,
    config=StyleSwinConfig,
    checkpoints=(
        _published("ffhq-256", "FFHQ_256.pt", FFHQ, 2.81, "Faces"),
        _published("ffhq-1024", "FFHQ_1024.pt", FFHQ, 5.07, "Faces"),
        _published("celebahq-256", "CelebAHQ_256.pt", CELEBA_HQ, 3.25, "Faces of celebrities"),
        _published("celebahq-1024", "CelebAHQ_1024.pt", CELEBA_HQ, 4.43, "Faces of celebrities"),
        _published("church-256", "LSUNChurch_256.pt", LSUN_CHURCH, 2.95, "Churches"),
    ),
    recognise=recognise,
    infer_config=infer_config,
    convert_state_dict=convert_state_dict,
    discriminator=WaveletDiscriminator,
    convert_discriminator=convert_discriminator,
)
