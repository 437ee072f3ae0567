"""Each component from its own subfolder, with its own dtype, device, revision and variant, visible and checked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from lading import (
    CheckpointError,
    ComponentError,
    LadingError,
    load_component,
    load_components,
    load_pipeline,
    shipped_model,
)
from lading.loading import LoadOptions, register_loader
from lading.loading.loaders import _LOADERS, ComponentSpec, Loaded
from tests.loading.test_model import same_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model that a test may spoil."""
    return Path(shutil.copytree(shipped_model(), tmp_path / "model"))


NAMES = ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]


def test_every_component_of_the_shipped_model_loads_as_its_own_class_loads_it() -> None:
    parts = load_components("shapes")
    assert list(parts) == NAMES
    for name, model_class in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        assert type(parts[name]) is model_class
        assert same_tensors(parts[name], model_class.from_pretrained(shipped_model() / name))
        assert not parts[name].training
    assert parts.scheduler.config == DDIMScheduler.from_pretrained(shipped_model() / "scheduler").config
    text = "a small red circle on a white background"
    assert parts.tokenizer(text) == CLIPTokenizer.from_pretrained(shipped_model() / "tokenizer")(text)


def test_each_component_has_its_own_dtype_with_a_default() -> None:
    parts = load_components("shapes", torch_dtype={"vae": "float32", "default": torch.bfloat16})
    assert parts.vae.dtype == torch.float32
    assert parts.unet.dtype == parts.text_encoder.dtype == torch.bfloat16


def test_the_loading_path_is_printed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lading.loading"):
        parts = load_components("shapes", ["unet", "tokenizer"], torch_dtype="float16")
    lines = str(parts).splitlines()
    header = "component loader class files tensors bytes dtype device ms"
    assert lines[0].split() == header.split()
    unet, tokenizer = parts.records
    assert lines[1].split()[:3] == ["unet", "network", "diffusers.UNet2DConditionModel"]
    assert unet.tensors == len(list(parts.unet.parameters())) + len(list(parts.unet.buffers()))
    assert unet.nbytes == sum(parameter.nbytes for parameter in parts.unet.parameters())
    assert (unet.dtype, unet.device) == ("float16", "cpu")
    assert [file.name for file in unet.files] == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert (tokenizer.loader, tokenizer.tensors, tokenizer.dtype) == ("tokenizer", 0, None)
    assert {"unet", "tokenizer"} <= {word for message in caplog.messages for word in message.split()}


def test_components_are_reached_by_attribute_and_by_name() -> None:
    parts = load_components("shapes", ["scheduler"])
    assert parts.scheduler is parts["scheduler"]
    with pytest.raises(KeyError, match="there are scheduler"):
        parts["unet"]
    with pytest.raises(AttributeError, match="there are scheduler"):
        _ = parts.unet


def test_a_variant_is_chosen_by_name_and_only_where_it_exists(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    marked = {name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(marked, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    vae = load_component(folder, "vae", variant="fp16")
    assert not any(parameter.any() for parameter in vae.parameters())
    parts = load_components(folder, ["vae", "unet"], variant="fp16")
    assert not any(parameter.any() for parameter in parts.vae.parameters())
    assert any(parameter.any() for parameter in parts.unet.parameters())
    with pytest.raises(CheckpointError, match=r"of variant 'fp16'.*holds"):
        load_component(folder, "unet", variant="fp16")
    with pytest.raises(ComponentError, match="no component has weights of variant 'ema'"):
        load_components(folder, variant="ema")


def test_sharded_weights_load_like_one_file(folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float16)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae", max_shard_size="500KB")
    assert len(list((folder / "vae").glob("*.safetensors"))) > 2
    assert same_tensors(load_component(folder, "vae", torch.float16), vae)


def test_torch_weights_load_like_safetensors(folder: Path) -> None:
    weights = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert same_tensors(load_component(folder, "text_encoder"), load_component("shapes", "text_encoder"))


def test_a_folder_without_model_index_tells_classes_from_configs(folder: Path) -> None:
    (folder / "model_index.json").unlink()
    for name in NAMES:
        assert type(load_component(folder, name)).__name__ == type(load_component("shapes", name)).__name__


def test_a_component_that_nobody_registered_goes_to_the_generic_loader(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["judge"] = ["transformers", "CLIPImageProcessorPil"]
    index["second_opinion"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    from transformers import CLIPImageProcessorPil

    CLIPImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(folder / "judge")
    shutil.copytree(folder / "vae", folder / "second_opinion")
    parts = load_components(folder, ["judge", "second_opinion"])
    assert [record.loader for record in parts.records] == ["generic", "generic"]
    assert parts.judge.size["shortest_edge"] == 32
    assert same_tensors(parts.second_opinion, load_component("shapes", "vae"))


def test_a_registered_loader_serves_its_name_and_numbered_ones(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def load(spec: ComponentSpec, component_class: type, options: LoadOptions) -> Loaded:
        return Loaded((spec.name, component_class.__name__, options.torch_dtype))

    monkeypatch.setattr("lading.loading.loaders._LOADERS", dict(_LOADERS))
    register_loader("vae", load, "mine")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae_2"] = index["vae"]
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(folder / "vae", folder / "vae_2")
    parts = load_components(folder, ["vae", "vae_2"], torch_dtype="float16")
    assert parts.vae_2 == ("vae_2", "AutoencoderKL", "float16")
    assert [record.loader for record in parts.records] == ["mine", "mine"]


def test_nothing_touches_a_device_before_it_is_asked_for() -> None:
    parts = load_components("shapes", device={"vae": "meta"})
    assert all(parameter.is_meta for parameter in parts.vae.parameters())
    assert {parameter.device.type for parameter in parts.unet.parameters()} == {"cpu"}
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call] # torch leaves it so


def set_class(folder: Path, name: str, library: str, class_name: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = [library, class_name]
    (folder / "model_index.json").write_text(json.dumps(index))


def test_an_unknown_component_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ComponentError, match=r"no component 'denoiser': it has scheduler, text_encoder"):
        load_component("shapes", "denoiser")
    with pytest.raises(ComponentError, match="not the name of a component"):
        load_component("shapes", "../vae")


@pytest.mark.parametrize("missing", ["vae", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_component_whose_files_are_absent_is_an_error_that_says_which(folder: Path, missing: str) -> None:
    place = folder / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(LadingError, match="vae"):
        load_component(folder, "vae")


def test_a_tokenizer_without_its_vocabulary_is_an_error(folder: Path) -> None:
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    with pytest.raises(ComponentError, match="no vocabulary"):
        load_component(folder, "tokenizer")


@pytest.mark.parametrize("name", ["tokenizer", "scheduler"])
def test_an_emptied_component_folder_is_an_error(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    (folder / name).mkdir()
    with pytest.raises(LadingError, match=name):
        load_component(folder, name)


def test_a_class_that_the_library_lacks_is_an_error(folder: Path) -> None:
    set_class(folder, "vae", "diffusers", "AutoencoderFromTheFuture")
    with pytest.raises(ComponentError, match=r"diffusers\.AutoencoderFromTheFuture"):
        load_component(folder, "vae")


def test_code_that_a_file_names_is_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder))
    for library in ("evil", "os", "subprocess"):
        set_class(folder, "vae", library, "Popen")
        with pytest.raises(ComponentError, match="only diffusers and"):
            load_component(folder, "vae")


def test_code_beside_a_pipeline_that_is_named_as_a_component_is_not_run(folder: Path) -> None:
    set_class(folder, "vae", "diffusers", "DiffusionPipeline")
    (folder / "vae" / "model_index.json").write_text('{"_class_name": ["evil", "Evil"], "_diffusers_version": "0.42"}')
    for name in ("evil", "None", "pipeline"):
        (folder / "vae" / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ComponentError, match="'vae'"):
        load_component(folder, "vae")
    set_class(folder, "vae", "diffusers", "AutoencoderKL")
    with contextlib.suppress(LadingError, ValueError, OSError):
        load_pipeline(folder)
    assert not (folder / "ran").exists()


class Payload:
    """What an attacker puts into a checkpoint: unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_a_pickle_in_a_component_is_not_run(folder: Path, name: str, quantised: bool) -> None:
    (file,) = (folder / name).glob("*.safetensors")
    suffix = ".bin" if name == "vae" else "pytorch_model.bin"
    torch.save(
        {**load_file(file), "x": Payload(folder / "ran")},
        file.with_suffix(suffix) if name == "vae" else file.with_name(suffix),
    )
    file.unlink()
    if quantised:
        quantise_config(folder / name)
    with pytest.raises(LadingError, match=r"holds code, posix\.system"):
        load_component(folder, name)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("way", ["index", "link"])
@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_weights_outside_of_a_component_are_not_read(folder: Path, name: str, way: str, quantised: bool) -> None:
    (file,) = (folder / name).glob("*.safetensors")
    outside = file.rename(folder.parent / "outside.safetensors")
    if way == "link":
        file.symlink_to(outside)
    else:
        weight_map = dict.fromkeys(load_file(outside), "../../outside.safetensors")
        index = file.with_name(f"{file.name}.index.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if quantised:
        quantise_config(folder / name)
    with pytest.raises(CheckpointError, match="outside its folder: refused"):
        load_component(folder, name)


def quantise_config(folder: Path) -> None:
    """Have a component's config say that its library is to load it."""
    file = folder / "config.json"
    quantization = {"quant_method": "quanto", "weights_dtype": "int8", "weights": "int8"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantization}))


@pytest.mark.parametrize("content", ["", "[]", '{"vae": [1, 2]}', '{"vae": ["diffusers"]}'])
def test_a_bad_model_index_is_an_error(folder: Path, content: str) -> None:
    (folder / "model_index.json").write_text(content)
    with pytest.raises(ComponentError, match="model_index"):
        load_components(folder)


@pytest.mark.parametrize("option", ["torch_dtype", "device", "variant"])
def test_an_option_for_a_component_that_is_not_loaded_is_an_error(option: str) -> None:
    options: dict[str, Any] = {option: {"vea": "float16"}}
    with pytest.raises(ComponentError, match="'vea'"):
        load_components("shapes", **options)


def test_a_dtype_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(LadingError, match="no dtype 'float12'"):
        load_component("shapes", "vae", torch_dtype="float12")


def test_a_local_folder_has_no_revisions() -> None:
    with pytest.raises(ComponentError, match="no revision 'main'"):
        load_component("shapes", "vae", revision="main")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match="no such folder"):
        load_components(tmp_path / "absent")
