"""Tell from a picture's pixels alone what it shows.

Nothing here is shared with the drawing: colours are told by hue, saturation and value, shapes by geometry.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"

_HUES = {
    "red": (340, 16),
    "orange": (16, 43),
    "yellow": (43, 70),
    "green": (80, 165),
    "cyan": (165, 202),
    "blue": (202, 255),
    "purple": (255, 303),
    "pink": (303, 340),
}
"""Bands of hue in degrees; the first one passes through zero."""

_LARGE_FROM = 34
"""Pixels of the longer side of a bounding box from which a shape counts as large, in a picture of 64."""

_DEEP = {"cyan": (0.66, "teal")}
"""Hues that have another name where the value is below a bound."""

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sight:
    """What a picture shows; each word may be "unknown"."""

    shape: str
    colour: str
    background: str
    size: str


def look(pixels: Pixels) -> Sight:
    """Judge a picture of (height, width, 3) RGB values in 0..255."""
    image = pixels.astype(np.float64)
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    ground = np.median(border, axis=0)
    if np.abs(border - ground).mean() > 12:
        return Sight(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    background = name_background(ground)
    distance = np.linalg.norm(image - ground, axis=-1)
    far = distance > 0.6 * distance.max()
    if distance.max() < 40:
        return Sight(UNKNOWN, UNKNOWN, background, UNKNOWN)
    paint = np.median(image[far], axis=0)
    mask = np.linalg.norm(image - paint, axis=-1) < distance
    if not 0.02 < mask.mean() < 0.75 or largest_part(mask).sum() < 0.97 * mask.sum():
        return Sight(UNKNOWN, UNKNOWN, background, UNKNOWN)
    mask = largest_part(mask)
    height, width = _extent(mask)
    large = max(height, width) * 64 / max(pixels.shape[:2]) >= _LARGE_FROM
    return Sight(name_shape(mask), name_colour(paint), background, "large" if large else "small")


def name_colour(rgb: npt.NDArray[np.float64]) -> str:
    """Name a shape's colour by its hue, and where that has two names by its value."""
    hue, saturation, value = _hsv(rgb)
    if saturation < 0.3 or value < 0.35:
        return UNKNOWN
    for name, (low, high) in _HUES.items():
        if low <= hue < high or (low > high and (hue >= low or hue < high)):
            bound, deep = _DEEP.get(name, (0.0, name))
            return deep if value < bound else name
    return UNKNOWN


def name_background(rgb: npt.NDArray[np.float64]) -> str:
    """Name a background: black, gray, white, beige or navy."""
    hue, saturation, value = _hsv(rgb)
    if value < 0.15:
        return "black"
    if saturation < 0.1:
        return "white" if value > 0.88 else "gray" if 0.35 < value < 0.7 else UNKNOWN
    if 20 <= hue < 60 and saturation < 0.45 and value > 0.7:
        return "beige"
    if 205 <= hue < 265 and saturation > 0.5 and value < 0.5:
        return "navy"
    return UNKNOWN


def name_shape(mask: Mask) -> str:
    """Name the shape that one connected region has, from its area, convex hull and symmetry."""
    rows, columns = np.nonzero(mask)
    mask = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = mask.shape
    if min(height, width) < 8 or not 0.75 < height / width < 1.33:
        return UNKNOWN
    filled = mask.mean()
    solid = mask.sum() / _hull_area(mask)
    sink = (np.nonzero(mask)[0].mean() + 0.5) / height - 0.5
    if solid < 0.82:
        if solid < 0.35:
            return UNKNOWN
        return "cross" if _turned_overlap(mask) > 0.75 else "star"
    if filled > 0.9:
        return "square"
    if abs(sink) < 0.06:
        return "circle" if 0.7 < filled < 0.87 else "diamond" if 0.42 < filled < 0.65 else UNKNOWN
    return "triangle" if 0.1 < sink < 0.25 and 0.42 < filled < 0.65 else UNKNOWN


def largest_part(mask: Mask) -> Mask:
    """Return the largest region whose pixels touch each other by their sides."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        around = np.maximum.reduce([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:], labels])
        spread = np.where(mask, around, 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    values, counts = np.unique(labels[mask], return_counts=True)
    return labels == values[counts.argmax()] if len(values) else mask


def _hsv(rgb: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(channel) / 255 for channel in rgb))
    return 360 * hue, saturation, value


def _extent(mask: Mask) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def _hull_area(mask: Mask) -> float:
    """Area of the convex hull of a region's pixels, by Andrew's monotone chain over their corners."""
    rows, columns = np.nonzero(mask)
    corners = {(int(x) + dx, int(y) + dy) for x, y in zip(columns, rows, strict=True) for dx in (0, 1) for dy in (0, 1)}
    ordered = sorted(corners)

    def chain(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
        hull: list[tuple[int, int]] = []
        for x, y in points:
            while len(hull) > 1:
                (ax, ay), (bx, by) = hull[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                hull.pop()
            hull.append((x, y))
        return hull[:-1]

    hull = chain(ordered) + chain(ordered[::-1])
    twice = sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(hull, hull[1:] + hull[:1], strict=True))
    return abs(twice) / 2


def _turned_overlap(mask: Mask) -> float:
    """Overlap over union of a region and itself turned by a quarter about its middle: 1 for a cross."""
    side = max(mask.shape)
    square = np.zeros((side, side), dtype=bool)
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    square[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    turned = np.rot90(square)
    return float((square & turned).sum() / (square | turned).sum())
