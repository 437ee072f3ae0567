"""Autoencoders whose levels are arranged in ways that shapes tell only in part: known as they were published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lading.catalog.architecture import Config
from lading.catalog.shapes import UnknownSizeError


def published_arrangement(
    told: Mapping[str, Any], published: Mapping[str, Config], what: str = "a published arrangement of levels"
) -> dict[str, Any]:
    """Return the published config that says what shapes tell.

    Args:
        what: is needed, for the error.

    Raises:
        UnknownSizeError: none does.
    """
    for config in published.values():
        if all(config[key] == value for key, value in told.items()):
            return dict(config)
    sizes = ", ".join(f"{key} {value}" for key, value in told.items())
    raise UnknownSizeError(f"{what}: this one has {sizes}")
