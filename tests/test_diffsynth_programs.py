"""Programs written as the documentation of `diffsynth.core` shows run with only their imports changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lading import hash_model_file

PROGRAMS = {
    "load_state_dict": """
from diffsynth.core import load_state_dict
state_dict = load_state_dict("model.safetensors")
assert state_dict["b"].tolist() == [1, 1]
state_dict = load_state_dict(["model-1.safetensors", "model-2.safetensors"])
assert set(state_dict) == {"a", "b"}
state_dict = load_state_dict("model.safetensors", torch_dtype=torch.bfloat16, device="cpu")
assert state_dict["a"].dtype == torch.bfloat16
""",
    "hash_model_file": """
from diffsynth.core import hash_model_file
assert hash_model_file("model.safetensors") == EXPECTED
assert hash_model_file(["model-1.safetensors", "model-2.safetensors"]) == EXPECTED
""",
    "skip_model_initialization": """
from diffsynth.core import load_state_dict, skip_model_initialization

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(3))
        self.b = torch.nn.Parameter(torch.randn(2))

with skip_model_initialization():
    model = Net()
model.load_state_dict(load_state_dict("model.safetensors"), assign=True)
assert model.b.tolist() == [1, 1]
""",
    "DiskMap": """
from diffsynth.core import DiskMap
state_dict = DiskMap("model.safetensors", device="cpu")
assert state_dict["a"].tolist() == [0, 0, 0]
assert "b" in state_dict and len(state_dict) == 2
converted = DiskMap("model.safetensors", device="cpu", state_dict_converter=lambda s: {"new." + k: s[k] for k in s})
assert converted["new.b"].tolist() == [1, 1]
""",
    "ModelConfig": """
from diffsynth.core import ModelConfig, load_state_dict
config = ModelConfig(path="model.safetensors")
config.download_if_necessary()
assert config.path == "model.safetensors"
config = ModelConfig(path=["model-1.safetensors", "model-2.safetensors"])
config.download_if_necessary()
assert set(load_state_dict(config.path)) == {"a", "b"}
""",
    "load_model": """
from diffsynth.core import load_model

class Net(torch.nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(size))
        self.b = torch.nn.Parameter(torch.randn(2))

model = load_model(Net, "model.safetensors", config={"size": 3}, torch_dtype=torch.float16, device="cpu")
assert model.a.dtype == torch.float16 and not model.training
model = load_model(Net, "model.safetensors", use_disk_map=True, state_dict_converter=lambda s: {k: s[k] for k in s})
assert model.a.dtype == torch.bfloat16
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_documented_program_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"a": torch.zeros(3), "b": torch.ones(2)}
    save_file(tensors, "model.safetensors")
    save_file({"a": tensors["a"]}, "model-1.safetensors")
    save_file({"b": tensors["b"]}, "model-2.safetensors")
    program = PROGRAMS[name].replace("from diffsynth.core import", "from lading import")
    exec(compile(program, name, "exec"), {"torch": torch, "EXPECTED": hash_model_file("model.safetensors")})
