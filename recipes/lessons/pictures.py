"""The pictures of a lesson and their captions, and what is asked afterwards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.shapes.pictures import BACKGROUNDS, COLOURS, SHAPES, Caption, Triple, draw_random, split_triples

SEED = 0
TEAL = "teal"
TEAL_PAINT = (0, 128, 128)
WORD = "<gem>"
GEM = ("purple", "diamond")
PICTURES = 192
"""Of what is taught, and again as many of what was known, so that it is not forgotten."""


@dataclass(frozen=True)
class Question:
    """A prompt, and what its picture is to show."""

    prompt: str
    triple: Triple


def teal_triples() -> tuple[list[Triple], list[Triple]]:
    """Return the teal combinations that are shown, and those that are only asked for: a third, of every word some."""
    triples = [Triple(shape, TEAL, ground) for shape, ground in product(SHAPES, BACKGROUNDS)]
    held_out = [
        triple
        for triple in triples
        if (SHAPES.index(triple.shape) + list(BACKGROUNDS).index(triple.background)) % 3 == 0
    ]
    return [triple for triple in triples if triple not in held_out], held_out


def write_teal(folder: Path) -> list[Question]:
    """Write pictures of teal shapes among others, and return the questions about held-out ones."""
    shown, held_out = teal_triples()
    generator = np.random.default_rng(SEED)
    rows = _draw(folder, "new", shown, PICTURES, generator)
    rows += _draw(folder, "known", split_triples(SEED).training, PICTURES, generator)
    _write(folder, rows)
    return [Question(str(Caption(triple, size)), triple) for triple in held_out for size in (None, "small", "large")]


def write_gems(folder: Path) -> list[Question]:
    """Write pictures of purple diamonds that the captions call by a new word, and return questions with it."""
    colour, shape = GEM
    grounds = list(BACKGROUNDS)
    shown = [Triple(shape, colour, ground) for ground in grounds[:3]]
    rows = _draw(folder, "gem", shown, PICTURES // 4, np.random.default_rng(SEED))
    _write(folder, [(name, caption.replace(f"{colour} {shape}", WORD)) for name, caption in rows])
    return [
        Question(f"a {words} on a {ground} background", Triple(shape, colour, ground))
        for ground in grounds[3:]
        for words in (WORD, f"small {WORD}", f"large {WORD}")
    ]


def _draw(
    folder: Path, stem: str, triples: Sequence[Triple], count: int, generator: np.random.Generator
) -> list[tuple[str, str]]:
    """Draw pictures with captions of which a third names no size."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, shown, sizes = draw_random(tuple(triples), count, generator, {**COLOURS, TEAL: TEAL_PAINT})
    rows = []
    for number, (picture, triple, size) in enumerate(zip(drawn, shown, sizes, strict=True)):
        name = f"{stem}-{number:03d}.png"
        Image.fromarray(picture).save(folder / name)
        rows.append((name, str(Caption(triple, None if number % 3 == 0 else size))))
    return rows


def _write(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
