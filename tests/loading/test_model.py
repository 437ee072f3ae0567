"""`load_model`: every parameter accounted for, none allocated twice, outputs equal to the libraries' own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lading import CheckpointError, ComponentError, LadingError, load_model, load_state_dict, shipped_model
from lading.devices.fake import FakeDevice
from tests.loading.test_initialization import WAN, Net


def same_tensors(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    buffers = dict(right.named_buffers())
    return (
        ours.keys() == theirs.keys()
        and all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in theirs)
        and all(torch.equal(buffer, buffers[name]) for name, buffer in left.named_buffers())
    )


@pytest.fixture
def net(tmp_path: Path) -> tuple[Net, Path]:
    torch.manual_seed(0)
    model = Net()
    file = tmp_path / "net.safetensors"
    save_file({name: tensor for name, tensor in model.state_dict().items() if name != "head.weight"}, file)
    return model, file


def test_a_plain_module_loads_in_eval_mode_with_ties_intact(net: tuple[Net, Path]) -> None:
    source, file = net
    model = load_model(Net, file, torch_dtype=None)
    assert not model.training
    assert model.head.weight is model.embedding.weight
    assert same_tensors(model, source)


def test_the_dtype_concerns_parameters_and_buffers_that_float(net: tuple[Net, Path]) -> None:
    model = load_model(Net, net[1])
    assert model.scale.dtype == model.frequencies.dtype == torch.bfloat16
    assert model.mask.dtype == torch.bool


def test_ties_hold_whichever_of_the_names_is_stored(net: tuple[Net, Path], tmp_path: Path) -> None:
    source, _ = net
    stored = {name: tensor for name, tensor in source.state_dict().items() if name != "embedding.weight"}
    save_file(stored, tmp_path / "head.safetensors")
    model = load_model(Net, tmp_path / "head.safetensors", torch_dtype=None)
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.embedding.weight, source.head.weight)


def test_two_values_for_one_tied_parameter_are_an_error(net: tuple[Net, Path], tmp_path: Path) -> None:
    both = {name: tensor.clone() for name, tensor in net[0].state_dict().items()}
    both["head.weight"] += 1
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(CheckpointError, match="two values"):
        load_model(Net, tmp_path / "both.safetensors")


def test_all_missing_unexpected_and_mis_shaped_names_are_listed(net: tuple[Net, Path], tmp_path: Path) -> None:
    tensors = load_file(net[1])
    del tensors["scale"], tensors["frequencies"]
    save_file({**tensors, "extra.one": torch.ones(1), "extra.two": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(Net, tmp_path / "other.safetensors")
    for text in ("missing (2): frequencies, scale", "unexpected (2): extra.one, extra.two", "other.safetensors", "Net"):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"mis-shaped \(3\).*frequencies is \(4,\), expected \(6,\)"):
        load_model(Net, net[1], config={"width": 6})


def test_a_converter_renames_and_computes_and_a_disk_map_reads_only_what_it_asks_for(tmp_path: Path) -> None:
    fused = {"qkv": torch.arange(12.0).reshape(6, 2), "other.huge": torch.ones(4)}
    save_file(fused, tmp_path / "fused.safetensors")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(2, 2, bias=False) for _ in range(3))

    def split(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(("q.weight", "k.weight", "v.weight"), tensors["qkv"].chunk(3), strict=True))

    for use_disk_map in (False, True):
        model = load_model(
            Attention,
            tmp_path / "fused.safetensors",
            torch_dtype=torch.float16,
            state_dict_converter=split,
            use_disk_map=use_disk_map,
        )
        assert torch.equal(model.k.weight, fused["qkv"][2:4].half())


def test_the_shipped_networks_equal_those_of_from_pretrained() -> None:
    for model_class, name, dtype in (
        (AutoencoderKL, "vae", torch.float32),
        (UNet2DConditionModel, "unet", torch.bfloat16),
        (CLIPTextModel, "text_encoder", torch.float16),
    ):
        ours = load_model(model_class, shipped_model() / name, torch_dtype=dtype)
        assert same_tensors(ours, model_class.from_pretrained(shipped_model() / name, dtype=dtype))


def test_modules_that_diffusers_keeps_in_float32_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    WanTransformer3DModel(**WAN).save_pretrained(tmp_path)
    ours = load_model(WanTransformer3DModel, tmp_path, torch_dtype=torch.bfloat16)
    theirs = WanTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert ours.scale_shift_table.dtype == torch.float32
    assert same_tensors(ours, theirs)


def test_attention_names_from_before_diffusers_018_are_understood(tmp_path: Path) -> None:
    tensors = load_file(shipped_model() / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((shipped_model() / "vae" / "config.json").read_text())
    assert same_tensors(load_model(AutoencoderKL, tmp_path), load_model(AutoencoderKL, shipped_model() / "vae"))


CLIP = CLIPTextConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=8
)
T5 = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    ("model_class", "config"), [(CLIPTextModel, CLIP), (CLIPTextModelWithProjection, CLIP), (T5EncoderModel, T5)]
)
def test_transformers_classes_load_as_from_pretrained_loads_them(tmp_path: Path, model_class: Any, config: Any) -> None:
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.float16):
        ours, plain = (
            load_model(model_class, tmp_path, torch_dtype=dtype),
            model_class.from_pretrained(tmp_path, dtype=dtype),
        )
        assert same_tensors(ours, plain)
        assert ours.config.to_dict() | {"_name_or_path": str(tmp_path)} == plain.config.to_dict()
        assert not ours.training


@pytest.mark.parametrize("model_class", [CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_transformers_classes_reach_a_device_through_the_pinned_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_class: Any, stored: torch.dtype, dtype: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    model_class(T5 if model_class is T5EncoderModel else CLIP).to(stored).save_pretrained(tmp_path)
    ours = load_model(model_class, tmp_path, torch_dtype=dtype)
    fake = FakeDevice()
    monkeypatch.setattr("lading.devices.find_device", lambda _: fake)
    uploaded = load_model(model_class, tmp_path, torch_dtype=dtype)
    assert same_tensors(uploaded, ours)
    assert uploaded.config.to_dict() == ours.config.to_dict()
    assert not uploaded.training
    assert fake.copies > 0
    assert fake.used >= sum(parameter.nbytes for parameter in uploaded.parameters())
    assert fake.pinned == 0


def test_key_prefixes_of_older_hub_checkpoints_are_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = CLIPTextModel(CLIP)
    hub = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in source.state_dict().items()}
    hub["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(hub, tmp_path / "model.safetensors")
    ours = load_model(CLIPTextModel, tmp_path / "model.safetensors", CLIP, torch.float32)
    assert same_tensors(ours, source)


def test_transformers_mismatches_are_all_listed(tmp_path: Path) -> None:
    CLIPTextModel(CLIP).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
    wide = next(name for name in tensors if name.endswith("mlp.fc2.bias"))
    tensors[wide] = torch.ones(99)
    del tensors[gone]
    save_file({**tensors, "stranger": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_model(CLIPTextModel, tmp_path)
    message = str(caught.value)
    assert "missing (1)" in message
    assert "mlp.fc1.weight" in message
    assert "unexpected (1): stranger" in message
    assert "mis-shaped (1)" in message
    assert "(99,), expected (16,)" in message


def test_a_torch_file_loads_like_the_safetensors_file(net: tuple[Net, Path], tmp_path: Path) -> None:
    torch.save(load_state_dict(net[1]), tmp_path / "net.pth")
    assert same_tensors(load_model(Net, tmp_path / "net.pth"), load_model(Net, net[1]))


def test_a_config_may_be_a_file_or_a_folder() -> None:
    vae = shipped_model() / "vae"
    weights = vae / "diffusion_pytorch_model.safetensors"
    by_file = load_model(AutoencoderKL, weights, vae / "config.json")
    assert same_tensors(by_file, load_model(AutoencoderKL, weights, str(vae)))


@pytest.mark.parametrize("content", ["", "[1]", '{"block_out_channels": "x"}'])
def test_a_bad_config_is_a_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    weights = shipped_model() / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(LadingError):
        load_model(AutoencoderKL, weights, tmp_path / "config.json")


def test_a_config_that_the_class_does_not_take_is_a_clear_error(net: tuple[Net, Path]) -> None:
    with pytest.raises(ComponentError, match="Net cannot be built"):
        load_model(Net, net[1], config={"depth": 3})


def test_a_buffer_computed_from_parameters_is_a_clear_error(tmp_path: Path) -> None:
    class Derived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("doubled", self.weight.detach() * 2, persistent=False)

    save_file({"weight": torch.ones(2)}, tmp_path / "derived.safetensors")
    with pytest.raises(CheckpointError, match="computes doubled from its parameters"):
        load_model(Derived, tmp_path / "derived.safetensors")


SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
MEASURE = """
import gc, json, resource, sys, threading, torch
from pathlib import Path
from diffusers import UNet2DConditionModel
import lading

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) * 1024

folder, way = sys.argv[1:]
torch.set_num_threads(2)
lading.load_model(UNet2DConditionModel, lading.shipped_model() / "unet", torch_dtype=None)
gc.collect()
before, anonymous = status("VmRSS"), status("RssAnon")
Path("/proc/self/clear_refs").write_text("5")
if way == "diffusers":
    model = UNet2DConditionModel.from_pretrained(folder, dtype=torch.float16)
else:
    model = lading.load_model(UNet2DConditionModel, folder, torch_dtype=torch.float16)
peak, grown = status("VmHWM") - before, status("RssAnon") - anonymous
model = model.to(torch.bfloat16)
torch.manual_seed(0)
with torch.no_grad():
    output = model(torch.randn(1, 4, 8, 8).bfloat16(), 5, torch.randn(1, 8, 768).bfloat16()).sample
print(json.dumps({"peak": peak, "anonymous": grown, "output": output.float().flatten().tolist()}))
"""


@pytest.fixture(scope="module")
def sd15_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD1.5's UNet at its real size with random weights, in half precision: 1.7 GB."""
    folder = tmp_path_factory.mktemp("sd15")
    with torch.device("meta"):
        model = UNet2DConditionModel(**SD15_UNET)
    model.save_config(folder)
    torch.manual_seed(0)
    noise = (torch.randn(1 << 24) * 0.02).half()
    tensors = {}
    for name, tensor in model.state_dict().items():
        repeats = -(-tensor.numel() // noise.numel())
        tensors[name] = noise.repeat(repeats)[: tensor.numel()].reshape(tensor.shape).clone()
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


def test_sd15_unet_allocates_no_parameter_twice_and_computes_what_diffusers_computes(
    sd15_unet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = (sd15_unet / "diffusion_pytorch_model.safetensors").stat().st_size
    assert nbytes > 1.7e9

    def measure(way: str) -> dict[str, Any]:
        monkeypatch.setenv("LADING_READ", "mapped" if way == "diffusers" else way)
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, str(sd15_unet), way], capture_output=True, text=True, check=True
        )
        measured: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return measured

    theirs, copied, mapped = measure("diffusers"), measure("direct"), measure("mapped")
    assert copied["peak"] < 1.1 * nbytes
    assert mapped["anonymous"] < 0.05 * nbytes
    assert copied["output"] == mapped["output"] == theirs["output"]
