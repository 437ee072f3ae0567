"""Whatever a hub answers becomes one error that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lading import DownloadError
from lading.hub.cache import cached_folder, fetch_into_cache
from lading.hub.huggingface import HuggingFace
from lading.hub.model_config import fetch_matching
from lading.hub.remote import RemoteModel
from tests.hub.conftest import Run
from tests.hub.server import Fault, Hub

MODEL = "/api/models/org/name"


def test_a_gated_model_says_how_to_log_in(hub: Hub, source: HuggingFace) -> None:
    hub.tokens = {"org/name": "hf_secret"}
    with pytest.raises(DownloadError, match=r"org/name: the model is gated: accept its terms .*`hf auth login`"):
        source.repository("org/name")
    assert source.__class__("hf_secret", hub.endpoint).repository("org/name").model_id == "org/name"


@pytest.mark.parametrize("token", [False, "hf_other"])
def test_a_gated_model_is_listed_and_its_files_say_how_to_log_in(
    hub: Hub, source: HuggingFace, tmp_path: Path, token: str | bool
) -> None:
    hub.tokens, hub.open_listings = {"org/name": "hf_secret"}, True
    stranger = HuggingFace(token, hub.endpoint)
    with pytest.raises(DownloadError, match=r"org/name: vae/config.json: the model is gated: accept .*`hf auth login`"):
        fetch_matching(stranger, "org/name", ["vae/config.json"], tmp_path / "out")
    with pytest.raises(DownloadError, match=r"org/name: vae/config.json: the model is gated"):
        RemoteModel(stranger, stranger.repository("org/name")).config("vae/config.json")


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
    with pytest.raises(DownloadError, match=r"org/name at revision v2: .*\(in .* at main it holds model_index\.json\)"):
        cached_folder("org/name", "v2")


def test_a_hub_that_cannot_be_reached_is_told_with_what_is_here_and_the_setting_that_uses_it(
    hub: Hub, run: Run, tmp_path: Path
) -> None:
    program = """
from pathlib import Path
from lading.hub import model_folder, open_remote
from lading.hub.fetch import fetch_model
def say(call, *arguments, **options):
    try:
        call(*arguments, **options)
        raise SystemExit("no error")
    except lading.DownloadError as error:
        print(error)
say(model_folder, "org/name")
say(open_remote, "org/name")
say(fetch_model, "org/other")
say(fetch_model, "org/name", ["*"], to=Path("out"))
say(fetch_model, "org/name", ["*"], "modelscope")
for source in "huggingface", "modelscope":
    say(lading.ModelConfig(model_id="org/name", origin_file_pattern="*", download_source=source).download_if_necessary)
"""
    fetch = "from lading.hub.fetch import fetch_model; fetch_model('org/name', ['vae/config.json'], {!r})"
    assert run(fetch.format("huggingface") + "; " + fetch.partition("; ")[2].format("modelscope")).returncode == 0
    nobody = "http://127.0.0.1:9"
    done = run(program, HF_ENDPOINT=nobody, MODELSCOPE_ENDPOINT=nobody, MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS="1")
    assert done.returncode == 0, done.stderr
    cached, looked_at, other, folder, scope, *configs = done.stdout.splitlines()
    cache = tmp_path / "cache" / "hub"
    start = r"org/name: http://127\.0\.0\.1:9 cannot be reached \(.*\): check the network and "
    held = f"use what is here: in {cache}, at main it holds vae/config.json"
    for said in (cached, looked_at):
        assert re.match(start + "HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to ", said), said
    assert cached.endswith(held)
    assert looked_at.endswith(held)
    assert other.endswith(f"or set HF_HUB_OFFLINE=1 to use what is here: {cache} has org/name")
    assert folder.endswith("or set LADING_SKIP_DOWNLOAD=true to use what is here: in out nothing is there")
    for said in (scope, *configs):
        assert said.endswith(
            "or set LADING_SKIP_DOWNLOAD=true to use what is here: in models/org/name it holds vae/config.json"
        )
    assert re.match(start + "MODELSCOPE_ENDPOINT", scope)
