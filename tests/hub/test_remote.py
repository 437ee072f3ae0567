"""Models looked at where they are: kilobytes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from lading import CheckpointError, DownloadError, open_checkpoint
from lading.catalog.recognition import identify_checkpoint
from lading.hub.huggingface import HuggingFace
from lading.hub.remote import RemoteModel, remote_checkpoints
from tests.conftest import header_bytes
from tests.hub.conftest import Run, last_line
from tests.hub.server import Fault, Hub


def opened(source: HuggingFace, variant: str | None = None) -> RemoteModel:
    return RemoteModel(source, source.repository("org/name"), variant)


def sent(hub: Hub) -> int:
    assert hub.storage is not None
    return sum(hub.storage.sent.values())


def test_headers_come_by_ranges_and_say_what_the_whole_files_say(hub: Hub, source: HuggingFace) -> None:
    remote = opened(source).checkpoints()
    assert sorted(remote) == ["text_encoder", "unet", "vae"]
    for name in ("text_encoder", "unet"):
        local = open_checkpoint(hub.root / "org/name" / name)
        assert remote[name].hash() == local.hash()
        assert {key: (info.dtype, info.shape, info.start, info.end) for key, info in remote[name].items()} == {
            key: (info.dtype, info.shape, info.start, info.end) for key, info in local.items()
        }
        assert remote[name].nbytes == local.nbytes
    assert sent(hub) < 3 * (1 << 17)


def test_a_header_longer_than_the_first_request_is_read_to_its_end_alone(hub: Hub, source: HuggingFace) -> None:
    file = hub.root / "org/name/big/model.safetensors"
    file.parent.mkdir()
    save_file({f"layer.{number}.weight": zeros(64) for number in range(3000)}, file)
    checkpoint = opened(source).checkpoints("big")["big"]
    assert checkpoint.hash() == open_checkpoint(file).hash()
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert header > 1 << 16
    assert sent(hub) == header


def test_shards_are_one_checkpoint_and_the_variant_is_that_asked_for(hub: Hub, source: HuggingFace) -> None:
    folder = hub.root / "org/name/transformer"
    folder.mkdir()
    for number in (1, 2):
        save_file({f"part.{number}": zeros(2)}, folder / f"model-0000{number}-of-00002.safetensors")
    found = opened(source, "fp16").checkpoints()
    assert [file.name for file in found["transformer"].files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert [file.name for file in found["vae"].files] == ["diffusion_pytorch_model.fp16.safetensors"]


def test_shards_that_an_index_or_their_numbers_tell_of_and_that_are_not_there_are_named(
    hub: Hub, source: HuggingFace
) -> None:
    folder = hub.root / "org/name/transformer"
    folder.mkdir()
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, shard in enumerate(shards[:2]):
        save_file({f"part.{number}": zeros(2), "both": zeros(1)}, folder / shard)
    index = folder / "model.safetensors.index.json"
    numbered = opened(source).checkpoints("transformer")["transformer"]
    assert numbered.missing == (shards[2],)
    weight_map = {"part.0": shards[0], "both": shards[0], "part.1": shards[1]}
    index.write_text(json.dumps({"weight_map": {**weight_map, "x": "absent.safetensors"}}))
    save_file({"other": zeros(1)}, folder / "model.safetensors")
    remote = opened(source).checkpoints()["transformer"]
    local = open_checkpoint(index, complete=False)
    assert remote.missing == local.missing == ("absent.safetensors",)
    assert remote.hash() == local.hash()
    assert remote["both"].file.name == local["both"].file.name == shards[0]
    assert "1 shards are missing: absent.safetensors: fetch them" in identify_checkpoint(remote).problems
    index.write_text(json.dumps({"weight_map": {**weight_map, "y": shards[1]}}))
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.safetensors: the index places tensor 'y' here"):
        opened(source).checkpoints("transformer")


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a\\b", "a\0b", "C:/x", ""])
def test_an_index_that_points_outside_its_folder_is_refused(hub: Hub, source: HuggingFace, shard: str) -> None:
    folder = hub.root / "org/name/transformer"
    folder.mkdir()
    save_file({"a": zeros(1)}, folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: names .*outside its folder: refused"):
        opened(source).checkpoints("transformer")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_that_is_none_is_an_error(hub: Hub, source: HuggingFace, content: str) -> None:
    (hub.root / "org/name/unet/diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(
        (CheckpointError, DownloadError), match=r"unet/diffusion_pytorch_model\.safetensors\.index\.json"
    ):
        opened(source).checkpoints("unet")


def test_a_repository_of_single_files_lists_each(hub: Hub, source: HuggingFace) -> None:
    folder = hub.root / "org/loose"
    folder.mkdir()
    for name in ("a", "b"):
        save_file({name: zeros(1)}, folder / f"{name}.safetensors")
    model = RemoteModel(source, source.repository("org/loose"))
    assert {name: list(checkpoint) for name, checkpoint in model.checkpoints().items()} == {"a": ["a"], "b": ["b"]}
    assert list(model.checkpoints("b.safetensors")) == ["b"]


def test_configs_are_read_where_they_are(hub: Hub, source: HuggingFace) -> None:
    model = opened(source)
    assert model.config("unet/config.json")["_class_name"] == "UNet2DConditionModel"
    with pytest.raises(DownloadError, match=r"there is no unet/confg\.json: close to it are unet/config\.json"):
        model.config("unet/confg.json")
    (hub.root / "org/name/unet/config.json").write_text("[]")
    with pytest.raises(DownloadError, match=r"org/name: unet/config\.json: not a JSON object"):
        opened(source).config("unet/config.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1234567", "7 bytes are too few"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "the header claims 1099511627776 bytes"),
        (header_bytes({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "the file holds 0: it is trunc"),
    ],
)
def test_a_header_that_breaks_the_format_is_refused(hub: Hub, source: HuggingFace, content: bytes, reason: str) -> None:
    (hub.root / "org/name/broken").mkdir()
    (hub.root / "org/name/broken/model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"org/name/broken/model\.safetensors: .*{reason}"):
        opened(source).checkpoints("broken")


def test_what_cannot_be_read_in_parts_says_so(hub: Hub, source: HuggingFace) -> None:
    (hub.root / "org/name/old").mkdir()
    (hub.root / "org/name/old/model.bin").write_bytes(b"PK")
    with pytest.raises(DownloadError, match=r"old/model\.bin cannot be read in parts"):
        opened(source).checkpoints("old")
    with pytest.raises(DownloadError, match="no weights there"):
        opened(source).checkpoints("scheduler")
    assert hub.storage is not None
    hub.storage.faults = [Fault("unet/diffusion_pytorch_model.safetensors", whole=True)]
    with pytest.raises(DownloadError, match="sends no parts of files"):
        opened(source).checkpoints("unet")


def test_what_is_a_path_here_is_never_asked_for_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in ("models/absent.safetensors", "./org/name", "/org/name", "name", str(tmp_path)):
        assert remote_checkpoints(path) is None


def test_the_command_line_inspects_a_model_on_the_hub_without_torch(hub: Hub, run: Run) -> None:
    program = """
from lading.cli import main
import sys
assert main(["inspect", "org/name/unet", "--json"]) == 0
assert main(["inspect", "org/name"]) == 0
assert "torch" not in sys.modules
"""
    done = run(program)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    local = open_checkpoint(hub.root / "org/name/unet")
    assert json.loads(first)["hash"] == local.hash()
    assert [line for line in rest if line in ("text_encoder", "unet", "vae")] == ["text_encoder", "unet", "vae"]
    failed = run("from lading.hub import open_remote; open_remote('org/name')", HF_HUB_OFFLINE="1")
    assert "org/name: remote requests are turned off: unset HF_HUB_OFFLINE" in last_line(failed)
