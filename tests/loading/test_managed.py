"""`load_model` with a `vram_config`: real networks whose layers are on the disk, in fp8, or where the rules say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, WanTransformer3DModel
from safetensors.torch import save_file
from torch import nn
from transformers import T5Config, T5EncoderModel

from lading import (
    AutoWrappedLinear,
    AutoWrappedModule,
    CheckpointError,
    DiskMap,
    LadingError,
    enable_vram_management,
    load_model,
    load_pipeline,
    shipped_model,
)
from tests.memory.every_kind import LAYERS, TOKENS, EveryKind, every_kind, save, vram_config
from tests.memory.test_streaming import MODELS

FP8 = torch.float8_e4m3fn
DISK = vram_config("disk", "disk", "disk", "cpu", torch.bfloat16)
FP8_STORAGE = {f"{state}_dtype": FP8 for state in ("offload", "onload", "preparing")}
COMMON: dict[type[nn.Module], Any] = {
    nn.Linear: AutoWrappedLinear,
    nn.Conv2d: AutoWrappedModule,
    nn.Embedding: AutoWrappedModule,
    nn.LayerNorm: AutoWrappedModule,
    nn.GroupNorm: AutoWrappedModule,
}


@pytest.mark.parametrize("places", [("disk", "disk", "disk"), ("disk", "disk", "cpu"), ("cpu", "cpu", "cpu")])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_the_plainly_loaded_models(name: str, places: tuple[str, str, str]) -> None:
    model_class, run = MODELS[name]
    folder = shipped_model() / name
    config = vram_config(*places, "cpu")
    with torch.no_grad():
        expected = run(load_model(model_class, folder, torch_dtype="float32"))
        for limit in (None, 0):
            model = load_model(model_class, folder, module_map=COMMON, vram_config=config, vram_limit=limit)
            assert not model.training
            assert torch.equal(run(model), expected)


@pytest.mark.parametrize("name", MODELS)
def test_fp8_storage_equals_weights_rounded_by_hand(name: str) -> None:
    model_class, run = MODELS[name]
    folder = shipped_model() / name
    rounded = load_model(model_class, folder, torch_dtype=torch.bfloat16)
    stored = load_model(model_class, folder, torch_dtype=None)
    for parameter, exact in zip(rounded.parameters(), stored.parameters(), strict=True):
        parameter.data = exact.data.to(FP8).to(torch.bfloat16)
    model = load_model(model_class, folder, module_map=COMMON, vram_config=FP8_STORAGE)
    with torch.no_grad():
        assert torch.equal(run(model), run(rounded))


def test_a_whole_model_is_managed_by_its_class() -> None:
    model = load_model(
        AutoencoderKL, shipped_model() / "vae", module_map={AutoencoderKL: AutoWrappedModule}, vram_config=DISK
    )
    plain = load_model(AutoencoderKL, shipped_model() / "vae")
    latent = torch.ones(1, 4, 8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(model.decode(latent).sample, plain.decode(latent).sample)
    assert model.config.latent_channels == 4


def test_a_pipeline_draws_the_same_picture_with_its_denoiser_on_the_disk() -> None:
    pipeline = load_pipeline("shapes", torch_dtype=torch.bfloat16)

    def draw() -> Any:
        generator = torch.Generator().manual_seed(0)
        return pipeline("a red circle", num_inference_steps=2, generator=generator, output_type="np").images

    expected = draw()
    pipeline.unet = load_model(
        UNet2DConditionModel, shipped_model() / "unet", module_map=COMMON, vram_config=DISK, vram_limit=0
    )
    assert (draw() == expected).all()


def test_saved_weights_are_the_true_ones(tmp_path: Path) -> None:
    plain = load_model(UNet2DConditionModel, shipped_model() / "unet")
    for config in (DISK, vram_config("cpu", "cpu", "cpu", "cpu", torch.bfloat16)):
        model = load_model(UNet2DConditionModel, shipped_model() / "unet", module_map=COMMON, vram_config=config)
        model.save_pretrained(tmp_path)
        saved = UNet2DConditionModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        true = plain.state_dict()
        assert all(torch.equal(value, true[name]) for name, value in saved.state_dict().items())


def test_modules_that_their_class_keeps_in_float32_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16}
    WanTransformer3DModel(**sizes, freq_dim=16, ffn_dim=32, num_layers=2).save_pretrained(tmp_path)
    inputs = {
        "hidden_states": torch.randn(1, 4, 1, 8, 8, dtype=torch.bfloat16),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 6, 16, dtype=torch.bfloat16),
    }
    plain = load_model(WanTransformer3DModel, tmp_path)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16, torch.float32}
    layers = {nn.Linear: AutoWrappedLinear, nn.RMSNorm: AutoWrappedModule, nn.LayerNorm: AutoWrappedModule}
    with torch.no_grad():
        expected = plain(**inputs).sample
        for config in (DISK, vram_config("cpu", "cpu", "cpu", "cpu", torch.bfloat16)):
            model = load_model(WanTransformer3DModel, tmp_path, module_map=layers, vram_config=config)
            assert torch.equal(model(**inputs).sample, expected)
        model = load_model(WanTransformer3DModel, tmp_path, module_map=layers, vram_config=FP8_STORAGE)
        dtypes = {value.dtype for value in model.state_dict().values()}
        assert dtypes == {FP8, torch.float32}


def test_a_tied_transformers_model_that_reads_weights_itself_is_managed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = T5Config(
        d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2, vocab_size=32, feed_forward_proj="gated-gelu"
    )
    T5EncoderModel(settings).save_pretrained(tmp_path)
    plain = load_model(T5EncoderModel, tmp_path)
    layers = {nn.Linear: AutoWrappedLinear, nn.Embedding: AutoWrappedModule}
    with torch.no_grad():
        expected = plain(TOKENS).last_hidden_state
        model = load_model(T5EncoderModel, tmp_path, module_map=layers, vram_config=DISK)
        assert torch.equal(model(TOKENS).last_hidden_state, expected)
        model = load_model(T5EncoderModel, tmp_path, module_map=layers, vram_config=FP8_STORAGE)
        stored = load_model(T5EncoderModel, tmp_path, torch_dtype=None)
        for parameter, exact in zip(plain.parameters(), stored.parameters(), strict=True):
            parameter.data = exact.data.to(FP8).to(torch.bfloat16)
        assert torch.equal(model(TOKENS).last_hidden_state, plain(TOKENS).last_hidden_state)


def test_a_converter_that_renames_serves_the_disk_and_one_that_computes_serves_memory(tmp_path: Path) -> None:
    plain = every_kind()
    file = tmp_path / "model.safetensors"
    save_file({f"net.{name}": value for name, value in plain.state_dict().items() if name != "head.weight"}, file)

    def rename(tensors: Any) -> Any:
        return {name.removeprefix("net."): tensors[name] for name in tensors}

    def double(tensors: Any) -> Any:
        return {name: tensor.clone() for name, tensor in rename(tensors).items()}

    options: dict[str, Any] = {"torch_dtype": torch.float32, "module_map": LAYERS}
    disk = {"offload_dtype": "disk"}
    model = load_model(EveryKind, file, vram_config=disk, state_dict_converter=rename, **options)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    model = load_model(EveryKind, file, vram_config={"offload_device": "cpu"}, state_dict_converter=double, **options)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    with pytest.raises(CheckpointError, match="does more than rename"):
        load_model(EveryKind, file, vram_config=disk, state_dict_converter=double, **options)


@pytest.mark.parametrize("fault", ["cut", "rewritten"])
def test_a_file_that_changes_is_an_error_that_names_it_and_the_tensor(fault: str, tmp_path: Path) -> None:
    plain = every_kind()
    file = save(plain, tmp_path)
    model = load_model(EveryKind, file, torch_dtype="float32", module_map=LAYERS, vram_config={"offload_dtype": "disk"})
    if fault == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.write_bytes(bytes(file.stat().st_size))
    head: Any = model.head
    calls: tuple[Any, ...] = (lambda: model(TOKENS), model.onload, model.state_dict, head.onload)
    for call in calls:
        with pytest.raises(CheckpointError, match=rf"{file}: .* \(it was read for [a-z.0-9]+\)"):
            call()
    assert head.state == "offload"


def test_a_file_that_is_replaced_by_another_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    plain = every_kind()
    file = save(plain, tmp_path)
    model = load_model(EveryKind, file, torch_dtype="float32", module_map=LAYERS, vram_config={"offload_dtype": "disk"})
    other = tmp_path / "other"
    other.mkdir()
    save(EveryKind(), other).replace(file)
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_a_disk_map_of_another_model_is_a_clear_error(tmp_path: Path) -> None:
    save_file({"head.weight": torch.ones(3, 3)}, tmp_path / "other.safetensors")
    disk_map = DiskMap(tmp_path / "other.safetensors")
    config = vram_config("disk", "disk", "disk", "cpu")
    model = every_kind()
    with pytest.raises(CheckpointError, match=rf"{disk_map.checkpoint.files[0]}: there is no tensor 'scale'"):
        enable_vram_management(model, LAYERS, config, disk_map=disk_map)
    assert not any(isinstance(part, (AutoWrappedLinear, AutoWrappedModule)) for part in model.modules())
    with pytest.raises(CheckpointError, match=r"head.weight is \(3, 3\), expected \(24, 16\)"):
        AutoWrappedLinear(nn.Linear(16, 24, bias=False), name="head", disk_map=disk_map, **config)


def test_arguments_that_need_each_other_say_so(tmp_path: Path) -> None:
    file = save(every_kind(), tmp_path)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"vram_limit": 4}, "vram_limit=4 without a module_map"),
        ({"vram_config": DISK}, "vram_config='disk' without a module_map"),
        ({"module_map": LAYERS}, "without a vram_config"),
        ({"module_map": LAYERS, "vram_config": DISK, "memory_limit": "1GB"}, "give one of them"),
        ({"module_map": LAYERS, "vram_config": {"offload_device": "nowhere"}}, "is not there"),
    )
    for options, message in cases:
        with pytest.raises(LadingError, match=message):
            load_model(EveryKind, file, **options)
    undemanding = {f"{state}_dtype": None for state in ("offload", "onload", "preparing", "computation")}
    assert type(load_model(EveryKind, file, vram_config=undemanding)) is EveryKind
