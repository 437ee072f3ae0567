"""What a run trains: adapters on the denoiser, the whole denoiser, or the meaning of a word."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lading.loading.components import load_by_spec
from lading.loading.configs import read_config
from lading.loading.loaders import LoadOptions, resolve_class
from lading.loading.network import build_empty, fill
from lading.loading.streamed import limits_on
from lading.training.adapters import add_lora, save_lora
from lading.training.conditions import Conditions
from lading.training.durable import whole
from lading.training.freezing import TrainingTable, freeze, trainable_parameters, training_table
from lading.training.inversion import save_word, teach_word
from lading.training.order import generator_for
from lading.training.parts import PipelineParts
from lading.training.preparation import Framed
from lading.training.rehearsal import Rehearsal
from lading.training.settings import Settings
from lading.training.world import World

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a folder given to `load_lora_weights`."""

KOHYA_FILE = "kohya_lora_weights.safetensors"

WORD_FILE = "learned_embeds.safetensors"
"""What diffusers looks for in a folder given to `load_textual_inversion`."""


@dataclass(frozen=True)
class Subject:
    """What is trained, beside what it is trained through.

    Attributes:
        denoiser: the network that predicts, resident or streamed.
        parameters: that are trained, by name, in float32.
        table: what that takes.
        save: given a folder and the trained weights by name, writes what diffusers loads; returns the files.
        conditions: gives an example's conditions where training changes them.
        encoders: that drawing needs where training changes them, by name.
    """

    denoiser: torch.nn.Module
    parameters: dict[str, torch.nn.Parameter]
    table: TrainingTable
    save: Callable[[Path, Mapping[str, torch.Tensor]], tuple[Path, ...]]
    conditions: Callable[[Framed], Conditions] | None = None
    encoders: Mapping[str, Any] | None = None


def lora_subject(parts: PipelineParts, settings: Settings, network: torch.nn.Module) -> Subject:
    """Freeze a denoiser, in its final dtype, and add adapters in float32."""
    freeze(network)
    torch.manual_seed(generator_for(settings.seed, "adapters").initial_seed())
    parameters = add_lora(network, settings.rank, settings.alpha, settings.target_modules, settings.lora_dropout)
    network.train()

    def save(out: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Path, ...]:
        component = parts.denoiser.name
        files = [save_lora(network, out / LORA_FILE, component, tensors=tensors)]
        if settings.kohya:
            files.append(save_lora(network, out / KOHYA_FILE, component, layout="kohya", tensors=tensors))
        return tuple(files)

    return Subject(network, parameters, training_table(**{parts.denoiser.name: network}), save)


def full_subject(parts: PipelineParts, settings: Settings, network: torch.nn.Module) -> Subject:
    """Thaw all of a denoiser, which is in float32."""
    network.requires_grad_(True).train()
    parameters = trainable_parameters(network)

    def save(out: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Path, ...]:
        buffers = {name: tensor for name, tensor in network.state_dict().items() if name not in parameters}
        trained = _empty(parts)  # not the network itself, of which each process may have a part
        fill(trained, {**buffers, **tensors}, "the trained weights")
        return (_save_pipeline(parts, trained, out / "pipeline"),)

    return Subject(network, parameters, training_table(**{parts.denoiser.name: network}), save)


def word_subject(parts: PipelineParts, settings: Settings, network: torch.nn.Module, rehearsal: Rehearsal) -> Subject:
    """Freeze a denoiser, and give the text encoders of a rehearsal the rows of a new word."""
    assert settings.token is not None
    encoders = {name: rehearsal.pipeline.components[name] for name in parts.encoders}
    modules = {name: part for name, part in encoders.items() if isinstance(part, torch.nn.Module)}
    freeze(network, *modules.values())
    parameters = teach_word(rehearsal.pipeline, settings.token, settings.initial_word, settings.vectors)

    def save(out: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Path, ...]:
        assert settings.token is not None
        return (save_word(out / WORD_FILE, settings.token, tensors),)

    def conditions(each: Framed) -> Conditions:
        return rehearsal.conditions(each.example.caption, each.extent, differentiable=True)

    table = training_table(**{parts.denoiser.name: network}, **modules)
    return Subject(network, parameters, table, save, conditions, encoders)


def empty_denoiser(parts: PipelineParts, settings: Settings) -> torch.nn.Module:
    """Return the denoiser as full fine-tuning trains it, on the meta device: nothing has been read."""
    return _checkpointed(_empty(parts), settings).train()


def _empty(parts: PipelineParts) -> torch.nn.Module:
    return build_empty(resolve_class(parts.denoiser), read_config(parts.denoiser.folder / "config.json"), None)


def load_denoiser(
    parts: PipelineParts, settings: Settings, dtype: torch.dtype, device: torch.device, world: World
) -> torch.nn.Module:
    """Load the denoiser, or, where several processes hold it together, this one's part.

    Under a limit none of its weights are read before the limit is set, when all else is known; what is trained whole
    is not streamed.
    """
    streamed = settings.method != "full"
    limits = limits_on(device, settings.memory_limit, settings.host_memory_limit) if streamed else None
    if limits is not None:
        limits.memory = sys.maxsize
    variant = parts.variants.get(parts.denoiser.name)
    network, _ = load_by_spec(parts.denoiser, LoadOptions(dtype, device, variant, limits, world.mesh))
    return _checkpointed(network, settings)


def _checkpointed(network: Any, settings: Settings) -> torch.nn.Module:
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    assert isinstance(network, torch.nn.Module)
    return network


@contextmanager
def holding(parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Hold other values in parameters, and put their own back."""
    if all(tensors[name] is parameter for name, parameter in parameters.items()):
        yield
        return
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])


def _linked(file: Path, place: Path) -> bool:
    try:
        os.link(file.resolve(), place)
    except OSError:  # another disk, or one that has no links
        return False
    return True


def _save_pipeline(parts: PipelineParts, network: Any, folder: Path) -> Path:
    """Write a pipeline whose denoiser is the trained one, in float32; the others' weights are linked if they can be."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder, durable=False) as part:
        for file in parts.folder.rglob("*"):
            place = part / file.relative_to(parts.folder)
            if file.is_dir() or parts.denoiser.folder in file.parents:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix != ".safetensors" or not _linked(file, place):
                shutil.copyfile(file, place)
        network.save_pretrained(part / parts.denoiser.name)
    return folder
