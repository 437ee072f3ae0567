"""A folder of pictures and their captions, in the imagefolder convention."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lading.errors import LadingError

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_METADATA = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption", "prompt")
_NAMED = 5


@dataclass(frozen=True)
class Example:
    """A picture, or film, and what it shows."""

    file: Path
    caption: str


def read_folder(folder: Path) -> list[Example]:
    """Return the examples of a folder, and of the folders in it, by name.

    Captions are in a `metadata.jsonl` or `metadata.csv` in the same folder or one above, with the columns `file_name`
    and `text` (or `caption`, or `prompt`), or in a `.txt` of the picture's name beside it.

    Raises:
        LadingError: there is no such folder or no picture in it, a picture has no caption, or a caption no picture.
    """
    if not folder.is_dir():
        raise LadingError(f"{folder}: there is no such folder: give one with pictures and their captions")
    captions = _captions(folder)
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
    if not files:
        raise LadingError(f"{folder}: there is no picture in it: put {', '.join(PICTURES)} there, with captions")
    missing = [file for file in captions if not file.is_file()]
    if missing:
        raise LadingError(f"{folder}: there are captions without a picture: {_names(missing, folder)}: bring them")
    examples, bare = [], []
    for file in files:
        beside = file.with_suffix(".txt")
        if file in captions:
            examples.append(Example(file, captions[file]))
        elif beside.is_file():
            examples.append(Example(file, _text(beside)))
        else:
            bare.append(file)
    if bare:
        raise LadingError(
            f"{folder}: {len(bare)} pictures have no caption: {_names(bare, folder)}: write one in a .txt of the same "
            "name, or a line in metadata.jsonl"
        )
    return examples


def _captions(folder: Path) -> dict[Path, str]:
    captions: dict[Path, str] = {}
    for name in _METADATA:
        for file in sorted(folder.rglob(name)):
            rows = _json_lines(file) if name.endswith("jsonl") else _csv_rows(file)
            for number, row in rows:
                picture, caption = _row(file, number, row)
                captions.setdefault(picture, caption)
    return captions


def _row(file: Path, number: int, row: Mapping[str, object]) -> tuple[Path, str]:
    name = row.get("file_name")
    caption = next((row[column] for column in _CAPTION_COLUMNS if column in row), None)
    if not isinstance(name, str) or not isinstance(caption, str):
        raise LadingError(
            f"{file}: row {number} has no file_name and {' or '.join(_CAPTION_COLUMNS)}: it has {', '.join(row)}"
        )
    picture = (file.parent / name).resolve()
    if not picture.is_relative_to(file.parent.resolve()):
        raise LadingError(f"{file}: row {number} names {name!r}, which is outside of {file.parent}: move it there")
    return file.parent / name, caption.strip()


def _json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LadingError(f"{file}: row {number} is not valid JSON ({error}): correct it") from None
        if not isinstance(row, dict):
            raise LadingError(f"{file}: row {number} is no JSON object: write one a line")
        yield number, row


def _csv_rows(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    yield from enumerate(csv.DictReader(_text(file).splitlines()), start=1)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise LadingError(f"{file}: it is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _names(files: list[Path], folder: Path) -> str:
    shown = ", ".join(str(file.relative_to(folder)) if folder in file.parents else str(file) for file in files[:_NAMED])
    return shown if len(files) <= _NAMED else f"{shown} and {len(files) - _NAMED} more"
