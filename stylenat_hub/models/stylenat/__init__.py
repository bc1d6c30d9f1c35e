"""StyleNAT (arXiv 2211.05770): the family's record and its published checkpoints."""

from stylenat_hub.models.discriminator import WaveletDiscriminator
from stylenat_hub.models.discriminator_keys import convert_discriminator
from stylenat_hub.models.family import Checkpoint, Family
from stylenat_hub.models.stylenat.config import StyleNATConfig
from stylenat_hub.models.stylenat.generator import StyleNATGenerator
from stylenat_hub.models.stylenat.keys import convert_state_dict, infer_config, recognise

_PUBLISHED = "https://shi-labs.com/projects/stylenat/checkpoints/"

FAMILY = Family(
    name="stylenat",
    title="StyleNAT",
    generator=StyleNATGenerator,
    config=StyleNATConfig,
    checkpoints=(
        Checkpoint(
            name="stylenat-ffhq-256",
            family="stylenat",
            preset="ffhq-256",
            resolution=256,
            dataset="FFHQ",
            parameters=48_921_000,
            paper="2211.05770",
            code_license="MIT",
            weights_license="MIT (code); the faces of FFHQ are CC BY-NC-SA 4.0",
            description="Faces at 256 px, two partitions per level, trained with flips",
            origin_url=_PUBLISHED + "FFHQ256_940k_flip.pt",
            metrics={"FID50k": 2.046},
        ),
        Checkpoint(
            name="stylenat-ffhq-1024",
            family="stylenat",
            preset="ffhq-1024",
            resolution=1024,
            dataset="FFHQ",
            parameters=49_452_934,
            paper="2211.05770",
            code_license="MIT",
            weights_license="MIT (code); the faces of FFHQ are CC BY-NC-SA 4.0",
            description="Faces at 1024 px, two partitions per level",
            origin_url=_PUBLISHED + "FFHQ1024_700k.pt",
            metrics={"FID50k": 4.174},
        ),
        Checkpoint(
            name="stylenat-church-256",
            family="stylenat",
            preset="church-256",
            resolution=256,
            dataset="LSUN Church",
            parameters=48_922_352,
            paper="2211.05770",
            code_license="MIT",
            weights_license="none published",
            description="Churches at 256 px, a pyramid of dilations; no weights were ever published",
            metrics={"FID50k": 3.40},
        ),
        Checkpoint(
            name="toy-church",
            family="stylenat",
            preset="toy-church",
            resolution=32,
            dataset="drawn churches",
            parameters=1_863_803,
            paper="2211.05770",
            code_license="MIT",
            weights_license="MIT",
            description="Drawn churches at 32 px, three partitions; ships with this package",
            metrics={"SWD1k x 1000": 13.1},
        ),
    ),
    recognise=recognise,
    infer_config=infer_config,
    convert_state_dict=convert_state_dict,
    discriminator=WaveletDiscriminator,
    convert_discriminator=convert_discriminator,
)
