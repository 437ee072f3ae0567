"""The published hashes: which checkpoints are known by name, whether or not there is a network class for them.

The table ships as `known_hashes.json`; the hash is that of `lading.hash_model_file`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("known_hashes.json")


@dataclass(frozen=True)
class KnownModel:
    """A published checkpoint.

    Attributes:
        names: what DiffSynth-Studio calls the networks in it.
        example: a repository and the pattern of its files, or "" where that is not known.
        prequantized: whether its tensors are stored quantised.
    """

    names: tuple[str, ...]
    example: str
    prequantized: bool

    @property
    def repository(self) -> str:
        """The repository of the example."""
        return self.example.partition(" : ")[0] if " : " in self.example else ""

    def __str__(self) -> str:
        text = " + ".join(self.names)
        text += f" ({self.example})" if self.repository else ""
        return f"{text}, quantised" if self.prequantized else text


@cache
def known_models() -> dict[str, KnownModel]:
    """Return all published checkpoints by their hash."""
    entries = json.loads(_TABLE.read_bytes())
    return {
        digest: KnownModel(tuple(entry["names"]), entry["example"] or "", entry["prequantized"])
        for digest, entry in entries.items()
    }
