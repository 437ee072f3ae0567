"""Networks out of every format: decoded while they load, kept as they are stored, or left to their library."""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import gguf
import numpy as np
import pytest
import torch
import transformers
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor
from safetensors.torch import save_file

import lading
from lading import (
    CheckpointError,
    ComponentError,
    IdentificationError,
    LadingError,
    identify,
    load_component,
    load_model,
)
from lading.catalog import find_architecture
from tests.checkpoint.gguf_files import Type, write_state_dict
from tests.checkpoint.quantised_files import SCHEMES, torchao_metadata
from tests.checkpoint.test_quantised import packed_by_quanto

WAN: dict[str, Any] = {"num_attention_heads": 1, "attention_head_dim": 128, "in_channels": 4, "out_channels": 4}
WAN |= {"text_dim": 32, "freq_dim": 32, "ffn_dim": 256, "num_layers": 3}
FLUX: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2}
FLUX |= {"in_channels": 16, "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12)}


def original(family: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's tensors as its authors name and lay them out."""
    state = dict(model.state_dict())
    name = f"diffusers.{type(model).__name__}"
    key_map = find_architecture(family, name).key_map("original", {key: tuple(t.shape) for key, t in state.items()})
    assert key_map is not None
    return {key: tensor.clone() for key, tensor in key_map.inverse.tensors(state)}


@pytest.fixture(scope="module")
def wan() -> diffusers.WanTransformer3DModel:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(**WAN).eval()


@pytest.fixture(scope="module")
def wan_gguf(wan: diffusers.WanTransformer3DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film network in the mixture of types that such files have."""
    state = original("wan", wan)
    matrices = [name for name, tensor in state.items() if tensor.ndim == 2 and tensor.shape[1] % 32 == 0]
    kinds = {name: Type.Q4_0 if "self_attn" in name else Type.Q8_0 for name in matrices}
    kinds["head.head.weight"] = Type.BF16
    return write_state_dict(tmp_path_factory.mktemp("gguf") / "wan-Q4.gguf", state, kinds)


@pytest.fixture(scope="module")
def wan_by_diffusers(
    wan: diffusers.WanTransformer3DModel, wan_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> diffusers.WanTransformer3DModel:
    """The same file as diffusers loads it, which reshapes nothing and wants a config."""
    folder = tmp_path_factory.mktemp("config")
    wan.save_config(folder)
    state = load_gguf_checkpoint(str(wan_gguf))
    state["patch_embedding.weight"] = state["patch_embedding.weight"].view(wan.patch_embedding.weight.shape)
    keep = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    return diffusers.WanTransformer3DModel.from_single_file(
        state, config=str(folder), quantization_config=keep, torch_dtype=torch.bfloat16
    )


def film(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    noise, prompt = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 8, 32)
    with torch.no_grad():
        result: torch.Tensor = model(
            hidden_states=noise.to(torch.bfloat16),
            timestep=torch.tensor([500]),
            encoder_hidden_states=prompt.to(torch.bfloat16),
            return_dict=False,
        )[0]
    return result


def test_a_gguf_file_is_recognised_at_once_and_loads_to_what_diffusers_decodes(
    wan_gguf: Path, wan_by_diffusers: diffusers.WanTransformer3DModel
) -> None:
    start = time.perf_counter()
    found = identify(wan_gguf)
    assert time.perf_counter() - start < 0.3
    assert found.best is not None
    assert (found.best.family, found.best.layout) == ("wan", "original")
    assert found.quantised == {"Q8_0": 23, "Q4_0": 12}
    assert not found.problems
    assert "quantised Q8_0 x 23, Q4_0 x 12" in found.explain()
    model: Any = load_model(None, wan_gguf)
    parameters = dict(model.named_parameters())
    for name, parameter in wan_by_diffusers.named_parameters():
        assert torch.equal(parameters[name], dequantize_gguf_tensor(parameter).to(parameters[name].dtype)), name
    assert {parameter.dtype for parameter in parameters.values()} == {torch.bfloat16, torch.float32}
    assert torch.equal(film(model), film(wan_by_diffusers))
    assert torch.equal(film(load_component(wan_gguf, "transformer", torch_dtype="bfloat16")), film(model))
    assert torch.equal(film(load_model(None, wan_gguf, use_disk_map=True)), film(model))


def test_under_a_limit_gguf_weights_are_decoded_as_they_stream(wan_gguf: Path) -> None:
    expected = film(load_model(None, wan_gguf))
    model: Any = load_model(None, wan_gguf, memory_limit="3MB")
    assert torch.equal(film(model), expected)
    assert torch.equal(film(model), expected)
    manager = lading.manager_of(model)
    assert manager.plan.placement.streamed_bytes > 0
    manager.release(weights=True)
    assert torch.equal(film(model), expected)


def test_kept_gguf_weights_are_diffusers_own_layers(
    wan_gguf: Path, wan_by_diffusers: diffusers.WanTransformer3DModel
) -> None:
    keep = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    model: Any = load_model(None, wan_gguf, quantization_config=keep)
    kept = {name for name, part in model.named_modules() if isinstance(part, GGUFLinear)}
    theirs = {name for name, part in wan_by_diffusers.named_modules() if isinstance(part, GGUFLinear)}
    assert theirs - kept == {"proj_out"}, "diffusers keeps bfloat16 too, as bytes"
    assert len(kept) == 33
    own = dict(model.named_parameters())
    for name, parameter in wan_by_diffusers.named_parameters():
        if name != "proj_out.weight":
            assert torch.equal(own[name], parameter), name
            assert isinstance(own[name], GGUFParameter) == (name.removesuffix(".weight") in kept), name
    assert torch.equal(film(model), film(wan_by_diffusers))


@pytest.mark.parametrize("by", ["load_model", "manage"])
def test_kept_gguf_weights_stream_as_they_are_stored(wan_gguf: Path, by: str) -> None:
    keep = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    expected = film(load_model(None, wan_gguf, quantization_config=keep))
    if by == "load_model":
        model: Any = load_model(None, wan_gguf, quantization_config=keep, memory_limit="2.5MB")
    else:
        model = load_model(None, wan_gguf, quantization_config=keep)
        lading.manage(model, "2.5MB")
    assert torch.equal(film(model), expected)
    assert torch.equal(film(model), expected)
    manager = lading.manager_of(model)
    assert 0 < manager.plan.placement.streamed_bytes < 1_000_000
    manager.release(weights=True)
    assert torch.equal(film(model), expected)


@pytest.mark.parametrize(("name", "biases"), [("T5EncoderModel", 1), ("UMT5EncoderModel", 2)])
def test_a_text_encoder_in_the_names_of_llama_cpp_loads_as_itself(tmp_path: Path, name: str, biases: int) -> None:
    torch.manual_seed(0)
    config = {"vocab_size": 96, "d_model": 64, "d_kv": 16, "num_heads": 4, "num_layers": 2, "d_ff": 128}
    network: Any = getattr(transformers, name)
    model = network(network.config_class(**config, feed_forward_proj="gated-gelu")).eval()
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    renamed = {f"{names.get_name(key.removesuffix('.weight'))}.weight": tensor for key, tensor in state.items()}
    assert sum("attn_rel_b" in key for key in renamed) == biases
    kinds = {key: Type.Q8_0 for key, tensor in renamed.items() if tensor.shape[-1] % 32 == 0 and tensor.ndim == 2}
    file = write_state_dict(tmp_path / "t5.gguf", renamed, kinds)
    found = identify(file)
    assert found.best is not None
    assert (found.best.model_class, found.best.layout) == (f"transformers.{name}", "llama.cpp")
    assert {key: found.best.config[key] for key in config} == config
    loaded_model: Any = load_model(None, file, torch_dtype="float32")
    loaded = loaded_model.state_dict()
    stored = lading.load_state_dict(file)
    for key, tensor in state.items():
        assert torch.equal(loaded[key], stored[f"{names.get_name(key.removesuffix('.weight'))}.weight"].float()), key
        assert torch.allclose(loaded[key], tensor, atol=0.05), key


def test_what_cannot_be_kept_says_so(wan_gguf: Path, tmp_path: Path, wan: diffusers.WanTransformer3DModel) -> None:
    keep = diffusers.GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    save_file(original("wan", wan), tmp_path / "wan.safetensors")
    with pytest.raises(ComponentError, match="no weights of GGUF to keep"):
        load_model(None, tmp_path / "wan.safetensors", quantization_config=keep)
    with pytest.raises(ComponentError, match=r"give a diffusers\.GGUFQuantizationConfig"):
        load_model(None, wan_gguf, quantization_config=diffusers.BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(ComponentError, match="only networks of diffusers"):
        load_model(torch.nn.Sequential, wan_gguf, config={}, quantization_config=keep)
    with pytest.raises(LadingError, match="neither vram_config nor converter"):
        load_model(diffusers.WanTransformer3DModel, wan_gguf, quantization_config=keep, state_dict_converter=dict)


def quantise(state: Mapping[str, torch.Tensor], what: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Quantise the matrices of a state; return what a file holds and the decoded state."""
    stored: dict[str, torch.Tensor] = {}
    decoded: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            added, decoded[name] = SCHEMES[what][0](name.removesuffix(".weight"), tensor)
            stored |= added
        else:
            stored[name] = decoded[name] = tensor.to(torch.bfloat16)
    return stored, decoded


@pytest.fixture(scope="module")
def flux() -> diffusers.FluxTransformer2DModel:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**FLUX).eval()


@pytest.mark.parametrize("what", SCHEMES)
def test_a_quantised_file_in_an_original_layout_is_named_and_loads_decoded(
    tmp_path: Path, flux: diffusers.FluxTransformer2DModel, what: str
) -> None:
    prefix = "model.diffusion_model."
    stored, decoded = quantise({f"{prefix}{key}": t for key, t in original("flux", flux).items()}, what)
    if "scaled" in what:
        stored[f"{prefix}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    file, plain = tmp_path / "flux.safetensors", tmp_path / "plain.safetensors"
    save_file({name: t.clone().contiguous() for name, t in stored.items()}, file, torchao_metadata(stored))
    save_file({name: t.float().contiguous() for name, t in decoded.items()}, plain)
    found = identify(file)
    assert found.best is not None
    assert (found.best.model_class, found.best.layout, found.best.prefix) == (
        "diffusers.FluxTransformer2DModel",
        "original",
        prefix,
    )
    assert list(found.quantised) == [SCHEMES[what][1]]
    assert {key: found.best.config[key] for key in FLUX if key != "axes_dims_rope"} == {
        key: value for key, value in FLUX.items() if key != "axes_dims_rope"
    }
    config = {"axes_dims_rope": FLUX["axes_dims_rope"]}
    plain_model: Any = load_model(None, plain, config=config, torch_dtype="float32")
    expected = plain_model.state_dict()
    model: Any = load_model(None, file, config=config, torch_dtype="float32")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    streamed: Any = load_model(None, file, config=config, torch_dtype="float32", memory_limit="3MB")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in streamed.state_dict().items())


def write_component(folder: Path, stored: Mapping[str, torch.Tensor], quantization_config: dict[str, Any]) -> Path:
    place = folder / "transformer"
    place.mkdir()
    config = {"_class_name": "FluxTransformer2DModel", **FLUX, "quantization_config": quantization_config}
    (place / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone().contiguous() for name, tensor in stored.items()}
    save_file(tensors, place / "diffusion_pytorch_model.safetensors", torchao_metadata(dict(stored)))
    return folder


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bitsandbytes": ("nf4", {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "torchao": (
        "torchao",
        {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 2}},
        },
    ),
    "optimum": ("quanto", {"quant_method": "quanto", "weights_dtype": "int8"}),
}


@pytest.mark.parametrize("package", CONFIGS)
def test_a_quantised_folder_whose_library_is_not_here_is_decoded(
    tmp_path: Path, flux: diffusers.FluxTransformer2DModel, package: str
) -> None:
    if importlib.util.find_spec(package) is not None and (package != "bitsandbytes" or torch.cuda.is_available()):
        pytest.skip(f"{package} loads it")
    what, quantization_config = CONFIGS[package]
    stored, decoded = quantise(flux.state_dict(), what)
    folder = write_component(tmp_path, stored, quantization_config)
    for limit in (None, "3MB"):
        model = load_component(folder, "transformer", torch_dtype="float32", memory_limit=limit)
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor.float()) for name, tensor in decoded.items())
    assert "quantization_config" not in model.config


@pytest.mark.skipif(importlib.util.find_spec("optimum") is not None, reason="optimum-quanto loads it")
def test_a_quantised_folder_that_nobody_here_can_load_names_what_to_install(tmp_path: Path) -> None:
    folder = write_component(tmp_path, packed_by_quanto(), CONFIGS["optimum"][1])
    with pytest.raises(ComponentError, match=r"quantised by quanto.*pip install optimum-quanto"):
        load_component(folder, "transformer")
    with pytest.raises(CheckpointError, match="pip install optimum-quanto"):
        load_model(diffusers.FluxTransformer2DModel, folder / "transformer", config=FLUX)


def test_a_family_is_named_where_the_shapes_of_its_weights_are_not_in_the_file(
    tmp_path: Path, flux: diffusers.FluxTransformer2DModel
) -> None:
    packed = packed_by_quanto()
    stored = {
        (f"{name}{end}" if tensor.ndim == 2 else name): (codes if tensor.ndim == 2 else tensor)
        for name, tensor in flux.state_dict().items()
        for end, codes in ((name.removeprefix("a.weight"), t) for name, t in packed.items() if name.startswith("a.w"))
    }
    save_file({name: t.clone().contiguous() for name, t in stored.items()}, tmp_path / "model.safetensors")
    found = identify(tmp_path / "model.safetensors")
    assert found.best is not None
    assert found.best.model_class == "diffusers.FluxTransformer2DModel"
    assert found.best.config == {}
    assert list(found.quantised) == ["quanto, packed"]
    assert any("pip install optimum-quanto" in problem for problem in found.problems)
    with pytest.raises(CheckpointError, match="pip install optimum-quanto"):
        load_model(None, tmp_path / "model.safetensors")


def training_checkpoint(networks: Mapping[str, Any]) -> dict[str, Any]:
    """What training scripts save with the weights."""
    counts: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    counts[0]["exp_avg"] = torch.ones(3)
    return {
        **networks,
        "epoch": 3,
        "global_step": np.int64(1000),
        "loss": np.float32(0.1),
        "args": argparse.Namespace(lr=1e-4, out=Path("there")),
        "optimizer_states": [{"state": counts, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "history": np.arange(3),
        "seen": {1, 2},
    }


def test_a_training_checkpoint_of_several_networks_loads_each(
    tmp_path: Path, flux: diffusers.FluxTransformer2DModel
) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in flux.state_dict().items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in original("autoencoder_kl", vae).items()}
    file = tmp_path / "model.ckpt"
    torch.save(training_checkpoint({"state_dict": state}), file)
    found = identify(file)
    assert {one.prefix: one.component for one in found.candidates} == {
        "state_dict.model.diffusion_model.": "transformer",
        "state_dict.first_stage_model.": "vae",
    }
    loaded = load_model(diffusers.FluxTransformer2DModel, file, config=FLUX, torch_dtype="float32")
    assert all(torch.equal(tensor, flux.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    other = load_component(file, "vae", torch_dtype="float32")
    assert all(torch.equal(tensor, vae.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_the_averaged_copy_of_a_network_is_another_candidate(
    tmp_path: Path, flux: diffusers.FluxTransformer2DModel
) -> None:
    state = dict(flux.state_dict())
    averaged = {name: tensor / 2 for name, tensor in state.items()}
    file = tmp_path / "model.pt"
    torch.save(training_checkpoint({"generator": {"model": state}, "generator_ema": {"model": averaged}}), file)
    found = identify(file)
    assert Counter(one.prefix for one in found.candidates) == {"generator.model.": 1, "generator_ema.model.": 1}
    with pytest.raises(IdentificationError, match="several networks"):
        load_model(None, file)
    chosen = next(one for one in found.candidates if one.prefix == "generator_ema.model.")
    loaded: Any = load_model(chosen, file, config={"axes_dims_rope": FLUX["axes_dims_rope"]}, torch_dtype="float32")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in loaded.state_dict().items())


def test_every_single_wrapper_is_taken_off(tmp_path: Path, flux: diffusers.FluxTransformer2DModel) -> None:
    state = dict(flux.state_dict())
    for wrapper in ("model", "ema", "state_dict", "module", "net", "params_ema", "student"):
        file = tmp_path / f"{wrapper}.pth"
        torch.save(training_checkpoint({wrapper: {f"module.{name}": tensor for name, tensor in state.items()}}), file)
        best = identify(file).best
        assert best is not None, wrapper
        assert (best.model_class, best.prefix) == ("diffusers.FluxTransformer2DModel", f"{wrapper}.module.")
