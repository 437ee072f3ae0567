"""Shapes with named axes: pixels <-> latents. Plain Python, no torch."""

from lading.latents.shape import AXES, LatentShape, latent_shape_of

__all__ = ["AXES", "LatentShape", "latent_shape_of"]
