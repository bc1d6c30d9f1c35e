"""StyleNAT (arXiv 2211.05770): the family's record and its checkpoints."""

from stylenat_hub.models.discriminator import WaveletDiscriminator
from stylenat_hub.models.discriminator_keys import convert_discriminator
from stylenat_hub.models.family import FFHQ, LSUN_CHURCH, Checkpoint, Dataset, Family, Metric
from stylenat_hub.models.stylenat.config import StyleNATConfig
from stylenat_hub.models.stylenat.generator import StyleNATGenerator
from stylenat_hub.models.stylenat.keys import convert_state_dict, infer_config, recognise

_PUBLISHED = "https://shi-labs.com/projects/stylenat/checkpoints/"
_PAPER = "2211.05770"
_OF_FACES = (
    "no text of their own that we know of; the authors' code is MIT, FFHQ itself is CC BY-NC-SA 4.0: check "
    "before commercial use"
)
_FID = (
    "50,000 generated pictures against the training set, Inception-v3 features in pytorch-fid's port, by the "
    "authors' code"
)

DRAWN_CHURCHES = Dataset(
    name="drawn churches",
    id="drawn-churches",
    license="MIT (drawn by this project's training.toy_churches)",
    url="training/toy_churches.py",
)

CITATION = """\
@article{walton2022stylenat,
  title  = {StyleNAT: Giving Each Head a New Perspective},
  author = {Steven Walton and Ali Hassani and Xingqian Xu and Zhangyang Wang and Humphrey Shi},
  year   = {2022},
  eprint = {2211.05770},
  archiveprefix = {arXiv}
}"""


def _fid(value: float, digits: int, place: str) -> tuple[Metric, ...]:
    source = f"arXiv {_PAPER}, {place}"
    url = f"https://arxiv.org/abs/{_PAPER}"
    return (Metric("FID-50k", "fid", value, protocol=_FID, source=source, url=url, digits=digits),)


FAMILY = Family(
    name="stylenat",
    title="StyleNAT",
    tags=(
        "transformer",
        "neighborhood-attention",
    ),
    paper=_PAPER,
    citation=CITATION,
    truncation=0.7,
    generator=StyleNATGenerator,
    config=StyleNATConfig,
    checkpoints=(
        Checkpoint(
            name="stylenat-ffhq-256",
            family="stylenat",
            preset="ffhq-256",
            resolution=256,
            dataset=FFHQ,
            parameters=48_921_000,
            paper=_PAPER,
            license="other",
            code_license="MIT",
            weights_license=_OF_FACES,
            description="Faces at 256 px, two partitions per level, trained with flips",
            origin_url=_PUBLISHED + "FFHQ256_940k_flip.pt",
            metrics=_fid(2.046, 3, "abstract"),
        ),
        Checkpoint(
            name="stylenat-ffhq-1024",
            family="stylenat",
            preset="ffhq-1024",
            resolution=1024,
            dataset=FFHQ,
            parameters=49_452_934,
            paper=_PAPER,
            license="other",
            code_license="MIT",
            weights_license=_OF_FACES,
            description="Faces at 1024 px, two partitions per level",
            origin_url=_PUBLISHED + "FFHQ1024_700k.pt",
            metrics=_fid(4.174, 3, "abstract"),
        ),
        Checkpoint(
            name="stylenat-church-256",
            family="stylenat",
            preset="church-256",
            resolution=256,
            dataset=LSUN_CHURCH,
            parameters=48_922_352,
            paper=_PAPER,
            license=None,
            code_license="MIT",
            weights_license="none: no weights were ever published",
            description="Churches at 256 px, a pyramid of dilations; no weights were ever published",
            metrics=_fid(3.40, 2, "Table 4, 8 partitions"),
        ),
        Checkpoint(
            name="toy-church",
            family="stylenat",
            preset="toy-church",
            resolution=32,
            dataset=DRAWN_CHURCHES,
            parameters=1_863_803,
            paper=_PAPER,
            license="mit",
            code_license="MIT",
            weights_license="MIT, the drawings included",
            trained_here=True,
            description="Drawn churches at 32 px, three partitions; ships with this package",
            sha256={
                "generator/diffusion_pytorch_model.safetensors": (
                    "70e0a5afc9ed842a0fd80795f2af072262258c726f7e4d57f287a487eadce7a7"
                ),
                "discriminator/diffusion_pytorch_model.safetensors": (
                    "a204480ab32c2465b696fba59f08394e669b88864fc18fc82f8668883d129d5d"
                ),
            },
            metrics=(
                Metric(
                    name="sliced Wasserstein distance x 1000",
                    id="swd",
                    value=13.1,
                    protocol=(
                        "1,000 pictures against 1,000 held-out drawings, mean of 32 px and 16 px "
                        "(arXiv 1710.10196, section 5); untrained weights are 269.9 away, other drawings of "
                        "the same kind 8.4"
                    ),
                    source="model_cards/toy-church/figures.json",
                    digits=1,
                    measured_here=True,
                ),
            ),
        ),
    ),
    recognise=recognise,
    infer_config=infer_config,
    convert_state_dict=convert_state_dict,
    discriminator=WaveletDiscriminator,
    convert_discriminator=convert_discriminator,
)
