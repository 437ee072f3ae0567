"""Files that several tests of the memory engine stream from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.memory.odd import Odd


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {name: torch.randn_like(tensor) for name, tensor in Odd().state_dict().items() if name != "head.weight"}
    save_file(tensors, tmp_path / "odd.safetensors")
    return tmp_path / "odd.safetensors"
