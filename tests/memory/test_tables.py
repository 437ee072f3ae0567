"""Embeddings of large vocabularies under a limit: the rows that tokens ask for are read, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel, UMT5Config, UMT5EncoderModel

import lading
from lading import MemoryLimitError, manager_of
from lading.catalog.origin import Origin
from lading.checkpoint import open_checkpoint
from lading.memory.files import WeightFiles
from lading.memory.image import Weight
from lading.memory.tables import Table

VOCABULARY = 256_000
IDS = torch.tensor([[5, 255_999, 7, 7, 0, 6, 123_456, 1]])


def _umt5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return UMT5EncoderModel(UMT5Config(vocab_size=VOCABULARY, **sizes))


def _gemma(kind: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8}
    return kind(Gemma3TextConfig(vocab_size=VOCABULARY, **sizes))


def _minimum(kind: Any, folder: Path, dtype: str) -> int:
    with pytest.raises(MemoryLimitError) as refused:
        lading.load_model(kind, folder, torch_dtype=dtype, memory_limit=1)
    return refused.value.minimum


def _outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=ids)
    output: torch.Tensor = found.logits if "logits" in found else found.last_hidden_state
    return output


@pytest.mark.parametrize("name", ["UMT5", "Gemma 3, whose embeddings are scaled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_encoder_computes_far_below_the_size_of_its_table_bit_for_bit(
    name: str, dtype: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = _umt5() if name == "UMT5" else _gemma(Gemma3TextModel)
    made.save_pretrained(tmp_path)
    table = VOCABULARY * 32 * torch.empty(0, dtype=getattr(torch, dtype)).itemsize
    plain = lading.load_model(type(made), tmp_path, torch_dtype=dtype)
    limit = _minimum(type(made), tmp_path, dtype) + 2_000_000  # for the activations of a call
    assert limit < table / 2
    streamed = lading.load_model(type(made), tmp_path, torch_dtype=dtype, memory_limit=limit)
    for ids in (IDS, IDS.flip(1) + 3 - 3 * IDS.flip(1).clamp(max=1), IDS[:, :2]):
        assert torch.equal(_outputs(streamed, ids), _outputs(plain, ids))
    assert manager_of(streamed).plan.peak_bytes <= limit
    assert manager_of(streamed).stats().read_bytes < table / 2, "the table is not read"
    state, expected = streamed.state_dict(), plain.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
    manager_of(streamed).release(weights=True)
    assert torch.equal(_outputs(streamed, IDS), _outputs(plain, IDS))


def test_a_table_that_a_head_shares_is_there_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _gemma(Gemma3ForCausalLM).save_pretrained(tmp_path)
    plain = lading.load_model(Gemma3ForCausalLM, tmp_path, torch_dtype="float32")
    limit = 3 * sum(parameter.nbytes for parameter in plain.parameters()) + (100 << 20)
    streamed = lading.load_model(Gemma3ForCausalLM, tmp_path, torch_dtype="float32", memory_limit=limit)
    assert torch.equal(_outputs(streamed, IDS), _outputs(plain, IDS))
    assert _minimum(Gemma3ForCausalLM, tmp_path, "float32") > VOCABULARY * 32 * 4


def test_tokens_outside_the_vocabulary_are_an_error_as_ever(tmp_path: Path) -> None:
    _umt5().save_pretrained(tmp_path)
    limit = _minimum(UMT5EncoderModel, tmp_path, "float32") + 2_000_000
    streamed = lading.load_model(UMT5EncoderModel, tmp_path, torch_dtype="float32", memory_limit=limit)
    with pytest.raises(IndexError):
        _outputs(streamed, torch.tensor([[VOCABULARY]]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.integers(0, 299), max_size=60),
    width=st.sampled_from([1, 7, 1000, 3000]),
    pad=st.sampled_from([0, 1]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_table_holds_the_rows_that_were_asked_for(
    rows: list[int], width: int, pad: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """At any place in the file, aligned or not, as it is stored or cast."""
    generator = torch.Generator().manual_seed(width)
    stored = {"a": torch.zeros(pad, dtype=torch.uint8), "b": torch.randn(300, width, generator=generator)}
    save_file(stored, tmp_path / "table.safetensors")
    checkpoint = open_checkpoint(tmp_path / "table.safetensors")
    files = WeightFiles({"b": Weight(Origin.of(checkpoint["b"]), dtype)}, checkpoint.inventories, 1 << 20)
    table = Table("b", files)
    for wanted in (rows, rows[:3]):
        table.read(torch.tensor(wanted, dtype=torch.int64))
        assert torch.equal(table.tensor[wanted], stored["b"].to(dtype)[wanted])
    table.discard()
    assert not table.tensor.any()
    files.close()
