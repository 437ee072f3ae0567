"""The names in Lightricks' own files: of the transformers, and of the autoencoders."""

from __future__ import annotations

from collections.abc import Iterator

from lading.catalog.keymap import KeyMap, Rule, rename
from lading.catalog.shapes import Shapes, UnknownSizeError

STATISTICS = (
    "per_channel_statistics.channel",
    "per_channel_statistics.mean-of-stds",
    "per_channel_statistics.mean-of-stds_over_std-of-means",
)
"""What the files say of the latents beside their means and deviations."""


def _attention(*names: str) -> list[Rule]:
    return [
        rename(f"transformer_blocks.{{n}}.{name}.{old}.{{leaf}}", f"transformer_blocks.{{n}}.{name}.{new}.{{leaf}}")
        for name in names
        for old, new in (("q_norm", "norm_q"), ("k_norm", "norm_k"))
    ]


VIDEO = KeyMap(
    (
        rename("patchify_proj.{leaf}", "proj_in.{leaf}"),
        rename("adaln_single.{rest}", "time_embed.{rest}"),
        *_attention("attn1", "attn2"),
        rename("{rest}", "{rest}"),
    )
)
LTX2 = KeyMap(
    (
        rename("patchify_proj.{leaf}", "proj_in.{leaf}"),
        rename("audio_patchify_proj.{leaf}", "audio_proj_in.{leaf}"),
        rename("adaln_single.{rest}", "time_embed.{rest}"),
        rename("audio_adaln_single.{rest}", "audio_time_embed.{rest}"),
        rename("prompt_adaln_single.{rest}", "prompt_adaln.{rest}"),
        rename("audio_prompt_adaln_single.{rest}", "audio_prompt_adaln.{rest}"),
        rename("av_ca_video_scale_shift_adaln_single.{rest}", "av_cross_attn_video_scale_shift.{rest}"),
        rename("av_ca_audio_scale_shift_adaln_single.{rest}", "av_cross_attn_audio_scale_shift.{rest}"),
        rename("av_ca_a2v_gate_adaln_single.{rest}", "av_cross_attn_video_a2v_gate.{rest}"),
        rename("av_ca_v2a_gate_adaln_single.{rest}", "av_cross_attn_audio_v2a_gate.{rest}"),
        *(
            rename(
                f"transformer_blocks.{{n}}.scale_shift_table_a2v_ca_{side}",
                f"transformer_blocks.{{n}}.{side}_a2v_cross_attn_scale_shift_table",
            )
            for side in ("video", "audio")
        ),
        *_attention("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"),
        rename("{rest}", "{rest}"),
    )
)
_LATENTS = (
    rename("per_channel_statistics.mean-of-means", "latents_mean"),
    rename("per_channel_statistics.std-of-means", "latents_std"),
)
AUDIO_VAE = KeyMap((*_LATENTS, rename("{rest}", "{rest}")))
_CONNECTOR = (
    ("attn1.q_norm.{leaf}", "attn1.norm_q.{leaf}"),
    ("attn1.k_norm.{leaf}", "attn1.norm_k.{leaf}"),
    ("{rest}", "{rest}"),
)
CONNECTORS = KeyMap(
    (
        rename("text_embedding_projection.aggregate_embed.{leaf}", "text_proj_in.{leaf}"),
        *(
            rename(f"text_embedding_projection.{side}_aggregate_embed.{{leaf}}", f"{side}_text_proj_in.{{leaf}}")
            for side in ("video", "audio")
        ),
        *(
            rename(
                f"model.diffusion_model.{side}_embeddings_connector.transformer_1d_blocks.{{n}}.{old}",
                f"{side}_connector.transformer_blocks.{{n}}.{new}",
            )
            for side in ("video", "audio")
            for old, new in _CONNECTOR
        ),
        *(
            rename(f"model.diffusion_model.{side}_embeddings_connector.{{leaf}}", f"{side}_connector.{{leaf}}")
            for side in ("video", "audio")
        ),
    )
)
"""In the same file as the transformer they stand with its prefix, and their projections with another."""


def _vocoder(prefix: str) -> list[Rule]:
    acts = f"{prefix}resblocks.{{n}}.acts{{i}}.{{m}}."
    model = acts.replace("resblocks", "resnets")
    return [
        rename(f"{prefix}conv_pre.{{leaf}}", f"{prefix}conv_in.{{leaf}}"),
        rename(f"{prefix}conv_post.{{leaf}}", f"{prefix}conv_out.{{leaf}}"),
        rename(f"{prefix}ups.{{n}}.{{leaf}}", f"{prefix}upsamplers.{{n}}.{{leaf}}"),
        rename(f"{acts}downsample.lowpass.{{leaf}}", f"{model}downsample.{{leaf}}"),
        rename(f"{prefix}resblocks.{{n}}.{{rest}}", f"{prefix}resnets.{{n}}.{{rest}}"),
        rename(f"{prefix}act_post.downsample.lowpass.{{leaf}}", f"{prefix}act_out.downsample.{{leaf}}"),
        rename(f"{prefix}act_post.{{rest}}", f"{prefix}act_out.{{rest}}"),
    ]


VOCODER = KeyMap(tuple(_vocoder("")))
WIDE_VOCODER = KeyMap(
    (*_vocoder("vocoder."), *_vocoder("bwe_generator."), rename("mel_stft.{rest}", "mel_stft.{rest}"))
)
_HALVES = (("encoder", "down"), ("decoder", "up"))
_MOST_BLOCKS = 32


def original_vae(shapes: Shapes) -> KeyMap:
    """The autoencoders of films: each half is one list of layers, samplings and changes of width, counted through."""
    rules = [*_LATENTS]
    for half, way in _HALVES:
        file = f"{half}.{way}_blocks"
        told_by_file = any(
            shapes.has(f"{file}.{{n}}.res_blocks.{{m}}.{name}.weight") for name in ("conv1.conv", "conv1")
        )
        blocks = list((_blocks_of_file if told_by_file else _blocks_of_network)(shapes, half, way))
        if len(blocks) > _MOST_BLOCKS:
            raise UnknownSizeError(f"blocks that an autoencoder can have: {file} has {len(blocks)}")
        for number, (kind, model) in enumerate(blocks):
            rules += _block(kind, f"{file}.{number}", model)
        rules += [rename(f"{half}.conv_{end}.{{rest}}", f"{half}.conv_{end}.{{rest}}") for end in ("in", "out")]
    rules += [
        rename("decoder.last_time_embedder.{rest}", "decoder.time_embedder.{rest}"),
        rename("decoder.last_scale_shift_table", "decoder.scale_shift_table"),
        rename("decoder.timestep_scale_multiplier", "decoder.timestep_scale_multiplier"),
    ]
    return KeyMap(tuple(rules))


def _blocks_of_network(shapes: Shapes, half: str, way: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the name of each block, in the order of the file; the middle is the innermost."""
    if half == "decoder":
        yield "layers", "decoder.mid_block"
    for level in range(shapes.count(f"{half}.{way}_blocks")):
        block = f"{half}.{way}_blocks.{level}"
        parts = [("layers", block), ("sampling", f"{block}.{way}samplers.0"), ("width", f"{block}.conv_out")]
        if half == "decoder":
            parts = [("width", f"{block}.conv_in"), *parts[1::-1]]
        under = shapes.under(f"{block}.")
        yield from (part for part in parts if part[1] == block or under.under(part[1].removeprefix(f"{block}.")))
    if half == "encoder":
        yield "layers", "encoder.mid_block"


def _blocks_of_file(shapes: Shapes, half: str, way: str) -> Iterator[tuple[str, str]]:
    file = f"{half}.{way}_blocks"
    kinds = []
    for number in range(shapes.count(file)):
        under = shapes.under(f"{file}.{number}.")
        layered = any(name.startswith("res_blocks.") for name in under)
        kinds.append("layers" if layered else "width" if "norm3.norm.weight" in under else "sampling")
    names = {"sampling": f".{way}samplers.0", "layers": ""}
    level = -1 if half == "encoder" else 0
    for number, kind in enumerate(kinds):
        if number == (len(kinds) - 1 if half == "encoder" else 0):
            yield kind, f"{half}.mid_block"
            continue
        level += half == "encoder" and kind == "layers"
        yield kind, f"{half}.{way}_blocks.{level}{names.get(kind, '.conv_out' if half == 'encoder' else '.conv_in')}"
        level += half == "decoder" and kind == "layers"


def _block(kind: str, file: str, model: str) -> list[Rule]:
    if kind == "layers":
        pairs = (("res_blocks.{m}", "resnets.{m}"), ("time_embedder", "time_embedder"))
        return [rename(f"{file}.{old}.{{rest}}", f"{model}.{new}.{{rest}}") for old, new in pairs]
    rules = [rename(f"{file}.{{rest}}", f"{model}.{{rest}}")]
    if kind == "width":
        norm = rename(f"{file}.norm3.norm.{{leaf}}", f"{model}.norm3.{{leaf}}")
        shortcut = rename(f"{file}.conv_shortcut.{{leaf}}", f"{model}.conv_shortcut.conv.{{leaf}}")
        return [norm, shortcut, *rules]
    return rules
