"""Build the tokenizer of the ``shapes`` model: CLIP's byte-level BPE with one token for each of its words."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from recipes.shapes.pictures import BACKGROUNDS, COLOURS, RADII, SHAPES

MAX_LENGTH = 32
WORDS = ("a", "an", "on", "background", *RADII, *COLOURS, *SHAPES, *BACKGROUNDS)


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` to ``folder`` and return the tokenizer made of them.

    Any text has tokens: bytes are tokens of their own, and so are bytes at a word's end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = split_word(word, merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = split_word(word, merges)
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_LENGTH)
    wrong = [word for word in WORDS if len(tokenizer(word).input_ids) != 3]
    if wrong:
        raise ValueError(f"words of more than one token: {', '.join(wrong)}")
    return tokenizer


def split_word(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Split a word as byte-pair encoding does: the earliest merge first, until none applies."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    for pair in merges:
        place = 0
        while place < len(parts) - 1:
            if (parts[place], parts[place + 1]) == pair:
                parts[place : place + 2] = ["".join(pair)]
            place += 1
    return parts
