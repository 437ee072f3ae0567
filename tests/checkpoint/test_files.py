"""From what a user names to files: everything usual works, nothing outside is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lading import CheckpointError, load_state_dict, open_checkpoint
from lading.checkpoint.files import MAX_INDEX_BYTES, find_files, find_in_folder


def shards(folder: Path, stem: str = "model", count: int = 3) -> list[Path]:
    files = []
    for number in range(1, count + 1):
        files.append(folder / f"{stem}-{number:05}-of-{count:05}.safetensors")
        save_file({f"layer.{number}": torch.full((2,), float(number))}, files[-1])
    return files


def index(folder: Path, weight_map: dict[str, str], stem: str = "model") -> Path:
    file = folder / f"{stem}.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return file


def test_a_folder_a_glob_a_list_and_an_index_name_the_same_checkpoint(tmp_path: Path) -> None:
    files = shards(tmp_path, count=11)
    expected = {f"layer.{number}" for number in range(1, 12)}
    assert find_files(tmp_path).files == tuple(files)
    assert find_files(str(tmp_path / "*.safetensors")).files == tuple(files)
    assert find_files(files).files == tuple(files)
    named = index(tmp_path, {f"layer.{number}": files[number - 1].name for number in range(1, 12)})
    assert set(open_checkpoint(named)) == set(open_checkpoint(tmp_path)) == expected


def test_in_a_list_the_last_file_wins_and_in_an_index_the_named_one(tmp_path: Path) -> None:
    first, second = tmp_path / "model-00001-of-00002.safetensors", tmp_path / "model-00002-of-00002.safetensors"
    save_file({"a": torch.zeros(1)}, first)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, second)
    assert load_state_dict([first, second])["a"].item() == 1
    assert load_state_dict([second, first])["a"].item() == 0
    assert load_state_dict(index(tmp_path, {"a": first.name, "b": second.name}))["a"].item() == 0


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    files = shards(tmp_path, count=4)
    named = index(tmp_path, {f"layer.{number}": files[number - 1].name for number in range(1, 5)})
    files[1].unlink()
    files[3].unlink()
    for path in (named, tmp_path):
        with pytest.raises(CheckpointError, match="2 of 4 shards are missing") as caught:
            open_checkpoint(path)
        assert files[1].name in str(caught.value)
        assert files[3].name in str(caught.value)
    named.unlink()
    with pytest.raises(CheckpointError, match="2 of 4 shards are missing"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="2 of 4 shards are missing"):
        open_checkpoint(str(tmp_path / "model-*.safetensors"))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/../../outside.safetensors", "", "a\0b"])
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(index(home, {"a": name}))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    link = home / "model.safetensors"
    link.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(index(home, {"a": link.name}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(home)
    assert set(open_checkpoint(link)) == {"a"}, "a file that the user names is the user's choice"


def test_links_of_the_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "0123" / "vae"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(1)}, blobs / "feed")
    (snapshot / "model.safetensors").symlink_to("../../../blobs/feed")
    assert set(open_checkpoint(snapshot)) == {"a"}
    assert set(open_checkpoint(index(snapshot, {"a": "model.safetensors"}))) == {"a"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map"'])
def test_a_json_file_that_is_no_index_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(file)


def test_an_index_of_any_length_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors.index.json"
    with file.open("wb") as stream:
        stream.truncate(MAX_INDEX_BYTES + 1)
    for path in (file, tmp_path):
        with pytest.raises(CheckpointError, match="100000001 bytes are too many"):
            open_checkpoint(path)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever, and a device has no end."""
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/zero", index(tmp_path, {"a": pipe.name})):
        with pytest.raises(CheckpointError, match=r"neither a file nor a folder|no weights|shards are missing"):
            open_checkpoint(path)


def test_a_tensor_that_the_index_places_in_a_shard_that_lacks_it_is_an_error(tmp_path: Path) -> None:
    files = shards(tmp_path, count=1)
    with pytest.raises(CheckpointError, match=r"'other'.*the file lacks it"):
        open_checkpoint(index(tmp_path, {"layer.1": files[0].name, "other": files[0].name}))


def test_safetensors_are_preferred_to_torch_files_and_the_plain_file_to_variants(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    save_file({"a": torch.ones(1).half()}, tmp_path / "model.fp16.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert [file.name for file in find_in_folder(tmp_path).files] == ["model.safetensors"]
    assert [file.name for file in find_in_folder(tmp_path, variant="fp16").files] == ["model.fp16.safetensors"]


def test_shards_of_a_variant_are_found_with_and_without_an_index(tmp_path: Path) -> None:
    files = shards(tmp_path, count=2)
    renamed = [file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors"))) for file in files]
    assert find_in_folder(tmp_path, "model", "fp16").files == tuple(renamed)
    named = tmp_path / "model.safetensors.index.fp16.json"
    named.write_text(json.dumps({"weight_map": {"layer.1": renamed[0].name, "layer.2": renamed[1].name}}))
    assert find_in_folder(tmp_path, "model", "fp16").files == tuple(renamed)


def test_a_folder_of_several_checkpoints_is_an_error_that_names_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors, two\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_pipeline_folder_says_that_a_component_is_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="name one of its components"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["absent.safetensors", "absent-*.safetensors", "absent/model.safetensors", "a\0b", "a" * 5000]
)
def test_a_path_to_nothing_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "present.txt").write_text("")
    with pytest.raises(CheckpointError):
        open_checkpoint(f"{tmp_path}/{name}")


def test_an_empty_folder_and_an_empty_list_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="empty list"):
        open_checkpoint([])
