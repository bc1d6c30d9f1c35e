"""How far drawn pictures are from real ones: the papers' metrics, on features of any network."""

from stylenat_hub.metrics.features import KNOWN_EXTRACTORS, Extractor, load_extractor
from stylenat_hub.metrics.manifolds import density_coverage, nearest, precision_recall
from stylenat_hub.metrics.path_length import feature_distance, perceptual_path_length
from stylenat_hub.metrics.score import METRICS
from stylenat_hub.metrics.statistics import (
    FeatureStatistics,
    InceptionScore,
    frechet_distance,
    kernel_distance,
)
from stylenat_hub.metrics.swd import SlicedWasserstein, sliced_wasserstein

# What can be measured, by its name in logs and on the Hub: how people call it, and what it compares.
KNOWN = {
    "swd": ("sliced Wasserstein distance x 1000", "arXiv 1710.10196, section 5; lower is better"),
    **{
        name: (metric.title if name in METRICS else name, metric.source)
        for metric in METRICS.values()
        for name in metric.names
        if not name.endswith("_std")
    },
}

__all__ = [
    "KNOWN",
    "KNOWN_EXTRACTORS",
    "METRICS",
    "Extractor",
    "FeatureStatistics",
    "InceptionScore",
    "SlicedWasserstein",
    "density_coverage",
    "feature_distance",
    "frechet_distance",
    "kernel_distance",
    "load_extractor",
    "nearest",
    "perceptual_path_length",
    "precision_recall",
    "sliced_wasserstein",
]
