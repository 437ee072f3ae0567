"""Pipelines of bare files: which one they make, what takes which place, and values bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

from lading import (
    ComponentError,
    IdentificationError,
    LadingError,
    ModelConfig,
    load_component,
    load_pipeline,
    manager_of,
    shipped_model,
)
from lading.catalog import find_architecture
from lading.catalog.construction import build_on_meta, model_class, network_shapes
from tests.conftest import write_sparse
from tests.loading.networks import (
    CLIP,
    FLUX,
    QWEN_3,
    QWEN_IMAGE,
    QWEN_VL,
    SD3,
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
SMALL_WORDS = {**WORDS, "projection_dim": 128}
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
        **built, tokenizer=words(), tokenizer_2=words(), scheduler=ddim(), add_watermarker=False
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
    others = write_folders(tmp_path, tokenizer=words(), tokenizer_2=words(), scheduler=ddim())
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


def ddim() -> Any:
    return DDIMScheduler(steps_offset=1, clip_sample=False)


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


def encoders(prefix: str) -> dict[str, Case]:
    """The text encoders of Stable Diffusion 3."""
    projected = "transformers.CLIPTextModelWithProjection"
    return {
        "text_encoder": Case(
            "clip", projected, "hub", {**WORDS, "projection_dim": 128}, f"{prefix}clip_l.transformer."
        ),
        "text_encoder_2": Case("clip", projected, "hub", BIG_WORDS, f"{prefix}clip_g.transformer."),
        "text_encoder_3": Case("t5", "transformers.T5EncoderModel", "hub", T5, f"{prefix}t5xxl.transformer."),
    }


def autoencoder(config: dict[str, Any], prefix: str) -> Case:
    return Case("autoencoder_kl", "diffusers.AutoencoderKL", "original", config, prefix)


SINGLE = {
    "Stable Diffusion 1.5": (
        "StableDiffusionPipeline",
        {
            "unet": Case(
                "stable_diffusion", "diffusers.UNet2DConditionModel", "original", UNET, "model.diffusion_model."
            ),
            "vae": autoencoder(VAE, "first_stage_model."),
            "text_encoder": Case(
                "clip",
                "transformers.CLIPTextModel",
                "hub (text_model. prefix)",
                WORDS,
                "cond_stage_model.transformer.",
            ),
        },
        0.18215,
    ),
    "Stable Diffusion 3": (
        "StableDiffusion3Pipeline",
        {
            "transformer": Case("sd3", "diffusers.SD3Transformer2DModel", "original", SD3, "model.diffusion_model."),
            "vae": autoencoder(VAE_16, "first_stage_model."),
            **encoders("text_encoders."),
        },
        1.5305,
    ),
    "FLUX.1": (
        "FluxPipeline",
        {
            "transformer": Case("flux", "diffusers.FluxTransformer2DModel", "original", FLUX, "model.diffusion_model."),
            "vae": autoencoder(VAE_16, "vae."),
            "text_encoder": Case(
                "clip",
                "transformers.CLIPTextModel",
                "hub (text_model. prefix)",
                WORDS,
                "text_encoders.clip_l.transformer.",
            ),
            "text_encoder_2": encoders("text_encoders.")["text_encoder_3"],
        },
        0.3611,
    ),
}
NAMES = {"Stable Diffusion 1.5": "stable-diffusion-v1-5", "FLUX.1": "flux1-schnell-all-in-one"}


@pytest.mark.parametrize("label", SINGLE)
def test_one_file_that_holds_all_networks_makes_its_pipeline(tmp_path: Path, label: str) -> None:
    pipeline_class, parts, scaling_factor = SINGLE[label]
    weights = {name: random_weights(case, seed=seed) for seed, (name, case) in enumerate(parts.items())}
    stored = {name: dict(tensors) for name, tensors in weights.items()}
    if label == "Stable Diffusion 3":  # its file leaves out a projection that changes nothing
        weights["text_encoder"]["text_projection.weight"] = torch.eye(128)
        del stored["text_encoder"]["text_projection.weight"]
    file = tmp_path / f"{NAMES.get(label, label)}.safetensors"
    write_file(file, parts, stored)
    tokenizers = {"tokenizer": words(), "tokenizer_2": words(), "tokenizer_3": pieces()}
    taken = {name: one for name, one in tokenizers.items() if name.replace("tokenizer", "text_encoder") in parts}
    if label == "FLUX.1":
        taken["tokenizer_2"] = pieces()
    others = write_folders(tmp_path, **taken, scheduler=flow() if "transformer" in parts else ddim())
    for limit in (None, "20MB"):
        pipeline = load_pipeline([file, *others], torch_dtype="float32", memory_limit=limit)
        assert type(pipeline).__name__ == pipeline_class
        assert pipeline.vae.config.scaling_factor == scaling_factor
        assert_holds(pipeline, weights)


def test_the_last_layer_of_stable_diffusion_2_is_not_used(tmp_path: Path) -> None:
    text = {**CLIP, "hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 8, "num_hidden_layers": 24}
    unet = {**UNET, "use_linear_projection": True, "attention_head_dim": (1, 1)}
    parts = {
        "unet": Case("stable_diffusion", "diffusers.UNet2DConditionModel", "original", unet, "model.diffusion_model."),
        "vae": autoencoder(VAE, "first_stage_model."),
        "text_encoder": Case(
            "clip",
            "transformers.CLIPTextModelWithProjection",
            "original",
            {**text, "projection_dim": 64},
            "cond_stage_model.model.",
        ),
    }
    weights = write_file(tmp_path / "stable-diffusion-2-1.safetensors", parts)
    others = write_folders(tmp_path, tokenizer=words(), scheduler=ddim())
    pipeline = load_pipeline([tmp_path / "stable-diffusion-2-1.safetensors", *others])
    encoder = pipeline.text_encoder
    assert (type(encoder).__name__, encoder.config.num_hidden_layers) == ("CLIPTextModel", 23)
    assert encoder.config.hidden_act == "gelu"
    stored = {name.removeprefix("text_model."): tensor for name, tensor in weights["text_encoder"].items()}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in encoder.state_dict().items())


def test_a_file_replaces_a_network_of_a_pipeline_and_takes_its_config(tmp_path: Path) -> None:
    expected = load_pipeline("shapes", torch_dtype="float32")
    shipped = expected.unet
    case = Case("stable_diffusion", "diffusers.UNet2DConditionModel", "original", dict(shipped.config))
    changed = {name: tensor * 1.25 for name, tensor in shipped.state_dict().items()}
    shipped.load_state_dict(changed)
    save(tmp_path / "unet.safetensors", in_layout(case, changed))
    for given, base in (([], "shapes"), ([shipped_model()], None)):
        pipeline = load_pipeline([tmp_path / "unet.safetensors", *given], torch_dtype="float32", base=base)
        assert pipeline.unet.config["attention_head_dim"] == shipped.config["attention_head_dim"] == 4
        assert_holds(pipeline, {name: getattr(expected, name).state_dict() for name in ("unet", "vae", "text_encoder")})
    save(tmp_path / "t5.safetensors", in_layout(T5_FILE, random_weights(T5_FILE)))
    with pytest.raises(ComponentError, match=r"T5EncoderModel in .*: a StableDiffusionPipeline, as in shapes, has no"):
        load_pipeline([tmp_path / "t5.safetensors"], base="shapes")


def test_folders_of_components_make_a_pipeline_as_files_do() -> None:
    expected = load_pipeline("shapes")
    pipeline = load_pipeline([folder for folder in sorted(shipped_model().iterdir()) if folder.is_dir()])
    assert type(pipeline) is type(expected)
    assert pipeline.vae.config.scaling_factor == expected.vae.config.scaling_factor
    assert type(pipeline.scheduler) is type(expected.scheduler)
    assert_holds(pipeline, {name: getattr(expected, name).state_dict() for name in ("unet", "vae", "text_encoder")})


def test_networks_stay_where_their_model_config_says(tmp_path: Path) -> None:
    case = SEPARATE["FLUX.1"]
    given, weights = write_separate(tmp_path, case)
    denoiser = next(one for one in given if "flux1" in str(one.path))
    denoiser.offload_device, denoiser.onload_device = "disk", "cpu"
    pipeline = load_pipeline(given, torch_dtype="bfloat16", vram_limit="1GB")
    assert pipeline.transformer.transformer_blocks[0].attn.to_q.state == "offload"
    state = pipeline.transformer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights["transformer"].items())
    with pytest.raises(LadingError, match=r"flux1-schnell.safetensors: memory_limit and the offload_device"):
        load_pipeline(given, memory_limit="1GB")


def test_what_makes_no_pipeline_says_why(tmp_path: Path) -> None:
    given, _ = write_separate(tmp_path, SEPARATE["FLUX.1"])
    by_name = {Path(str(one.path)).name: one for one in given}
    with pytest.raises(ComponentError, match=r"as in .*FLUX.1-schnell, also needs vae \(diffusers.AutoencoderKL\)"):
        load_pipeline(by_name["flux1-schnell.safetensors"])
    with pytest.raises(ComponentError, match="no denoiser of a pipeline that the catalog knows is among them"):
        load_pipeline([by_name["ae.safetensors"], by_name["clip_l.safetensors"]])
    unnamed = tmp_path / "mine.safetensors"
    shutil.copy(str(by_name["flux1-schnell.safetensors"].path), unnamed)
    others = [one for name, one in by_name.items() if not name.startswith("flux1")]
    with pytest.raises(ComponentError, match=r"may be .*FluxPipeline.*FluxKontextPipeline.*: say which with base="):
        load_pipeline([unnamed, *others])
    write_file(tmp_path / "unet.safetensors", {"unet": SINGLE["Stable Diffusion 1.5"][1]["unet"]})
    with pytest.raises(ComponentError, match=r"UNet2DConditionModel in .*unet.safetensors.* has no place for it"):
        load_pipeline([*given, tmp_path / "unet.safetensors"])
    save(tmp_path / "mystery.safetensors", {"mystery": torch.ones(3)})
    with pytest.raises(IdentificationError, match=r"mystery.safetensors: not recognised"):
        load_pipeline([*given, tmp_path / "mystery.safetensors"])
    with pytest.raises(ComponentError, match=r"CLIPTokenizer in .*: a FluxPipeline has no place for it"):
        load_pipeline([*given, TOKENIZER])
    with pytest.raises(ComponentError, match="revision='main': files have none"):
        load_pipeline(given, revision="main")
    with pytest.raises(ComponentError, match="base='org/name': shapes is no file"):
        load_pipeline("shapes", base="org/name")


def test_a_published_network_of_no_known_pipeline_is_named(tmp_path: Path) -> None:
    model_class, name = "diffusers.WanTransformer3DModel", "PAI/Wan2.1-Fun-1.3B-Control"
    shapes = network_shapes(build_on_meta(model_class, find_architecture("wan", model_class).published[name])).shapes
    write_sparse(tmp_path / "model.safetensors", {key: list(shape) for key, shape in shapes.items()})
    with pytest.raises(ComponentError, match=f"is {name}, of which the catalog knows no pipeline: give base="):
        load_pipeline(tmp_path / "model.safetensors")
