"""The names in MiniMax's own files, and in those that others made of them. https://huggingface.co/MiniMaxAI/MiniMax-H3"""

from __future__ import annotations

from lading.catalog.keymap import KeyMap, Rule, rename, split, split_heads, swap_halves
from lading.catalog.shapes import Shapes


def _h3_block(file: str, model: str, head: int | None) -> list[Rule]:
    fused, parts = f"{file}.attn.qkv_proj.{{leaf}}", [f"{model}.attn.to_{name}.{{leaf}}" for name in "qkv"]
    return [
        split(fused, *parts) if head is None else split_heads(fused, *parts, head=head),
        rename(f"{file}.attn.q_norm.{{leaf}}", f"{model}.attn.norm_q.{{leaf}}"),
        rename(f"{file}.attn.k_norm.{{leaf}}", f"{model}.attn.norm_k.{{leaf}}"),
        rename(f"{file}.attn.out_proj.{{leaf}}", f"{model}.attn.to_out.0.{{leaf}}"),
        swap_halves(f"{file}.mlp.fc1.{{leaf}}", f"{model}.ff.net.0.proj.{{leaf}}"),  # gate and value
        rename(f"{file}.mlp.fc2.{{leaf}}", f"{model}.ff.net.2.{{leaf}}"),
        rename(f"{file}.{{rest}}", f"{model}.{{rest}}"),
    ]


def _h3_original(head: int | None) -> KeyMap:
    rules = (
        rename("video_patch_proj.{leaf}", "proj_in.{leaf}"),
        rename("audio_patch_proj.{leaf}", "audio_proj_in.{leaf}"),
        rename("condition_proj.{leaf}", "context_embedder.{leaf}"),
        rename("time_embedder.proj_in.{leaf}", "time_embedder.linear_1.{leaf}"),
        rename("time_embedder.proj_out.{leaf}", "time_embedder.linear_2.{leaf}"),
        *_h3_block("token_refiner.blocks.{n}", "token_refiner.refiner_blocks.{n}", head),
        rename("token_refiner.final_norm.{leaf}", "token_refiner.final_norm.{leaf}"),
        *_h3_block("blocks.{n}", "transformer_blocks.{n}", head),
        rename("final_layer.norm.{leaf}", "norm_out.norm.{leaf}"),
        rename("final_layer.adaln_proj.linear.{leaf}", "norm_out.linear.{leaf}"),
        rename("final_layer.video_out.{leaf}", "proj_out.{leaf}"),
        rename("final_layer.audio_out.{leaf}", "audio_proj_out.{leaf}"),
    )
    return KeyMap(rules)


def h3_by_head(shapes: Shapes) -> KeyMap:
    """MiniMax's own shards: queries, keys and values head by head."""
    norm = "blocks.{n}.attn.q_norm.weight"
    return _h3_original(shapes.size(norm if shapes.has(norm) else "transformer_blocks.{n}.attn.norm_q.weight"))


H3_STACKED = _h3_original(None)
"""Files that others made of them: all queries, all keys, all values. Names and shapes are the same."""


_VAE_HEAD = 64
"""Rows of one head in the decoder; no norm tells them, and all published files agree."""


def _original_video_vae() -> KeyMap:
    """MiniMax's own autoencoder of films: CompVis' names in its encoder, fused projections in its decoder."""
    down, model = "encoder.down.{n}", "encoder.down_blocks.{n}"
    block = "decoder.transformer_blocks.{n}"
    rules = [
        rename(f"{down}.block.{{m}}.nin_shortcut.{{leaf}}", f"{model}.resnets.{{m}}.conv_shortcut.{{leaf}}"),
        rename(f"{down}.block.{{m}}.{{rest}}", f"{model}.resnets.{{m}}.{{rest}}"),
        rename(f"{down}.downsample.{{rest}}", f"{model}.downsamplers.0.{{rest}}"),
        rename("decoder.x_embedder.{leaf}", "decoder.proj_in.{leaf}"),
        split_heads(
            f"{block}.attn.to_qkv.{{leaf}}", *(f"{block}.attn.to_{name}.{{leaf}}" for name in "qkv"), head=_VAE_HEAD
        ),
        rename(f"{block}.attn.to_out.{{leaf}}", f"{block}.attn.to_out.0.{{leaf}}"),
        swap_halves(f"{block}.ff.w1.{{leaf}}", f"{block}.ff.net.0.proj.{{leaf}}"),  # gate and value
        rename(f"{block}.ff.w2.{{leaf}}", f"{block}.ff.net.2.{{leaf}}"),
        rename(f"{block}.{{rest}}", f"{block}.{{rest}}"),
        *(rename(f"{half}.{name}.{{leaf}}", f"{half}.{name}.{{leaf}}") for half, name in _ENDS),
        rename("decoder.register_tokens", "decoder.register_tokens"),
        *(rename(f"{name}.{{leaf}}", f"{name}.{{leaf}}") for name in ("quant_conv", "post_quant_conv")),
    ]
    return KeyMap(tuple(rules))


_ENDS = (
    ("encoder", "conv_in"),
    ("encoder", "norm_out"),
    ("encoder", "conv_out"),
    ("decoder", "norm_out"),
    ("decoder", "proj_out"),
)

VIDEO_VAE = _original_video_vae()
