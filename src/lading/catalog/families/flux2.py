"""FLUX.2: pictures from prompts and pictures. https://github.com/black-forest-labs/flux2"""

from __future__ import annotations

from typing import Any

from lading.catalog.architecture import (
    Architecture,
    Component,
    Config,
    Extent,
    Family,
    Inputs,
    InputSpec,
    LatentNumbers,
    Repository,
)
from lading.catalog.families.autoencoder_kl import autoencoder_inputs, infer_autoencoder, original_rules
from lading.catalog.keymap import KeyMap, Rule, rename, split, swap_halves
from lading.catalog.shapes import Shapes, quotient

_DEV = {
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "guidance_embeds": True,
}
_KLEIN_4B = {
    **_DEV,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
_KLEIN_9B = {
    **_KLEIN_4B,
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "patch_size": (2, 2),
}


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width, in_channels = shapes.shape("x_embedder.weight")
    head = shapes.size("transformer_blocks.{n}.attn.norm_q.weight")
    out_channels = shapes.size("proj_out.weight")
    return {
        "in_channels": in_channels,
        "out_channels": None if out_channels == in_channels else out_channels,
        "num_layers": shapes.count("transformer_blocks"),
        "num_single_layers": shapes.count("single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": quotient(width, head, "heads"),
        "joint_attention_dim": shapes.size("context_embedder.weight", 1),
        "timestep_guidance_channels": shapes.size("time_guidance_embed.timestep_embedder.linear_1.weight", 1),
        "mlp_ratio": shapes.size("transformer_blocks.{n}.ff.linear_out.weight", 1) / width,
        "axes_dims_rope": (head // 4,) * 4,
        "guidance_embeds": shapes.has("time_guidance_embed.guidance_embedder.linear_1.weight"),
    }


def _vae(shapes: Shapes) -> dict[str, Any]:
    config = infer_autoencoder(shapes)
    area = quotient(shapes.size("bn.running_mean"), config["latent_channels"], "patch")
    side = round(area**0.5)
    return {**config, "patch_size": (side, quotient(area, side, "patch"))}


def _inputs(config: Config, extent: Extent) -> Inputs:
    tokens = extent.height // 16 * (extent.width // 16)
    inputs: Inputs = {
        "hidden_states": InputSpec((extent.batch, tokens, config["in_channels"])),
        "encoder_hidden_states": InputSpec((extent.batch, extent.tokens, config["joint_attention_dim"])),
        "timestep": InputSpec((extent.batch,)),
        "img_ids": InputSpec((tokens, 4)),
        "txt_ids": InputSpec((extent.tokens, 4)),
    }
    return {**inputs, "guidance": InputSpec((extent.batch,))} if config.get("guidance_embeds") else inputs


def _stream(file: str, feed_forward: str, names: tuple[str, ...], norms: tuple[str, str]) -> list[Rule]:
    block, target = f"double_blocks.{{n}}.{file}", "transformer_blocks.{n}."
    return [
        split(f"{block}_attn.qkv.{{leaf}}", *(f"{target}attn.{name}.{{leaf}}" for name in names[:3])),
        rename(f"{block}_attn.proj.{{leaf}}", f"{target}attn.{names[3]}.{{leaf}}"),
        rename(f"{block}_attn.norm.query_norm.scale", f"{target}attn.{norms[0]}.weight"),
        rename(f"{block}_attn.norm.key_norm.scale", f"{target}attn.{norms[1]}.weight"),
        rename(f"{block}_mlp.0.{{leaf}}", f"{target}{feed_forward}.linear_in.{{leaf}}"),
        rename(f"{block}_mlp.2.{{leaf}}", f"{target}{feed_forward}.linear_out.{{leaf}}"),
    ]


_ORIGINAL = KeyMap(
    (
        rename("img_in.{leaf}", "x_embedder.{leaf}"),
        rename("txt_in.{leaf}", "context_embedder.{leaf}"),
        *(
            rename(f"{file}_in.{end}_layer.{{leaf}}", f"time_guidance_embed.{model}.linear_{number}.{{leaf}}")
            for file, model in (("time", "timestep_embedder"), ("guidance", "guidance_embedder"))
            for end, number in (("in", 1), ("out", 2))
        ),
        *(
            rename(f"{name}.lin.{{leaf}}", f"{name}.linear.{{leaf}}")
            for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
        ),
        *_stream("img", "ff", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k")),
        *_stream(
            "txt",
            "ff_context",
            ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            ("norm_added_q", "norm_added_k"),
        ),
        rename("single_blocks.{n}.linear1.{leaf}", "single_transformer_blocks.{n}.attn.to_qkv_mlp_proj.{leaf}"),
        rename("single_blocks.{n}.linear2.{leaf}", "single_transformer_blocks.{n}.attn.to_out.{leaf}"),
        rename("single_blocks.{n}.norm.query_norm.scale", "single_transformer_blocks.{n}.attn.norm_q.weight"),
        rename("single_blocks.{n}.norm.key_norm.scale", "single_transformer_blocks.{n}.attn.norm_k.weight"),
        swap_halves("final_layer.adaLN_modulation.1.{leaf}", "norm_out.linear.{leaf}"),
        rename("final_layer.linear.{leaf}", "proj_out.{leaf}"),
    )
)


def _original_vae(shapes: Shapes) -> KeyMap:
    """As the older autoencoders', but that the convolutions about the latent stand in their halves."""
    rules = (
        rename("encoder.quant_conv.{leaf}", "quant_conv.{leaf}"),
        rename("decoder.post_quant_conv.{leaf}", "post_quant_conv.{leaf}"),
        rename("bn.{leaf}", "bn.{leaf}"),
    )
    return KeyMap((*rules, *original_rules(shapes).rules))


def _repository(name: str, text_encoder: str, published: str) -> Repository:
    parts = {
        "transformer": Component("diffusers.Flux2Transformer2DModel", name),
        "vae": Component("diffusers.AutoencoderKLFlux2", "black-forest-labs/FLUX.2-dev"),
        "text_encoder": Component(f"transformers.{text_encoder}", published),
    }
    return Repository(f"diffusers.{'Flux2KleinPipeline' if 'klein' in name else 'Flux2Pipeline'}", parts)


FAMILY = Family(
    "flux2",
    (
        Architecture(
            "transformer",
            "diffusers.Flux2Transformer2DModel",
            _transformer,
            _inputs,
            published={
                "black-forest-labs/FLUX.2-dev": _DEV,
                "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
                "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
            },
            layouts={"original": _ORIGINAL},
            unverified={"axes_dims_rope": (32, 32, 32, 32)},
            lora_targets=(
                *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
                "to_qkv_mlp_proj",
            ),
            latent=LatentNumbers(
                ("batch", "channels", "height", "width"),
                128,
                spatial=8,
                folded=2,
                patch_entry=None,
                packed=True,
                guidance="passes",
            ),
        ),
        Architecture(
            "vae",
            "diffusers.AutoencoderKLFlux2",
            _vae,
            autoencoder_inputs,
            published={"black-forest-labs/FLUX.2-dev": _VAE},
            layouts={"original": _original_vae},
        ),
    ),
    repositories={
        "black-forest-labs/FLUX.2-dev": _repository(
            "black-forest-labs/FLUX.2-dev", "Mistral3ForConditionalGeneration", "black-forest-labs/FLUX.2-dev"
        ),
        "black-forest-labs/FLUX.2-klein-4B": _repository(
            "black-forest-labs/FLUX.2-klein-4B",
            "Qwen3Model",
            "Qwen/Qwen3-4B",  # the head is its embeddings, and unused
        ),
        "black-forest-labs/FLUX.2-klein-9B": _repository(
            "black-forest-labs/FLUX.2-klein-9B", "Qwen3ForCausalLM", "Qwen/Qwen3-8B"
        ),
    },
)
