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
    "enable_vram_management": """
from diffsynth.core import load_model, enable_vram_management, AutoWrappedLinear, AutoWrappedModule

model = load_model(Blocks, "blocks.safetensors", torch_dtype=torch.bfloat16, device="cpu")
expected = model(INPUTS)
enable_vram_management(
    model,
    module_map={
        torch.nn.Linear: AutoWrappedLinear,
        torch.nn.RMSNorm: AutoWrappedModule,
    },
    vram_config = {
        "offload_dtype": torch.bfloat16,
        "offload_device": "cpu",
        "onload_dtype": torch.bfloat16,
        "onload_device": "cpu",
        "preparing_dtype": torch.bfloat16,
        "preparing_device": "cpu",
        "computation_dtype": torch.bfloat16,
        "computation_device": "cpu",
    },
    vram_limit=0,
)
with torch.no_grad():
    output = model(INPUTS)
assert torch.equal(output, expected)
assert model.vram_management_enabled
""",
    "load_model with disk offload": """
from diffsynth.core import load_model, enable_vram_management, AutoWrappedLinear, AutoWrappedModule

model = load_model(
    Blocks,
    ["blocks.safetensors"],
    module_map={
        torch.nn.Linear: AutoWrappedLinear,
        torch.nn.RMSNorm: AutoWrappedModule,
    },
    vram_config={
        "offload_dtype": "disk",
        "offload_device": "disk",
        "onload_dtype": "disk",
        "onload_device": "disk",
        "preparing_dtype": torch.bfloat16,
        "preparing_device": "cpu",
        "computation_dtype": torch.bfloat16,
        "computation_device": "cpu",
    },
    vram_limit=0,
)
with torch.no_grad():
    output = model(INPUTS)
assert torch.equal(output, load_model(Blocks, "blocks.safetensors")(INPUTS))
""",
    "a pipeline's phases": """
from diffsynth.core import ModelConfig, load_model, AutoWrappedLinear, AutoWrappedModule

vram_config = {
    "offload_dtype": torch.float8_e4m3fn,
    "offload_device": "cpu",
    "onload_dtype": torch.float8_e4m3fn,
    "onload_device": "cpu",
    "preparing_dtype": torch.float8_e4m3fn,
    "preparing_device": "cpu",
    "computation_dtype": torch.bfloat16,
    "computation_device": "cpu",
}
config = ModelConfig(path="blocks.safetensors", **vram_config)
config.download_if_necessary()
model = load_model(
    Blocks, config.path, {}, vram_config["computation_dtype"], vram_config["computation_device"], use_disk_map=True,
    module_map={torch.nn.Linear: AutoWrappedLinear, torch.nn.RMSNorm: AutoWrappedModule},
    vram_config=config.vram_config(), vram_limit=None,
)
for module in model.modules():
    if hasattr(module, "onload"):
        module.onload()
with torch.no_grad():
    output = model(INPUTS)
for module in model.modules():
    if hasattr(module, "offload"):
        module.offload()
plain = load_model(Blocks, config.path, torch_dtype=torch.float32)
for parameter in plain.parameters():
    parameter.data = parameter.data.to(torch.float8_e4m3fn).to(torch.bfloat16)
assert torch.equal(output, plain(INPUTS))
""",
}


class Blocks(torch.nn.Sequential):
    """The layers that the documented programs manage, in small."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(8, 8), torch.nn.RMSNorm(8), torch.nn.Linear(8, 4))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_documented_program_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"a": torch.zeros(3), "b": torch.ones(2)}
    save_file(tensors, "model.safetensors")
    save_file({"a": tensors["a"]}, "model-1.safetensors")
    save_file({"b": tensors["b"]}, "model-2.safetensors")
    torch.manual_seed(0)
    save_file(Blocks().state_dict(), "blocks.safetensors")
    program = PROGRAMS[name].replace("from diffsynth.core import", "from lading import")
    names = {"torch": torch, "EXPECTED": hash_model_file("model.safetensors"), "Blocks": Blocks}
    exec(compile(program, name, "exec"), {**names, "INPUTS": torch.ones(2, 8, dtype=torch.bfloat16)})
