"""What a run trains: adapters on the denoiser, the whole denoiser, or the meaning of a word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lading.loading.components import load_components
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


def lora_subject(parts: PipelineParts, settings: Settings, dtype: torch.dtype, device: torch.device) -> Subject:
    """Load the denoiser in its final dtype, frozen, and add adapters in float32."""
    network = _load_denoiser(parts, settings, dtype, device)
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


def full_subject(parts: PipelineParts, settings: Settings, dtype: torch.dtype, device: torch.device) -> Subject:
    """Load the denoiser in float32, all of it trainable; it computes in `dtype`."""
    network = _load_denoiser(parts, settings, torch.float32, device)
    network.requires_grad_(True).train()
    parameters = trainable_parameters(network)

    def save(out: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Path, ...]:
        with holding(parameters, tensors):
            return (_save_pipeline(parts, network, out / "pipeline"),)

    return Subject(network, parameters, training_table(**{parts.denoiser.name: network}), save)


def word_subject(
    parts: PipelineParts, settings: Settings, dtype: torch.dtype, device: torch.device, rehearsal: Rehearsal
) -> Subject:
    """Load the denoiser, frozen, and give the text encoders of a rehearsal the rows of a new word."""
    assert settings.token is not None
    network = _load_denoiser(parts, settings, dtype, device)
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


def _load_denoiser(
    parts: PipelineParts, settings: Settings, dtype: torch.dtype, device: torch.device
) -> torch.nn.Module:
    (network,) = load_components(
        parts.folder,
        [parts.denoiser.name],
        torch_dtype=dtype,
        device=device,
        memory_limit=settings.memory_limit,
        host_memory_limit=settings.host_memory_limit,
    ).values()
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
