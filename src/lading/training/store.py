"""Tensors that were computed once, on disk, each under a fingerprint of all that they were made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lading.checkpoint import open_checkpoint
from lading.errors import CheckpointError
from lading.training.durable import write_json, write_tensors

_CHUNK = 1 << 20
_SAMPLE = 1 << 16
_SAMPLES = 64


def fingerprint(**facts: Any) -> str:
    """Return one sha256 for facts, in whatever order they are given.

    >>> fingerprint(caption="a", size=(64, 64)) == fingerprint(size=(64, 64), caption="a")
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Store:
    """A folder of entries; each is one file of tensors and a text, and is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, key: str) -> bool:
        """Tell whether an entry is there, and no shorter than its header says."""
        file = self._file(key)
        if not file.is_file():
            return False
        try:
            open_checkpoint(file)
        except CheckpointError:
            return False
        return True

    def read(self, key: str) -> tuple[dict[str, torch.Tensor], str]:
        """Return the tensors and the text of an entry."""
        with safe_open(self._file(key), framework="pt") as entry:
            tensors = {name: entry.get_tensor(name) for name in entry.keys()}  # noqa: SIM118 # no mapping
            return tensors, (entry.metadata() or {}).get("text", "")

    def write(self, key: str, tensors: Mapping[str, torch.Tensor], text: str = "") -> None:
        """Keep tensors and a text under a key."""
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, tensors, {"text": text}, durable=False)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


class Digests:
    """The sha256 of files, each computed once for as long as its size and time of change stay the same."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError):
            return
        self._known = content if isinstance(content, dict) else {}

    def of(self, file: Path) -> str:
        """Return a file's sha256. Files of the hub's cache are named by it."""
        real = file.resolve()
        if real.parent.name == "blobs" and len(real.name) == 64:
            return real.name
        state = real.stat()
        stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
        known = self._known.get(str(real))
        if known is not None and known[:3] == stamp:
            return str(known[3])
        digest = hashlib.sha256()
        with real.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        self._known[str(real)] = [*stamp, digest.hexdigest()]
        self._changed = True
        return digest.hexdigest()

    def of_all(self, files: Iterable[Path], folder: Path) -> dict[str, str]:
        """Return the sha256 of files by their names in a folder."""
        return {str(file.relative_to(folder)): self.of(file) for file in sorted(files)}

    def save(self) -> None:
        """Remember them for the next run."""
        if self._changed:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._known, durable=False)
            self._changed = False


def sampled_digest(file: Path) -> str:
    """Return a sha256 of a file's size, beginning, end and places between: enough to tell two trainings apart."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for part in range(_SAMPLES + 1):
            stream.seek(max(size - _SAMPLE, 0) * part // _SAMPLES)
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()
