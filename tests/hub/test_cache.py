"""The cache that is shared with every library of Hugging Face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir, snapshot_download

from lading import DownloadError
from lading.hub.cache import cached_folder, fetch_into_cache
from lading.hub.huggingface import HuggingFace
from tests.hub.conftest import Run
from tests.hub.server import COMMIT, Fault, Hub

NAMES = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


def fetch(source: HuggingFace) -> Path:
    repository = source.repository("org/name")
    return fetch_into_cache(source, repository, repository.named(NAMES))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def originals(hub: Hub) -> dict[str, bytes]:
    return {name: (hub.root / "org/name" / name).read_bytes() for name in NAMES}


def weights_sent(hub: Hub) -> dict[str, int]:
    """Bytes by file that the storage has sent since it was asked for the last time."""
    assert hub.storage is not None
    sent, hub.storage.sent = hub.storage.sent, {}
    return sent


def test_what_lading_fetched_the_client_finds(hub: Hub, source: HuggingFace) -> None:
    folder = fetch(source)
    assert contents(folder) == originals(hub)
    hub.log.clear()
    weights_sent(hub)
    theirs = snapshot_download("org/name", endpoint=hub.endpoint, allow_patterns=NAMES)
    assert (Path(theirs), hub.fetched(), weights_sent(hub)) == (folder, set(), {})
    hub.log.clear()
    offline = snapshot_download("org/name", allow_patterns=NAMES, local_files_only=True)
    assert Path(offline) == folder == cached_folder("org/name", None)
    assert hub.log == []
    (held,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert (held.repo_id, held.nb_files, [*held.refs]) == ("org/name", 3, ["main"])


def test_what_the_client_fetched_lading_finds(hub: Hub, source: HuggingFace) -> None:
    theirs = snapshot_download("org/name", endpoint=hub.endpoint, allow_patterns=NAMES)
    hub.log.clear()
    weights_sent(hub)
    assert (fetch(source), hub.fetched(), weights_sent(hub)) == (Path(theirs), set(), {})


def test_what_lading_fetched_diffusers_loads_and_the_other_way_round(hub: Hub, run: Run) -> None:
    program = """
from diffusers import DiffusionPipeline
from huggingface_hub import constants

def by_diffusers(model_id):
    return DiffusionPipeline.from_pretrained(model_id, cache_dir=constants.HF_HUB_CACHE)

for number, loads in enumerate(((lading.load_pipeline, by_diffusers), (by_diffusers, lading.load_pipeline))):
    constants.HF_HUB_CACHE = f"cache-{number}"
    for load in loads:
        assert load("org/name").vae.config.latent_channels == 4
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
    folders = (hub.root / "org/name" / name for name in ("unet", "text_encoder", "vae"))
    plain = [file for folder in folders for file in folder.glob("*model.safetensors")]
    assert len(plain) == 3
    assert sum(weights_sent(hub).values()) == 2 * sum(file.stat().st_size for file in plain), "once into each cache"


def test_the_same_content_under_two_names_is_held_once(hub: Hub, source: HuggingFace) -> None:
    (hub.root / "org/name/vae/again.safetensors").write_bytes(originals(hub)[NAMES[2]])
    fetch(source)
    hub.log.clear()
    repository = source.repository("org/name")
    folder = fetch_into_cache(source, repository, repository.named(["vae/again.safetensors"]))
    assert (folder / "vae/again.safetensors").read_bytes() == originals(hub)[NAMES[2]]
    assert hub.fetched() == set()


def test_both_names_of_one_content_come_in_one_fetch(hub: Hub, source: HuggingFace) -> None:
    (hub.root / "org/name/vae/again.safetensors").write_bytes(originals(hub)[NAMES[2]])
    repository = source.repository("org/name")
    folder = fetch_into_cache(source, repository, repository.named([NAMES[2], "vae/again.safetensors"]))
    assert len(set(contents(folder).values())) == 1
    assert len(contents(folder)) == 2
    assert hub.storage is not None
    assert sum(hub.storage.sent.values()) == len(originals(hub)[NAMES[2]])


def test_files_whose_content_the_hub_does_not_name_come_through_its_client(hub: Hub, source: HuggingFace) -> None:
    repository = source.repository("org/name")
    unnamed = replace(repository, files=tuple(replace(file, digest=None) for file in repository.files))
    assert contents(fetch_into_cache(source, unnamed, unnamed.named(NAMES))) == originals(hub)


def test_a_file_that_the_hub_sends_in_its_own_protocol_alone_is_said_so(
    hub: Hub, source: HuggingFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lading.hub.huggingface._LARGEST_HTTP_BYTES", 1_000_000)
    assert hub.storage is not None
    hub.storage.largest = 0
    with pytest.raises(
        DownloadError, match=r"its own protocol alone: fetch it with the hub's client \(`hf download`\)"
    ):
        fetch(source)


def test_a_fetch_that_failed_leaves_no_revision_and_nothing_that_looks_whole(hub: Hub, source: HuggingFace) -> None:
    assert hub.storage is not None
    hub.storage.faults = [Fault(NAMES[2], cut=1000), Fault(NAMES[2], times=99, cut=0)]
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(source)
    with pytest.raises(DownloadError, match="not in the local cache"):
        cached_folder("org/name", None)
    hub.storage.faults = []
    assert contents(fetch(source)) == originals(hub)
    assert cached_folder("org/name", COMMIT) == cached_folder("org/name", "main")
