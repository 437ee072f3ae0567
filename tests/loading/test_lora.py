"""LoRAs on real networks: added up, streamed or resident, and refused whole where one tensor has no place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FluxControlPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

import lading
from lading import AutoWrappedLinear, ComponentError, IdentificationError, manager_of
from tests.loading.tiny_networks import (
    named,
    noise,
    pipeline_of,
    published,
    run_flux,
    run_qwen,
    run_wan,
    tiny_flux,
    tiny_qwen,
    tiny_wan,
)
from tests.lora_files import ENCODER_FORMS, FORMS, Form, LoraFile, added, assert_added

NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[Any], torch.Tensor], str, str]] = {
    "FLUX.1, kohya": (tiny_flux, run_flux, "kohya", "original"),
    "Wan, ComfyUI": (tiny_wan, run_wan, "comfyui", "original"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lora_on_streamed_weights_computes_the_same_bits_as_on_resident_ones(name: str, tmp_path: Path) -> None:
    make, run, form, layout = NETWORKS[name]
    made = make()
    made.save_pretrained(tmp_path / "model")
    files = [
        LoraFile().add(FORMS[form], named(made, layout), ranks=(2, 3), seed=seed).save(tmp_path / f"{seed}.safetensors")
        for seed in (1, 2)
    ]
    resident = lading.load_model(type(made), tmp_path / "model", torch_dtype=None)
    size = sum(parameter.nbytes for parameter in resident.parameters())
    plain = run(resident)
    limit = 4 * size
    streamed = lading.load_model(type(made), tmp_path / "model", torch_dtype=None, memory_limit=limit)
    assert torch.equal(run(streamed), plain)
    for file, scale in zip(files, (1.0, 0.25), strict=True):
        loaded = [lading.load_lora(network, file, scale) for network in (resident, streamed)]
        assert loaded[0] == loaded[1]
        adapted = run(resident)
        assert torch.equal(run(streamed), adapted)
        assert not torch.equal(adapted, plain)
    manager = manager_of(streamed)
    manager.set_limit(_least_limit(streamed))
    assert manager.plan.placement.slots, "nothing is streamed, and nothing is proved"
    assert torch.equal(run(streamed), adapted)
    for network in (resident, streamed):
        network.delete_adapters([loaded[0].name])
    assert torch.equal(run(streamed), run(resident))


def _least_limit(network: torch.nn.Module) -> int:
    """The smallest limit that the network runs in, with what adapters take."""
    with pytest.raises(lading.MemoryLimitError) as refused:
        manager_of(network).set_limit(1)
    return refused.value.minimum


def test_layers_that_are_replaced_by_rules_of_their_own_take_a_lora_too(tmp_path: Path) -> None:
    made = tiny_qwen()
    made.save_pretrained(tmp_path / "model")
    file = LoraFile().add(FORMS["diffusers"], named(made, "diffusers", "attn")).save(tmp_path / "lora.safetensors")
    states = ("onload", "preparing", "computation")
    config: dict[str, Any] = {f"{state}_device": "cpu" for state in states}
    config |= {f"{state}_dtype": torch.float32 for state in states}
    managed = lading.load_model(
        type(made),
        tmp_path / "model",
        torch_dtype="float32",
        module_map={torch.nn.Linear: AutoWrappedLinear},
        vram_config={"offload_device": "disk", "offload_dtype": "disk", **config},
    )
    for network in (made, managed):
        lading.load_lora(network, file)
    assert torch.equal(run_qwen(managed), run_qwen(made))


def test_loras_add_up_each_with_its_scale_and_diffusers_goes_on_from_there(tmp_path: Path) -> None:
    network = tiny_flux()
    plain = run_flux(network)
    modules = named(network, "diffusers", "to_q")
    files = [
        LoraFile().add(FORMS["diffusers"], modules, seed=seed).save(tmp_path / f"style.{seed}.safetensors")
        for seed in (1, 2)
    ]
    pipeline = pipeline_of(diffusers.FluxPipeline, transformer=network)
    first = lading.load_lora(pipeline, files[0], 0.5)
    alone = run_flux(network)
    second = lading.load_lora(pipeline, files[1], 2.0, name="second")
    assert (first.name, second.name) == ("style_1", "second")
    assert pipeline.get_active_adapters() == ["style_1", "second"]
    both = run_flux(network)
    pipeline.set_adapters(["style_1", "second"], [0.5, 2.0])
    assert torch.equal(run_flux(network), both)
    pipeline.set_adapters(["style_1"], [0.5])
    assert torch.equal(run_flux(network), alone)
    again = lading.load_lora(pipeline, files[0])
    assert again.name == "style_1_2"
    with pytest.raises(ComponentError, match="there is an adapter 'second' already"):
        lading.load_lora(pipeline, files[1], name="second")
    pipeline.unload_lora_weights()
    assert torch.equal(run_flux(network), plain)
    assert "style.2.safetensors  diffusers, for diffusers.FluxTransformer2DModel (flux) of a size" in str(second)
    assert "6 layers of the denoiser, scale 2" not in str(second)
    assert f"{len(modules)} layers of the denoiser, scale 2" in str(second)


def test_the_alpha_of_pefts_config_counts_and_of_diffusers_metadata(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        lora_alpha=7,
        target_modules=["to_q", "to_v"],
        rank_pattern={"transformer_blocks.0.attn.to_q": 2},
        alpha_pattern={"transformer_blocks.1.attn.to_v": 3},
        init_lora_weights=False,
    )
    trained = tiny_flux()
    trained.add_adapter(config, "made")
    expected = added(trained, "made")
    trained.save_lora_adapter(tmp_path / "diffusers", adapter_name="made")
    peft = get_peft_model(tiny_flux(), config)
    for name, parameter in peft.named_parameters():
        if "lora" in name:
            own = name.removeprefix("base_model.model.").replace(".default", ".made")
            parameter.data.copy_(trained.get_parameter(own))
    peft.save_pretrained(str(tmp_path / "peft"))
    layers = get_peft_model_state_dict(trained, adapter_name="made")
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path / "pipeline",
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=trained.peft_config["made"].to_dict(),
    )
    for folder, dialect in (("diffusers", "peft"), ("peft", "peft"), ("pipeline", "diffusers")):
        network = tiny_flux()
        loaded = lading.load_lora(network, tmp_path / folder)
        assert loaded.dialect == dialect
        found = added(network, loaded.name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[layer], delta) for layer, delta in expected.items())
        again = tmp_path / f"again-{folder}"
        network.save_lora_adapter(again, adapter_name=loaded.name)
        assert_added(other := tiny_flux(), lading.load_lora(other, again).name, expected)


def test_a_root_scaled_lora_keeps_its_scale(tmp_path: Path) -> None:
    trained = tiny_flux()
    config = LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["to_q"], init_lora_weights=False)
    trained.add_adapter(config, "made")
    trained.save_lora_adapter(tmp_path, adapter_name="made")
    network = tiny_flux()
    loaded = lading.load_lora(network, tmp_path)
    assert all(
        torch.equal(added(network, loaded.name)[layer], delta) for layer, delta in added(trained, "made").items()
    )


def test_a_network_of_the_users_own_takes_a_lora_of_pefts(tmp_path: Path) -> None:
    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

    trained = get_peft_model(make(), LoraConfig(r=2, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=False))
    trained.save_pretrained(str(tmp_path))
    network = make()
    assert lading.load_lora(network, tmp_path).layers == {"denoiser": 2}
    assert torch.equal(network(torch.ones(1, 4)), trained(torch.ones(1, 4)))


def test_alphas_by_expression_are_refused_and_not_guessed(tmp_path: Path) -> None:
    network = tiny_flux()
    file = (
        LoraFile().add(FORMS["peft"], named(network, "diffusers", "to_q")).save(tmp_path / "adapter_model.safetensors")
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "alpha_pattern": {r"blocks\.\d+.*": 2}}))
    with pytest.raises(ComponentError, match=r"alphas to layers by expressions such as .*name the layers"):
        lading.load_lora(network, file)


@pytest.mark.parametrize("kohya", [False, True])
def test_dora_is_loaded_onto_resident_weights_and_refused_on_streamed_ones(tmp_path: Path, kohya: bool) -> None:
    trained = tiny_flux()
    config = LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=["to_q"], init_lora_weights=False)
    trained.add_adapter(config, "made")
    for name, parameter in trained.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(1.5)
    tensors = get_peft_model_state_dict(trained, adapter_name="made")
    if kohya:
        ends = {"lora_A": "lora_down", "lora_B": "lora_up", "lora_magnitude_vector": "dora_scale"}
        renamed = {}
        for name, tensor in tensors.items():
            module, end = name.split(".lora_")
            end = f"lora_{end}".replace(part := f"lora_{end}".partition(".")[0], ends[part])
            value = tensor[:, None] if end == "dora_scale" else tensor
            renamed[f"lora_unet_{module.replace('.', '_')}.{end}"] = value.contiguous()
        tensors = renamed
    save_file(tensors, tmp_path / "lora.safetensors")
    network = tiny_flux()
    network.save_pretrained(tmp_path / "model")
    lading.load_lora(network, tmp_path / "lora.safetensors")
    assert torch.equal(run_flux(network), run_flux(trained))
    streamed = lading.load_model(FluxTransformer2DModel, tmp_path / "model", torch_dtype=None, memory_limit="1MB")
    with pytest.raises(ComponentError, match=r"DoRA, which computes with the layers' weights.*streamed"):
        lading.load_lora(streamed, tmp_path / "lora.safetensors")


def untouched(network: torch.nn.Module) -> bool:
    return not any(isinstance(layer, BaseTunerLayer) for layer in network.modules())


def test_a_lora_for_another_family_is_refused_by_name(tmp_path: Path) -> None:
    sdxl = published("diffusers.UNet2DConditionModel", "stabilityai/stable-diffusion-xl-base-1.0")
    flux = published("diffusers.FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev")
    qwen = published("diffusers.QwenImageTransformer2DModel", "Qwen/Qwen-Image")
    sd15 = published("diffusers.UNet2DConditionModel", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    files = {}
    for name, network, layout, word in (
        ("sdxl", sdxl, "original", "attn2_to_k"),
        ("flux", flux, "diffusers", "attn.to_q"),
        ("qwen", qwen, "diffusers", "attn.to_q"),
    ):
        modules = {key: shape for key, shape in named(network, layout).items() if word.replace("_to", ".to") in key}
        files[name] = LoraFile().add(FORMS["kohya"], modules, ranks=(1,)).save(tmp_path / f"{name}.safetensors")
    pipeline = pipeline_of(diffusers.FluxPipeline, transformer=flux)
    for file, target, reason in (
        (
            "sdxl",
            pipeline,
            r"this LoRA is for stabilityai/stable-diffusion-xl-base-1.0.*\(stable_diffusion\), and FluxPipeline is "
            r"black-forest-labs/FLUX.1-dev \(flux\): load it onto the model that it was made for",
        ),
        (
            "sdxl",
            sd15,
            r"stable-diffusion-xl.* and UNet2DConditionModel is stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        ("qwen", pipeline, r"this LoRA is for Qwen/Qwen-Image or 5 like it \(qwen_image\), and FluxPipeline"),
        (
            "flux",
            qwen,
            r"this LoRA is for black-forest-labs/FLUX.1-.*and QwenImageTransformer2DModel is Qwen/Qwen-Image",
        ),
    ):
        with pytest.raises(ComponentError, match=reason):
            lading.load_lora(target, files[file])
    assert all(map(untouched, (sdxl, flux, qwen, sd15)))


FIRST = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"


def also(form: str, module: str) -> dict[str, torch.Tensor]:
    """A pair of matrices for one module more."""
    forms = {**FORMS, "text_encoder": ENCODER_FORMS["diffusers"]}
    return LoraFile().add(forms[form], {module: (32, 32)}).tensors


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "a layer that is not there": (
        lambda tensors: {**tensors, **also("diffusers", "transformer_blocks.7.attn.to_q")},
        r"2 of its 18 tensors have no place: transformer\.transformer_blocks\.7\.attn\.to_q\.lora_A\.weight "
        r"\(FluxTransformer2DModel has no layer transformer_blocks\.7\.attn\.to_q that takes one\)",
    ),
    "a width that is not the layer's": (
        lambda tensors: {**tensors, FIRST: torch.cat((tensors[FIRST], tensors[FIRST]), -1)},
        r"transformer_blocks\.0\.attn\.to_q.* \(for \(32, 64\), and transformer_blocks\.0\.attn\.to_q has \(32, 32\)\)",
    ),
    "one matrix of two": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != FIRST},
        r"1 of its 15 tensors have no place: .*no pair of matrices",
    ),
    "two ranks in one pair": (
        lambda tensors: {**tensors, FIRST: tensors[FIRST][:1].clone()},
        r"\(1, 32\) and \(32, 2\) are no pair of matrices",
    ),
    "tensors of nothing": (
        lambda tensors: {**tensors, "transformer.norm.diff": torch.ones(3)},
        r"transformer\.norm\.diff \(no part of an adapter\)",
    ),
    "a network that is not there": (
        lambda tensors: {**tensors, **also("text_encoder", "text_model.encoder.layers.0.mlp.fc1")},
        r"text_encoder\.text_model.*\(FluxPipeline has no text_encoder\)",
    ),
    "nothing but zeros": (
        lambda _: {name: torch.zeros_like(tensor) for name, tensor in also("diffusers", "nowhere").items()},
        "all of it is zero",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_tensor_without_a_place_is_an_error_that_names_it_and_nothing_is_loaded(what: str, tmp_path: Path) -> None:
    change, reason = BROKEN[what]
    network = tiny_flux()
    pipeline = pipeline_of(diffusers.FluxPipeline, transformer=network)
    file = LoraFile().add(FORMS["diffusers"], named(network, "diffusers", "to_q") | named(network, "diffusers", "to_k"))
    file.tensors = change(file.tensors)
    with pytest.raises(ComponentError, match=reason):
        lading.load_lora(pipeline, file.save(tmp_path / "lora.safetensors"))
    assert untouched(network)
    assert not getattr(network, "peft_config", None)


def test_what_is_zero_and_has_no_place_is_left_out_and_listed(tmp_path: Path) -> None:
    network = tiny_flux()
    file = LoraFile().add(FORMS["kohya"], named(network, "original", "img_attn"))
    file.tensors["lora_unet_double_blocks_0_img_norm.diff"] = torch.zeros(3)
    zero = LoraFile().add(FORMS["kohya"], {"nowhere": (4, 4)}).tensors
    zero["lora_unet_nowhere.lora_up.weight"].zero_()
    file.tensors |= zero
    loaded = lading.load_lora(network, file.save(tmp_path / "lora.safetensors"))
    assert set(loaded.unused) == {"lora_unet_double_blocks_0_img_norm.diff", *zero}
    assert loaded.layers == {"denoiser": 8}


@pytest.mark.parametrize(
    ("end", "what"),
    [
        ("hada_w1_a", "LoHa: Hadamard products"),
        ("lokr_w1", "LoKr: Kronecker products"),
        ("oft_blocks", "OFT: rotations"),
    ],
)
def test_methods_without_pairs_are_refused_with_the_reason(end: str, what: str, tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_file({f"{name}.{end}": torch.ones(4, 4), f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "a.safetensors")
    with pytest.raises(ComponentError, match=rf"a\.safetensors: a {what}.* instead of a pair of matrices"):
        lading.load_lora(tiny_flux(), tmp_path / "a.safetensors")


def test_what_is_no_lora_or_takes_none_is_said(tmp_path: Path) -> None:
    network = tiny_flux()
    save_file({"weight": torch.ones(4, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(IdentificationError, match="no LoRA: `lading inspect` says what it is"):
        lading.load_lora(network, tmp_path / "a.safetensors")
    file = LoraFile().add(FORMS["diffusers"], named(network, "diffusers", "to_q")).save(tmp_path / "b.safetensors")
    with pytest.raises(ComponentError, match="str takes no LoRA"):
        lading.load_lora("a name", file)
    with pytest.raises(ComponentError, match="PEFT allows no dots"):
        lading.load_lora(network, file, name="v1.5")


def test_names_that_no_layout_has_are_left_to_diffusers_converter(tmp_path: Path) -> None:
    """Biases that trainers of Wan write as `diff_b` are what PEFT calls the bias of `lora_B`."""
    network = tiny_wan()
    modules = {name: shape for name, shape in named(network, "original", "blocks").items() if "attn" in name}
    file = LoraFile().add(FORMS["comfyui"], modules)
    for module, (rows, _) in modules.items():
        file.tensors[f"diffusion_model.{module}.diff_b"] = noise(5, rows)
    pipeline = pipeline_of(diffusers.WanPipeline, transformer=network)
    theirs = pipeline_of(diffusers.WanPipeline, transformer=tiny_wan())
    file.save(tmp_path / "lora.safetensors")
    theirs.load_lora_weights(str(tmp_path), weight_name="lora.safetensors", adapter_name="theirs")
    loaded = lading.load_lora(pipeline, tmp_path / "lora.safetensors")
    assert loaded.layers == {"denoiser": len(modules)}
    assert torch.equal(run_wan(network), run_wan(theirs.transformer))
    file.tensors["diffusion_model.blocks.0.norm3.diff"] = torch.ones(24)
    with pytest.raises(ComponentError, match=r"blocks\.0\.norm3\.diff \(diffusers' converter drops it\)"):
        lading.load_lora(pipeline, file.save(tmp_path / "more.safetensors"))


def test_a_control_lora_of_black_forest_labs_widens_and_replaces_as_diffusers_does(tmp_path: Path) -> None:
    """FLUX.1-dev at its own size, without memory but for what a control LoRA replaces."""

    def make() -> Any:
        network = published("diffusers.FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev")
        for name, parameter in list(network.named_parameters()):
            if ".norm_" in name:
                owner = network.get_submodule(name.rpartition(".")[0])
                owner.weight = torch.nn.Parameter(torch.ones(parameter.shape))
        return network

    network = make()
    modules = named(network, "original")
    modules["img_in"] = (3072, 128)
    file = LoraFile().add(Form("bfl", "{}.lora_A.weight", "{}.lora_B.weight"), modules, ranks=(2,))
    norms = {
        f"double_blocks.{n}.{side}_attn.norm.{of}_norm.scale"
        for n in range(19)
        for side in ("img", "txt")
        for of in ("query", "key")
    }
    norms |= {f"single_blocks.{n}.norm.{of}_norm.scale" for n in range(38) for of in ("query", "key")}
    file.tensors |= {name: noise(number, 128) for number, name in enumerate(sorted(norms))}
    file.save(tmp_path / "control.safetensors")
    found = lading.identify(tmp_path / "control.safetensors").lora
    assert found is not None
    assert found.dialect == "bfl"
    assert "black-forest-labs/FLUX.1-Canny-dev" in found.parts[0].bases[0].models
    pipeline = pipeline_of(FluxControlPipeline, transformer=network)
    loaded = lading.load_lora(pipeline, tmp_path / "control.safetensors", scale=0.5)
    assert network.config.in_channels == 128
    assert network.x_embedder.in_features == 128
    norm = network.transformer_blocks[0].attn.norm_q.weight
    assert torch.equal(norm, file.tensors["double_blocks.0.img_attn.norm.query_norm.scale"])
    assert loaded.layers["denoiser"] == sum(isinstance(layer, BaseTunerLayer) for layer in network.modules())
    with pytest.raises(ComponentError, match=r"this LoRA is for black-forest-labs/FLUX\.1-Canny-dev"):
        lading.load_lora(make(), tmp_path / "control.safetensors")
