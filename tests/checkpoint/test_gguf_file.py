"""GGUF: headers by our own strict reader, values bit for bit as diffusers decodes them."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, dequantize_gguf_tensor

from lading import CheckpointError, DiskMap, convert_checkpoint, hash_model_file, load_state_dict, open_checkpoint
from lading.checkpoint import gguf_file, reader, reading
from lading.checkpoint.encoding import GgmlBlocks
from lading.checkpoint.inventory import hash_layout
from tests.checkpoint.gguf_files import Type, blocks_of, header, text, write_gguf

PLAIN = {Type.F32, Type.F16, Type.BF16, Type.F64, Type.I8, Type.I16, Type.I32, Type.I64}
DECODED_BY_GGUF = [
    kind for kind in Type if kind not in {*PLAIN, *SUPPORTED_GGUF_QUANT_TYPES, Type.Q8_1, Type.Q8_K, Type.Q1_0}
]


def test_the_types_are_those_of_ggml() -> None:
    blocks = {Type(number): (block, nbytes) for number, (_, block, nbytes) in gguf_file._BLOCK_TYPES.items()}
    assert blocks == {kind: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items() if kind not in PLAIN}
    assert all(name == Type(number).name for number, (name, _, _) in gguf_file._BLOCK_TYPES.items())


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tensor of each type that diffusers decodes, and of those that it need not decode."""
    tensors = {kind.name: (kind, blocks_of(kind, 24, 512, kind.value)) for kind in SUPPORTED_GGUF_QUANT_TYPES}
    tensors["F32"] = Type.F32, blocks_of(Type.F32, 3, 5)
    tensors["F16"] = Type.F16, blocks_of(Type.F16, 4, 8)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", tensors)


def test_the_header_agrees_with_the_package_gguf(every_type: Path) -> None:
    checkpoint = open_checkpoint(every_type)
    known = gguf.GGUFReader(every_type)
    assert len(checkpoint) == len(known.tensors)
    for tensor in known.tensors:
        info = checkpoint[tensor.name]
        assert (info.start, info.end) == (tensor.data_offset, tensor.data_offset + tensor.n_bytes)
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert info.kind == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(tensor.name, tensor.name)
        assert info.nbytes == tensor.n_bytes
    assert checkpoint.metadata == {"general.architecture": "test", "general.name": "noise"}
    assert checkpoint.dtypes["Q4_K"] == 1
    assert hash_model_file(every_type) == hash_layout({name: info.shape for name, info in checkpoint.items()})


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_values_are_those_that_diffusers_decodes_bit_for_bit(
    every_type: Path, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reading, reader):
        monkeypatch.setattr(module, "PIECE_BYTES", 4096)  # cuts tensors between blocks
    expected = {name: dequantize_gguf_tensor(tensor) for name, tensor in load_gguf_checkpoint(every_type).items()}
    found, on_disk = load_state_dict(every_type, torch_dtype=dtype), DiskMap(every_type, torch_dtype=dtype)
    for name, tensor in expected.items():
        wanted = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(getattr(torch, dtype))
        assert torch.equal(found[name].to(wanted.dtype), wanted), name
        assert found[name].dtype == wanted.dtype or name == "BF16", "diffusers makes float32 of bfloat16"
        assert torch.equal(on_disk[name], found[name]), name


@pytest.mark.parametrize("kind", DECODED_BY_GGUF, ids=lambda kind: str(kind.name))
def test_what_diffusers_does_not_know_is_decoded_as_the_package_gguf_does(tmp_path: Path, kind: Type) -> None:
    data = blocks_of(kind, 6, 512)
    file = write_gguf(tmp_path / "model.gguf", {"a": (kind, data)})
    assert np.array_equal(load_state_dict(file)["a"].numpy(), gguf.quants.dequantize(data, kind), equal_nan=True)


def test_a_type_that_nobody_decodes_is_refused_by_name(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", {"a": (Type.Q8_K, blocks_of(Type.Q8_K, 2, 256))})
    assert open_checkpoint(file)["a"].shape == (2, 256)
    with pytest.raises(CheckpointError, match="neither diffusers nor the package gguf decodes Q8_K"):
        load_state_dict(file)


def test_the_shape_that_a_file_for_comfyui_had_to_give_up_is_restored(tmp_path: Path) -> None:
    data = blocks_of(Type.Q8_0, 8, 32)
    shapes = {"a": (16, 4, 2, 2), "b": (99, 99), "c": (4, 2, 2, 2, 2, 4)}
    tensors = dict.fromkeys(("a", "b", "c"), (Type.Q8_0, data))
    found = load_state_dict(write_gguf(tmp_path / "model.gguf", tensors, shapes))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {**shapes, "b": (8, 32)}
    assert torch.equal(found["a"].flatten(), found["b"].flatten())


def test_a_gguf_file_is_converted_to_safetensors(
    tmp_path: Path, every_type: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lading.checkpoint.convert.PIECE_BYTES", 4096)
    for dtype in (None, "bfloat16"):
        target = tmp_path / f"{dtype}.safetensors"
        convert_checkpoint(every_type, target, dtype)
        expected, found = load_state_dict(every_type, dtype), load_state_dict(target)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_headers_need_neither_torch_nor_gguf(every_type: Path) -> None:
    program = (
        f"import sys, lading; lading.identify({str(every_type)!r}); "
        "sys.exit(bool({'torch', 'gguf', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_without_the_package_the_error_says_what_to_install(every_type: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'lading\[gguf\]'"):
        load_state_dict(every_type)


Q4_0, F32 = Type.Q4_0.value, Type.F32.value
NUMBER, TEXT, ARRAY = 4, 8, 9

HOSTILE = {
    "no header": (b"GGUF", "runs past the end"),
    "version 1": (header([], version=1), "version 1"),
    "other byte order": (header([], version=0x03000000), "big-endian"),
    "many tensors": (header([], counts=(2**60, 0)), "more than any model has"),
    "much metadata": (header([], counts=(0, 2**60)), "more than any model has"),
    "long name": (header([], text("")[:0] + struct.pack("<Q", 2**62), 1), "runs past the end"),
    "name twice": (header([("a", (4,), F32, 0), ("a", (4,), F32, 32)]) + bytes(64), "'a' twice"),
    "unsafe name": (header([("../a", (4,), F32, 0)]) + bytes(64), "not a name for a tensor"),
    "many axes": (header([("a", (1,) * 9, F32, 0)]) + bytes(64), "9 axes"),
    "huge sizes": (header([("a", (2**62, 4), F32, 0)]) + bytes(64), "impossible sizes"),
    "past the end": (header([("a", (2**40,), F32, 0)]) + bytes(64), "truncated"),
    "far offset": (header([("a", (4,), F32, 2**62)]) + bytes(64), "truncated"),
    "crooked offset": (header([("a", (4,), F32, 4)]) + bytes(64), "no multiple of 32"),
    "overlap": (header([("a", (16,), F32, 0), ("b", (4,), F32, 32)]) + bytes(128), "overlap"),
    "half a block": (header([("a", (48,), Q4_0, 0)]) + bytes(64), "no whole blocks of Q4_0"),
    "unknown type": (header([("a", (4,), 99, 0)]) + bytes(64), "unknown ggml type 99"),
    "alignment 0": (header([], text("general.alignment") + struct.pack("<II", NUMBER, 0), 1), "alignment 0"),
    "alignment 3": (header([], text("general.alignment") + struct.pack("<II", NUMBER, 3), 1), "alignment 3"),
    "alignment of text": (header([], text("general.alignment") + struct.pack("<I", TEXT) + text("x"), 1), "alignment"),
    "metadata twice": (header([], 2 * (text("k") + struct.pack("<II", NUMBER, 1)), 2), "twice"),
    "unknown value": (header([], text("k") + struct.pack("<II", 77, 1), 1), "unknown type 77"),
    "array of arrays": (header([], text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1), 1), "array of type 9"),
    "many texts": (header([], text("k") + struct.pack("<IIQ", ARRAY, TEXT, 2**60), 1), "texts"),
    "long array": (header([], text("k") + struct.pack("<IIQ", ARRAY, NUMBER, 2**60), 1), "runs past the end"),
    "no UTF-8": (header([], struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", NUMBER, 1), 1), "UTF-8"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_or_hostile_header_is_one_error(tmp_path: Path, what: str) -> None:
    content, words = HOSTILE[what]
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(file)
    assert str(file) in str(error.value)


def test_texts_without_end_take_bounded_time(tmp_path: Path) -> None:
    count = gguf_file._MAX_STRINGS
    file = tmp_path / "model.gguf"
    entries = text("k") + struct.pack("<IIQ", ARRAY, TEXT, count) + bytes(8 * count)
    file.write_bytes(header([("a", (4,), F32, 0)], entries, 1) + bytes(16))
    assert open_checkpoint(file)["a"].shape == (4,)


def test_every_truncation_is_an_error_and_every_mutation_an_error_or_an_inventory(tmp_path: Path) -> None:
    tensors = {"a": (Type.Q4_0, blocks_of(Type.Q4_0, 2, 32)), "b": (Type.F32, blocks_of(Type.F32, 1, 3))}
    content = write_gguf(tmp_path / "whole.gguf", tensors).read_bytes()
    file = tmp_path / "model.gguf"
    end = open_checkpoint(tmp_path / "whole.gguf")["b"].end
    for cut in (*range(0, 200, 7), *range(200, end, 211), end - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(CheckpointError):
            open_checkpoint(file)
    choose = random.Random(0)
    for _ in range(500):
        mutated = bytearray(content)
        for _ in range(choose.randint(1, 4)):
            mutated[choose.randrange(60 if choose.random() < 0.5 else len(mutated))] = choose.randrange(256)
        file.write_bytes(mutated)
        try:
            infos = open_checkpoint(file)
        except CheckpointError:
            continue
        assert all(info.end <= len(content) for info in infos.values())
        assert all(isinstance(info.encoding, GgmlBlocks) or info.encoding is None for info in infos.values())
