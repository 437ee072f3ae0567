"""The names in Wan's own files: of the transformers, and of the autoencoders."""

from __future__ import annotations

from lading.catalog.keymap import KeyMap, Rule, flatten, rename, split
from lading.catalog.shapes import Shapes, UnknownSizeError


def _attention(file: str, model: str) -> list[Rule]:
    pairs = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"), ("norm_q", "norm_q"), ("norm_k", "norm_k"))
    image = (("k_img", "add_k_proj"), ("v_img", "add_v_proj"), ("norm_k_img", "norm_added_k"))
    return [rename(f"{file}.{old}.{{leaf}}", f"{model}.{new}.{{leaf}}") for old, new in (*pairs, *image)]


def _block(name: str) -> list[Rule]:
    block = f"{name}.{{n}}."
    return [
        rename(f"{block}modulation", f"{block}scale_shift_table"),
        *_attention(f"{block}self_attn", f"{block}attn1"),
        *_attention(f"{block}cross_attn", f"{block}attn2"),
        rename(f"{block}norm3.{{leaf}}", f"{block}norm2.{{leaf}}"),
        rename(f"{block}ffn.0.{{leaf}}", f"{block}ffn.net.0.proj.{{leaf}}"),
        rename(f"{block}ffn.2.{{leaf}}", f"{block}ffn.net.2.{{leaf}}"),
    ]


_TRANSFORMER = (
    rename("patch_embedding.{leaf}", "patch_embedding.{leaf}"),
    rename("time_embedding.0.{leaf}", "condition_embedder.time_embedder.linear_1.{leaf}"),
    rename("time_embedding.2.{leaf}", "condition_embedder.time_embedder.linear_2.{leaf}"),
    rename("time_projection.1.{leaf}", "condition_embedder.time_proj.{leaf}"),
    rename("text_embedding.0.{leaf}", "condition_embedder.text_embedder.linear_1.{leaf}"),
    rename("text_embedding.2.{leaf}", "condition_embedder.text_embedder.linear_2.{leaf}"),
    rename("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    rename("img_emb.proj.0.{leaf}", "condition_embedder.image_embedder.norm1.{leaf}"),
    rename("img_emb.proj.1.{leaf}", "condition_embedder.image_embedder.ff.net.0.proj.{leaf}"),
    rename("img_emb.proj.3.{leaf}", "condition_embedder.image_embedder.ff.net.2.{leaf}"),
    rename("img_emb.proj.4.{leaf}", "condition_embedder.image_embedder.norm2.{leaf}"),
    *_block("blocks"),
    rename("head.modulation", "scale_shift_table"),
    rename("head.head.{leaf}", "proj_out.{leaf}"),
)
_VACE = (
    rename("vace_patch_embedding.{leaf}", "vace_patch_embedding.{leaf}"),
    rename("vace_blocks.{n}.before_proj.{leaf}", "vace_blocks.{n}.proj_in.{leaf}"),
    rename("vace_blocks.{n}.after_proj.{leaf}", "vace_blocks.{n}.proj_out.{leaf}"),
    *_block("vace_blocks"),
)
_ANIMATE_2 = (
    *_attention("blocks.{n}.block.self_attn", "blocks.{n}.self_attn"),
    *_attention("blocks.{n}.block.cross_attn", "blocks.{n}.cross_attn"),
    rename("blocks.{n}.block.{rest}", "blocks.{n}.{rest}"),
    *(
        rename(f"{name}.{{rest}}", f"{name}.{{rest}}")
        for name in ("patch_embedding", "text_embedding", "time_embedding", "time_projection", "head", "img_emb")
    ),
)
_FACE = (
    rename("face_encoder.conv1_local.conv.{leaf}", "face_encoder.conv1_local.{leaf}"),
    rename("face_encoder.conv{n}.conv.{leaf}", "face_encoder.conv{n}.{leaf}"),
    rename("face_encoder.out_proj.{leaf}", "face_encoder.out_proj.{leaf}"),
    rename("face_encoder.padding_tokens", "face_encoder.padding_tokens"),
    rename("face_adapter.fuser_blocks.{n}.linear1_q.{leaf}", "face_adapter.{n}.to_q.{leaf}"),
    split(
        "face_adapter.fuser_blocks.{n}.linear1_kv.{leaf}",
        "face_adapter.{n}.to_k.{leaf}",
        "face_adapter.{n}.to_v.{leaf}",
    ),
    rename("face_adapter.fuser_blocks.{n}.linear2.{leaf}", "face_adapter.{n}.to_out.{leaf}"),
    rename("face_adapter.fuser_blocks.{n}.q_norm.{leaf}", "face_adapter.{n}.norm_q.{leaf}"),
    rename("face_adapter.fuser_blocks.{n}.k_norm.{leaf}", "face_adapter.{n}.norm_k.{leaf}"),
)
_MOST_LEVELS = 16


def original_animate(shapes: Shapes) -> KeyMap:
    """Wan2.2-Animate's own files; its motion encoder is a sequence of convolutions, the first and last without blocks.

    The kernels of its blurs stand in the file too; diffusers computes them.
    """
    file, model = "motion_encoder.enc.net_app.convs", "motion_encoder.res_blocks"
    blocks = shapes.count(model) or max(shapes.count(file) - 2, 0)
    if blocks > _MOST_LEVELS:
        raise UnknownSizeError(f"levels that a motion encoder can have: {blocks}")
    rules = [
        rename("pose_patch_embedding.{leaf}", "pose_patch_embedding.{leaf}"),
        *_FACE,
        rename("motion_encoder.dec.direction.weight", "motion_encoder.motion_synthesis_weight"),
        rename("motion_encoder.enc.fc.{n}.{leaf}", "motion_encoder.motion_network.{n}.{leaf}"),
        rename(f"{file}.0.0.weight", "motion_encoder.conv_in.weight"),
        flatten(f"{file}.0.1.bias", "motion_encoder.conv_in.act_fn.bias", 4, 1),
        rename(f"{file}.{blocks + 1}.weight", "motion_encoder.conv_out.weight"),
    ]
    for block in range(blocks):
        old, new = f"{file}.{block + 1}", f"{model}.{block}"
        rules += [
            rename(f"{old}.conv1.0.weight", f"{new}.conv1.weight"),
            flatten(f"{old}.conv1.1.bias", f"{new}.conv1.act_fn.bias", 4, 1),
            rename(f"{old}.conv2.1.weight", f"{new}.conv2.weight"),
            flatten(f"{old}.conv2.2.bias", f"{new}.conv2.act_fn.bias", 4, 1),
            rename(f"{old}.skip.1.weight", f"{new}.conv_skip.weight"),
        ]
    return KeyMap((*_TRANSFORMER, *rules))


def original_vae(shapes: Shapes) -> KeyMap:
    """Wan's own autoencoders: numbered sequences, in 2.1 one for all levels, in 2.2 one for each."""
    rules = [rename("conv1.{leaf}", "quant_conv.{leaf}"), rename("conv2.{leaf}", "post_quant_conv.{leaf}")]
    for part in ("encoder", "decoder"):
        rules += [
            rename(f"{part}.conv1.{{leaf}}", f"{part}.conv_in.{{leaf}}"),
            *_residual(f"{part}.middle.0", f"{part}.mid_block.resnets.0"),
            *_residual(f"{part}.middle.2", f"{part}.mid_block.resnets.1"),
            rename(f"{part}.middle.1.{{rest}}", f"{part}.mid_block.attentions.0.{{rest}}"),
            rename(f"{part}.head.0.gamma", f"{part}.norm_out.gamma"),
            rename(f"{part}.head.2.{{leaf}}", f"{part}.conv_out.{{leaf}}"),
        ]
    if shapes.has("encoder.downsamples.0.downsamples.0.residual.2.weight") or shapes.has(
        "encoder.down_blocks.0.resnets.0.conv1.weight"
    ):
        return KeyMap((*rules, *_levels(shapes)))
    rules += _residual("encoder.downsamples.{n}", "encoder.down_blocks.{n}")
    rules += _resampling("encoder.downsamples.{n}", "encoder.down_blocks.{n}")
    samplers = shapes.find("decoder.upsamples.{n}.resample.1.weight")
    if samplers:
        layers = int(samplers[0].split(".")[2])
        depth = len(samplers) + 1
    else:
        layers, depth = shapes.count("decoder.up_blocks.0.resnets"), shapes.count("decoder.up_blocks")
    if max(depth, layers) > _MOST_LEVELS:
        raise UnknownSizeError(f"levels that an autoencoder can have: {depth} of {layers} layers")
    for level in range(depth):
        first, block = level * (layers + 1), f"decoder.up_blocks.{level}"
        for layer in range(layers):
            rules += _residual(f"decoder.upsamples.{first + layer}", f"{block}.resnets.{layer}")
        rules += _resampling(f"decoder.upsamples.{first + layers}", f"{block}.upsamplers.0")
    return KeyMap(tuple(rules))


def _levels(shapes: Shapes) -> list[Rule]:
    rules: list[Rule] = []
    for part, word in (("encoder", "down"), ("decoder", "up")):
        old, new = f"{part}.{word}samples.{{n}}.{word}samples", f"{part}.{word}_blocks.{{n}}"
        sampled = shapes.find(f"{old}.{{m}}.resample.1.weight")
        layers = int(sampled[0].split(".")[4]) if sampled else shapes.count(f"{part}.{word}_blocks.0.resnets")
        rules += _resampling(f"{old}.{layers}", f"{new}.{word}sampler")
        rules += _residual(f"{old}.{{m}}", f"{new}.resnets.{{m}}")
    return rules


def _residual(file: str, model: str) -> list[Rule]:
    names = (("residual.0", "norm1"), ("residual.2", "conv1"), ("residual.3", "norm2"), ("residual.6", "conv2"))
    pairs = (*names, ("shortcut", "conv_shortcut"))
    return [rename(f"{file}.{old}.{{leaf}}", f"{model}.{new}.{{leaf}}") for old, new in pairs]


def _resampling(file: str, model: str) -> list[Rule]:
    return [rename(f"{file}.{name}.{{leaf}}", f"{model}.{name}.{{leaf}}") for name in ("resample.1", "time_conv")]


TRANSFORMER = KeyMap(_TRANSFORMER)
VACE = KeyMap((*_TRANSFORMER, *_VACE))
ANIMATE_2 = KeyMap(_ANIMATE_2)
