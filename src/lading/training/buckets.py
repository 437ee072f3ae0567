"""Which size a picture is brought to: the bucket whose aspect ratio is nearest to its own. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Bucket:
    """A size that examples of one batch share, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Fit:
    """How a picture comes to fill a bucket: it is resized and then cut.

    Attributes:
        resized: height and width after resizing, neither below the bucket's.
        top: rows that are cut off above.
        left: columns that are cut off at the left.
    """

    bucket: Bucket
    resized: tuple[int, int]
    top: int
    left: int


def make_buckets(resolution: int, multiple: int, max_aspect: float = 2.0) -> tuple[Bucket, ...]:
    """Return sizes of about one area, from upright to lying, in steps of a sixteenth of the side.

    Args:
        resolution: side of the square whose area none exceeds.
        multiple: what each side is a multiple of.

    >>> [(bucket.height, bucket.width) for bucket in make_buckets(64, 16)]
    [(80, 48), (64, 64), (48, 80)]
    """
    side = resolution // multiple * multiple
    step = multiple * max(1, round(side / 16 / multiple))
    found = {Bucket(side, side)}
    for height in range(step, int(side * math.sqrt(max_aspect)) + step, step):
        width = side * side // height // step * step
        if width and max(height / width, width / height) <= max_aspect:
            found |= {Bucket(height, width), Bucket(width, height)}
    # Of one height the widest: a narrower one wastes area.
    widest = {
        height: max(each.width for each in found if each.height == height) for height in {b.height for b in found}
    }
    kept = {each for each in found if each.width == widest[each.height]}
    tallest = {width: max(each.height for each in kept if each.width == width) for width in {b.width for b in kept}}
    return tuple(
        sorted((each for each in kept if each.height == tallest[each.width]), key=lambda b: (-b.height, b.width))
    )


def nearest_bucket(height: int, width: int, buckets: tuple[Bucket, ...]) -> Bucket:
    """Return the bucket whose aspect ratio is nearest, by factor, to a picture's."""
    aspect = math.log(height / width)
    return min(buckets, key=lambda each: (abs(math.log(each.height / each.width) - aspect), each))


def fit(height: int, width: int, bucket: Bucket) -> Fit:
    """Say how a picture fills a bucket: as little as possible is cut, from the middle.

    >>> fit(100, 200, Bucket(64, 64))
    Fit(bucket=Bucket(height=64, width=64), resized=(64, 128), top=0, left=32)
    """
    scale = max(bucket.height / height, bucket.width / width)
    resized = max(round(height * scale), bucket.height), max(round(width * scale), bucket.width)
    return Fit(bucket, resized, (resized[0] - bucket.height) // 2, (resized[1] - bucket.width) // 2)
