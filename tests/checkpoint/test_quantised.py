"""Quantised checkpoints: weights are told from what tells how to decode them, and decoded to the values they have."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lading import CheckpointError, convert_checkpoint, load_state_dict, open_checkpoint
from lading.catalog.keymap import KeyMap, split
from lading.catalog.origin import find_origins
from lading.checkpoint import Checkpoint, FileStamp, read_state_dict, reader, reading
from lading.checkpoint.quantised import as_the_network_has_it, find_weights
from lading.loading.source import Source
from tests.checkpoint.quantised_files import SCHEMES, as_bytes, comfy, mxfp8, nf4, torchao_metadata


def write(file: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file, torchao_metadata(state))
    return file


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("what", SCHEMES)
def test_weights_go_by_their_names_and_shapes_and_have_the_values_that_their_library_gives_them(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reading, reader):
        monkeypatch.setattr(module, "PIECE_BYTES", 4096)
    quantise, scheme = SCHEMES[what]
    state: dict[str, torch.Tensor] = {"plain.weight": noise(4, 4), "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    expected: dict[str, torch.Tensor] = {}
    for layer, shape in (("a", (130, 96)), ("b.c", (32, 320))):
        added, expected[f"{layer}.weight"] = quantise(layer, noise(*shape))
        state |= {**added, f"{layer}.bias": noise(shape[0])}
    file = write(tmp_path / "model.safetensors", state)
    weights = find_weights(open_checkpoint(file))
    assert set(weights.tensors) == {"a.weight", "a.bias", "b.c.weight", "b.c.bias", "plain.weight"}
    assert weights.schemes == {scheme: 2}
    assert not weights.remedies
    assert weights.companions.isdisjoint(weights.tensors)
    for dtype in (torch.float32, torch.bfloat16):
        found = read_state_dict(as_the_network_has_it(open_checkpoint(file)), dict.fromkeys(expected, dtype).get)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.to(dtype)), (name, dtype)
    assert load_state_dict(file).keys() == state.keys(), "a state dict is what is stored"


@settings(max_examples=40)
@given(what=st.sampled_from(sorted(SCHEMES)), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_rows_of_a_quantised_weight_are_read_from_their_place(
    tmp_path_factory: pytest.TempPathFactory, what: str, cuts: list[int]
) -> None:
    rows = 16 * sum(cuts)
    state, expected = SCHEMES[what][0]("qkv", noise(rows, 64))
    file = write(tmp_path_factory.mktemp("rows") / "model.safetensors", state)
    key_map = KeyMap((split("qkv.weight", *(f"part.{number}" for number in range(len(cuts))), parts=tuple(cuts)),))
    checkpoint = as_the_network_has_it(open_checkpoint(file))
    origins = find_origins(key_map, checkpoint)
    assert all(origin.is_plain for origin in origins.values())
    found = Source(checkpoint, origins).read(lambda _: torch.float32)
    assert torch.equal(torch.cat([found[f"part.{number}"] for number in range(len(cuts))]), expected)


@pytest.mark.parametrize("what", ["ComfyUI's nvfp4", "ComfyUI's mxfp8", "ComfyUI's fp8", "ComfyUI's int8"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_comfyui_says_in_the_metadata_counts_as_what_it_says_in_tensors(
    tmp_path: Path, what: str, prefix: str
) -> None:
    state, expected = SCHEMES[what][0](f"{prefix}a", noise(64, 64))
    marker = json.loads(bytes(state.pop(f"{prefix}a.comfy_quant").tolist()))
    told = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"a": marker}})}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors", told)
    checkpoint = as_the_network_has_it(open_checkpoint(tmp_path / "model.safetensors"))
    found = read_state_dict(checkpoint, lambda _: torch.float32)
    assert found.keys() == {f"{prefix}a.weight"}
    assert torch.equal(found[f"{prefix}a.weight"], expected)
    for damaged in ("{", "3", '{"layers": 3}', '{"layers": {"a": 3}}'):
        save_file(state, tmp_path / "damaged.safetensors", {"_quantization_metadata": damaged})
        find_weights(open_checkpoint(tmp_path / "damaged.safetensors"))


def test_an_odd_number_of_four_bit_codes_ends_with_the_weight(tmp_path: Path) -> None:
    state, expected = nf4("a", noise(5, 13))
    file = write(tmp_path / "model.safetensors", state)
    found = read_state_dict(as_the_network_has_it(open_checkpoint(file)))["a.weight"]
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_what_tells_how_to_decode_may_be_in_another_shard(tmp_path: Path) -> None:
    state, expected = nf4("a", noise(40, 96))
    names = list(state)
    shards = [{name: state[name] for name in names[start::2]} for start in (0, 1)]
    files = [write(tmp_path / f"model-0000{n}-of-00002.safetensors", shard) for n, shard in enumerate(shards, 1)]
    found = read_state_dict(as_the_network_has_it(open_checkpoint(files)))["a.weight"]
    assert torch.equal(found, expected.to(torch.bfloat16))


def test_names_that_look_like_scales_beside_weights_of_all_their_bits_prove_nothing(tmp_path: Path) -> None:
    state = {"a.weight": noise(4, 4), "a.weight_scale": noise(4), "b.input_scale": noise(1), "c._data": noise(3)}
    weights = find_weights(open_checkpoint(write(tmp_path / "model.safetensors", state)))
    assert set(weights.tensors) == set(state)
    assert not weights.schemes


def test_with_a_cast_converting_decodes_and_without_keeps_every_bit(tmp_path: Path) -> None:
    state, expected = comfy("a", noise(32, 64))
    file = write(tmp_path / "model.safetensors", state)
    convert_checkpoint(file, tmp_path / "cast.safetensors", "bfloat16")
    convert_checkpoint(file, tmp_path / "same.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in load_state_dict(tmp_path / "cast.safetensors").items()} == {
        "a.weight": (32, 64)
    }
    assert torch.equal(load_state_dict(tmp_path / "cast.safetensors")["a.weight"], expected.to(torch.bfloat16))
    assert load_state_dict(tmp_path / "same.safetensors").keys() == state.keys()


def packed_by_quanto() -> dict[str, torch.Tensor]:
    scale = torch.ones(128, 1, dtype=torch.bfloat16)
    codes = torch.zeros(64, 16, dtype=torch.uint8)
    return {
        "a.weight._data._data": codes,
        "a.weight._scale": scale,
        "a.weight._shift": scale,
        "a.input_scale": scale[0, 0],
    }


def rotated() -> dict[str, torch.Tensor]:
    marker = as_bytes({"format": "int8_tensorwise", "convrot": True})
    return {"a.weight": torch.zeros(4, 256).to(torch.int8), "a.weight_scale": torch.ones(4, 1), "a.comfy_quant": marker}


def in_blocks() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.zeros(256, 256).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("state", "words"),
    [(packed_by_quanto(), "pip install optimum-quanto"), (rotated(), "rotated rows"), (in_blocks(), "in blocks")],
    ids=["packed by quanto", "rotated", "in blocks"],
)
def test_what_lading_cannot_decode_is_refused_with_the_reason(
    tmp_path: Path, state: dict[str, torch.Tensor], words: str
) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "model.safetensors", state))
    assert set(find_weights(checkpoint).tensors) == {"a.weight"}
    with pytest.raises(CheckpointError, match=words):
        as_the_network_has_it(checkpoint)
    with pytest.raises(CheckpointError, match=words):
        read_state_dict(type(checkpoint)(checkpoint.inventories, find_weights(checkpoint).tensors))


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {other: tensor for other, tensor in state.items() if other != name}


NF4_STATE = nf4("a", noise(8, 64))[0]
QUANT_STATE = "a.weight.quant_state.bitsandbytes__nf4"
TOLD = json.loads(bytes(NF4_STATE[QUANT_STATE].tolist()))
DAMAGED: dict[str, dict[str, torch.Tensor]] = {
    "no JSON": {QUANT_STATE: torch.zeros(9, dtype=torch.uint8)},
    "no object": {QUANT_STATE: torch.tensor([ord("3")], dtype=torch.uint8)},
    "long JSON": {QUANT_STATE: torch.full((5000,), 32, dtype=torch.uint8)},
    "other shape": {QUANT_STATE: as_bytes({**TOLD, "shape": [9, 64]})},
    "huge shape": {QUANT_STATE: as_bytes({**TOLD, "shape": [2**62, 2**62]})},
    "no shape": {QUANT_STATE: as_bytes({**TOLD, "shape": "8x64"})},
    "no block": {QUANT_STATE: as_bytes({**TOLD, "blocksize": 0})},
    "strange dtype": {QUANT_STATE: as_bytes({**TOLD, "dtype": "os.system"})},
    "few scales": {"a.weight.absmax": torch.ones(3)},
    "short table": {"a.weight.quant_map": torch.ones(15)},
    "scales of another dtype": {"a.weight.absmax": torch.ones(8, dtype=torch.int64)},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_description_is_one_error_that_names_the_tensor(tmp_path: Path, what: str) -> None:
    file = write(tmp_path / "model.safetensors", {**NF4_STATE, **DAMAGED[what]})
    with pytest.raises(CheckpointError, match=r"tensor 'a\.weight"):
        find_weights(open_checkpoint(file))


def test_a_companion_that_is_missing_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    state = without(NF4_STATE, "a.weight.absmax")
    assert set(find_weights(open_checkpoint(write(tmp_path / "model.safetensors", state))).tensors) == set(state)


def test_a_file_that_changes_under_its_scales_is_an_error(tmp_path: Path) -> None:
    state, _ = mxfp8("a", noise(64, 64))
    file = write(tmp_path / "model.safetensors", state)
    checkpoint = as_the_network_has_it(open_checkpoint(file))
    write(file, {**state, "more": noise(3)})
    with pytest.raises(CheckpointError, match="changed"):
        read_state_dict(checkpoint)


def test_of_a_file_on_a_hub_the_header_names_the_scheme_and_not_the_shape(tmp_path: Path) -> None:
    (inventory,) = open_checkpoint(write(tmp_path / "model.safetensors", NF4_STATE)).inventories
    place = Path("organisation/model/model.safetensors")
    tensors = {name: replace(info, file=place) for name, info in inventory.tensors.items()}
    there = replace(inventory, file=place, stamp=FileStamp(0, 0, inventory.stamp.nbytes, 0), tensors=tensors)
    weights = find_weights(Checkpoint((there,), tensors))
    assert set(weights.tensors) == {"a.weight"}
    assert weights.schemes == {"bitsandbytes nf4": 1}
    assert not weights.shapes_known
    assert weights.remedies == ("bitsandbytes nf4: its shapes are in the file, which is not here: fetch it",)


def by_bitsandbytes(package: Any, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes, told = package.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    state = {"a.weight": codes, **{f"a.weight.{name}": value for name, value in told.as_dict(packed=True).items()}}
    return state, package.functional.dequantize_4bit(codes, told)


def by_quanto(package: Any, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    rows, columns = weight.shape
    linear: Any = torch.nn.Linear(columns, rows, bias=False, dtype=weight.dtype)
    layer: Any = torch.nn.Sequential(linear)
    linear.weight.data = weight
    package.quantize(layer, weights=package.qint8)
    package.freeze(layer)
    return dict(layer.state_dict()), layer[0].weight.dequantize()


@pytest.mark.parametrize(("package", "by"), [("bitsandbytes", by_bitsandbytes), ("optimum.quanto", by_quanto)])
def test_what_the_package_itself_writes_has_the_values_that_it_gives_back(
    tmp_path: Path, package: str, by: Callable[[Any, torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
) -> None:
    pytest.importorskip(package.partition(".")[0], reason=f"{package} is no dependency")
    state, expected = by(importlib.import_module(package), noise(64, 128).to(torch.bfloat16))
    file = write(tmp_path / "model.safetensors", state)
    (found,) = read_state_dict(as_the_network_has_it(open_checkpoint(file))).values()
    assert torch.equal(found, expected)
