"""The safetensors header parser: right on good files, one clear error on anything else."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from lading import CheckpointError, open_checkpoint
from lading.checkpoint.header import MAX_HEADER_BYTES, SAFETENSORS_DTYPES, parse_header
from tests.conftest import header_bytes, write_sparse

TORCH_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
]


def write(folder: Path, entries: dict[str, Any], data: bytes) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(header_bytes(entries) + data)
    return file


def tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="/\\.", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12),
        st.tuples(st.sampled_from(TORCH_DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_what_safetensors_writes_is_read_as_safetensors_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[torch.dtype, list[int]]],
    metadata: dict[str, str],
) -> None:
    file = tmp_path_factory.mktemp("written") / "model.safetensors"
    metadata.pop("__metadata__", None)
    tensors.pop("__metadata__", None)
    zeros = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}
    save_file(zeros, file, metadata or None)
    checkpoint = open_checkpoint(file)
    assert {name: info.shape for name, info in checkpoint.items()} == {
        name: tuple(shape) for name, (_, shape) in tensors.items()
    }
    assert {name: f"torch.{info.dtype}" for name, info in checkpoint.items()} == {
        name: str(dtype) for name, (dtype, _) in tensors.items()
    }
    with safe_open(file, framework="pt") as reference:
        assert set(reference.keys()) == set(checkpoint)
        assert (reference.metadata() or {}) == checkpoint.metadata


def test_a_header_that_lists_tensors_in_another_order_than_their_bytes_is_read(tmp_path: Path) -> None:
    file = write(tmp_path, {"late": tensor(4, 8), "early": tensor(0, 4)}, bytes(8))
    assert list(open_checkpoint(file)) == ["early", "late"]


BAD_HEADERS: dict[str, tuple[dict[str, Any], int, str]] = {
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "'b' overlaps"),
    "hole": ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12, "'b' leaves a hole"),
    "reversed offsets": ({"a": tensor(8, 0, [2])}, 8, "'a' has the impossible data offsets"),
    "wrong size": ({"a": tensor(0, 4, [2])}, 4, "needs 8 bytes"),
    "negative size": ({"a": tensor(0, 4, [-1])}, 4, "impossible shape"),
    "huge size": ({"a": tensor(0, 4, [2**62, 2**62])}, 4, "needs"),
    "size over 63 bits": ({"a": tensor(0, 4, [2**63])}, 4, "impossible shape"),
    "fractional size": ({"a": tensor(0, 4, [1.0])}, 4, "impossible shape"),  # type: ignore[list-item] # on purpose
    "boolean size": ({"a": tensor(0, 4, [True])}, 4, "impossible shape"),
    "too many axes": ({"a": tensor(0, 4, [1] * 5000)}, 4, "5000 axes"),
    "unknown dtype": ({"a": tensor(0, 4, [1], "F33")}, 4, "unknown dtype 'F33'"),
    "dtype that is no text": ({"a": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}}, 4, "unknown dtype 7"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, 4, "data offsets"),
    "no description": ({"a": 3}, 0, "no description"),
    "NUL in a name": ({"a\0b": tensor(0, 4)}, 4, "not a name"),
    "../ in a name": ({"../a": tensor(0, 4)}, 4, "not a name"),
    "empty name": ({"": tensor(0, 4)}, 4, "not a name"),
    "an escape sequence in a name": ({"a\x1b[2Jb": tensor(0, 4)}, 4, "not a name"),
    "a line break in a name": ({"a\nb": tensor(0, 4)}, 4, "not a name"),
    "a C1 control character in a name": ({"a\x9b2Jb": tensor(0, 4)}, 4, "not a name"),
    "surrogate in a name": ({"\ud800": tensor(0, 4)}, 4, "Unicode"),
    "metadata that is no map": ({"__metadata__": [1], "a": tensor(0, 4)}, 4, "__metadata__"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": tensor(0, 4)}, 4, "__metadata__"),
    "truncated": ({"a": tensor(0, 8)}, 4, "truncated"),
    "trailing bytes": ({"a": tensor(0, 4)}, 5, "no tensor owns"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_one_error_that_names_file_and_reason(tmp_path: Path, name: str) -> None:
    entries, nbytes, reason = BAD_HEADERS[name]
    file = write(tmp_path, entries, bytes(nbytes))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "seven bytes": (b"1234567", "too few"),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "truncated"),
    "header over its bound": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "bound"),
    "not JSON": ((8).to_bytes(8, "little") + b"{nonsens", "JSON"),
    "not an object": ((2).to_bytes(8, "little") + b"[]", "does not start"),
    "bad UTF-8": ((4).to_bytes(8, "little") + b'{"\xff"', "JSON"),
    "nested without end": ((200_006).to_bytes(8, "little") + b'{"a":' + b"[" * 200_001, "JSON"),
    "lists without end": ((12_000_010).to_bytes(8, "little") + b'{"a":[' + b"[]," * 4_000_001 + b"0]}", "tensors"),
    "a number of 5,000 digits": ((5_006).to_bytes(8, "little") + b'{"a":' + b"9" * 5_000 + b"}", ""),
    "duplicate names": (
        (lambda text: len(text).to_bytes(8, "little") + text)(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
        )
        + b"x",
        "'a' twice",
    ),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "HTML saved as a model": (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "an old GGUF file": (b"GGUF\x01\x00\x00\x00" + bytes(64), "GGUF"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_one_error_that_says_what_it_is(tmp_path: Path, name: str) -> None:
    content, reason = BAD_FILES[name]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file)
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.timeout(120)
def test_300_000_tensors_of_no_bytes_take_bounded_time_and_memory(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", {f"blocks.{n}.to_q.weight": [0] for n in range(300_000)})
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
import lading
found = lading.identify({str(file)!r})
assert not found.candidates
print(found.hash, len(found.explain()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    digest, length = done.stdout.split()
    names = sorted(item for n in range(300_000) for item in (f"blocks.{n}.to_q.weight", f"blocks.{n}.to_q.weight:0"))
    assert digest == hashlib.md5(",".join(names).encode(), usedforsecurity=False).hexdigest()
    assert int(length) < 10_000


def test_ten_thousand_mutated_headers_raise_nothing_but_checkpoint_errors() -> None:
    """Flips, cuts, repetitions and swaps of bytes and of numbers in a real header."""
    good = save(
        {f"block.{layer}.{part}": torch.zeros(4, 2) for layer in range(3) for part in ("weight", "bias")},
        {"format": "pt"},
    )
    length = int.from_bytes(good[:8], "little")
    header, data_nbytes = good[8 : 8 + length], len(good) - 8 - length
    choose = random.Random(0)
    numbers = [b"0", b"-1", b"8", b"1e9", b"18446744073709551616", b"null", b'""', b"[]", b"{}", b"true", b"1.5"]
    refused = 0
    for _ in range(10_000):
        mutated = bytearray(header)
        for _ in range(choose.randint(1, 3)):
            place = choose.randrange(len(mutated))
            match choose.randrange(4):
                case 0:
                    mutated[place] = choose.randrange(256)
                case 1:
                    del mutated[place : place + choose.randint(1, 20)]
                case 2:
                    mutated[place:place] = mutated[place : place + choose.randint(1, 40)]
                case _:
                    mutated[place : place + 1] = choose.choice(numbers)
            if not mutated:
                mutated += b"{"
        try:
            parse_header(bytes(mutated), Path("mutated"), data_nbytes)
        except CheckpointError:
            refused += 1
    assert refused > 9_000


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_raise_nothing_but_checkpoint_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("bytes", numbered=True) / "model.bin"
    file.write_bytes(content)
    try:
        open_checkpoint(file)
    except CheckpointError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("code", SAFETENSORS_DTYPES)
def test_every_dtype_of_the_format_has_its_size(code: str) -> None:
    digits = code.removeprefix("BF").lstrip("BOLUIFC").partition("_")[0]
    nbytes = int(digits or 8)  # of eight elements
    header = json.dumps({"a": {"dtype": code, "shape": [8], "data_offsets": [0, nbytes]}}).encode()
    tensors, _ = parse_header(header, Path("model.safetensors"), nbytes)
    assert tensors["a"].nbytes == nbytes
