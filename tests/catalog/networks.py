"""Random configs of every class that the catalog knows, small enough to be built by the hundred."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lading.catalog.architecture import Architecture
from lading.catalog.families._rotary import three_axes
from lading.catalog.registry import family_names, shipped_family
from lading.catalog.structure import shipped_signatures

Configs = SearchStrategy[dict[str, Any]]


def architectures() -> dict[str, tuple[str, Architecture]]:
    """Class -> family and architecture, of all families that ship."""
    shipped = dict.fromkeys(signature.family for signature in shipped_signatures())
    return {
        architecture.model_class: (name, architecture)
        for name in family_names()
        if name in shipped
        for architecture in shipped_family(name).architectures
    }


DEPTHS = frozenset(
    (
        *("num_layers", "num_single_layers", "n_layers", "num_hidden_layers", "depth", "num_refiner_layers"),
        *("num_refiner_text_blocks", "num_layerwise_text_blocks"),
    )
)


def shallow(config: dict[str, Any]) -> dict[str, Any]:
    """The same network with at most two layers of each kind: what depends on depth alone is left out."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            result[key] = shallow(value)
        elif key in DEPTHS:
            result[key] = min(value, 2)
        else:
            result[key] = value
    if "dual_attention_layers" in result:
        result["dual_attention_layers"] = tuple(n for n in result["dual_attention_layers"] if n < 1)
    if "vace_layers" in result:
        result["vace_layers"] = [0]
    if "layer_types" in result:
        result.update(num_hidden_layers=4, layer_types=result["layer_types"][:4])
    if "inject_face_latents_blocks" in result:
        result["inject_face_latents_blocks"] = 1
    if "deepstack_visual_indexes" in result:
        result.update(depth=4, deepstack_visual_indexes=(0, 1, 2))
    return result


def entries(values: dict[str, Any]) -> Configs:
    """Configs with an entry of each strategy."""
    return st.fixed_dictionaries(values)


few = st.integers(1, 3)
some = st.integers(0, 3)
yes = st.booleans()


def eights(most: int = 4) -> SearchStrategy[int]:
    return st.integers(1, most).map(lambda number: 8 * number)


def flux(channels: bool = True) -> Configs:
    sizes = {
        "in_channels": eights(),
        "num_layers": few,
        "num_single_layers": some,
        "attention_head_dim": st.sampled_from([16, 32]),
        "num_attention_heads": few,
        "joint_attention_dim": eights(),
        "pooled_projection_dim": eights(),
        "guidance_embeds": yes,
    }
    extra: dict[str, SearchStrategy[Any]] = {"out_channels": st.sampled_from([None, 4])}
    return entries({**sizes, **(extra if channels else {"num_mode": st.sampled_from([None, 3])})}).map(with_rope)


def with_rope(config: dict[str, Any], key: str = "axes_dims_rope") -> dict[str, Any]:
    """The axes of the rotary embedding in the proportions of every published model; they have to sum up."""
    return {**config, key: three_axes(config["attention_head_dim"])}


def qwen_image(controlnet: bool = False) -> Configs:
    sizes = {
        "in_channels": eights(),
        "num_layers": few,
        "attention_head_dim": st.sampled_from([16, 32]),
        "num_attention_heads": few,
        "joint_attention_dim": eights(),
    }
    if controlnet:
        return entries({**sizes, "extra_condition_channels": st.sampled_from([0, 4])}).map(with_rope)
    layered = {**sizes, "out_channels": st.integers(1, 8), "use_additional_t_cond": yes}
    return entries(layered).map(
        lambda config: with_rope({**config, "use_layer3d_rope": config["use_additional_t_cond"]})
    )


def qwen_image_blockwise() -> Configs:
    return entries({"num_layers": few, "condition_channels": eights(), "dim": eights()})


def flux2() -> Configs:
    return entries(
        {
            "in_channels": eights(),
            "out_channels": st.sampled_from([None, 4]),
            "num_layers": few,
            "num_single_layers": some,
            "attention_head_dim": st.sampled_from([16, 32]),
            "num_attention_heads": few,
            "joint_attention_dim": eights(),
            "timestep_guidance_channels": eights(),
            "mlp_ratio": st.sampled_from([2.0, 3.0, 4.0]),
            "guidance_embeds": yes,
        }
    ).map(lambda config: {**config, "axes_dims_rope": (config["attention_head_dim"] // 4,) * 4})


def z_image() -> Configs:
    return entries(
        {
            "in_channels": st.integers(1, 8),
            "n_layers": few,
            "n_refiner_layers": few,
            "n_heads": few,
            "head": st.sampled_from([16, 32]),
            "cap_feat_dim": eights(),
            "siglip_feat_dim": st.sampled_from([None, 8, 24]),
            "all_patch_size": st.sampled_from([(2,), (1,), (2, 4)]),
        }
    ).map(_z_image)


def _z_image(config: dict[str, Any]) -> dict[str, Any]:
    head, heads = config.pop("head"), config["n_heads"]
    axis = head * 3 // 16 * 2
    frames = (1,) * len(config["all_patch_size"])
    axes = [head - 2 * axis, axis, axis]
    return {**config, "dim": heads * head, "n_kv_heads": heads, "all_f_patch_size": frames, "axes_dims": axes}


def z_image_controlnet() -> Configs:
    return entries(
        {
            "control_layers_places": few.map(lambda layers: [layer * (30 // layers) for layer in range(layers)]),
            "control_in_dim": st.integers(1, 40),
            "add_control_noise_refiner": st.sampled_from([None, "control_noise_refiner"]),
            "n_refiner_layers": few,
            "n_heads": few,
        }
    ).map(
        lambda config: {
            **config,
            "control_refiner_layers_places": [0, 1] if config["add_control_noise_refiner"] else None,
            "dim": config["n_heads"] * 16,
            "n_kv_heads": config["n_heads"],
        }
    )


def wan(vace: bool = False) -> Configs:
    sizes = {
        "patch_size": st.sampled_from([(1, 2, 2), (1, 1, 1)]),
        "num_attention_heads": few,
        "in_channels": st.integers(1, 40),
        "out_channels": st.integers(1, 20),
        "text_dim": eights(),
        "freq_dim": eights(),
        "ffn_dim": eights(),
        "num_layers": few,
        "cross_attn_norm": yes,
        "image": st.sampled_from([None, 8, 24]),
        "positions": st.sampled_from([None, 10]),
    }
    return entries(sizes).map(lambda config: _wan(config, vace))


def _wan(config: dict[str, Any], vace: bool) -> dict[str, Any]:
    image, positions = config.pop("image"), config.pop("positions")
    config |= {
        "attention_head_dim": 128,
        "image_dim": image,
        "added_kv_proj_dim": config["num_attention_heads"] * 128 if image else None,
        "pos_embed_seq_len": positions if image else None,
    }
    return {**config, "vace_layers": [0], "vace_in_channels": 7} if vace else config


def wan_animate() -> Configs:
    return entries(
        {
            "num_attention_heads": few,
            "latent_channels": st.integers(1, 20),
            "out_channels": st.integers(1, 20),
            "text_dim": eights(),
            "freq_dim": eights(),
            "ffn_dim": eights(),
            "image_dim": eights(),
            "motion_encoder_size": st.sampled_from([8, 16, 32]),
            "motion_style_dim": eights(),
            "motion_dim": st.integers(1, 20),
            "motion_encoder_dim": eights(),
            "face_encoder_hidden_dim": eights(),
            "face_encoder_num_heads": few,
            "inject_face_latents_blocks": few,
            "adapters": few,
        }
    ).map(_wan_animate)


def _wan_animate(config: dict[str, Any]) -> dict[str, Any]:
    adapters = config.pop("adapters")
    return {
        **config,
        "attention_head_dim": 128,
        "in_channels": 2 * config["latent_channels"] + 4,
        "added_kv_proj_dim": config["num_attention_heads"] * 128,
        "num_layers": config["inject_face_latents_blocks"] * adapters,
    }


def wan_animate_2() -> Configs:
    return entries(
        {
            "in_dim": st.integers(1, 40),
            "num_heads": few,
            "ffn_dim": eights(),
            "freq_dim": eights(),
            "text_dim": eights(),
            "out_dim": st.integers(1, 20),
            "num_layers": few,
            "cross_attn_norm": yes,
            "use_img_emb": st.just(True),
        }
    ).map(lambda config: {**config, "dim": 128 * config["num_heads"]})


def ltx_video() -> Configs:
    return entries(
        {
            "in_channels": eights(),
            "out_channels": eights(),
            "attention_head_dim": st.sampled_from([4, 8]),
            "cross_attention_dim": eights(),
            "num_layers": few,
            "caption_channels": eights(),
            "attention_bias": yes,
            "attention_out_bias": yes,
        }
    ).map(lambda config: {**config, "num_attention_heads": 32})


def ltx2() -> Configs:
    flags = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod", "attention_bias")
    more = ("attention_out_bias", "use_prompt_embeddings", "ff_bias", "audio_ff_bias")
    sizes = ("in_channels", "out_channels", "cross_attention_dim", "audio_in_channels", "audio_out_channels")
    return entries(
        {
            **dict.fromkeys((*flags, *more, "use_keyframes_abs_pos_embedding"), yes),
            **dict.fromkeys((*sizes, "audio_cross_attention_dim"), eights()),
            "attention_head_dim": st.sampled_from([4, 8]),
            "audio_attention_head_dim": st.sampled_from([2, 4]),
            "num_layers": few,
            "prompted": yes,
        }
    ).map(_ltx2)


def _ltx2(config: dict[str, Any]) -> dict[str, Any]:
    modulated = config["cross_attn_mod"] or config["audio_cross_attn_mod"]
    prompted = config.pop("prompted") or not modulated
    heads = {"num_attention_heads": 32, "audio_num_attention_heads": 32}
    return {**config, **heads, "caption_channels": 3840, "use_prompt_adaln_single": prompted}


def hunyuan_video() -> Configs:
    return entries(
        {
            "in_channels": st.integers(1, 20),
            "out_channels": st.integers(1, 20),
            "num_attention_heads": few,
            "attention_head_dim": st.sampled_from([16, 32]),
            "num_layers": few,
            "num_single_layers": some,
            "num_refiner_layers": few,
            "mlp_ratio": st.sampled_from([2.0, 4.0]),
            "patch_size": st.sampled_from([1, 2]),
            "patch_size_t": st.sampled_from([1, 2]),
            "guidance_embeds": yes,
            "text_embed_dim": eights(),
            "pooled_projection_dim": eights(),
        }
    ).map(lambda config: with_rope(config, "rope_axes_dim"))


def cogvideox() -> Configs:
    sizes = {
        "num_attention_heads": few,
        "attention_head_dim": st.sampled_from([16, 32]),
        "in_channels": st.integers(1, 20),
        "out_channels": st.integers(1, 20),
        "time_embed_dim": eights(),
        "text_embed_dim": eights(),
        "num_layers": few,
        "attention_bias": yes,
        "modern": yes,
        "ofs_embed_dim": st.sampled_from([None, 8]),
    }
    return entries(sizes).map(_cogvideox)


def _cogvideox(config: dict[str, Any]) -> dict[str, Any]:
    modern = config.pop("modern")
    patches = {"patch_size": 2, "patch_size_t": 2 if modern else None, "patch_bias": not modern}
    return {**config, **patches, "use_rotary_positional_embeddings": modern}


def mochi() -> Configs:
    return entries(
        {
            "patch_size": st.sampled_from([1, 2]),
            "num_attention_heads": few,
            "attention_head_dim": st.sampled_from([8, 16]),
            "num_layers": st.integers(2, 4),
            "pooled_projection_dim": eights(),
            "in_channels": st.integers(1, 20),
            "text_embed_dim": st.sampled_from([8, 16, 32]),
            "time_embed_dim": eights(),
        }
    )


def sana() -> Configs:
    return entries(
        {
            "in_channels": st.integers(1, 20),
            "out_channels": st.integers(1, 20),
            "num_attention_heads": few,
            "num_layers": few,
            "num_cross_attention_heads": few,
            "caption_channels": eights(),
            "mlp_ratio": st.sampled_from([2.0, 2.5]),
            "attention_bias": yes,
            "patch_size": st.sampled_from([1, 2]),
            "guidance_embeds": yes,
            "qk_norm": st.sampled_from([None, "rms_norm_across_heads"]),
        }
    ).map(
        lambda config: {
            **config,
            "attention_head_dim": 32,
            "cross_attention_head_dim": 112,
            "cross_attention_dim": 32 * config["num_attention_heads"],
        }
    )


def krea2() -> Configs:
    return entries(
        {
            "in_channels": eights(),
            "num_layers": few,
            "groups": few,
            "num_key_value_heads": few,
            "intermediate_size": eights(),
            "timestep_embed_dim": eights(),
            "num_text_layers": few,
            "text_groups": few,
            "text_num_key_value_heads": few,
            "text_intermediate_size": eights(),
            "num_layerwise_text_blocks": some,
            "num_refiner_text_blocks": few,
        }
    ).map(_krea2)


def _krea2(config: dict[str, Any]) -> dict[str, Any]:
    heads = config.pop("groups") * config["num_key_value_heads"]
    text = config.pop("text_groups") * config["text_num_key_value_heads"]
    config |= {"num_attention_heads": heads, "text_num_attention_heads": text}
    return {**config, "attention_head_dim": 32, "text_hidden_dim": 16 * text, "axes_dims_rope": (8, 12, 12)}


def ernie_image() -> Configs:
    return entries(
        {
            "num_attention_heads": few,
            "num_layers": few,
            "ffn_hidden_size": eights(),
            "in_channels": eights(),
            "out_channels": eights(),
            "patch_size": st.sampled_from([1, 2]),
            "text_in_dim": eights(),
        }
    ).map(lambda config: {**config, "hidden_size": 32 * config["num_attention_heads"], "rope_axes_dim": (8, 12, 12)})


def ideogram4() -> Configs:
    return entries(
        {
            "in_channels": eights(),
            "num_layers": few,
            "attention_head_dim": st.just(128),
            "num_attention_heads": few,
            "intermediate_size": eights(),
            "adaln_dim": eights(),
            "llm_features_dim": eights(),
        }
    )


def minimax_h3() -> Configs:
    return entries(
        {
            "num_attention_heads": few,
            "attention_head_dim": st.sampled_from([32, 64]),
            "hidden_size": eights(),
            "num_layers": few,
            "num_refiner_layers": few,
            "ffn_dim": eights(),
            "in_channels": st.integers(1, 20),
            "audio_in_channels": eights(),
            "text_dim": eights(),
            "freq_dim": eights(),
            "time_embed_hidden_dim": eights(),
            "time_embed_dim": eights(),
        }
    ).map(lambda config: {**config, "rope_freq_dim": config["attention_head_dim"] // 8})


def minimax_music3() -> Configs:
    return entries(
        {
            "in_channels": eights(),
            "condition_dim": eights(),
            "num_layers": few,
            "num_attention_heads": few,
            "ff_inner_dim": eights(),
            "fourier_embedding_dim": eights(),
        }
    ).map(lambda config: {**config, "attention_head_dim": 64})


def sd3() -> Configs:
    return entries(
        {
            "patch_size": st.sampled_from([1, 2]),
            "in_channels": st.integers(1, 20),
            "out_channels": st.integers(1, 20),
            "num_layers": few,
            "num_attention_heads": few,
            "joint_attention_dim": eights(),
            "pooled_projection_dim": eights(),
            "pos_embed_max_size": st.integers(2, 6),
            "qk_norm": st.sampled_from([None, "rms_norm"]),
            "dual": yes,
        }
    ).map(_sd3)


def _sd3(config: dict[str, Any]) -> dict[str, Any]:
    dual = (0,) if config.pop("dual") else ()
    width = 64 * config["num_attention_heads"]
    return {**config, "attention_head_dim": 64, "caption_projection_dim": width, "dual_attention_layers": dual}


TRANSFORMERS: dict[str, Configs] = {
    "diffusers.FluxTransformer2DModel": flux(),
    "diffusers.FluxControlNetModel": flux(channels=False),
    "diffusers.QwenImageTransformer2DModel": qwen_image(),
    "diffusers.QwenImageControlNetModel": qwen_image(controlnet=True),
    "lading.models.QwenImageBlockwiseControlNet": qwen_image_blockwise(),
    "diffusers.Flux2Transformer2DModel": flux2(),
    "diffusers.ZImageTransformer2DModel": z_image(),
    "diffusers.ZImageControlNetModel": z_image_controlnet(),
    "diffusers.WanTransformer3DModel": wan(),
    "diffusers.WanVACETransformer3DModel": wan(vace=True),
    "diffusers.WanAnimateTransformer3DModel": wan_animate(),
    "diffusers.WanAnimate2Transformer3DModel": wan_animate_2(),
    "diffusers.LTXVideoTransformer3DModel": ltx_video(),
    "diffusers.LTX2VideoTransformer3DModel": ltx2(),
    "diffusers.HunyuanVideoTransformer3DModel": hunyuan_video(),
    "diffusers.CogVideoXTransformer3DModel": cogvideox(),
    "diffusers.MochiTransformer3DModel": mochi(),
    "diffusers.SanaTransformer2DModel": sana(),
    "diffusers.Krea2Transformer2DModel": krea2(),
    "diffusers.ErnieImageTransformer2DModel": ernie_image(),
    "diffusers.Ideogram4Transformer2DModel": ideogram4(),
    "diffusers.MiniMaxH3Transformer3DModel": minimax_h3(),
    "diffusers.MiniMaxMusic3Transformer1DModel": minimax_music3(),
    "diffusers.SD3Transformer2DModel": sd3(),
}
"""Class -> random configs: depth, width, heads, channels, optional parts."""
