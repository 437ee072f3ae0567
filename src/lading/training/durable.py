"""Files and folders that appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

_PART = ".part-"


@contextmanager
def whole(target: Path, durable: bool = True) -> Iterator[Path]:
    """Give a new path beside a target, and put what is written there in the target's place when all of it is there.

    The path may become a file or a folder; a folder replaces none. Where writing fails it is removed again.

    Args:
        durable: whether all is on the disk before it takes its place, so that not even a power cut leaves a part.
    """
    part = target.with_name(f"{_PART}{uuid4().hex[:8]}-{target.name}")
    try:
        yield part
        if durable:
            for file in [part, *part.rglob("*")] if part.is_dir() else [part]:
                _sync(file)
        part.replace(target)
        if durable:
            _sync(target.parent)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed left unfinished in a folder."""
    for part in folder.glob(f"{_PART}*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def write_tensors(
    file: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, durable: bool = True
) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    owned = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in tensors.items()}
    with whole(file, durable) as part:
        try:
            save_file(owned, part, metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:
            raise OSError(f"{file}: {error}") from error


def write_json(file: Path, content: Any, durable: bool = True) -> None:
    """Write a JSON file, whole or not at all."""
    with whole(file, durable) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
