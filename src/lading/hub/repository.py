"""What a hub says that a repository holds, checked before any of it becomes a path."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lading.checkpoint.files import natural_key
from lading.errors import DownloadError

DEFAULT_SOURCE = "huggingface"
SOURCES = (DEFAULT_SOURCE, "modelscope")

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class UnreachableError(DownloadError):
    """A hub does not answer at all: what is here may do instead."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: its path in the repository, with "/".
        nbytes: its size.
        digest: the sha256 of its content in 64 hexadecimal digits, or git's sha1 of it in 40; None where the hub gives
            neither.
    """

    name: str
    nbytes: int
    digest: str | None = None


@dataclass(frozen=True)
class Repository:
    """A model on a hub at one revision.

    Attributes:
        revision: the branch, tag or commit that was asked for; None for the hub's default.
        commit: what it stands for now: every later request names this.
    """

    model_id: str
    revision: str | None
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)

    def named(self, names: Iterable[str]) -> tuple[RemoteFile, ...]:
        """Return the files of these names, in the repository's order."""
        wanted = set(names)
        return tuple(file for file in self.files if file.name in wanted)

    def __str__(self) -> str:
        return f"{self.model_id} at {self.commit[:7]}: {len(self.files)} files"


def is_model_id(text: str) -> bool:
    """Tell whether a text is written as the id of a model on a hub: org/name.

    >>> is_model_id("org/name"), is_model_id("../name"), is_model_id("name")
    (True, False, False)
    """
    return _MODEL_ID.fullmatch(text) is not None and ".." not in text


def check_model_id(model_id: str) -> None:
    """Refuse what is not the id of a model on a hub.

    Raises:
        DownloadError: it is written in another way.
    """
    if not is_model_id(model_id):
        raise DownloadError(f"model_id={model_id!r} is not the id of a model: write it as org/name")


def check_revision(revision: str | None) -> None:
    """Refuse a revision that would be a path out of the cache.

    Raises:
        DownloadError: it leaves its folder.
    """
    if revision is not None and not is_safe_name(revision):
        raise DownloadError(f"revision={revision!r} is not the name of a branch, tag or commit: correct it")


def is_safe_name(name: str) -> bool:
    """Tell whether a name from elsewhere stays inside the folder that it is put into, on any system.

    >>> [is_safe_name(name) for name in ("vae/config.json", "../x", "/etc/x", "C:/x", "a\\\\b", "a//b", "a\\0")]
    [True, False, False, False, False, False, False]
    """
    if not name.isprintable() or "\\" in name or re.match("[A-Za-z]:", name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def listed(model_id: str, revision: str | None, commit: str, files: Iterable[RemoteFile]) -> Repository:
    """Return a repository as a hub lists it.

    Raises:
        DownloadError: it lists a file whose name leads out of its folder, or a digest that is none.
    """
    files = tuple(files)
    for file in files:
        if not is_safe_name(file.name):
            raise DownloadError(
                f"{model_id}: the hub lists a file named {file.name!r}, which is no name inside a folder: "
                "refused; tell those who run the hub"
            )
        if file.nbytes < 0 or (file.digest is not None and not _DIGEST.fullmatch(file.digest)):
            raise DownloadError(
                f"{model_id}: the hub lists {file.name} with the digest {file.digest!r} and {file.nbytes} bytes, "
                "which are none: refused; check which hub was asked"
            )
    return Repository(model_id, revision, commit, files)


def check_patterns(patterns: Iterable[str]) -> None:
    """Refuse patterns that name files outside of the model's folder.

    Raises:
        DownloadError: one does.
    """
    for pattern in patterns:
        unsafe = "\0" in pattern or "\\" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts
        if unsafe or re.match("[A-Za-z]:", pattern):
            raise DownloadError(f"origin_file_pattern={pattern!r} leaves the model's folder: name files inside it")


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that a pattern matches, sorted naturally.

    Patterns are names, globs ("*" stays inside a folder, "**" does not), folders with a trailing "/", or empty for all.

    >>> matching(["a.bin", "vae/b.bin", "vae/x/c.bin"], ["*.bin"])
    ['a.bin']
    >>> matching(["a.bin", "vae/b.bin", "vae/x/c.bin"], ["vae/"])
    ['vae/b.bin', 'vae/x/c.bin']
    """
    expressions = [re.compile(_expression(pattern)) for pattern in patterns]
    found = {name for name in names if any(expression.fullmatch(name) for expression in expressions)}
    return sorted(found, key=natural_key)


def is_literal(pattern: str) -> bool:
    """Tell whether a pattern is the name of one file."""
    return bool(pattern) and not pattern.endswith("/") and not any(sign in pattern for sign in "*?[")


def _expression(pattern: str) -> str:
    pattern = pattern.removeprefix("./")
    if not pattern or pattern.endswith("/"):
        return re.escape(pattern) + ".*"
    written = []
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern):
        if part == "**/":
            written.append("(?:.*/)?")
        elif part in ("**", "*", "?"):
            written.append({"**": ".*", "*": "[^/]*", "?": "[^/]"}[part])
        elif len(part) > 1:
            inside = part[1:-1].replace("\\", "\\\\")
            written.append(f"(?!/)[{'^' + inside[1:] if inside.startswith('!') else inside}]")
        else:
            written.append(re.escape(part))
    return "".join(written)


def what_is_there(names: Iterable[str], wanted: Iterable[str] = ()) -> str:
    """Write the part of an error message that says what a user may have meant: close names, else the first of all."""
    names = sorted(names, key=natural_key)
    if not names:
        return "nothing is there"
    close = [near for name in wanted for near in difflib.get_close_matches(name, names, 3)]
    if close:
        return f"close to it are {', '.join(dict.fromkeys(close))}"
    return f"it holds {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


def close_models(model_id: str, known: Iterable[str]) -> str:
    """Write the end of an error message that names models of close names; empty where there are none.

    >>> close_models("org/flux-dev", ["org/FLUX.1-dev", "org/other"])
    '; there is org/FLUX.1-dev'
    """
    names = {known_id.partition("/")[2].lower(): known_id for known_id in known}
    close = [names[near] for near in difflib.get_close_matches(model_id.partition("/")[2].lower(), names, 3)]
    return f"; there is {', '.join(close)}" if close else ""


def setting(name: str) -> str | None:
    """Return a setting from the environment; lading's own name wins over DiffSynth's."""
    return os.environ.get(f"LADING_{name}") or os.environ.get(f"DIFFSYNTH_{name}")


def skips_download() -> bool:
    """Tell whether the environment forbids every remote request; `HF_HUB_OFFLINE` does so too."""
    given = (setting("SKIP_DOWNLOAD"), os.environ.get("HF_HUB_OFFLINE"))
    return any((value or "").lower() in ("1", "true", "yes", "on") for value in given)
