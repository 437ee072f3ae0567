"""The latent format of a model, from its configs or the catalog's entry: no weight is read, and no network asked."""

from __future__ import annotations

import os

from lading.latents import LatentFormat
from lading.loading.blueprint import read_blueprint


def latent_format(model: str | os.PathLike[str]) -> LatentFormat:
    """Return how a model's latents follow from pixels.

    Args:
        model: a folder in the diffusers layout, a checkpoint file, "shapes", or the hub id of a published model that
            the catalog knows. The hub is not asked.

    Raises:
        ComponentError: there is no such model, or no denoiser in it that the catalog knows.
        ShapeError: its denoiser and its autoencoder disagree.

    >>> import lading
    >>> str(lading.latent_format("shapes").shape(batch=1, height=64, width=64))
    'latent  batch 1  channels 4  height 8  width 8'
    """
    return read_blueprint(model, remote=False).latent_format()
