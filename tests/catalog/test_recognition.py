"""Recognition where it is hard: missing shards, other depths, ambiguity, and files that mean harm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import lading
from lading import CheckpointError, IdentificationError, identify
from lading.catalog import find_architecture
from lading.catalog.construction import build_on_meta, network_shapes, verify, verify_candidates
from lading.catalog.hashes import known_models
from lading.catalog.recognition import identify_tensors
from lading.checkpoint import open_checkpoint
from lading.checkpoint.inventory import hash_layout
from lading.sizes import tensor_nbytes
from tests.catalog.test_layouts import LAYOUTS, SDXL
from tests.conftest import header_bytes, write_sparse

SHARDED = {
    "FLUX.1-dev transformer": "diffusers.FluxTransformer2DModel",
    "Wan2.1-T2V-14B (inverted)": "diffusers.WanTransformer3DModel",
    "Qwen-Image text_encoder (Qwen2.5-VL-7B)": "transformers.Qwen2_5_VLForConditionalGeneration",
}


def cut(tensors: dict[str, Any], count: int) -> list[dict[str, tuple[int, ...]]]:
    """Consecutive tensors, as everybody cuts files."""
    names = list(tensors)
    cuts = [len(names) * number // count for number in range(count + 1)]
    return [{name: tuple(tensors[name]) for name in names[first:last]} for first, last in pairwise(cuts)]


def write_shards(folder: Path, tensors: dict[str, list[int]], count: int, index: bool) -> list[Path]:
    """A network in `count` shards."""
    files: list[Path] = []
    owners: dict[str, str] = {}
    for number, part in enumerate(cut(tensors, count)):
        file = folder / f"model-{number + 1:05}-of-{count:05}.safetensors"
        files.append(write_sparse(file, {name: list(shape) for name, shape in part.items()}))
        owners |= dict.fromkeys(part, file.name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))
    return files


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("label", SHARDED)
def test_with_any_single_shard_missing_the_network_is_named_and_the_shard_listed(
    tmp_path: Path, label: str, index: bool
) -> None:
    files = write_shards(tmp_path, LAYOUTS[label]["tensors"], 3, index)
    for absent in files:
        moved = absent.rename(tmp_path / "elsewhere")
        found = identify(tmp_path)
        assert SHARDED[label] in [candidate.model_class for candidate in found.candidates]
        assert absent.name in found.problems[0]
        assert "missing" in found.problems[0]
        assert found.best is not None
        assert found.best.match == "structure"
        moved.rename(absent)
    assert not any("missing" in problem for problem in identify(tmp_path).problems)


@pytest.mark.parametrize("label", [label for label, layout in LAYOUTS.items() if len(layout["tensors"]) > 8])
def test_whatever_is_missing_of_a_network_it_is_named_and_never_only_another(label: str) -> None:
    layout = LAYOUTS[label]
    meant = "diffusers.UNet2DConditionModel" if label == SDXL else re.split(r"[+(]", layout["model_class"])[0]
    thirds = cut(layout["tensors"], 3)
    for absent in range(3):
        rest = {name: shape for number, part in enumerate(thirds) if number != absent for name, shape in part.items()}
        found = identify_tensors(rest)
        assert meant in [candidate.model_class for candidate in found.candidates], absent


def test_half_a_flux_may_also_be_half_a_controlnet_and_each_lacks_what_is_its_own(tmp_path: Path) -> None:
    tensors = LAYOUTS["FLUX.1-dev transformer"]["tensors"]
    _, half = cut({name: tensors[name] for name in sorted(tensors)}, 2)
    file = write_sparse(tmp_path / "model.safetensors", {name: list(shape) for name, shape in half.items()})
    found = identify(file)
    assert [(one.family, one.model_class) for one in found.candidates] == [
        ("flux", "diffusers.FluxTransformer2DModel"),
        ("flux", "diffusers.FluxControlNetModel"),
    ]
    assert found.is_ambiguous
    text = found.explain()
    assert "diffusers.FluxTransformer2DModel: tensors are missing: context_embedder.bias" in text
    assert "diffusers.FluxControlNetModel: tensors are missing: " in text
    with pytest.raises(IdentificationError, match="fit several networks alike"):
        lading.load_model(None, file)


def test_what_lacks_a_shard_is_refused_everywhere_else(tmp_path: Path) -> None:
    files = write_shards(tmp_path, LAYOUTS["FLUX.1-dev transformer"]["tensors"], 3, True)
    files[1].unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_checkpoint(tmp_path)


def halved(tensors: dict[str, Any], layers: str, depth: int) -> dict[str, tuple[int, ...]]:
    kept = {}
    for name, shape in tensors.items():
        head, found, tail = name.partition(f"{layers}.")
        if not found or int(tail.partition(".")[0]) < depth // 2 or head:
            kept[name] = tuple(shape)
    return kept


@pytest.mark.parametrize(
    ("label", "layers", "depth", "key"),
    [
        ("FLUX.1-dev transformer", "single_transformer_blocks", 38, "num_single_layers"),
        ("FLUX.1-dev flux1-dev.safetensors (inverted)", "double_blocks", 19, "num_layers"),
        ("Qwen-Image transformer", "transformer_blocks", 60, "num_layers"),
        ("Z-Image-Turbo transformer", "layers", 30, "n_layers"),
        ("Wan2.1-T2V-14B (inverted)", "blocks", 40, "num_layers"),
        ("MiniMax-Music3 transformer", "transformer_blocks", 36, "num_layers"),
        ("Z-Image text_encoder (Qwen3-4B, ForCausalLM tied->drop lm_head)", "model.layers", 36, "num_hidden_layers"),
        ("Wan umt5-xxl .pth (inverted)", "blocks", 24, "num_layers"),
    ],
)
def test_half_the_layers_are_the_same_network_of_half_the_depth(label: str, layers: str, depth: int, key: str) -> None:
    whole = identify_tensors({name: tuple(shape) for name, shape in LAYOUTS[label]["tensors"].items()}).best
    half = identify_tensors(halved(LAYOUTS[label]["tensors"], layers, depth)).best
    assert whole is not None
    assert half is not None
    assert (half.model_class, half.layout) == (whole.model_class, whole.layout)
    assert half.config[key] == depth // 2
    assert half.match == "structure"
    assert {name: value for name, value in half.config.items() if name != key and value is not None} == {
        name: value for name, value in whole.config.items() if name != key and value is not None
    }


def layers_of(tensors: Iterable[str]) -> tuple[str, int]:
    """The list of layers that are all alike and hold most of a network's tensors, and its length; 0 for none."""
    lists: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in tensors:
        for match in re.finditer(r"(?<=\.)[0-9]+(?=\.)", name):
            lists[name[: match.start() - 1]][int(match[0])].add(name[match.end() :])
    alike = {
        path: layers
        for path, layers in lists.items()
        if len(layers) > 3 and len(set(map(frozenset, layers.values()))) == 1
    }
    if not alike:
        return "", 0
    path = max(alike, key=lambda path: sum(map(len, alike[path].values())))
    return path, len(alike[path])


def test_any_published_network_of_half_its_layers_keeps_its_name() -> None:
    halves = 0
    for label, layout in LAYOUTS.items():
        path, depth = layers_of(layout["tensors"])
        if label == SDXL or not depth:
            continue
        halves += 1
        best = identify_tensors(halved(layout["tensors"], path, depth)).best
        assert best is not None, label
        assert best.model_class == layout["model_class"].partition("(")[0].partition("+")[0], label
        assert best.match == "structure"
    assert halves > 40


def test_layers_missing_in_the_middle_are_named() -> None:
    tensors = {
        name: tuple(shape)
        for name, shape in LAYOUTS["FLUX.1-dev transformer"]["tensors"].items()
        if not name.startswith(("transformer_blocks.7.", "transformer_blocks.8."))
    }
    (problem,) = identify_tensors(tensors).problems
    assert "layers 7, 8 are missing" in problem


def test_a_vae_of_stable_diffusion_1_in_modern_names_is_ambiguous_with_both_scaling_factors() -> None:
    tensors = {name: tuple(shape) for name, shape in LAYOUTS["SDXL vae"]["tensors"].items()}
    found = identify_tensors(tensors)
    assert found.is_ambiguous
    assert {candidate.config["scaling_factor"] for candidate in found.candidates} == {0.18215, 0.13025}
    assert all("scaling_factor" in candidate.unverified for candidate in found.candidates)
    (problem,) = [problem for problem in found.problems if "ambiguous" in problem]
    assert "0.18215" in problem
    assert "0.13025" in problem


def test_two_layouts_of_equal_names_and_shapes_are_both_told() -> None:
    tensors = {name: tuple(shape) for name, shape in LAYOUTS["MiniMax-H3 transformer (inverted)"]["tensors"].items()}
    found = identify_tensors(tensors)
    assert [candidate.layout for candidate in found.candidates] == ["original", "original (stacked)"]
    assert found.is_ambiguous
    assert any("'original (stacked)'" in problem for problem in found.problems)


def test_the_config_beside_a_file_decides_what_shapes_leave_open_and_is_held_against_them(tmp_path: Path) -> None:
    write_sparse(tmp_path / "model.safetensors", LAYOUTS["SDXL vae"]["tensors"])
    config = {"_class_name": "AutoencoderKL", "scaling_factor": 0.5, "latent_channels": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = identify(tmp_path)
    assert not found.is_ambiguous
    assert found.best is not None
    assert found.best.config["scaling_factor"] == 0.5
    assert "scaling_factor" not in found.best.unverified
    assert found.best.config["latent_channels"] == 4, "shapes are believed before configs"
    assert any("says latent_channels 16, the tensors say 4" in problem for problem in found.problems)


def test_the_name_of_the_folder_ranks_what_is_ambiguous(tmp_path: Path) -> None:
    for name, factor in (("stable-diffusion-v1-5", 0.18215), ("stable-diffusion-xl-base-1.0", 0.13025)):
        folder = tmp_path / f"models--somebody--{name}"
        folder.mkdir()
        found = identify(write_sparse(folder / "vae.safetensors", LAYOUTS["SDXL vae"]["tensors"]))
        assert found.is_ambiguous
        assert found.best is not None
        assert found.best.config["scaling_factor"] == factor


def test_stable_diffusion_1_and_2_are_told_apart_by_the_width_of_the_prompt() -> None:
    sd1 = {name: tuple(shape) for name, shape in LAYOUTS["SD1.5 unet"]["tensors"].items()}
    sd2 = {}
    for name, shape in sd1.items():
        wide = tuple(1024 if size == 768 else size for size in shape)
        sd2[name] = wide[:2] if ".proj_in.weight" in name or ".proj_out.weight" in name else wide
    first, second = identify_tensors(sd1).best, identify_tensors(sd2).best
    assert first is not None
    assert second is not None
    assert first.config["cross_attention_dim"] == 768
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in first.models
    assert second.config["cross_attention_dim"] == 1024
    assert second.models == ("stabilityai/stable-diffusion-2-1",)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize(("heads", "head"), [(16, 128), (24, 64), (30, 128)])
def test_a_flux_of_another_hidden_size_is_a_flux_and_comes_back_bit_for_bit(layout: str, heads: int, head: int) -> None:
    architecture = find_architecture("flux", "diffusers.FluxTransformer2DModel")
    published = architecture.published["black-forest-labs/FLUX.1-dev"]
    rope = (head // 8, head * 7 // 16, head * 7 // 16)
    sizes = {"num_attention_heads": heads, "attention_head_dim": head, "axes_dims_rope": rope}
    config = {**published, **sizes, "num_layers": 2, "num_single_layers": 2}
    assert heads * head != 3072
    shapes = network_shapes(build_on_meta(architecture.model_class, config)).shapes
    tensors = {key: torch.arange(shape[0], dtype=torch.int32) for key, shape in shapes.items()}  # a row for each
    key_map = architecture.key_map(layout, shapes)
    in_file = dict(shapes) if key_map is None else key_map.inverse.shapes(shapes)
    found = identify_tensors(in_file)
    assert [(one.model_class, one.layout) for one in found.candidates] == [(architecture.model_class, layout)]
    assert found.best is not None
    assert {key: found.best.config[key] for key in config} == config
    assert verify(architecture, found.best.config, layout, in_file) == []
    if key_map is not None:
        back = architecture.key_map(layout, in_file)
        assert back is not None
        again = dict(back.tensors(dict(key_map.inverse.tensors(tensors))))
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_what_shapes_leave_open_is_listed_and_filled_in_also_where_no_published_model_has_them() -> None:
    layout = LAYOUTS["Z-Image text_encoder (Qwen3-4B, ForCausalLM tied->drop lm_head)"]["tensors"]
    best = identify_tensors(halved(layout, "model.layers", 36)).best
    assert best is not None
    assert best.models == ()
    assert best.config["rope_parameters"]["rope_theta"] == 1000000.0
    assert best.unverified["rope_parameters"] == best.config["rope_parameters"]
    layout = LAYOUTS["Qwen-Image text_encoder (Qwen2.5-VL-7B)"]["tensors"]
    best = identify_tensors(halved(layout, "model.layers", 28)).best
    assert best is not None
    assert best.config["text_config"]["num_hidden_layers"] == 14
    assert best.config["text_config"]["rms_norm_eps"] == best.unverified["text_config.rms_norm_eps"] == 1e-06


def test_two_z_image_controlnets_of_the_same_tensors_are_both_returned() -> None:
    architecture = find_architecture("z_image", "diffusers.ZImageControlNetModel")
    union = "alibaba-pai/Z-Image-Turbo-Fun-Controlnet-Union"
    whole = network_shapes(build_on_meta(architecture.model_class, architecture.published[f"{union}-2.1"])).shapes
    found = identify_tensors(whole)
    assert found.is_ambiguous
    assert {one.config["add_control_noise_refiner"] for one in found.candidates} == {
        "control_layers",
        "control_noise_refiner",
    }
    less = {key: shape for key, shape in whole.items() if not key.startswith("control_noise_refiner.")}
    (candidate,) = identify_tensors(less).candidates
    assert candidate.models == (f"{union}-2.0",)


def test_a_single_file_of_stable_diffusion_1_is_told_apart_and_what_is_left_is_named() -> None:
    tensors: dict[str, tuple[int, ...]] = {"alphas_cumprod": (1000,), "model_ema.decay": ()}
    for label, family, name, prefix in (
        ("SD1.5 unet", "stable_diffusion", "diffusers.UNet2DConditionModel", "model.diffusion_model."),
        ("SDXL vae", "autoencoder_kl", "diffusers.AutoencoderKL", "first_stage_model."),
    ):
        shapes = {key: tuple(shape) for key, shape in LAYOUTS[label]["tensors"].items()}
        key_map = find_architecture(family, name).key_map("original", shapes)
        assert key_map is not None
        tensors |= {prefix + key: shape for key, shape in key_map.inverse.shapes(shapes).items()}
    for key, shape in LAYOUTS["SD1.5 text_encoder"]["tensors"].items():
        tensors[f"cond_stage_model.transformer.{key}"] = tuple(shape)
    found = identify_tensors(tensors)
    first = {candidate.prefix: candidate for candidate in reversed(found.candidates)}
    assert {candidate.model_class for candidate in first.values()} == {
        "diffusers.UNet2DConditionModel",
        "diffusers.AutoencoderKL",
        "transformers.CLIPTextModel",
    }
    assert first["first_stage_model."].config["scaling_factor"] == 0.18215, "as the UNet beside it wants it"
    assert any("2 tensors beside the networks are of no network" in problem for problem in found.problems)


def test_a_wrapping_prefix_is_taken_off_and_told() -> None:
    tensors = LAYOUTS["Z-Image-Turbo transformer"]["tensors"]
    for prefix in ("model.diffusion_model.", "module.", "state_dict.module.", "net.", "pipe.dit.", "generator."):
        best = identify_tensors({prefix + name: tuple(shape) for name, shape in tensors.items()}).best
        assert best is not None
        assert best.model_class == "diffusers.ZImageTransformer2DModel"
        assert best.prefix == prefix


def test_extra_entries_of_a_training_checkpoint_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    weights = {"proj.weight": torch.zeros(8, 6, 3), "layer_weight_logits": torch.zeros(2), "layer_scale": torch.ones(1)}
    torch.save({"state_dict": {**weights, "proj.bias": torch.zeros(8)}, "epoch": 7, "global_step": 10}, file)
    best = identify(file).best
    assert best is not None
    assert best.model_class == "diffusers.MiniMaxMusic3ConditionEncoder"
    assert best.config == {"condition_hidden_dim": 6, "num_condition_layers": 2, "out_dim": 8}


def test_dtypes_whose_shapes_torch_packs_count_with_the_shape_of_the_header(tmp_path: Path) -> None:
    shapes = {"redux_up.weight": [24, 4], "redux_up.bias": [24], "redux_down.weight": [8, 24], "redux_down.bias": [8]}
    for dtype, name in (("F4", "float4_e2m1fn_x2"), ("F8_E4M3", "float8_e4m3fn")):
        entries: dict[str, Any] = {}
        offset = 0
        for key, shape in shapes.items():
            end = offset + tensor_nbytes(name, tuple(shape))
            entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        file = tmp_path / f"{dtype}.safetensors"
        file.write_bytes(header_bytes(entries) + bytes(offset))
        best = identify(file).best
        assert best is not None
        assert best.config == {"redux_dim": 4, "txt_in_features": 8}


def test_a_float4_file_has_the_shapes_of_its_header_everywhere_but_in_torch(tmp_path: Path) -> None:
    shapes = {"redux_up.weight": (24, 4), "redux_up.bias": (24,), "redux_down.weight": (8, 24), "redux_down.bias": (8,)}
    packed = {
        name: torch.zeros(*shape[:-1], shape[-1] // 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        for name, shape in shapes.items()
    }
    file = tmp_path / "F4.safetensors"
    save_file(packed, file)
    checkpoint = open_checkpoint(file)
    assert {name: info.shape for name, info in checkpoint.items()} == shapes
    assert checkpoint.nbytes == 2 * 24 + 12 + 96 + 4
    assert checkpoint.hash() == hash_layout(shapes)
    (faults,) = verify_candidates(checkpoint, identify(file)).values()
    assert faults == []
    loaded = lading.load_state_dict(file)
    assert {name: tensor.shape for name, tensor in loaded.items()} == {name: t.shape for name, t in packed.items()}
    with pytest.raises(CheckpointError, match=r"F4\.safetensors"):
        lading.load_model(None, file)


def test_a_float8_file_loads_to_the_shapes_and_values_it_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"redux_up.weight": (24, 4), "redux_up.bias": (24,), "redux_down.weight": (8, 24), "redux_down.bias": (8,)}
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        state = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
        file = tmp_path / "F8.safetensors"
        save_file(state, file)
        model: Any = lading.load_model(None, file, torch_dtype="float32")
        assert all(torch.equal(tensor, state[name].float()) for name, tensor in model.state_dict().items())


@pytest.mark.timeout(60)
def test_dicts_that_nest_a_network_layer_by_layer_are_one_network_and_take_no_time(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in {"redux_up.weight": (24, 4), "redux_up.bias": (24,)}.items()}
    nested = {"up": {name: tensors[f"redux_up.{name}"] for name in ("weight", "bias")}}
    torch.save({**{f"redux_{key}": value for key, value in nested.items()}}, tmp_path / "nested.pt")
    assert identify(tmp_path / "nested.pt").nearest[0].signature.model_class == "diffusers.ReduxImageEncoder"
    file = tmp_path / "deep.pt"
    torch.save({f"layer{number}": {"weight": torch.zeros(1)} for number in range(20_000)}, file)
    assert identify(file).problems


def test_names_that_could_imitate_others_when_joined_by_commas_are_not_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = next(iter(known_models().values()))
    for name in ("a,b", "a:3"):
        digest = identify_tensors({name: (3,)}).hash
        monkeypatch.setitem(known_models(), digest, published)
        found = identify_tensors({name: (3,)})
        assert found.known is None
        assert found.best is None
        assert any("can imitate" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("names", "dialect"),
    [
        (("lora_unet_down_blocks_0.lora_down.weight", "lora_unet_down_blocks_0.lora_up.weight"), "kohya"),
        (("transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight"), "diffusers"),
        (("blocks.0.q.lora_A.default.weight", "blocks.0.q.lora_B.default.weight"), "diffsynth"),
    ],
)
def test_a_lora_is_called_one(names: tuple[str, ...], dialect: str) -> None:
    found = identify_tensors(dict.fromkeys(names, (4, 8)))
    assert found.best is None
    assert any("LoRA" in problem and dialect in problem for problem in found.problems)


def test_what_quantisation_adds_is_set_aside_and_told() -> None:
    tensors = {name: tuple(shape) for name, shape in LAYOUTS["MiniMax-Music3 transformer"]["tensors"].items()}
    scales = {name.replace(".weight", ".scale_weight"): () for name in tensors if ".attn.to_q.weight" in name}
    found = identify_tensors({**tensors, **scales, "scaled_fp8": (0,)})
    assert found.best is not None
    assert found.best.model_class == "diffusers.MiniMaxMusic3Transformer1DModel"
    assert any("37 tensors are what scaled fp8" in problem for problem in found.problems)


def test_an_unknown_network_is_explained_by_what_comes_near() -> None:
    tensors = {name: tuple(shape) for name, shape in LAYOUTS["FLUX.1-dev transformer"]["tensors"].items()}
    del tensors["x_embedder.weight"]
    tensors |= {"invented.0.weight": (3,), "proj_out.weight": (64, 3072, 1)}
    found = identify_tensors(tensors)
    assert found.best is None
    assert len(found.nearest) == 3
    text = found.explain()
    assert "near      diffusers.FluxTransformer2DModel, layout diffusers" in text
    assert "missing     x_embedder.weight (2 axes)" in text
    assert "extra       invented.#.weight (1 axis)" in text
    assert "mis-shaped  proj_out.weight (3 axes)" in text


def test_something_else_altogether_is_not_called_anything() -> None:
    for tensors in ({}, {"weight": (3, 4)}, {"layers.0.weight": (3, 4), "layers.1.weight": (4, 4)}):
        found = identify_tensors(tensors)
        assert found.best is None
        assert found.problems
        assert "not recognised" in found.explain()


def test_every_published_hash_is_known_and_named() -> None:
    known = known_models()
    assert len(known) == 135
    assert {layout["hash"] for layout in LAYOUTS.values()} <= known.keys()
    for model in known.values():
        assert model.names
        assert model.names[0] in str(model)
    assert sum(model.prequantized for model in known.values()) == 15
    assert "quantised" in str(known["6f56a1d28667f2ff98e1c79af88a7516"])


def test_a_known_checkpoint_without_a_class_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = identify_tensors({"brightness.weight": (1, 2)}).hash
    model = known_models()["0629116fce1472503a66992f96f3eb1a"]
    monkeypatch.setitem(known_models(), digest, model)
    found = identify_tensors({"brightness.weight": (1, 2)})
    assert found.best is not None
    assert found.best.model_class is None
    assert found.best.family == "flux_value_controller"
    assert any(
        "AttriCtrl" in problem and "known, no network class in diffusers or transformers" in problem
        for problem in found.problems
    )


@pytest.mark.parametrize("label", [SDXL, "LTX-2 transformer repackage (inverted)"])
def test_a_file_of_thousands_of_tensors_is_told_in_a_moment_and_without_torch(tmp_path: Path, label: str) -> None:
    tensors = LAYOUTS[label]["tensors"]
    assert len(tensors) > 2500
    file = write_sparse(tmp_path / "model.safetensors", tensors)
    program = (
        "import sys, time, lading; found = lading.identify(sys.argv[1]);"
        "print(found.best is not None, 'torch' in sys.modules, 'numpy' in sys.modules, time.process_time())"
    )
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=True)
        *facts, taken = run.stdout.split()
        assert facts == ["True", "False", "False"]
        seconds.append(float(taken))
    assert min(seconds) < 0.9, "a third of that on a machine that has nothing else to do"


def write_bytes(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


def write_half(file: Path) -> Path:
    save_file({"weight": torch.zeros(1000)}, file)
    return write_bytes(file, file.read_bytes()[:2000])


def write_tensors(file: Path, *names: str) -> Path:
    save_file({name: torch.zeros(2, 2) for name in names}, file)
    return file


CAUSES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a LoRA": (lambda file: write_tensors(file, "lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight"), "LoRA"),
    "half a download": (write_half, "truncated"),
    "a git-lfs pointer": (
        lambda file: write_bytes(file, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
        "git lfs pull",
    ),
    "a web page": (lambda file: write_bytes(file, b"<!DOCTYPE html><html><body>Sign in</body></html>"), "web page"),
    "nothing": (lambda file: write_tensors(file), "empty checkpoint"),
    "quantised": (
        lambda file: write_tensors(file, "a.weight", "a.weight.absmax", "a.weight.quant_state.bitsandbytes__new"),
        "quantised: 2 tensors are what bitsandbytes 4-bit adds",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_likely_cause_is_said(tmp_path: Path, cause: str) -> None:
    write, words = CAUSES[cause]
    file = write(tmp_path / "model.safetensors")
    try:
        said = identify(file).explain()
    except CheckpointError as error:
        said = str(error)
    assert re.search(words, said), said


def test_a_component_that_was_not_asked_for_is_named(tmp_path: Path) -> None:
    file = write_sparse(tmp_path / "model.safetensors", LAYOUTS["FLUX.1-dev transformer"]["tensors"])
    with pytest.raises(
        IdentificationError, match=r"holds no diffusers\.AutoencoderKL, but diffusers\.FluxTransformer2DModel"
    ):
        lading.load_model(AutoencoderKL, file)


def words(count: int) -> Iterator[str]:
    """Names without a number, no two alike."""
    for number in range(count):
        yield f"x{chr(97 + number % 26)}{chr(97 + number // 26 % 26)}{chr(97 + number // 676)}.{'q' * (number % 40)}"


HOSTILE: dict[str, Callable[[], dict[str, tuple[int, ...]]]] = {
    "many tensors": lambda: {f"a{'.b' * (number % 50)}.{number}": (0,) for number in range(300_000)},
    "many layers": lambda: {f"transformer_blocks.{number}.attn.to_q.weight": (0,) for number in range(300_000)},
    "many patterns": lambda: dict.fromkeys(words(17_000), ()),
    "long numbers": lambda: {f"transformer_blocks.{'9' * 5000}{number}.norm1.weight": (1,) for number in range(9)},
    "nested prefixes": lambda: {"model." * 10_000 + "weight": (1,)},
    "almost a LoRA": lambda: {"layers.0." + "lora_A." * 10_000 + "weight": (1,)},
    "huge sizes": lambda: {"x_embedder.weight": (2**62, 2**62), "proj_out.weight": (0,)},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_names_and_shapes_end_in_a_short_answer(what: str) -> None:
    found = identify_tensors(HOSTILE[what]())
    assert found.problems
    assert len(found.explain()) < 200_000


@pytest.mark.parametrize("label", ["FLUX.1-dev transformer", "SDXL unet", "Wan2.1_VAE.pth (inverted)"])
def test_sizes_and_numbers_that_no_network_has_are_an_answer_and_not_a_crash(label: str) -> None:
    tensors = {name: tuple(shape) for name, shape in LAYOUTS[label]["tensors"].items()}
    for name in list(tensors)[::20]:
        identify_tensors({**tensors, name: (0,) * len(tensors[name])})
    assert not identify_tensors({name: (0,) * len(shape) for name, shape in tensors.items()}).candidates
    high = {name.replace(".1.", f".{'9' * 5000}."): shape for name, shape in tensors.items()}
    assert identify_tensors(high).problems


def test_verification_lists_every_name_and_shape_that_differs() -> None:
    architecture = find_architecture("flux", "diffusers.ReduxImageEncoder")
    shapes = {"redux_up.weight": (24, 4), "redux_up.bias": (25,), "redux_down.weight": (8, 24), "more": (1,)}
    assert sorted(verify(architecture, {"redux_dim": 4, "txt_in_features": 8}, "diffusers", shapes)) == [
        "extra: more (1,)",
        "mis-shaped: redux_up.bias is (25,), diffusers.ReduxImageEncoder makes (24,)",
        "missing: redux_down.bias (8,)",
    ]
