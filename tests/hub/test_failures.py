"""Whatever a hub answers becomes one error that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from lading import DownloadError
from lading.hub.cache import cached_folder, fetch_into_cache
from lading.hub.huggingface import HuggingFace
from lading.hub.model_config import fetch_matching
from tests.hub.server import Fault, Hub

MODEL = "/api/models/org/name"


def test_a_gated_model_says_how_to_log_in(hub: Hub, source: HuggingFace) -> None:
    hub.tokens = {"org/name": "hf_secret"}
    with pytest.raises(DownloadError, match=r"org/name: the model is gated: accept its terms .*`hf auth login`"):
        source.repository("org/name")
    assert source.__class__("hf_secret", hub.endpoint).repository("org/name").model_id == "org/name"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            {"status": 401, "headers": {"X-Error-Message": "Invalid credentials in Authorization header"}},
            r"wants a token that may read this model \(401\): log in",
        ),
        ({"status": 403}, r"forbids it \(403\): the token has no right"),
        ({"status": 404}, "answered 404, which no hub does here: check HF_ENDPOINT"),
        ({"status": 200, "content": b"<html>welcome</html>"}, "does not answer as a hub does .*check HF_ENDPOINT"),
        ({"status": 200, "content": b"[1, 2]"}, "does not answer as a hub does .*check HF_ENDPOINT"),
        ({"status": 200, "content": b'{"id": "org/name"}'}, "the answer names no commit"),
    ],
)
def test_every_refusal_says_what_to_do(hub: Hub, source: HuggingFace, fault: dict[str, object], reason: str) -> None:
    hub.faults = [Fault(MODEL, times=99, **fault)]  # type: ignore[arg-type]  # the fields of each case are right
    with pytest.raises(DownloadError, match=reason):
        source.repository("org/name")


def test_a_name_that_is_not_there_is_answered_with_close_ones(hub: Hub, source: HuggingFace) -> None:
    with pytest.raises(DownloadError, match=r"org/nmae: .* has no such model.*; there is org/name$"):
        source.repository("org/nmae")


def test_a_revision_that_is_not_there_is_answered_with_those_that_are(hub: Hub, source: HuggingFace) -> None:
    with pytest.raises(DownloadError, match=r"org/name at revision mian: .* no such revision: it has main$"):
        source.repository("org/name", "mian")


def test_a_file_that_is_not_there_is_answered_with_close_ones(source: HuggingFace, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"'unet/confg\.json': close to it are unet/config\.json"):
        fetch_matching(source, "org/name", ["unet/confg.json"], tmp_path / "out")


@pytest.mark.parametrize("revision", ["../../x", "/etc/passwd", "a\0b", "a\\b", ""])
def test_a_revision_that_is_a_path_is_refused_before_anything_is_asked(
    hub: Hub, source: HuggingFace, revision: str
) -> None:
    with pytest.raises(DownloadError, match="is not the name of a branch"):
        source.repository("org/name", revision)
    with pytest.raises(DownloadError, match="is not the name of a branch"):
        cached_folder("org/name", revision)
    assert hub.log == []


def test_what_is_cached_is_told_where_the_network_may_not_be_used(hub: Hub, source: HuggingFace) -> None:
    with pytest.raises(DownloadError, match="has no model"):
        cached_folder("org/name", None)
    repository = source.repository("org/name")
    fetch_into_cache(source, repository, repository.named(["model_index.json"]))
    with pytest.raises(DownloadError, match=r"org/other: not in the local cache \(.* has org/name\).*HF_HUB_OFFLINE"):
        cached_folder("org/other", None)
    with pytest.raises(DownloadError, match=r"org/name at revision v2: .*\(of it .* has main\)"):
        cached_folder("org/name", "v2")
