"""Steering pictures through their styles: centres to truncate to, mixing, paths, directions, projection.

Everything here works on styles [n, num_ws, w_dim], which `GANPipeline.styles` gives and `GANPipeline.draw`
takes; a function that a family cannot serve says so (HiT has one style, which is the latent itself).
"""
