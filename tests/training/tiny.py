"""Pipelines of several families so small that they train in a moment: real classes, random weights, on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from lading import shipped_model

WIDTH = 16
"""Of all text encoders."""


def clip_tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(shipped_model() / "tokenizer")


def clip(projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=608,
        hidden_size=WIDTH,
        intermediate_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=606,
        eos_token_id=607,
        pad_token_id=607,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5_tokenizer() -> Any:
    letters = [(f"▁{letter}", -2.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    letters += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=32)


def t5() -> Any:
    return T5EncoderModel(T5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).eval()


def umt5() -> Any:
    config = UMT5Config(vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config).eval()


def word_tokenizer(template: str | None = None) -> Any:
    """A tokenizer of one token to a byte, as a language model's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {symbol: number for number, symbol in enumerate(bytes_to_unicode().values())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def vae(channels: int = 4, **config: Any) -> Any:
    made = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        **config,
    )
    return made.eval()


def sdxl() -> Any:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    tokens = clip_tokenizer()
    return StableDiffusionXLPipeline(vae(), clip(), clip(True), tokens, tokens, unet, scheduler)


def sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    tokens = clip_tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(
        transformer,
        scheduler,
        vae(4, shift_factor=0.06, scaling_factor=1.5),
        clip(True),
        tokens,
        clip(True),
        tokens,
        None,
        None,
    )


def flux(guidance: bool = True) -> Any:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    autoencoder = vae(4, shift_factor=0.1, scaling_factor=0.4)
    return FluxPipeline(scheduler, autoencoder, clip(), clip_tokenizer(), t5(), t5_tokenizer(), transformer)


def qwen_image() -> Any:
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 300,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
    )
    encoder = Qwen2_5_VLForConditionalGeneration(config).eval()
    autoencoder = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return QwenImagePipeline(scheduler, autoencoder, encoder, word_tokenizer(), transformer)


def wan() -> Any:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    autoencoder = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(t5_tokenizer(), umt5(), autoencoder, scheduler, transformer)


def z_image() -> Any:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 64, 64],
    )
    config = Qwen3Config(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=300,
    )
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    autoencoder = vae(4, shift_factor=0.1, scaling_factor=0.4)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, autoencoder, Qwen3Model(config).eval(), word_tokenizer(template), transformer)


FAMILIES: dict[str, Callable[[], Any]] = {
    "SDXL": sdxl,
    "SD3": sd3,
    "FLUX.1": flux,
    "Qwen-Image": qwen_image,
    "Wan": wan,
    "Z-Image": z_image,
}


def saved(name: str, folder: Path) -> Path:
    """Write a family's pipeline to a folder."""
    torch.manual_seed(0)
    FAMILIES[name]().save_pretrained(folder)
    return folder


def write_data(folder: Path, count: int = 4, size: tuple[int, int] = (64, 64), frames: int = 1, word: str = "") -> Path:
    """Write pictures, or films, of coloured squares with captions of several lengths, which end in a word."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    words = ["red", "a blue square", "green on white", "a very large yellow square on black"]
    generator = np.random.default_rng(0)
    for number in range(count):
        films = [np.full((*size, 3), 255, np.uint8) for _ in range(frames)]
        for place, picture in enumerate(films):
            picture[8 + place : 40 + place, 8:40] = generator.integers(0, 256, 3)
        pictures = [Image.fromarray(picture) for picture in films]
        name = f"{number}.webp" if frames > 1 else f"{number}.png"
        if frames > 1:
            pictures[0].save(folder / name, save_all=True, append_images=pictures[1:], duration=60, lossless=True)
        else:
            pictures[0].save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"{words[number % len(words)]} {word}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
