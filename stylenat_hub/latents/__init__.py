"""Steering pictures through their styles: centres to truncate to, mixing, paths, directions, projection.

Everything here works on styles [n, num_ws, w_dim], which `GANPipeline.styles` gives and `GANPipeline.draw`
takes; a function that a family cannot serve says so (HiT has one style, which is the latent itself).
"""

from stylenat_hub.latents.clusters import style_centers
from stylenat_hub.latents.direction_files import load_directions
from stylenat_hub.latents.directions import Directions
from stylenat_hub.latents.factorise import closed_form, principal
from stylenat_hub.latents.levels import styles_at
from stylenat_hub.latents.mixing import mix
from stylenat_hub.latents.paths import StylePath, draw_paths
from stylenat_hub.latents.projection import Projection, project
from stylenat_hub.latents.styles import load_styles, save_styles
from stylenat_hub.latents.tuning import tune

__all__ = [
    "Directions",
    "Projection",
    "StylePath",
    "closed_form",
    "draw_paths",
    "load_directions",
    "load_styles",
    "mix",
    "principal",
    "project",
    "save_styles",
    "style_centers",
    "styles_at",
    "tune",
]
