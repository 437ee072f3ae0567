"""The world of the ``shapes`` model: its words, its captions, its drawn pictures and the held-out split.

A picture shows one shape of one colour on a plain background. A *triple* is (shape, colour, background); whole triples
are held out of training, so that the evaluation asks for combinations that no trained part has ever seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

PICTURE_SIZE = 64
"""Height and width of a picture, in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "cyan": (40, 205, 215),
    "blue": (50, 90, 225),
    "purple": (140, 50, 175),
    "pink": (245, 125, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "gray": (128, 128, 128),
    "beige": (224, 206, 172),
    "navy": (18, 24, 80),
}
RADII: dict[str, tuple[float, float]] = {"small": (13.0, 15.0), "large": (22.0, 25.0)}
"""Half of a shape's extent in pixels: the smallest and the largest that each size word stands for."""

HELD_OUT_TRIPLES = 67
EVALUATION_PROMPTS = 200
MARGIN = 2.0
"""Least distance between a shape and the edge of the picture, in pixels."""

Polygon = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]


def _star(inner: float = 0.45, outer: float = 1.05) -> list[tuple[float, float]]:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, outer, outer * inner)
    drop = outer * (1 - np.cos(np.pi / 5)) / 2
    return [(float(r * np.cos(a)), float(r * np.sin(a) + drop)) for r, a in zip(radii, angles, strict=True)]


def _cross(arm: float = 0.34) -> list[tuple[float, float]]:
    quarter = [(arm, -arm), (1.0, -arm), (1.0, arm)]
    turns = [((1, 0), (0, 1)), ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0))]
    return [(a * x + b * y, c * x + d * y) for (a, b), (c, d) in turns for x, y in quarter]


OUTLINES: dict[str, list[tuple[float, float]] | None] = {
    "circle": None,
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -0.9), (1.0, 0.9), (-1.0, 0.9)],
    "diamond": [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)],
    "star": _star(),
    "cross": _cross(),
}
"""Corners of each shape inside [-1, 1] x [-1, 1], y pointing down; the circle has none."""

SHAPES = tuple(OUTLINES)


@dataclass(frozen=True, order=True)
class Triple:
    """What a picture shows, without its size and place."""

    shape: str
    colour: str
    background: str


@dataclass(frozen=True)
class Caption:
    """A triple with the size that the prompt names, or ``None`` where the prompt leaves it open."""

    triple: Triple
    size: str | None

    def __str__(self) -> str:
        words = f"{self.triple.colour} {self.triple.shape}"
        words = words if self.size is None else f"{self.size} {words}"
        article = "an" if words[0] in "aeiou" else "a"
        return f"{article} {words} on a {self.triple.background} background"


@dataclass(frozen=True)
class Split:
    """Triples that training may show, and those that only the evaluation may ask for."""

    training: tuple[Triple, ...]
    held_out: tuple[Triple, ...]


def split_triples(seed: int) -> Split:
    """Hold out ``HELD_OUT_TRIPLES`` of the triples, spread evenly over every word and every pair of words."""
    triples = [Triple(*words) for words in product(SHAPES, COLOURS, BACKGROUNDS)]
    order = np.random.default_rng(seed).permutation(len(triples))
    remaining = [triples[index] for index in order]
    held_out: list[Triple] = []
    taken: Counter[tuple[str, ...]] = Counter()

    def pairs(triple: Triple) -> list[tuple[str, ...]]:
        shape, colour, background = triple.shape, triple.colour, triple.background
        return [(shape, colour), (shape, background), (colour, background)]

    def crowding(triple: Triple) -> float:
        singles = sum(taken[(word,)] for word in (triple.shape, triple.colour, triple.background))
        return sum(taken[pair] for pair in pairs(triple)) + singles / 10

    for _ in range(HELD_OUT_TRIPLES):
        chosen = min(remaining, key=crowding)
        remaining.remove(chosen)
        held_out.append(chosen)
        taken.update([*pairs(chosen), (chosen.shape,), (chosen.colour,), (chosen.background,)])
    return Split(training=tuple(sorted(remaining)), held_out=tuple(sorted(held_out)))


def captions_of(triple: Triple) -> list[Caption]:
    """Every caption of a triple: without a size, and with each size."""
    return [Caption(triple, size) for size in (None, *RADII)]


def evaluation_captions(seed: int) -> list[Caption]:
    """Return the ``EVALUATION_PROMPTS`` held-out captions that every evaluation uses, in their order."""
    captions = [caption for triple in split_triples(seed).held_out for caption in captions_of(triple)]
    order = np.random.default_rng(seed + 1).permutation(len(captions))
    return [captions[index] for index in order[:EVALUATION_PROMPTS]]


def _signed_distance(points: npt.NDArray[np.float32], corners: Polygon) -> npt.NDArray[np.float32]:
    """Exact distance from points ``(count, pixels, 2)`` to polygons ``(count, corners, 2)``, negative inside.

    After Inigo Quilez, "distance to polygon" (https://iquilezles.org/articles/distfunctions2d/).
    """
    squared = np.full(points.shape[:2], np.inf, dtype=np.float32)
    sign = np.ones(points.shape[:2], dtype=np.float32)
    for index in range(corners.shape[1]):
        start, end = corners[:, index, None], corners[:, index - 1, None]
        edge, offset = end - start, points - start
        along = np.clip((offset * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)
        nearest = offset - edge * along[..., None]
        squared = np.minimum(squared, (nearest * nearest).sum(-1))
        below = points[..., 1] >= start[..., 1]
        above = points[..., 1] < end[..., 1]
        left = edge[..., 0] * offset[..., 1] > edge[..., 1] * offset[..., 0]
        crossing = (below & above & left) | ~(below | above | left)
        sign = np.where(crossing, -sign, sign)
    return sign * np.sqrt(squared)


def draw(
    triples: list[Triple],
    sizes: list[str],
    generator: np.random.Generator,
    paints: Mapping[str, tuple[int, int, int]] = COLOURS,
) -> Pictures:
    """Draw one anti-aliased picture per triple, at a random place and with a random radius of its size.

    Args:
        paints: of the shapes, by the names of their colours.

    Returns ``(count, PICTURE_SIZE, PICTURE_SIZE, 3)`` RGB values in 0..255.
    """
    count = len(triples)
    ranges = np.array([RADII[size] for size in sizes], dtype=np.float32).reshape(count, 2)
    radii = generator.uniform(ranges[:, 0], ranges[:, 1]).astype(np.float32)
    room = PICTURE_SIZE / 2 - MARGIN - radii
    centres = PICTURE_SIZE / 2 + generator.uniform(-1, 1, size=(count, 2)) * room[:, None]
    ticks = np.arange(PICTURE_SIZE, dtype=np.float32) + 0.5
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="xy"), axis=-1).reshape(1, -1, 2)
    points = grid - centres[:, None].astype(np.float32)

    distance = np.empty(points.shape[:2], dtype=np.float32)
    for shape, outline in OUTLINES.items():
        chosen = np.array([triple.shape == shape for triple in triples], dtype=bool)
        if outline is None:
            distance[chosen] = np.hypot(points[chosen, :, 0], points[chosen, :, 1]) - radii[chosen, None]
        else:
            corners = np.array(outline, dtype=np.float32)[None] * radii[chosen, None, None]
            distance[chosen] = _signed_distance(points[chosen], corners)

    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    colours = np.array([paints[triple.colour] for triple in triples], dtype=np.float32).reshape(count, 1, 3)
    grounds = np.array([BACKGROUNDS[triple.background] for triple in triples], dtype=np.float32).reshape(count, 1, 3)
    flat: Pictures = np.rint(grounds + (colours - grounds) * coverage).astype(np.uint8)
    return flat.reshape(count, PICTURE_SIZE, PICTURE_SIZE, 3)


def draw_random(
    triples: tuple[Triple, ...],
    count: int,
    generator: np.random.Generator,
    paints: Mapping[str, tuple[int, int, int]] = COLOURS,
) -> tuple[Pictures, list[Triple], list[str]]:
    """Draw ``count`` pictures of random triples at random sizes; also return the triple and the size of each."""
    sizes = tuple(RADII)
    chosen = [triples[index] for index in generator.integers(len(triples), size=count)]
    chosen_sizes = [sizes[index] for index in generator.integers(len(sizes), size=count)]
    return draw(chosen, chosen_sizes, generator, paints), chosen, chosen_sizes
