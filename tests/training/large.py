"""A pipeline whose denoiser is SDXL's own, 5.1 GB of random bfloat16, beside encoders that are as wide and not deep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lading import skip_model_initialization
from tests.conftest import header_bytes
from tests.training import tiny

_BLOCK = 32 << 20


def _clip(model_class: type, width: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=608,
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=32,
        bos_token_id=606,
        eos_token_id=607,
        pad_token_id=607,
    )
    return model_class(config).eval()


def write_sdxl(folder: Path) -> int:
    """Write the pipeline, and return the bytes of its denoiser's file."""
    torch.manual_seed(0)
    small = tiny.sdxl()
    tokenizer = small.tokenizer
    encoders = _clip(CLIPTextModel, 768), _clip(CLIPTextModelWithProjection, 1280)
    pipeline = StableDiffusionXLPipeline(small.vae, *encoders, tokenizer, tokenizer, small.unet, small.scheduler)
    pipeline.save_pretrained(folder)
    with skip_model_initialization():
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
    unet.save_config(folder / "unet")
    return _write_random(
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        {name: list(parameter.shape) for name, parameter in unet.named_parameters()},
    )


def _write_random(file: Path, shapes: dict[str, list[int]]) -> int:
    """Write tensors in bfloat16, of random numbers that repeat."""
    entries: dict[str, Any] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [size, size + nbytes]}
        size += nbytes
    block = (torch.randn(_BLOCK // 2) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().data
    with file.open("wb") as stream:
        stream.write(header_bytes(entries))
        for start in range(0, size, _BLOCK):
            stream.write(block[: min(_BLOCK, size - start)])
    return file.stat().st_size
