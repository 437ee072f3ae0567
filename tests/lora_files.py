"""LoRA files as trainers write them: each dialect's names, for the modules of any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """How one trainer names what it saves.

    Attributes:
        dialect: as lading calls it.
        down: name of the matrix for a module.
        up: likewise.
        alpha: likewise; None where the trainer writes none.
        is_flat: whether modules are written with `_` for every dot.
    """

    dialect: str
    down: str
    up: str
    alpha: str | None = None
    is_flat: bool = False

    def shapes(self, modules: Mapping[str, Shape], rank: int = 4) -> dict[str, Shape]:
        """The names and shapes of a file for weights of these shapes."""
        found: dict[str, Shape] = {}
        for module, shape in modules.items():
            name = module.replace(".", "_") if self.is_flat else module
            found[self.down.format(name)] = (rank, *shape[1:])
            found[self.up.format(name)] = (shape[0], rank, *(1,) * (len(shape) - 2))
            if self.alpha is not None:
                found[self.alpha.format(name)] = ()
        return found


FORMS = {
    "kohya": Form(
        "kohya", "lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight", "lora_unet_{}.alpha", is_flat=True
    ),
    "musubi": Form(
        "kohya",
        "diffusion_model.{}.lora_down.weight",
        "diffusion_model.{}.lora_up.weight",
        "diffusion_model.{}.alpha",
    ),
    "comfyui": Form("comfyui", "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight"),
    "diffusers": Form("diffusers", "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "diffusers, before PEFT": Form("diffusers", "transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight"),
    "peft": Form("peft", "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "diffsynth": Form("diffsynth", "{}.lora_A.default.weight", "{}.lora_B.default.weight"),
}
"""What files for a denoiser look like."""

XLABS = Form("xlabs", "{}.down.weight", "{}.up.weight")
"""Modules end in `processor.qkv_lora1` and their like."""

ENCODER_FORMS = {
    "kohya": Form(
        "kohya", "lora_te1_{}.lora_down.weight", "lora_te1_{}.lora_up.weight", "lora_te1_{}.alpha", is_flat=True
    ),
    "diffusers": Form("diffusers", "text_encoder.{}.lora_A.weight", "text_encoder.{}.lora_B.weight"),
}


@dataclass
class LoraFile:
    """A file in the making, and what it adds to each weight.

    Attributes:
        tensors: by the file's names.
        added: module, in the file's layout -> its matrices, up and down, their scale, and the shape of its weight.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    added: dict[str, tuple[torch.Tensor, torch.Tensor, float, Shape]] = field(default_factory=dict)

    @property
    def deltas(self) -> dict[str, torch.Tensor]:
        """Module, in the file's layout -> what is added to its weight."""
        return {
            module: scale * (up.flatten(1) @ down.flatten(1)).reshape(shape)
            for module, (up, down, scale, shape) in self.added.items()
        }

    def add(
        self,
        form: Form,
        modules: Mapping[str, Shape],
        ranks: Sequence[int] = (2,),
        alphas: Sequence[float] = (1.0, 2.0, 3.0),
        seed: int = 1,
    ) -> LoraFile:
        """Add modules with random matrices; ranks and alphas take turns, alphas where the form has them."""
        generator = torch.Generator().manual_seed(seed)
        for number, (module, shape) in enumerate(modules.items()):
            rank = ranks[number % len(ranks)]
            name = module.replace(".", "_") if form.is_flat else module
            down = torch.randn(rank, *shape[1:], generator=generator)
            up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator)
            self.tensors |= {form.down.format(name): down, form.up.format(name): up}
            alpha = float(rank)
            if form.alpha is not None:
                alpha = alphas[number % len(alphas)]
                self.tensors[form.alpha.format(name)] = torch.tensor(alpha)
            self.added[module] = up, down, alpha / rank, shape
        return self

    def save(self, file: Path, metadata: dict[str, str] | None = None) -> Path:
        """Write the file."""
        save_file(self.tensors, file, metadata)
        return file


def added(module: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    """What an adapter adds to the weight of each layer."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, torch.Tensor] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LoraLayer) and isinstance(layer, torch.nn.Module) and name in layer.lora_A:
            down = layer.get_parameter(f"lora_A.{name}.weight")
            up = layer.get_parameter(f"lora_B.{name}.weight")
            product = up.flatten(1) @ down.flatten(1)
            found[path] = layer.scaling[name] * product.reshape(up.shape[0], *down.shape[1:])
    return found


def assert_added(network: torch.nn.Module, name: str, expected: Mapping[str, torch.Tensor]) -> None:
    """Check what an adapter adds to which layers, but for rounding."""
    found = added(network, name)
    assert found.keys() == expected.keys()
    for layer, delta in expected.items():
        torch.testing.assert_close(found[layer].reshape(delta.shape), delta, rtol=1e-4, atol=1e-4)


def layers(module: torch.nn.Module) -> dict[str, Shape]:
    """The linear layers of a network, with the shapes of their weights."""
    found = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear))
    return {name: tuple(layer.weight.shape) for name, layer in found}
