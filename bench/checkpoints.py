"""Checkpoints of real architectures at their real sizes, with random weights, written in little memory."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lading import shipped_model

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NOISE = 1 << 24
"""Random numbers that are written again and again."""


def write_unet(folder: Path, dtype: torch.dtype) -> None:
    """Write SD1.5's denoiser, 860 million parameters."""
    from diffusers import UNet2DConditionModel

    model = _on_meta(lambda: UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64))
    write_model(model, folder, dtype)


def write_flux(folder: Path, layers: int, single_layers: int, shards: int) -> None:
    """Write FLUX.1's denoiser in bfloat16 at a depth of choice; it has 19 layers and 38 single ones, 24 GB."""
    from diffusers import FluxTransformer2DModel

    model = _on_meta(
        lambda: FluxTransformer2DModel(num_layers=layers, num_single_layers=single_layers, guidance_embeds=True)
    )
    write_model(model, folder, torch.bfloat16, shards)


def write_qwen_image(folder: Path) -> None:
    """Write Qwen-Image's denoiser in bfloat16, 20 billion parameters in 9 shards."""
    from diffusers import QwenImageTransformer2DModel

    write_model(_on_meta(QwenImageTransformer2DModel), folder, torch.bfloat16, shards=9)


def write_t5(folder: Path) -> None:
    """Write the encoder of T5 v1.1 XL in bfloat16, 1.2 billion parameters."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32, vocab_size=32128, feed_forward_proj="gated-gelu"
    )
    write_model(_on_meta(lambda: T5EncoderModel(config)), folder, torch.bfloat16)


def write_pipeline(folder: Path) -> None:
    """Write a pipeline as large as SD1.5 in float16, with the tokenizer and scheduler of the shipped model."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    shipped = shipped_model()
    shutil.copy(shipped / "model_index.json", folder)
    for name in ("scheduler", "tokenizer"):
        shutil.copytree(shipped / name, folder / name)
    tokens = json.loads((shipped / "text_encoder" / "config.json").read_text())
    special = {name: tokens[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_encoder = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **special
    )
    vae: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    }
    write_unet(folder / "unet", torch.float16)
    write_model(_on_meta(lambda: AutoencoderKL(**vae)), folder / "vae", torch.float16)
    write_model(_on_meta(lambda: CLIPTextModel(text_encoder)), folder / "text_encoder", torch.float16)


def write_model(model: torch.nn.Module, folder: Path, dtype: torch.dtype, shards: int = 1) -> None:
    """Write random weights for a network of diffusers or transformers, and its config, as `save_pretrained` names them.

    Args:
        model: on the meta device; only its shapes are looked at.
        shards: files of about the same size, with an index if there are several.
    """
    folder.mkdir(exist_ok=True)
    stem = _write_config(model, folder)
    shapes = {name: tensor.shape for name, tensor in sorted(model.state_dict().items())}
    if shards == 1:
        write_random(folder / f"{stem}.safetensors", shapes, dtype)
        return
    total = sum(shape.numel() for shape in shapes.values())
    file_of, done = {}, 0
    for name, shape in shapes.items():
        file_of[name] = f"{stem}-{done * shards // total + 1:05d}-of-{shards:05d}.safetensors"
        done += shape.numel()
    for file in sorted(set(file_of.values())):
        write_random(folder / file, {name: shape for name, shape in shapes.items() if file_of[name] == file}, dtype)
    index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": file_of}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def write_random(file: Path, shapes: dict[str, torch.Size], dtype: torch.dtype) -> None:
    """Write a safetensors file of these tensors with random values, in the memory that one block of them takes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = (torch.randn(_NOISE) * 0.02).to(dtype).view(torch.uint8).numpy().data
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        _repeat(stream, noise, end)


def _repeat(stream: BinaryIO, block: memoryview, nbytes: int) -> None:
    for offset in range(0, nbytes, len(block)):
        stream.write(block[: nbytes - offset])


def _write_config(model: Any, folder: Path) -> str:
    """Write a network's config, and return how its library names the files of weights."""
    if hasattr(model, "save_config"):
        model.save_config(folder)
        return "diffusion_pytorch_model"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return "model"


def _on_meta(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.device("meta"):
        return build()
