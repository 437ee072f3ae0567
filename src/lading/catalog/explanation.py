"""Recognition in words: configs on a line, and how a file differs from what comes nearest to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lading.catalog.structure import Fit

_MOST_PATTERNS = 6


def config_text(config: Mapping[str, Any]) -> str:
    """Return a config on one line.

    >>> config_text({"num_layers": 2, "rope": (1, 2)})
    'num_layers=2 rope=(1, 2)'
    """
    return " ".join(f"{key}={value!r}" for key, value in config.items())


def nearest_text(fit: Fit) -> str:
    """Return how a file differs from an architecture, grouped by pattern."""
    signature = fit.signature
    lines = [
        f"near      {signature.model_class}, layout {signature.layout}: "
        f"{fit.common} of the file's {len(fit.patterns)} patterns of names are its own ({fit.score:.0%} agreement)"
    ]
    moved = _other_rank(fit.missing, fit.extra)
    for word, patterns in (
        ("missing", fit.missing - moved),
        ("extra", fit.extra - moved),
        ("mis-shaped", frozenset(one for one in moved if one in fit.extra)),
    ):
        if patterns:
            lines.append(f"  {word:10}  {pattern_list(patterns)}")
    return "\n".join(lines)


def pattern_list(patterns: Iterable[str]) -> str:
    """Return some patterns in words; the number of axes after the colon becomes "of n axes"."""
    ordered = sorted(patterns)
    shown = []
    for pattern in ordered[:_MOST_PATTERNS]:
        name, _, rank = pattern.rpartition(":")
        shown.append(f"{name} ({rank} axes)" if rank != "1" else f"{name} (1 axis)")
    more = len(ordered) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _other_rank(missing: frozenset[str], extra: frozenset[str]) -> frozenset[str]:
    """Patterns whose names are on both sides with another number of axes."""
    names = {one.rpartition(":")[0] for one in missing} & {one.rpartition(":")[0] for one in extra}
    return frozenset(one for one in missing | extra if one.rpartition(":")[0] in names)
