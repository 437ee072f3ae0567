"""LoRA files of every dialect and layout add to each layer what they say, as diffusers has it where that is right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModelWithProjection

import lading
from lading.catalog.construction import model_class
from tests.catalog.networks import TRANSFORMERS
from tests.loading.tiny_networks import (
    ARCHITECTURES,
    in_layout,
    named,
    pipeline_of,
    tiny_clip,
    tiny_flux,
    tiny_qwen,
    tiny_unet,
    tiny_wan,
    tiny_z_image,
)
from tests.lora_files import ENCODER_FORMS, FORMS, XLABS, LoraFile, Shape, added, assert_added, layers

ADAPTED = [name for name in TRANSFORMERS if ARCHITECTURES[name][1].lora_targets]
TWO_MEANINGS = {"diffusers.MiniMaxH3Transformer3DModel"}
"""Published in two layouts whose names do not tell them apart."""


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning")  # diffusers' ControlNet takes it from an old place
@pytest.mark.parametrize("name", ADAPTED)
def test_a_lora_of_any_dialect_and_layout_adds_to_each_weight_what_its_matrices_say(name: str, tmp_path: Path) -> None:
    """The weights that it adds, taken through the key map of the checkpoints, are what it adds to the network."""
    architecture = ARCHITECTURES[name][1]
    layouts = [layout for layout in (architecture.own_layout, *architecture.layouts) if name not in TWO_MEANINGS]

    @settings(max_examples=4, suppress_health_check=list(HealthCheck))
    @given(TRANSFORMERS[name], st.sampled_from(layouts or [architecture.own_layout]), st.sampled_from(list(FORMS)))
    def load(config: dict[str, Any], layout: str, form: str) -> None:
        torch.manual_seed(0)
        network = model_class(name)(**config)
        modules, to_network = in_layout(network, architecture, layout)
        file = LoraFile().add(FORMS[form], modules, ranks=(2, 2, 3))
        loaded = lading.load_lora(network, file.save(tmp_path / "lora.safetensors"), scale=0.5)
        weights = to_network({f"{module}.weight": delta for module, delta in file.deltas.items()})
        assert_added(network, loaded.name, {key.removesuffix(".weight"): 0.5 * one for key, one in weights.items()})
        assert loaded.unused == ()
        assert not any(parameter.requires_grad for parameter in network.parameters())

    load()


@pytest.mark.parametrize("name", sorted({name for name, (_, one) in ARCHITECTURES.items() if one.lora_layouts}))
def test_names_that_only_loras_have_lead_to_the_layers_too(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name][1]

    @settings(max_examples=3, suppress_health_check=list(HealthCheck))
    @given(TRANSFORMERS[name], st.sampled_from(list(architecture.lora_layouts)))
    def load(config: dict[str, Any], layout: str) -> None:
        network = model_class(name)(**config)
        modules, to_network = in_layout(network, architecture, layout)
        file = LoraFile().add(XLABS, modules)
        loaded = lading.load_lora(network, file.save(tmp_path / "lora.safetensors"))
        assert loaded.dialect == "xlabs"
        weights = to_network({f"{module}.weight": delta for module, delta in file.deltas.items()})
        assert_added(network, loaded.name, {key.removesuffix(".weight"): one for key, one in weights.items()})

    load()


@dataclass(frozen=True)
class Case:
    """A file that diffusers converts right.

    Attributes:
        parts: the networks of its pipeline.
    """

    pipeline: str
    parts: Callable[[], dict[str, Any]]
    file: Callable[[dict[str, Any]], LoraFile]


def _sdxl() -> dict[str, Any]:
    encoders = {"text_encoder": tiny_clip(), "text_encoder_2": tiny_clip(CLIPTextModelWithProjection, 32)}
    return {"unet": tiny_unet(56), **encoders}


def _sdxl_file(parts: dict[str, Any]) -> LoraFile:
    file = LoraFile().add(FORMS["kohya"], named(parts["unet"], "original", "transformer_blocks"), alphas=(1.0,))
    for number, name in ((1, "text_encoder"), (2, "text_encoder_2")):
        form = ENCODER_FORMS["kohya"]
        down, up, alpha = (str(end).replace("te1", f"te{number}") for end in (form.down, form.up, form.alpha))
        form = replace(form, down=down, up=up, alpha=alpha)
        file.add(form, _text_layers(parts[name]), alphas=(1.0,), seed=number)
    return file


def _text_layers(encoder: torch.nn.Module) -> dict[str, Shape]:
    """As they were called before transformers 5 took a prefix away, and trainers call them still."""
    found = {name: shape for name, shape in layers(encoder).items() if "layers" in name}
    return {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in found.items()}


CASES = {
    "Stable Diffusion 1.5 of kohya": Case(
        "StableDiffusionPipeline",
        lambda: {"unet": tiny_unet(24, (True, True), sized=False), "text_encoder": tiny_clip()},
        lambda parts: (
            LoraFile()
            .add(FORMS["kohya"], named(parts["unet"], "diffusers", "transformer_blocks"), alphas=(1.0,))
            .add(ENCODER_FORMS["kohya"], _text_layers(parts["text_encoder"]), alphas=(1.0,))
        ),
    ),
    "SDXL of kohya": Case("StableDiffusionXLPipeline", _sdxl, _sdxl_file),
    "FLUX.1 of kohya": Case(
        "FluxPipeline",
        lambda: {"transformer": tiny_flux()},
        lambda parts: LoraFile().add(FORMS["kohya"], named(parts["transformer"], "original", "double_blocks")),
    ),
    "FLUX.1 of XLabs": Case(
        "FluxPipeline",
        lambda: {"transformer": tiny_flux()},
        lambda parts: LoraFile().add(XLABS, named(parts["transformer"], "xlabs")),
    ),
    "FLUX.1 of diffusers": Case(
        "FluxPipeline",
        lambda: {"transformer": tiny_flux()},
        lambda parts: LoraFile().add(FORMS["diffusers"], named(parts["transformer"], "diffusers", "attn")),
    ),
    "Wan of ComfyUI": Case(
        "WanPipeline",
        lambda: {"transformer": tiny_wan()},
        lambda parts: LoraFile().add(FORMS["comfyui"], named(parts["transformer"], "original", "blocks")),
    ),
    "Wan of musubi": Case(
        "WanPipeline",
        lambda: {"transformer": tiny_wan()},
        lambda parts: LoraFile().add(FORMS["kohya"], named(parts["transformer"], "original", "blocks")),
    ),
    "Qwen-Image of kohya": Case(
        "QwenImagePipeline",
        lambda: {"transformer": tiny_qwen()},
        lambda parts: LoraFile().add(FORMS["kohya"], named(parts["transformer"], "diffusers", "blocks")),
    ),
    "Qwen-Image of DiffSynth": Case(
        "QwenImagePipeline",
        lambda: {"transformer": tiny_qwen()},
        lambda parts: LoraFile().add(FORMS["diffsynth"], named(parts["transformer"], "diffusers", "blocks")),
    ),
    "Z-Image of kohya": Case(
        "ZImagePipeline",
        lambda: {"transformer": tiny_z_image()},
        lambda parts: LoraFile().add(FORMS["kohya"], named(parts["transformer"], "diffusers", "attention")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_diffusers_converts_right_is_loaded_as_diffusers_loads_it_bit_for_bit(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    parts = case.parts()
    pipeline = pipeline_of(getattr(diffusers, case.pipeline), **parts)
    file = case.file(parts).save(tmp_path / "lora.safetensors")
    theirs = copy.deepcopy(parts)
    pipeline_of(getattr(diffusers, case.pipeline), **theirs).load_lora_weights(
        str(tmp_path), weight_name=file.name, adapter_name="theirs"
    )
    loaded = lading.load_lora(pipeline, file)
    for part, network in parts.items():
        expected = added(theirs[part], "theirs")
        found = added(network, loaded.name)
        assert found.keys() == expected.keys()
        assert len(found) > 0
        for layer, delta in expected.items():
            assert torch.equal(found[layer], delta), layer
    assert loaded.layers == {
        "denoiser" if part in ("unet", "transformer") else part: len(added(network, loaded.name))
        for part, network in parts.items()
    }
