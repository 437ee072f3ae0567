"""Pipelines of bare files: which one they make, what takes which place, and values bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

from lading import ModelConfig, load_component, load_pipeline, manager_of, shipped_model
from lading.catalog.construction import model_class
from tests.loading.networks import (
    CLIP,
    FLUX,
    QWEN_3,
    QWEN_IMAGE,
    QWEN_VL,
    T5,
    UNET,
    VAE,
    WAN,
    WAN_VAE,
    Z_IMAGE,
    Case,
    in_layout,
    random_weights,
    save,
)

Weights = dict[str, dict[str, torch.Tensor]]

TOKENIZER = shipped_model() / "tokenizer"
WORDS = {**CLIP, "vocab_size": 608, "max_position_embeddings": 32}
BIG_WORDS = {**WORDS, "projection_dim": 128, "hidden_act": "gelu"}
VAE_16 = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

SDXL = {
    "unet": Case(
        "stable_diffusion",
        "diffusers.UNet2DConditionModel",
        "original",
        {
            **UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 256,
            "use_linear_projection": True,
            "attention_head_dim": (1, 1),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 128,
        },
        "model.diffusion_model.",
    ),
    "vae": Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", VAE, "first_stage_model."),
    "text_encoder": Case(
        "clip", "transformers.CLIPTextModel", "hub (text_model. prefix)", WORDS, "conditioner.embedders.0.transformer."
    ),
    "text_encoder_2": Case(
        "clip", "transformers.CLIPTextModelWithProjection", "original", BIG_WORDS, "conditioner.embedders.1.model."
    ),
}


def write_file(file: Path, parts: Mapping[str, Case], weights: Weights | None = None) -> Weights:
    """Networks in one file; returns the weights of each in its own names."""
    weights = weights or {name: random_weights(case, seed=seed) for seed, (name, case) in enumerate(parts.items())}
    whole: dict[str, torch.Tensor] = {}
    for name, case in parts.items():
        whole |= in_layout(case, weights[name])
    save(file, whole)
    return weights


def write_folders(folder: Path, **components: Any) -> list[Path]:
    """Tokenizers and schedulers, each in its folder."""
    for name, component in components.items():
        component.save_pretrained(folder / name)
    return [folder / name for name in components]


def words() -> Any:
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def pieces() -> Any:
    return T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -1.0), ("b", -1.5)], extra_ids=0
    )


def bytes_of_qwen() -> Any:
    merges = (TOKENIZER / "merges.txt").read_text().splitlines()[1:]
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
    return Qwen2Tokenizer(vocab=vocabulary, merges=[tuple(pair.split()) for pair in merges if pair])


def assert_holds(pipeline: Any, weights: Weights) -> None:
    """Every network has every value."""
    for name, tensors in weights.items():
        state = getattr(pipeline, name).state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[key], tensors[key]) for key in tensors), name


def plain_sdxl(weights: Weights) -> Any:
    """The pipeline as diffusers' and transformers' own classes make it."""
    built = {}
    for name, case in SDXL.items():
        network: Any = model_class(case.name)
        config = {**case.config, "scaling_factor": 0.13025} if name == "vae" else case.config
        made = network.from_config(config) if name in ("unet", "vae") else network(network.config_class(**config))
        made.load_state_dict(weights[name])
        built[name] = made.eval()
    return StableDiffusionXLPipeline(
        **built, tokenizer=words(), tokenizer_2=words(), scheduler=DDIMScheduler(), add_watermarker=False
    )


def draw(pipeline: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a red circle",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
    ).images
    assert isinstance(picture, torch.Tensor)
    return picture


def test_one_file_of_four_networks_draws_what_diffusers_draws(tmp_path: Path) -> None:
    weights = write_file(tmp_path / "any-fine-tune.safetensors", SDXL)
    others = write_folders(tmp_path, tokenizer=words(), tokenizer_2=words(), scheduler=DDIMScheduler())
    expected = draw(plain_sdxl(weights))
    given = [tmp_path / "any-fine-tune.safetensors", *others]
    resident = load_pipeline(given, torch_dtype="float32")
    assert type(resident) is StableDiffusionXLPipeline
    assert resident.vae.config.scaling_factor == 0.13025
    assert_holds(resident, weights)
    assert torch.equal(draw(resident), expected)
    assert {record.loader for record in resident.lading_components.records} >= {"bare file", "tokenizer", "scheduler"}
    streamed = load_pipeline(given, torch_dtype="float32", memory_limit="6MB")
    assert torch.equal(draw(streamed), expected)
    assert manager_of(streamed.unet).plan.placement.slots
    vae = load_component(tmp_path / "any-fine-tune.safetensors", "vae")
    assert vae.config.scaling_factor == 0.13025


@dataclass(frozen=True)
class Separate:
    """A pipeline whose networks come in files of their own.

    Attributes:
        files: name of the file -> the network's place in the pipeline, and the network.
        told: configs that shapes do not tell: component, entry, value.
    """

    pipeline: str
    files: dict[str, tuple[str, Case]]
    others: Callable[[], dict[str, Any]]
    told: tuple[tuple[str, str, Any], ...] = ()


def flow() -> Any:
    return FlowMatchEulerDiscreteScheduler()


CLIP_L = Case("clip", "transformers.CLIPTextModel", "hub (text_model. prefix)", WORDS)
T5_FILE = Case("t5", "transformers.T5EncoderModel", "hub", T5)
UMT5_FILE = Case("t5", "transformers.UMT5EncoderModel", "original", T5, suffix=".pth")
WAN_FILE = Case("wan", "diffusers.WanTransformer3DModel", "original", WAN)
SEPARATE = {
    "FLUX.1": Separate(
        "FluxPipeline",
        {
            "t5xxl.safetensors": ("text_encoder_2", T5_FILE),
            "ae.safetensors": ("vae", Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", VAE_16)),
            "clip_l.safetensors": ("text_encoder", CLIP_L),
            "flux1-schnell.safetensors": (
                "transformer",
                Case("flux", "diffusers.FluxTransformer2DModel", "original", FLUX, "model.diffusion_model."),
            ),
        },
        lambda: {"tokenizer": words(), "tokenizer_2": pieces(), "scheduler": flow()},
        (("vae", "scaling_factor", 0.3611), ("vae", "shift_factor", 0.1159)),
    ),
    "Wan 2.1": Separate(
        "WanPipeline",
        {
            "Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors": ("transformer", WAN_FILE),
            "models_t5_umt5-xxl-enc-bf16.pth": ("text_encoder", UMT5_FILE),
            "Wan2.1_VAE.pth": ("vae", Case("wan", "diffusers.AutoencoderKLWan", "original", WAN_VAE)),
        },
        lambda: {"google/umt5-xxl": pieces(), "scheduler": flow()},
    ),
    "Wan 2.2 of two": Separate(
        "WanPipeline",
        {
            "umt5-xxl.pth": ("text_encoder", UMT5_FILE),
            "wan2.2_t2v_low_noise_14B.safetensors": ("transformer_2", WAN_FILE),
            "vae.pth": ("vae", Case("wan", "diffusers.AutoencoderKLWan", "original", WAN_VAE)),
            "Wan2.2-T2V-A14B/high_noise_model/model.safetensors": ("transformer", WAN_FILE),
        },
        lambda: {"tokenizer": pieces(), "scheduler": flow()},
    ),
    "Qwen-Image": Separate(
        "QwenImagePipeline",
        {
            "Qwen-Image/transformer.safetensors": (
                "transformer",
                Case("qwen_image", "diffusers.QwenImageTransformer2DModel", "diffusers", QWEN_IMAGE),
            ),
            "Qwen-Image/text_encoder.safetensors": (
                "text_encoder",
                Case(
                    "qwen", "transformers.Qwen2_5_VLForConditionalGeneration", "hub (before transformers 4.52)", QWEN_VL
                ),
            ),
            "Qwen-Image/vae.safetensors": (
                "vae",
                Case("qwen_image", "diffusers.AutoencoderKLQwenImage", "diffusers", WAN_VAE),
            ),
        },
        lambda: {"tokenizer": bytes_of_qwen(), "scheduler": flow()},
    ),
    "Z-Image": Separate(
        "ZImagePipeline",
        {
            "z_image_turbo_bf16.safetensors": (
                "transformer",
                Case("z_image", "diffusers.ZImageTransformer2DModel", "original", Z_IMAGE, "model.diffusion_model."),
            ),
            "qwen_3_4b.safetensors": (
                "text_encoder",
                Case("qwen", "transformers.Qwen3Model", "hub (model. prefix)", QWEN_3),
            ),
            "ae.safetensors": ("vae", Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", VAE_16)),
        },
        lambda: {"tokenizer": bytes_of_qwen(), "scheduler": flow()},
        (("vae", "scaling_factor", 0.3611),),
    ),
}


def write_separate(folder: Path, case: Separate) -> tuple[list[Any], Weights]:
    """What a list of `ModelConfig`s names, and the weights by component."""
    given, weights = [], {}
    for number, (name, (place, network)) in enumerate(case.files.items()):
        weights[place] = random_weights(network, torch.bfloat16, number)
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        stored = in_layout(network, weights[place])
        if name == "clip_l.safetensors":  # as it is published: with what only the other class of CLIP uses
            stored["text_projection.weight"] = torch.zeros(128, 128)
        save(file, stored)
        given.append(ModelConfig(path=str(file)))
    for name, component in case.others().items():
        component.save_pretrained(folder / name)
        given.append(ModelConfig(path=str(folder / name)))
    return given, weights


@pytest.mark.parametrize("label", SEPARATE)
def test_separate_files_make_the_pipeline_that_they_are_of(tmp_path: Path, label: str) -> None:
    case = SEPARATE[label]
    given, weights = write_separate(tmp_path, case)
    pipeline = load_pipeline(given, torch_dtype="bfloat16")
    assert type(pipeline).__name__ == case.pipeline
    assert_holds(pipeline, weights)
    assert all(getattr(pipeline, place).config[entry] == value for place, entry, value in case.told)
    assert pipeline.config.get("boundary_ratio") == (0.875 if "two" in label else None)
