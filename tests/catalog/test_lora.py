"""LoRA files are told from their headers: dialect, base and how sure, ranks, alphas, modules; and why not, when not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lading
from lading.catalog.lora import Lora
from lading.catalog.lora_bases import LoraBase, shipped_lora_bases
from lading.catalog.recognition import identify_tensors
from lading.cli import main
from tests.lora_files import ENCODER_FORMS, FORMS, XLABS, Form, LoraFile, Shape

BASES = shipped_lora_bases()


def whole(base: LoraBase) -> dict[str, Shape]:
    """The first and the last module of each pattern of a base, one of each width."""
    found: dict[str, Shape] = {}
    for pattern, modules in base.modules.items():
        for number in dict.fromkeys((0, modules.last)):
            name = pattern.replace("#", str(max(number, 0)), 1).replace("#", "1")
            found[name] = sorted(modules.shapes)[0]
    return found


def recognised(shapes: dict[str, Shape]) -> Lora:
    lora = identify_tensors(shapes).lora
    assert lora is not None
    return lora


def forms_of(base: LoraBase) -> dict[str, Form]:
    if base.layout == "xlabs":
        return {"xlabs": XLABS}
    return ENCODER_FORMS if base.component.startswith("text_encoder") else FORMS


@pytest.mark.parametrize("family", sorted({base.family for base in BASES}))
def test_every_published_base_is_told_in_every_dialect(family: str) -> None:
    for base in BASES:
        for form in forms_of(base).values() if base.family == family else ():
            lora = recognised(form.shapes(whole(base)))
            assert (lora.dialect, lora.method) == (form.dialect, "LoRA")
            (part,) = lora.parts
            assert part.component == ("text_encoder" if base.component.startswith("text_encoder") else "denoiser")
            assert part.ranks == (4,)
            assert sum(part.modules.values()) == len(whole(base))
            fitting = [one for one in part.bases if (one.model_class, one.layout) == (base.model_class, base.layout)]
            assert len(fitting) == 1
            assert fitting[0].match == "depth and widths"
            assert set(base.models) <= set(fitting[0].models)


def test_a_fine_tune_of_other_widths_or_depth_keeps_its_family_and_says_so() -> None:
    base = next(one for one in BASES if one.model_class == "diffusers.QwenImageTransformer2DModel")
    modules = {"transformer_blocks.3.attn.to_q": (96, 96), "transformer_blocks.3.img_mod.1": (576, 96)}
    lora = recognised(FORMS["diffusers"].shapes(modules))
    assert lora.base is not None
    assert (lora.base.family, lora.base.match) == (base.family, "names")
    assert lora.made_for == "diffusers.QwenImageTransformer2DModel (qwen_image) of a size that is not known"
    wide = {"transformer_blocks.3.attn.to_q": (3072, 3072), "transformer_blocks.3.img_mod.1": (18432, 3072)}
    lora = recognised(FORMS["diffusers"].shapes(wide))
    assert lora.base is not None
    assert lora.base.match == "widths"
    assert "Qwen/Qwen-Image" in lora.base.models


def test_the_depth_tells_networks_of_equal_names_and_widths_apart() -> None:
    """Attention alone of 3072 channels: FLUX.1, Qwen-Image and HunyuanVideo have it, of 19, 60 and 20 blocks."""
    for last, family in ((18, "flux"), (59, "qwen_image"), (19, "hunyuan_video")):
        modules = {f"transformer_blocks.{block}.attn.to_q": (3072, 3072) for block in range(last + 1)}
        lora = recognised(FORMS["diffusers"].shapes(modules))
        assert {base.family for base in lora.parts[0].bases} == {family}
    unsure = recognised(FORMS["diffusers"].shapes({"transformer_blocks.5.attn.to_q": (3072, 3072)}))
    assert {base.family for base in unsure.parts[0].bases} >= {"flux", "qwen_image", "hunyuan_video"}


def test_each_network_of_a_file_is_a_part_with_its_own_ranks_and_alphas(tmp_path: Path) -> None:
    file = LoraFile().add(FORMS["kohya"], {f"down_blocks.1.attentions.{n}.proj_in": (640, 640, 1, 1) for n in (0, 1)})
    te = {f"text_model.encoder.layers.{n}.self_attn.q_proj": (768, 768) for n in range(12)}
    file.add(ENCODER_FORMS["kohya"], te, ranks=(4, 8, 4))
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64)
    for number, name in enumerate([name for name in file.tensors if name.endswith(".alpha")]):
        file.tensors[name] = file.tensors[name].to(kinds[number % len(kinds)])
    claims = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "other": "not shown"}
    lora = lading.identify(file.save(tmp_path / "both.safetensors", claims)).lora
    assert lora is not None
    assert lora.claims == {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"}
    denoiser, encoder = lora.parts
    assert (denoiser.component, denoiser.ranks, denoiser.alphas) == ("denoiser", (2,), (1.0, 2.0))
    assert dict(denoiser.modules) == {"down_blocks_#_attentions_#_proj_in": 2}
    assert (encoder.component, encoder.ranks, set(encoder.alphas)) == ("text_encoder", (4, 8), {1.0, 2.0, 3.0})
    assert "openai/clip-vit-large-patch14" in encoder.bases[0].models
    text = str(lading.identify(tmp_path / "both.safetensors"))
    assert "text_encoder  rank 4, 8, alpha " in text
    assert "says        ss_base_model_version = sd_v1" in text


def test_alphas_are_those_of_the_metadata_or_of_pefts_config_where_no_tensor_has_them(tmp_path: Path) -> None:
    modules = {"transformer_blocks.0.attn.to_q": (8, 8), "transformer_blocks.1.attn.to_q": (8, 8)}
    config: dict[str, Any] = {"lora_alpha": 16, "r": 2, "alpha_pattern": {"transformer_blocks.1.attn.to_q": 3}}
    metadata = {f"transformer.{key}": value for key, value in config.items()}
    embedded = LoraFile().add(FORMS["diffusers"], modules)
    found = lading.identify(
        embedded.save(tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(metadata)})
    )
    assert found.lora is not None
    assert found.lora.parts[0].alphas == (16.0, 3.0)
    folder = tmp_path / "peft"
    folder.mkdir()
    LoraFile().add(FORMS["peft"], modules).save(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "some/base"}))
    beside = lading.identify(folder).lora
    assert beside is not None
    assert beside.parts[0].alphas == (16.0, 3.0)
    assert beside.claims == {"base_model_name_or_path": "some/base"}


@pytest.mark.parametrize(
    ("names", "method"),
    [
        (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"), "LoHa"),
        (("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"), "LoKr"),
        (("oft_blocks", "alpha"), "OFT"),
        (("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha"), "LoRA with a Tucker core"),
        (("lora_down.weight", "lora_up.weight", "dora_scale", "alpha"), "DoRA"),
    ],
)
def test_adapters_of_other_methods_are_called_by_their_names(names: tuple[str, ...], method: str) -> None:
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes: dict[str, Shape] = {f"{module}.{name}": () if name == "alpha" else (8, 8) for name in names}
    lora = recognised(shapes)
    assert lora.method == method
    assert lora.parts[0].bases[0].model_class == "diffusers.UNet2DConditionModel"
    assert any(f"a {method} in the kohya dialect" in problem for problem in identify_tensors(shapes).problems)


def test_what_is_odd_in_a_lora_is_said() -> None:
    shapes: dict[str, Shape] = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072),
        "transformer.nowhere.lora_A.weight": (4, 8),
        "transformer.nowhere.lora_B.weight": (8, 4),
        "bundle_emb.token": (1, 768),
    }
    problems = " / ".join(identify_tensors(shapes).problems)
    assert "1 modules have one matrix of two: transformer_blocks.0.attn.to_q" in problems
    assert "not all modules are those of diffusers." in problems
    assert "1 tensors are no adapter's: bundle_emb.token" in problems
    lost = identify_tensors(FORMS["comfyui"].shapes({"some.thing": (8, 8)}))
    assert any("no network that is known has such modules" in problem for problem in lost.problems)


def test_a_network_with_a_few_adapters_among_its_tensors_is_no_lora() -> None:
    shapes: dict[str, Shape] = {f"blocks.{number}.weight": (4, 4) for number in range(9)}
    shapes |= FORMS["comfyui"].shapes({"a": (4, 4)})
    assert identify_tensors(shapes).lora is None


def test_inspect_says_what_a_lora_is_and_its_json_keeps_every_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, 2048)}
    file = LoraFile().add(FORMS["kohya"], modules).save(tmp_path / "lora.safetensors")
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert "LoRA  dialect kohya" in text
    assert "stabilityai/stable-diffusion-xl-base-1.0" in text
    assert "not recognised" not in text
    assert main(["inspect", "--json", str(file)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"hash", "tensors", "nbytes", "dtypes", "candidates", "problems"} <= found.keys()
    assert found["candidates"] == []
    (part,) = found["lora"]["parts"]
    assert found["lora"]["dialect"] == "kohya"
    assert (part["component"], part["rank"], part["alpha"]) == ("denoiser", [2], [1.0])
    assert part["bases"][0]["family"] == "stable_diffusion"
    assert "stabilityai/stable-diffusion-xl-base-1.0" in part["bases"][0]["models"]
    save_file({"weight": torch.ones(2, 2)}, file)
    assert main(["inspect", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["lora"] is None


def test_a_lora_is_recognised_without_torch_in_a_moment(tmp_path: Path) -> None:
    modules = {f"transformer_blocks.{n}.attn.{to}": (3072, 3072) for n in range(60) for to in ("to_q", "to_k", "to_v")}
    shapes = FORMS["kohya"].shapes(modules)
    save_file({name: torch.zeros((1,) * len(shape)) for name, shape in shapes.items()}, tmp_path / "lora.safetensors")
    program = (
        "import sys, time, lading; start = time.process_time(); found = lading.identify(sys.argv[1]);"
        "print(found.lora.parts[0].alphas, time.process_time() - start, 'torch' in sys.modules)"
    )
    run = [sys.executable, "-c", program, str(tmp_path / "lora.safetensors")]
    results = [subprocess.run(run, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert all(result[0] == "(0.0,)" and result[2] == "False" for result in results)
    assert min(float(result[1]) for result in results) < 0.3


HOSTILE: dict[str, dict[str, Shape]] = {
    "no axes": dict.fromkeys(("a.lora_A.weight", "a.lora_B.weight"), ()),
    "sizes of zero": dict.fromkeys(("a.lora_A.weight", "a.lora_B.weight"), (0, 0)),
    "a long number": {f"{'9' * 5000}.lora_A.weight": (4, 4), f"{'9' * 5000}.lora_B.weight": (4, 4)},
    "a long name": {"a." * 100_000 + "lora_A.weight": (4, 4)},
    "nothing but an end": {".lora_A.weight": (4, 4), "lora_unet_.lora_down.weight": (4, 4)},
    "many": {f"blocks.{number}.lora_A.weight": (4, 4) for number in range(100_000)},
    "only alphas": {f"lora_unet_{number}.alpha": () for number in range(10)},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_names_and_shapes_are_an_answer_in_seconds(what: str) -> None:
    start = time.process_time()
    found = identify_tensors(HOSTILE[what])
    assert time.process_time() - start < 10
    assert found.problems
    assert len(found.explain()) < 1_000_000


NO_CONFIGS = ("{", "[1]", '{"transformer.lora_alpha": "a"}', '{"transformer.alpha_pattern": 3}', "[" * 9999)


@pytest.mark.parametrize("text", NO_CONFIGS)
def test_metadata_that_is_no_config_is_no_alpha(tmp_path: Path, text: str) -> None:
    file = LoraFile().add(FORMS["diffusers"], {"transformer_blocks.0.attn.to_q": (8, 8)})
    found = lading.identify(file.save(tmp_path / "lora.safetensors", {"lora_adapter_metadata": text}))
    assert found.lora is not None
    assert found.lora.parts[0].alphas == ()
