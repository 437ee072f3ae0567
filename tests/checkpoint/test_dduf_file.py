"""DDUF files: one pipeline in one zip, read where it lies; damaged and hostile ones are refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from huggingface_hub import export_folder_as_dduf

from lading import CheckpointError, DiskMap, load_state_dict, open_checkpoint, shipped_model
from lading.checkpoint import dduf_file
from lading.checkpoint.dduf_file import packed_names, packed_weights, unpack_dduf
from lading.checkpoint.inventory import hash_layout

INDEX = json.dumps({"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dduf") / "shapes.dduf"
    export_folder_as_dduf(file, shipped_model())
    return file


def test_tensors_go_by_component_and_are_read_from_their_place_in_the_file(shapes: Path) -> None:
    checkpoint = open_checkpoint(shapes)
    loaded, on_disk = load_state_dict(shapes), DiskMap(shapes)
    for component in ("unet", "vae", "text_encoder"):
        expected = load_state_dict(shipped_model() / component)
        own = {name.removeprefix(f"{component}.") for name in checkpoint if name.startswith(f"{component}.")}
        assert own == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(loaded[f"{component}.{name}"], tensor), name
            assert torch.equal(on_disk[f"{component}.{name}"], tensor), name
    (inventory,) = checkpoint.inventories
    assert inventory.format == "DDUF"
    assert inventory.configs["vae."]["_class_name"] == "AutoencoderKL"
    assert checkpoint.hash() == hash_layout(inventory.layout)


def test_what_is_no_weight_is_unpacked_once_and_goes_with_the_process(shapes: Path) -> None:
    folder = unpack_dduf(shapes)
    assert unpack_dduf(shapes) == folder
    assert (folder / "tokenizer" / "tokenizer.json").read_bytes() == (
        shipped_model() / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    assert not list(folder.rglob("*.safetensors"))
    assert set(packed_names(folder / "vae")) == {"config.json", "diffusion_pytorch_model.safetensors"}
    weights = packed_weights(folder / "vae")
    assert weights is not None
    assert weights.files == (shapes,)
    assert weights.hash() == open_checkpoint(shipped_model() / "vae").hash()
    assert packed_weights(shipped_model() / "vae") is None
    with pytest.raises(CheckpointError, match="no weights of variant 'fp16'"):
        packed_weights(folder / "vae", "fp16")
    program = (
        "from pathlib import Path; from lading.checkpoint.dduf_file import unpack_dduf; "
        f"print(unpack_dduf(Path({str(shapes)!r})))"
    )
    left = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
    assert left
    assert not Path(left).exists()


def test_variants_and_shards_of_a_component_are_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import save

    half, whole = {"a": torch.ones(2).half()}, {"a": torch.ones(2), "b": torch.zeros(3)}
    entries = {
        "model_index.json": INDEX.encode(),
        "vae/config.json": b"{}",
        "vae/model.fp16.safetensors": save(half),
        "vae/model-00001-of-00002.safetensors": save({"a": whole["a"]}),
        "vae/model-00002-of-00002.safetensors": save({"b": whole["b"]}),
    }
    file = write(tmp_path / "model.dduf", entries)
    assert set(open_checkpoint(file)) == {"vae.a", "vae.b"}
    folder = unpack_dduf(file)
    for variant, names, dtype in ((None, {"a", "b"}, "float32"), ("fp16", {"a"}, "float16")):
        weights = packed_weights(folder / "vae", variant)
        assert weights is not None
        assert set(weights) == names
        assert weights["a"].dtype == dtype


def write(file: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file


def entries() -> dict[str, bytes]:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(8)
    return {
        "model_index.json": INDEX.encode(),
        "vae/config.json": b"{}",
        "vae/model.safetensors": weights,
    }


HOSTILE = {
    "no index": ({"vae/config.json": b"{}"}, "model_index"),
    "no component": ({**entries(), "other/config.json": b"{}"}, "other"),
    "outside": ({**entries(), "../evil.json": b"{}"}, "outside its components"),
    "absolute": ({**entries(), "/etc/evil.json": b"{}"}, "outside its components"),
    "deep": ({**entries(), "vae/more/config.json": b"{}"}, "outside its components"),
    "code": ({**entries(), "vae/model.py": b"raise SystemExit"}, "not a readable DDUF"),
    "pickle": ({**entries(), "vae/model.bin": b"\x80"}, "not a readable DDUF"),
    "broken config": ({**entries(), "vae/config.json": b"{"}, "not valid JSON"),
    "broken weights": ({**entries(), "vae/model.safetensors": b"\xff" * 30}, "not safetensors"),
    "short weights": ({**entries(), "vae/model.safetensors": entries()["vae/model.safetensors"][:-1]}, "truncated"),
    "no safetensors": ({**entries(), "vae/model.safetensors": b"123"}, "not safetensors"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_or_hostile_file_is_one_error(tmp_path: Path, what: str) -> None:
    content, words = HOSTILE[what]
    file = write(tmp_path / "model.dduf", content)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(file)
    assert str(file) in str(error.value)
    assert not (tmp_path.parent / "evil.json").exists()


def test_a_compressed_file_a_large_config_and_too_many_entries_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(write(tmp_path / "compressed.dduf", entries(), zipfile.ZIP_DEFLATED))
    monkeypatch.setattr(dduf_file, "_MAX_SMALL_BYTES", 100)
    with pytest.raises(CheckpointError, match="over the bound"):
        open_checkpoint(write(tmp_path / "large.dduf", {**entries(), "vae/config.json": b" " * 101}))
    monkeypatch.setattr(dduf_file, "_MAX_ENTRIES", 2)
    with pytest.raises(CheckpointError, match="too many entries"):
        open_checkpoint(write(tmp_path / "many.dduf", entries()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "model.dduf", entries())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("vae/config.json", b'{"other": 1}')
    with pytest.raises(CheckpointError, match="one twice"):
        open_checkpoint(file)


def test_a_dduf_file_under_another_name_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "model.ckpt", entries())
    with pytest.raises(CheckpointError, match=r"has to end in \.dduf"):
        open_checkpoint(file)


def test_a_file_that_changes_is_unpacked_anew_and_never_mixed(tmp_path: Path) -> None:
    file = write(tmp_path / "model.dduf", entries())
    first = unpack_dduf(file)
    write(file, {**entries(), "vae/config.json": b'{"new": 1}'})
    os.utime(file, ns=(1, 1))
    second = unpack_dduf(file)
    assert second != first
    assert (second / "vae" / "config.json").read_bytes() == b'{"new": 1}'


def test_mutations_raise_nothing_but_checkpoint_errors(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.dduf", entries()).read_bytes()
    file, choose = tmp_path / "mutated.dduf", random.Random(0)
    for _ in range(300):
        mutated = bytearray(content)
        for _ in range(choose.randint(1, 4)):
            mutated[choose.randrange(len(mutated))] = choose.randrange(256)
        file.write_bytes(mutated)
        try:
            assert all(info.end <= len(content) for info in open_checkpoint(file).values())
        except CheckpointError:
            continue
    for cut in range(0, len(content), 31):
        file.write_bytes(content[:cut])
        with pytest.raises(CheckpointError):
            open_checkpoint(file)
