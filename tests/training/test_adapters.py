"""Adapters: added in float32 to whatever there is, saved as others read them, with the pictures that they gave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open

import lading
from lading import ComponentError, LadingError
from lading.training import default_targets, training_table
from lading.training.adapters import lora_state
from lading.training.kohya import to_kohya
from tests.lora_files import added
from tests.training.tiny import WIDTH

Model = Callable[[str], Path]


def adapted(network: Any, seed: int = 0, **options: Any) -> dict[str, torch.nn.Parameter]:
    """Add adapters with values that change much."""
    lading.freeze(network)
    parameters = lading.add_lora(network, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return parameters


def picture(pipeline: Any, prompt: str = "red") -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "generator": generator, "output_type": "latent", "height": 64, "width": 64}
    output = pipeline(prompt, **options)
    drawn: torch.Tensor = output.images if hasattr(output, "images") else output.frames
    return drawn


def denoiser(pipeline: Any) -> Any:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_diffusers_draws_with_a_saved_adapter_what_was_drawn_with_it(dtype: str, tmp_path: Path) -> None:
    trained: Any = lading.load_pipeline("shapes", torch_dtype=dtype)
    adapters = adapted(trained.unet, rank=4, alpha=6)
    lading.save_lora(trained.unet, tmp_path / "pytorch_lora_weights.safetensors")
    for parameter in adapters.values():
        parameter.data = parameter.data.to(trained.unet.dtype)  # as diffusers does when it loads them
    expected = picture(trained)
    stock = diffusers.StableDiffusionPipeline.from_pretrained(
        lading.shipped_model(), dtype=getattr(torch, dtype), safety_checker=None
    )
    stock.load_lora_weights(tmp_path)
    assert torch.equal(picture(stock), expected)
    assert not torch.equal(picture(lading.load_pipeline("shapes", torch_dtype=dtype)), expected)


def test_kohyas_layout_draws_the_same_bit_for_bit_where_layers_are_the_same(tmp_path: Path) -> None:
    trained: Any = lading.load_pipeline("shapes")
    adapted(trained.unet, rank=4, alpha=2)
    expected = picture(trained)
    lading.save_lora(trained.unet, tmp_path / "kohya.safetensors", layout="kohya")
    with safe_open(tmp_path / "kohya.safetensors", "pt") as file:
        names = list(file.keys())
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in names
    stock: Any = lading.load_pipeline("shapes")
    stock.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    assert torch.equal(picture(stock), expected)
    ours: Any = lading.load_pipeline("shapes")
    assert lading.load_lora(ours, tmp_path / "kohya.safetensors").dialect == "kohya"
    assert torch.equal(picture(ours), expected)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("SDXL", "input_blocks_3_1_transformer_blocks_0_attn1_to_q"), ("Wan", "blocks_0_self_attn_q")],
)
def test_kohyas_layout_goes_by_the_original_names(name: str, layer: str, tiny_model: Model, tmp_path: Path) -> None:
    trained: Any = lading.load_pipeline(tiny_model(name))
    adapted(denoiser(trained), rank=2, alpha=3)
    lading.save_lora(denoiser(trained), tmp_path / "kohya.safetensors", layout="kohya")
    assert f"lora_unet_{layer}.alpha" in lading.load_state_dict(tmp_path / "kohya.safetensors")
    stock: Any = lading.load_pipeline(tiny_model(name))
    stock.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    expected = picture(stock)
    torch.testing.assert_close(expected, picture(trained), rtol=1e-3, atol=1e-4)
    ours: Any = lading.load_pipeline(tiny_model(name))
    lading.load_lora(ours, tmp_path / "kohya.safetensors")
    assert torch.equal(picture(ours), expected)


def test_layers_that_are_one_in_the_original_get_one_adapter_that_changes_them_alike(
    tiny_model: Model, tmp_path: Path
) -> None:
    """FLUX.1 keeps queries, keys and values in one layer, in single blocks with a feed-forward that is not adapted."""
    transformer: Any = lading.load_component(tiny_model("FLUX.1"), "transformer")
    parameters = adapted(transformer, rank=2, alpha=3)
    written = to_kohya(transformer, lora_state(transformer), 3 / 2)

    def change(layer: str) -> torch.Tensor:
        down, up = (parameters[f"{layer}.lora_{half}.default.weight"].detach() for half in "AB")
        return up @ down * 3 / 2

    def written_change(word: str) -> torch.Tensor:
        down, up = (written[f"lora_unet_{word}.lora_{half}.weight"].detach() for half in ("down", "up"))
        return up @ down * written[f"lora_unet_{word}.alpha"] / len(down)

    attention = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    expected = torch.cat([change(layer) for layer in attention])
    torch.testing.assert_close(written_change("double_blocks_0_img_attn_qkv"), expected)
    single = [f"single_transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    untouched = torch.zeros(transformer.single_transformer_blocks[0].proj_mlp.out_features, 32)
    expected = torch.cat([*(change(layer) for layer in single), untouched])
    torch.testing.assert_close(written_change("single_blocks_0_linear1"), expected)
    lading.save_lora(transformer, tmp_path / "kohya.safetensors", layout="kohya")
    plain = lading.load_component(tiny_model("FLUX.1"), "transformer")
    loaded = lading.load_lora(plain, tmp_path / "kohya.safetensors")
    assert added(plain, loaded.name).keys() > added(transformer, "default").keys()
    torch.testing.assert_close(added(plain, loaded.name)[attention[0]], change(attention[0]))


def test_networks_that_kohyas_programs_do_not_know_are_refused(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    adapted(network, target_modules=["0"])
    with pytest.raises(LadingError, match="kohya's layout of Sequential is not known"):
        lading.save_lora(network, tmp_path / "kohya.safetensors", layout="kohya")
    assert not list(tmp_path.iterdir())


def test_adapters_are_float32_on_a_network_of_any_dtype_and_its_activations_keep_theirs() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        unet: Any = lading.load_component("shapes", "unet", torch_dtype=dtype)
        before = [parameter.clone() for parameter in unet.parameters()]
        parameters = adapted(unet, rank=2)
        assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
        assert set(parameters) == set(lading.trainable_parameters(unet))
        frozen = [parameter for parameter in unet.parameters() if not parameter.requires_grad]
        assert all(torch.equal(one, two) for one, two in zip(before, frozen, strict=True))
        if dtype != torch.float16:  # the CPU has no convolutions in half precision
            outputs: list[torch.dtype] = []
            unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.register_forward_hook(
                lambda _module, _given, output, seen=outputs: seen.append(output.dtype)
            )
            unet(torch.zeros(1, 4, 8, 8, dtype=dtype), 1, torch.zeros(1, 32, 128, dtype=dtype))
            assert outputs == [dtype]


def test_a_bfloat16_network_learns_at_rates_that_would_be_lost_in_its_dtype() -> None:
    """An adapter in bfloat16 keeps 8 bits: a step of 1e-4 at a value of 0.3 rounds to nothing."""
    for held, learns in ((torch.float32, True), (torch.bfloat16, False)):
        layer = torch.nn.Sequential(torch.nn.Linear(8, 8, dtype=torch.bfloat16))
        parameters = adapted(layer, rank=2, target_modules=["0"])
        for parameter in parameters.values():
            parameter.data = torch.full_like(parameter, 0.3).to(held)
        optimizer = torch.optim.SGD(parameters.values(), lr=1e-4)
        before = [parameter.clone() for parameter in parameters.values()]
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        changed = any(not torch.equal(one, two) for one, two in zip(before, parameters.values(), strict=True))
        assert changed == learns


def test_what_was_thawed_before_adapters_came_stays_trainable() -> None:
    unet: Any = lading.load_component("shapes", "unet")
    lading.freeze(unet)
    unet.conv_out.requires_grad_(True)
    adapters = lading.add_lora(unet, rank=2)
    trained = lading.trainable_parameters(unet)
    assert set(trained) == {*adapters, "conv_out.weight", "conv_out.bias"}


def test_a_new_adapter_changes_nothing(tiny_model: Model) -> None:
    pipeline: Any = lading.load_pipeline("shapes")
    before = picture(pipeline)
    lading.freeze(pipeline.unet)
    lading.add_lora(pipeline.unet)
    assert torch.equal(picture(pipeline), before)


def test_the_defaults_are_the_catalogs_and_a_class_without_any_is_told() -> None:
    unet: Any = lading.load_component("shapes", "unet")
    assert default_targets(unet) == ("to_q", "to_k", "to_v", "to_out.0")
    with pytest.raises(ComponentError, match="the catalog names no layers of Linear for LoRA: give target_modules"):
        lading.add_lora(torch.nn.Linear(2, 2))
    with pytest.raises(ComponentError, match=r"UNet2DConditionModel takes no adapters: .*nonsense"):
        lading.add_lora(unet, target_modules=["nonsense"])


def test_a_network_without_the_adapter_cannot_save_it(tmp_path: Path) -> None:
    with pytest.raises(LadingError, match="has no adapter 'default': add one with add_lora"):
        lading.save_lora(lading.load_component("shapes", "unet"), tmp_path / "lora.safetensors")


def test_a_file_states_rank_and_strength_as_diffusers_does(tmp_path: Path) -> None:
    unet: Any = lading.load_component("shapes", "unet")
    adapted(unet, rank=4, alpha=6, target_modules=["to_q"])
    lading.save_lora(unet, tmp_path / "lora.safetensors")
    stated = json.loads(lading.open_checkpoint(tmp_path / "lora.safetensors").metadata["lora_adapter_metadata"])
    assert (stated["unet.r"], stated["unet.lora_alpha"], stated["unet.target_modules"]) == (4, 6, ["to_q"])
    assert set(lading.load_state_dict(tmp_path / "lora.safetensors")) == {f"unet.{key}" for key in lora_state(unet)}


def test_the_table_counts_weights_gradients_and_optimizer_states() -> None:
    unet: Any = lading.load_component("shapes", "unet", torch_dtype="bfloat16")
    lading.freeze(unet)
    adapters = sum(parameter.numel() for parameter in lading.add_lora(unet, rank=4).values())
    trained, frozen = training_table(unet=unet).shares
    assert (trained.trained, trained.dtype, trained.parameters) == (True, "float32", adapters)
    assert (trained.weight_bytes, trained.gradient_bytes, trained.optimizer_bytes) == tuple(
        4 * adapters * copies for copies in (1, 1, 2)
    )
    assert (frozen.dtype, frozen.gradient_bytes, frozen.optimizer_bytes) == ("bfloat16", 0, 0)
    text = str(training_table(unet=unet)).splitlines()
    assert text[1].split()[:3] == ["unet", "trained", "float32"] and text[2].split()[1] == "frozen"


def test_parts_load_frozen_or_trainable_each_in_its_precision(tiny_model: Model) -> None:
    parts: Any = lading.load_components(
        tiny_model("SDXL"),
        ["unet", "vae", "text_encoder"],
        torch_dtype={"unet": torch.float32, "default": torch.bfloat16},
    )
    lading.freeze(parts.vae, parts.text_encoder)
    assert lading.trainable_parameters(parts.vae, parts.text_encoder) == {}
    trained = lading.trainable_parameters(parts.unet, parts.vae)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert parts.text_encoder.dtype == parts.vae.dtype == torch.bfloat16
    assert parts.text_encoder.config.hidden_size == WIDTH
