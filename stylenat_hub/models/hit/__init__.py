"""HiT (arXiv 2106.07631): the family's record.

No weights were ever published, so it has no checkpoints: the shapes of the paper and of the released code are
the presets (`create_model("hit-b-256")`), to be trained, or filled from somebody's TensorFlow checkpoint.
"""

from stylenat_hub.models.family import Family
from stylenat_hub.models.hit.config import HiTConfig
from stylenat_hub.models.hit.discriminator import HiTDiscriminator
from stylenat_hub.models.hit.generator import HiTGenerator
from stylenat_hub.models.hit.keys import (
    convert_discriminator,
    convert_state_dict,
    infer_config,
    recognise,
)

CITATION = """\
@inproceedings{zhao2021hit,
  title     = {Improved Transformer for High-Resolution GANs},
  author    = {Long Zhao and Zizhao Zhang and Ting Chen and Dimitris N. Metaxas and Han Zhang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021},
  eprint    = {2106.07631},
  archiveprefix = {arXiv}
}"""


FAMILY = Family(
    name="hit",
    title="HiT",
    tags=(
        "transformer",
        "multi-axis-attention",
    ),
    paper="2106.07631",
    citation=CITATION,
    truncation=1.0,  # its latents are not mapped; the paper shows none that are truncated
    generator=HiTGenerator,
    config=HiTConfig,
    checkpoints=(),
    recognise=recognise,
    infer_config=infer_config,
    convert_state_dict=convert_state_dict,
    discriminator=HiTDiscriminator,
    convert_discriminator=convert_discriminator,
)
