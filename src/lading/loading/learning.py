"""What of a network learns, and what that takes beside its weights; on the meta device too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch

from lading.catalog.registry import known_architecture
from lading.errors import ComponentError, LadingError
from lading.loading.blueprint import Blueprint
from lading.loading.plans import TrainingPlan

Method: TypeAlias = Literal["lora", "full", "textual-inversion"]

OPTIMIZER_COPIES = 2
"""AdamW keeps a mean and a square of each gradient, in the parameter's dtype."""

OPTIMIZER_PASSES = 7
"""How often AdamW's step goes over a parameter's bytes: it reads weight, gradient and two states, and writes all but
the gradient."""

RANK = 8
STEPS = 1000


@dataclass(frozen=True)
class Lesson:
    """What is to be trained, and how.

    Attributes:
        rank: of a LoRA.
        checkpointing: whether activations are computed again for the backward pass.
    """

    method: Method
    rank: int = RANK
    checkpointing: bool = False

    @classmethod
    def of(cls, method: str | None, rank: int | None, checkpointing: bool) -> Lesson | None:
        """Return what arguments ask for; None for no training.

        Raises:
            LadingError: there is no such method, or it has no rank.
        """
        if method is None:
            if rank is not None or checkpointing:
                given = "rank" if rank is not None else "gradient_checkpointing"
                raise LadingError(f'{given} is for training: give train="lora" too')
            return None
        if method not in get_args(Method):
            raise LadingError(f"train={method!r} is no way to train: use one of {', '.join(get_args(Method))}")
        if rank is not None and (method != "lora" or rank < 1):
            raise LadingError(f"rank {rank} is for LoRA, and 1 or more: train={method!r}")
        return cls(method, RANK if rank is None else rank, checkpointing)  # type: ignore[arg-type] # it is one of them

    def learning(self, blueprint: Blueprint) -> tuple[str, ...]:
        """Return the components that gradients come back through, the denoiser last.

        Raises:
            ComponentError: no text encoder takes learned words.
        """
        denoiser = blueprint.denoisers[0]
        if self.method != "textual-inversion":
            return (denoiser,)
        encoders = tuple(
            name
            for name, network in blueprint.networks.items()
            if name.startswith("text_encoder") and "CLIP" in network.model_class
        )
        if not encoders:
            raise ComponentError(f"{blueprint.name} has no text encoder that takes learned words: train a LoRA")
        return (*encoders, denoiser)

    def prepare(self, modules: Mapping[str, torch.nn.Module], denoiser: str) -> TrainingPlan:
        """Freeze networks that gradients come back through, add what learns, and say what that takes.

        Raises:
            ComponentError: the catalog does not say which layers of the denoiser a LoRA changes.
        """
        for module in modules.values():
            module.requires_grad_(False).train()
        network: Any = modules[denoiser]
        if self.checkpointing:
            if not getattr(network, "_supports_gradient_checkpointing", False):
                raise ComponentError(f"{type(network).__name__} cannot compute activations again: train without that")
            network.enable_gradient_checkpointing()
        if self.method == "full":
            network.requires_grad_(True)
        elif self.method == "lora":
            _add_adapters(network, self.rank)
        else:
            for name, module in modules.items():
                if name != denoiser:
                    _add_rows(module)
        learned = [parameter for module in modules.values() for parameter in module.parameters()]
        return _training_plan(self, (parameter for parameter in learned if parameter.requires_grad))


def _training_plan(lesson: Lesson, parameters: Iterable[torch.nn.Parameter]) -> TrainingPlan:
    sizes = [(parameter.numel(), parameter.nbytes) for parameter in parameters]
    nbytes = sum(size for _, size in sizes)
    rank = lesson.rank if lesson.method == "lora" else None
    return TrainingPlan(
        lesson.method, rank, sum(count for count, _ in sizes), nbytes, nbytes, OPTIMIZER_COPIES * nbytes
    )


def _add_adapters(module: torch.nn.Module, rank: int) -> None:
    """Add a LoRA without values, in float32, to the layers that the catalog says."""
    from peft import LoraConfig, inject_adapter_in_model

    architecture = known_architecture(f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}")
    if architecture is None or not architecture.lora_targets:
        raise ComponentError(f"the catalog names no layers of {type(module).__name__} for LoRA")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(architecture.lora_targets))
    inject_adapter_in_model(config, module, low_cpu_mem_usage=True)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _add_rows(encoder: Any) -> None:
    """Give a text encoder a row that is learnt."""
    encoder.set_input_embeddings(_Rows(encoder.get_input_embeddings()))


class _Rows(torch.nn.Module):
    """An embedding of words of which one more is learnt, in float32."""

    def __init__(self, known: torch.nn.Embedding) -> None:
        super().__init__()
        self.known = known
        self.learned = torch.nn.Parameter(torch.empty(1, known.embedding_dim, device="meta"))

    @property
    def weight(self) -> torch.Tensor:
        return self.known.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.known(tokens)
        return torch.where((tokens > 0).unsqueeze(-1), rows, self.learned[0].to(rows.dtype))
